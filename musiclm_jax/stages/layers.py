"""Layers of the decoder-only Transformer: T5 relative bias, RMS norm, causal attention, gated MLP.

Shapes: b batch, l flat length, d model, h heads, c head channels, f d_ff. Parameters are float32 and carry logical axis
names ('embed', 'mlp', 'heads', 'kv'); activations are in the dtype that a layer is given, norms and softmax in float32.
T5 (arXiv 1910.10683) with the gated GELU of T5 1.1 (arXiv 2002.05202) is the reference.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.kernels.flash_attention import MASKED, flash_attention
from musiclm_jax.kernels.int8 import SCALE, int8_product
from musiclm_jax.kernels.transposed import TRANSPOSED, transposed_product


def relative_buckets(distances: np.ndarray, num_buckets: int, max_distance: int) -> np.ndarray:
    """T5's causal buckets: one per distance for the nearer half, logarithmic up to `max_distance`, then the last one.

    Args:
      distances: int, query position - key position; negative ones (the future) fall into bucket 0.
      num_buckets: number of buckets.
      max_distance: distance from which on all share the last bucket.

    Returns:
      int32 of the same shape, in [0, num_buckets).
    """
    distances = np.maximum(distances, 0)
    exact = num_buckets // 2
    scaled = np.log(np.maximum(distances, 1).astype(np.float32) / exact) / np.float32(np.log(max_distance / exact))
    large = exact + (scaled * (num_buckets - exact)).astype(np.int32)
    return np.where(distances < exact, distances, np.minimum(large, num_buckets - 1)).astype(np.int32)


def saturation_distance(num_buckets: int, max_distance: int) -> int:
    """Smallest distance from which on every distance falls into the last bucket."""
    return int(np.argmax(relative_buckets(np.arange(max_distance + 1), num_buckets, max_distance) == num_buckets - 1))


def distance_bias(table: jax.Array, length: int, max_distance: int) -> jax.Array:
    """Bias of each distance 0..length-1, float32 [h, length], from T5's table [buckets, h].

    A product with one-hot rows instead of a gather: its gradient is a product too, where a gather's is a slow scatter.
    """
    num_buckets = table.shape[0]
    one_hot = np.eye(num_buckets, dtype=np.float32)[relative_buckets(np.arange(length), num_buckets, max_distance)]
    return jnp.einsum("nl,lh->hn", one_hot, table, precision=jax.lax.Precision.HIGHEST)


def causal_bias(by_distance: jax.Array, rows: int, offset: int) -> jax.Array:
    """Bias [h, rows, offset + rows] whose entry (i, j) is that of distance i + offset - j; the future is masked.

    Made by repeating one row and reading it with a stride one shorter, which shifts each row by one: no gather.

    Args:
      by_distance: [h, n] with n >= offset + rows, the bias of each distance.
      rows: number of queries.
      offset: number of keys before the first query.
    """
    heads, columns = by_distance.shape[0], offset + rows
    future = jnp.full((heads, rows), MASKED, by_distance.dtype)
    # line[m] is the bias of distance columns - 1 - m; row i of the result starts at m = rows - 1 - i.
    line = jnp.concatenate([by_distance[:, columns - 1 :: -1], future], axis=1)
    width = columns + rows
    repeated = jnp.broadcast_to(line[:, None, :], (heads, rows, width)).reshape(heads, rows * width)
    shifted = repeated[:, rows - 1 : rows - 1 + rows * (width - 1)].reshape(heads, rows, width - 1)
    return shifted[:, :, :columns]


def causal_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    by_distance: jax.Array,
    valid: jax.Array,
    block_size: int,
    remat: bool = False,
) -> jax.Array:
    """Softmax attention to the past, block of queries by block of queries.

    Each block multiplies only with the keys up to its own end, so that half of the work is left out and no
    [b, h, l, l] array lives at once. The bias is the same from the last bucket's distance on (`by_distance[:, -1]`),
    and softmax does not see a constant: with that constant taken off everywhere, only the keys near the diagonal need
    a bias and a causal mask, one [h, block, block + near] array for all blocks.

    Args:
      q: queries [b, h, l, c], already scaled.
      k: keys [b, h, l, c].
      v: values [b, h, l, c].
      by_distance: float32 [h, near + 1] bias of distances 0..near; all further ones have that of `near`.
      valid: bool [b, l], keys that may be seen.
      block_size: queries per block; 0 for one block of all.
      remat: the backward pass computes each block's scores again, so that no more than one block's are ever kept.

    Returns:
      [b, h, l, c] in the dtype of v.
    """
    length, near = q.shape[2], by_distance.shape[1] - 1
    block = min(block_size or length, length)
    near = -(-near // 8) * 8 if near < length else length
    table = by_distance - by_distance[:, -1:]
    table = jnp.pad(table, ((0, 0), (0, max(0, near + block - table.shape[1]))))
    diagonal = causal_bias(table, block, near)  # [h, block, near + block]
    padding = jnp.where(valid, 0.0, MASKED)[:, None, None, :]
    outputs = []
    for start in range(0, length, block):
        end = min(start + block, length)
        first = max(0, start - near)  # keys before it are further than `near` from every query
        bias = diagonal[:, : end - start, near - (start - first) : near + end - start]
        attend = jax.checkpoint(_attend, static_argnums=5) if remat else _attend
        outputs.append(attend(q[:, :, start:end], k[:, :, :end], v[:, :, :end], bias, padding[..., :end], first))
    return jnp.concatenate(outputs, axis=2)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, padding: jax.Array, first: int) -> jax.Array:
    """One block: `bias` [h, rows, keys - first] is added from key `first` on, `padding` [b, 1, 1, keys] everywhere."""
    scores = jnp.einsum("bhqc,bhkc->bhqk", q, k, preferred_element_type=jnp.float32) + padding
    scores = _add_bias(scores, jnp.pad(bias, ((0, 0), (0, 0), (first, 0))))
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bhkc->bhqc", weights, v)


def bits16(x: jax.Array) -> jax.Array:
    """The bits of x in bfloat16, uint16. On CPUs, XLA would write a whole cache of bfloat16 anew for each token."""
    return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)


def wide(kept: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """What `bits16` was made of, rounded; an array that is no uint16 is its own."""
    return (jax.lax.bitcast_convert_type(kept, jnp.bfloat16) if kept.dtype == jnp.uint16 else kept).astype(dtype)


def attention_to_past(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, valid: jax.Array, position: jax.Array
) -> jax.Array:
    """Softmax attention of one token to the keys and values of a cache, its own among them.

    Args:
      q: query [b, h, 1, c], already scaled.
      k: keys [b, h, length, c], or their `bits16`.
      v: values, likewise.
      bias: float32 [h, length], for each key; those after the token are masked.
      valid: bool [b, length], keys that may be seen.
      position: int32 scalar, the token's own place.

    Returns:
      [b, h, 1, c] in the dtype of q.
    """
    operands = (q, k, v, bias, valid, position)
    if q.dtype != jnp.float32 or k.dtype not in (jnp.float32, jnp.uint16):
        return attend_to_past(*operands)
    from musiclm_jax.kernels import cpu_decoding  # compiles when it is imported

    return jax.lax.platform_dependent(*operands, cpu=cpu_decoding.attention, default=attend_to_past)


def attend_to_past(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, valid: jax.Array, position: jax.Array
) -> jax.Array:
    """`attention_to_past` as XLA computes it."""
    k, v = wide(k, q.dtype), wide(v, q.dtype)
    seen = bias[None, :, None, :] + jnp.where(valid, 0.0, MASKED)[:, None, None, :]
    scores = jnp.einsum("bhqc,bhkc->bhqk", q, k, preferred_element_type=jnp.float32) + seen
    return jnp.einsum("bhqk,bhkc->bhqc", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


@jax.custom_vjp
def _add_bias(scores: jax.Array, bias: jax.Array) -> jax.Array:
    """scores [b, h, rows, keys] + bias [h, rows, keys].

    The gradient of the bias is written as a product with ones: on a CPU, XLA's sum over the leading axis takes 70 times
    as long, and a fifth of the time of the attention.
    """
    return scores + bias[None]


def _add_bias_forward(scores: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
    return scores + bias[None], None


def _add_bias_backward(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    ones = jnp.ones(gradient.shape[0], gradient.dtype)
    return gradient, jnp.einsum("b,bhqk->hqk", ones, gradient, precision=jax.lax.Precision.HIGHEST)


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [b, l, d] times a kernel [d, f], whose gradient sums over b and l as they lie in memory.

    JAX's own rule makes the kernel's gradient transposed. On a CPU, XLA then copies the gradient of the result
    transposed, together with all element by element work that leads to it: a train step of the tiny coarse stage takes
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
    """Normal of standard deviation fan_in^-0.5, as T5 starts."""
    return nn.initializers.normal(fan_in**-0.5)


def linear(
    module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], fan_in: int
) -> Callable[[jax.Array], jax.Array]:
    """The product with a kernel of a module, from [b, l, fan_in] to [b, l, f].

    Args:
      module: makes the kernel where there is none.
      name: of the kernel.
      shape: of the kernel; its leading axes are fan_in.
      axes: logical names of the axes.
      fan_in: inputs.
    """
    if module.has_variable("params", name + TRANSPOSED):
        laid_out = module.get_variable("params", name + TRANSPOSED)
        if module.has_variable("params", name + SCALE):
            scale = module.get_variable("params", name + SCALE)
            return lambda x: int8_product(x, laid_out, scale)
        return lambda x: transposed_product(x.reshape(-1, fan_in), laid_out.astype(x.dtype)).reshape(*x.shape[:-1], -1)
    kernel = module.param(name, nn.with_logical_partitioning(_normal(fan_in), axes), shape)
    return lambda x: product(x, kernel.reshape(fan_in, -1).astype(x.dtype))


def dropout(rate: float) -> nn.Dropout:
    """Dropout of [b, l, channels] that drops a channel of a sequence at all positions, as T5X does.

    On a CPU a mask of every position makes a step half as long again: drawing it costs more than the layer.
    """
    return nn.Dropout(rate, broadcast_dims=(-2,))


class RMSNorm(nn.Module):
    """T5's norm: x / rms(x) * scale, without mean and bias; computed in float32."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [..., d]."""
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("embed",)), x.shape[-1:])
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return (wide * jnp.broadcast_to(scale, wide.shape)).astype(x.dtype)


class GatedMlp(nn.Module):
    """T5 1.1's feed-forward: gelu(x gate) * (x up), then down, without biases.

    Gate and up are two products: as one, whose result is cut in two, the gradient takes a third longer on a CPU.
    """

    d_ff: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """Maps [b, l, d] to [b, l, d]."""
        d = x.shape[-1]
        gate = linear(self, "gate", (d, self.d_ff), ("embed", "mlp"), d)
        up = linear(self, "up", (d, self.d_ff), ("embed", "mlp"), d)
        down = linear(self, "down", (self.d_ff, d), ("mlp", "embed"), self.d_ff)
        hidden = jax.nn.gelu(gate(x), approximate=True) * up(x)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        hidden = dropout(self.dropout)(hidden, deterministic=deterministic)
        return down(hidden)


class Attention(nn.Module):
    """Causal self-attention with T5's relative bias.

    Scores are divided by sqrt(head_dim). T5 leaves that out and starts the query's kernel smaller by as much: the
    functions at the start are the same, but with the factor outside one rate suits all kernels under Adam, and q, k and
    v are one product. Weights of a T5 load after multiplying q's kernel by sqrt(head_dim).
    """

    num_heads: int
    block_size: int
    remat: bool = False
    flash: bool = False  # the kernel for TPUs, where there is no cache

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        by_distance: jax.Array,
        valid: jax.Array,
        cache: tuple[jax.Array, jax.Array] | None = None,
        position: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Attends within x, or with a cache: from one new token to the tokens before it.

        Args:
          x: [b, l, d]; l is 1 with a cache.
          by_distance: float32 [h, near + 1] as in `causal_attention`; with a cache [h, length], for each key.
          valid: bool [b, l], or [b, length] with a cache: keys that may be seen.
          cache: keys and values [b, h, length, c].
          position: int32 scalar, the place of the new token in the cache.

        Returns:
          [b, l, d] and the keys and values: those of x [b, h, l, c], or the cache with the new token in its place.
        """
        d = x.shape[-1]
        channels = d // self.num_heads
        heads = self.num_heads
        qkv = linear(self, "qkv", (d, heads, 3, channels), ("embed", "heads", None, "kv"), d)
        out = linear(self, "out", (heads, channels, d), ("heads", "kv", "embed"), d)
        # Products of matrices, with the heads as leading part of the flat axis: an einsum would have XLA transpose the
        # kernels in each step of decoding, and heads that come later could not be split over a mesh.
        projected = qkv(x)
        if self.flash and cache is None:
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
            k, v = bits16(k), bits16(v)  # see int8.py
        if cache is None or position is None:
            wide_k, wide_v = wide(k, q.dtype), wide(v, q.dtype)
            attended = causal_attention(q, wide_k, wide_v, by_distance, valid, self.block_size, self.remat)
        else:
            k = jax.lax.dynamic_update_slice(cache[0], k.astype(cache[0].dtype), (0, 0, position, 0))
            v = jax.lax.dynamic_update_slice(cache[1], v.astype(cache[1].dtype), (0, 0, position, 0))
            attended = attention_to_past(q, k, v, by_distance, valid, position)
        attended = attended.transpose(0, 2, 1, 3).reshape(x.shape)
        return out(attended), (k, v)
