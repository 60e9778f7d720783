"""Layers of the decoder-only Transformer: T5 relative bias, RMS norm, causal attention, gated MLP.

Shapes: b batch, l flat length, d model, h heads, c head channels, f d_ff. Parameters are float32 and carry logical axis
names ('embed', 'mlp', 'heads', 'kv'). Activations have the dtype of a layer's input; norms and softmax are float32.
The reference is T5 (arXiv 1910.10683) with the gated GELU of T5 1.1 (arXiv 2002.05202).
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.kernels.block_attention import block_attention
from musiclm_jax.kernels.cudnn_attention import cudnn_attention
from musiclm_jax.kernels.flash_attention import MASKED, flash_attention, lowering_platform
from musiclm_jax.kernels.int8 import SCALE, int8_product
from musiclm_jax.kernels.rounded_products import rounded_einsum
from musiclm_jax.kernels.transposed import TRANSPOSED, transposed_product

ATTENTIONS = ("auto", "blocks", "flash", "cudnn")


def relative_buckets(distances: np.ndarray, num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns T5's causal buckets: one per distance for the first half of them, then logarithmic.

    Args:
      distances: int, query position - key position; negative distances (the future) fall into bucket 0.
      num_buckets: number of buckets.
      max_distance: distance from which on all distances share the last bucket.

    Returns:
      int32 of the same shape, in [0, num_buckets).
    """
    distances = np.maximum(distances, 0)
    exact = num_buckets // 2
    scaled = np.log(np.maximum(distances, 1).astype(np.float32) / exact) / np.float32(np.log(max_distance / exact))
    large = exact + (scaled * (num_buckets - exact)).astype(np.int32)
    return np.where(distances < exact, distances, np.minimum(large, num_buckets - 1)).astype(np.int32)


def saturation_distance(num_buckets: int, max_distance: int) -> int:
    """Returns the smallest distance that falls into the last bucket; all larger ones do too."""
    return int(np.argmax(relative_buckets(np.arange(max_distance + 1), num_buckets, max_distance) == num_buckets - 1))


def distance_bias(table: jax.Array, length: int, max_distance: int) -> jax.Array:
    """Returns the bias of each distance 0..length-1, float32 [h, length], from T5's table [buckets, h].

    Uses a product with one-hot rows: its gradient is a product too, while that of a gather is a slow scatter.
    """
    num_buckets = table.shape[0]
    one_hot = np.eye(num_buckets, dtype=np.float32)[relative_buckets(np.arange(length), num_buckets, max_distance)]
    return jnp.einsum("nl,lh->hn", one_hot, table, precision=jax.lax.Precision.HIGHEST)


def bits16(x: jax.Array) -> jax.Array:
    """Returns the bits of x as bfloat16, uint16. On CPUs, XLA would rewrite a whole bfloat16 cache for each token."""
    return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)


def wide(kept: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Inverts `bits16` up to rounding; arrays of any other dtype than uint16 are only cast to `dtype`."""
    return (jax.lax.bitcast_convert_type(kept, jnp.bfloat16) if kept.dtype == jnp.uint16 else kept).astype(dtype)


def attention_to_past(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, valid: jax.Array, position: jax.Array
) -> jax.Array:
    """Computes softmax attention of one token to a KV cache that already contains its own key and value.

    Args:
      q: query [b, h, 1, c], already scaled.
      k: keys [b, h, length, c], or their `bits16`.
      v: values, like `k`.
      bias: bias of each key, float32 [h, length], with keys after the token masked.
      valid: bool [b, length], keys that may be attended to.
      position: int32 scalar, position of the token.

    Returns:
      [b, h, 1, c] in the dtype of q.
    """
    operands = (q, k, v, bias, valid, position)
    if q.dtype != jnp.float32 or k.dtype not in (jnp.float32, jnp.uint16):
        return attention_to_past_xla(*operands)
    from musiclm_jax.kernels import cpu_decoding  # compiles when it is imported

    return jax.lax.platform_dependent(
        *operands, cpu=cpu_decoding.attention_to_past_numba, default=attention_to_past_xla
    )


def attention_to_past_xla(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, valid: jax.Array, position: jax.Array
) -> jax.Array:
    """Computes `attention_to_past` with XLA."""
    k, v = wide(k, q.dtype), wide(v, q.dtype)
    seen = bias[None, :, None, :] + jnp.where(valid, 0.0, MASKED)[:, None, None, :]
    scores = jnp.einsum("bhqc,bhkc->bhqk", q, k, preferred_element_type=jnp.float32) + seen
    return jnp.einsum("bhqk,bhkc->bhqc", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies x [b, l, d] by a kernel [d, f]; the kernel's gradient sums over b and l in memory order.

    JAX's own rule computes a transposed gradient of the kernel. On CPUs, XLA then transposes the gradient of the
    result, together with the elementwise operations that produce it: a train step of the tiny coarse stage would take
    1.4 times as long (benchmarks/stage_step.py).
    """
    return x @ kernel


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _product_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    of_x = jax.lax.dot_general(gradient, kernel, (((2,), (1,)), ((), ())))
    return of_x, jax.lax.dot_general(x, gradient, (((0, 1), (0, 1)), ((), ())))


product.defvjp(_product_forward, _product_backward)


def _normal(fan_in: int) -> nn.initializers.Initializer:
    """Returns T5's initializer: normal with standard deviation fan_in^-0.5."""
    return nn.initializers.normal(fan_in**-0.5)


def linear(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    fan_in: int,
    rounded: bool = False,
) -> Callable[[jax.Array], jax.Array]:
    """Returns the function that multiplies by a module's kernel, from [b, l, fan_in] to [b, l, f].

    Args:
      module: the module; creates the kernel if it does not exist.
      name: name of the kernel.
      shape: shape of the kernel; the product of its leading axes is fan_in.
      axes: logical names of the kernel's axes.
      fan_in: number of input features.
      rounded: round the operands to bfloat16 (`rounded_einsum`), except those of a kernel laid out for decoding.
    """
    if module.has_variable("params", name + TRANSPOSED):
        laid_out = module.get_variable("params", name + TRANSPOSED)
        if module.has_variable("params", name + SCALE):
            scale = module.get_variable("params", name + SCALE)
            return lambda x: int8_product(x, laid_out, scale)
        return lambda x: transposed_product(x.reshape(-1, fan_in), laid_out.astype(x.dtype)).reshape(*x.shape[:-1], -1)
    kernel = module.param(name, nn.with_logical_partitioning(_normal(fan_in), axes), shape)
    if rounded:
        return lambda x: rounded_einsum("bld,df->blf", x, kernel.reshape(fan_in, -1))
    return lambda x: product(x, kernel.reshape(fan_in, -1).astype(x.dtype))


def dropout(rate: float) -> nn.Dropout:
    """Returns dropout for [b, l, channels] that drops a channel at all positions of a sequence, as T5X does.

    On CPUs, a mask with its own values for each position makes a step half as long again: drawing it costs more than
    the layer.
    """
    return nn.Dropout(rate, broadcast_dims=(-2,))


class RMSNorm(nn.Module):
    """T5's layer norm: x / rms(x) * scale, without mean and bias, computed in float32."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [..., d]."""
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("embed",)), x.shape[-1:])
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return (wide * jnp.broadcast_to(scale, wide.shape)).astype(x.dtype)


class GatedMlp(nn.Module):
    """T5 1.1's feed-forward layer: down(gelu(gate(x)) * up(x)), without biases.

    Gate and up are separate products: with one product that is then split, the gradient takes a third longer on CPUs.
    """

    d_ff: int
    dropout: float
    rounded: bool = False  # products, see `linear`

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """Maps [b, l, d] to [b, l, d]."""
        d = x.shape[-1]
        gate = linear(self, "gate", (d, self.d_ff), ("embed", "mlp"), d, self.rounded)
        up = linear(self, "up", (d, self.d_ff), ("embed", "mlp"), d, self.rounded)
        down = linear(self, "down", (self.d_ff, d), ("mlp", "embed"), self.d_ff, self.rounded)
        hidden = jax.nn.gelu(gate(x), approximate=True) * up(x)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        hidden = dropout(self.dropout)(hidden, deterministic=deterministic)
        return down(hidden)


def attention_kernel(attention: str) -> str:
    """Returns the kernel that `TransformerConfig.attention` stands for on the devices in use.

    "auto" is the kernel for TPUs on TPUs and "blocks" elsewhere. cuDNN's is never chosen: no GPU has measured it yet.
    """
    if attention != "auto":
        return attention
    return "flash" if lowering_platform() == "tpu" else "blocks"


class Attention(nn.Module):
    """Causal self-attention with T5's relative bias.

    Scores are divided by sqrt(head_dim). T5 omits this factor and initialises the query kernel smaller instead. The
    functions are the same at initialisation, but with the factor outside the kernel, one learning rate suits all
    kernels under Adam, and q, k and v are one product. To load T5's weights, multiply its query kernel by
    sqrt(head_dim).
    """

    num_heads: int
    block_size: int
    remat: bool = False
    kernel: str = "blocks"  # one of `ATTENTIONS`, when there is no cache
    rounded: bool = False  # products, see `linear`; of attention only in blocks

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        by_distance: jax.Array,
        valid: jax.Array,
        cache: tuple[jax.Array, jax.Array] | None = None,
        position: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Attends within x or, with a cache, from one new token to itself and the tokens before it.

        Args:
          x: [b, l, d]; l is 1 with a cache.
          by_distance: float32 [h, near + 1] as in `block_attention`; with a cache, the bias of each key [h, length].
          valid: keys that may be attended to, bool [b, l], or [b, length] with a cache.
          cache: keys and values [b, h, length, c].
          position: int32 scalar, position of the new token in the cache.

        Returns:
          [b, l, d], and keys and values: those of x [b, h, l, c], or the cache updated with the new token.
        """
        d = x.shape[-1]
        channels = d // self.num_heads
        heads = self.num_heads
        qkv = linear(self, "qkv", (d, heads, 3, channels), ("embed", "heads", None, "kv"), d, self.rounded)
        out = linear(self, "out", (heads, channels, d), ("heads", "kv", "embed"), d, self.rounded)
        # Matrix products with the heads leading in the flattened axis: with an einsum, XLA would transpose the kernels
        # in every decoding step, and heads that do not lead could not be sharded.
        projected = qkv(x)
        kernel = attention_kernel(self.kernel)
        if kernel == "flash" and cache is None:
            projected = projected.swapaxes(1, 2).reshape(x.shape[0], self.num_heads, 3, channels, x.shape[1])
            projected = nn.with_logical_constraint(projected, ("batch", "heads", None, "kv", "length"))
            attended = flash_attention(projected, by_distance, valid, self.block_size)
            attended = attended.reshape(x.shape[0], d, x.shape[1]).swapaxes(1, 2)
            k, v = (projected[:, :, i].swapaxes(2, 3) for i in (1, 2))
            return out(attended), (k, v)
        projected = projected.reshape(*x.shape[:2], self.num_heads, 3, channels).transpose(3, 0, 2, 1, 4)
        projected = nn.with_logical_constraint(projected, (None, "batch", "heads", "length", "kv"))
        q, k, v = projected[0] * jnp.asarray(channels**-0.5, x.dtype), projected[1], projected[2]
        if self.has_variable("params", "qkv" + SCALE):
            k, v = bits16(k), bits16(v)  # see kernels/int8.py
        if cache is None or position is None:
            wide_k, wide_v = wide(k, q.dtype), wide(v, q.dtype)
            if kernel == "cudnn":
                attended = cudnn_attention(q, wide_k, wide_v, by_distance, valid)
            else:
                options = (self.block_size, self.remat, self.rounded)
                attended = block_attention(q, wide_k, wide_v, by_distance, valid, *options)
        else:
            k = jax.lax.dynamic_update_slice(cache[0], k.astype(cache[0].dtype), (0, 0, position, 0))
            v = jax.lax.dynamic_update_slice(cache[1], v.astype(cache[1].dtype), (0, 0, position, 0))
            attended = attention_to_past(q, k, v, by_distance, valid, position)
        attended = attended.transpose(0, 2, 1, 3).reshape(x.shape)
        return out(attended), (k, v)
