"""Causal attention with T5's relative bias by cuDNN, through `jax.nn.dot_product_attention`: for NVIDIA GPUs.

cuDNN's fused attention keeps the scores on the chip. It takes the bias as a dense [h, l, l] array, but to mask the
keys of each row it would need a dense [b, h, l, l] array. So the mask is an additional head channel: 1 in every
query, and 0 or `MASKED` in each key.
"""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from musiclm_jax.kernels.block_attention import causal_bias
from musiclm_jax.kernels.flash_attention import MASKED, lowering_platform

EXTRA_CHANNELS = 8  # cuDNN wants a multiple of 8 channels; the first carries the mask
LENGTH_MULTIPLE = 64  # sequences are padded to a multiple of it: the gradient of the bias needs an even length


def cudnn_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    by_distance: jax.Array,
    valid: jax.Array,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Computes causal softmax attention; on a mesh (`partitioning.activation_rules`) rows and heads are sharded.

    Args:
      q: queries [b, h, l, c], already scaled; bfloat16 for cuDNN.
      k: keys [b, h, l, c].
      v: values [b, h, l, c].
      by_distance: float32 [h, near + 1], bias of distances 0..near; larger distances have the bias of `near`. It is
        rounded to the dtype of q.
      valid: bool [b, l], keys that may be attended to.
      implementation: "xla" computes the same on any device, for tests.

    Returns:
      [b, h, l, c] in the dtype of v.

    Raises:
      ValueError: if the devices are not GPUs, or the dtype is not bfloat16.
    """
    if implementation == "cudnn" and (platform := lowering_platform()) != "gpu":
        raise ValueError(
            f"TransformerConfig.attention is 'cudnn', which needs NVIDIA GPUs, but the devices are {platform}s: "
            "set it to 'auto'"
        )
    if implementation == "cudnn" and q.dtype != jnp.bfloat16:
        raise ValueError(
            f"TransformerConfig.attention is 'cudnn', which needs bfloat16, but the activations are {q.dtype}: "
            "set TransformerConfig.dtype to 'bfloat16', or attention to 'blocks'"
        )
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _of_device(q, k, v, by_distance, valid, implementation)
    # Left to XLA, the devices would exchange the gradient of the dense bias, [h, l, l], in every layer. In here, each
    # sums its own to [h, near + 1] first.
    batch, heads = nn.logical_to_mesh_axes(("batch", "heads"))
    rows_heads = PartitionSpec(batch, heads)
    return jax.shard_map(
        functools.partial(_of_device, implementation=implementation),
        in_specs=(rows_heads, rows_heads, rows_heads, PartitionSpec(heads), PartitionSpec(batch)),
        out_specs=rows_heads,
        check_vma=False,
    )(q, k, v, by_distance, valid)


def _of_device(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    by_distance: jax.Array,
    valid: jax.Array,
    implementation: Literal["cudnn", "xla"],
) -> jax.Array:
    """Attends to the rows and heads of one device."""
    length, channels = q.shape[2:]
    missing = -length % LENGTH_MULTIPLE
    mask = jnp.where(valid, 0.0, MASKED).astype(k.dtype)[:, None, :, None]
    ones, masks = jnp.ones((*q.shape[:3], 1), q.dtype), jnp.broadcast_to(mask, (*k.shape[:3], 1))

    def padded(x: jax.Array, extra: jax.Array | None = None) -> jax.Array:
        """[b, h, l, c] to cuDNN's [b, l, h, c], with the extra channels and positions."""
        x = x if extra is None else jnp.concatenate([x, extra], axis=-1)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, channels + EXTRA_CHANNELS - x.shape[-1])))
        return x.swapaxes(1, 2)

    total = length + missing
    near = by_distance[:, :total]
    near = jnp.pad(near, ((0, 0), (0, total - near.shape[1])), mode="edge")
    bias = causal_bias(near, total, 0).astype(q.dtype)[None]
    attended = jax.nn.dot_product_attention(
        padded(q, ones), padded(k, masks), padded(v), bias, is_causal=True, scale=1.0, implementation=implementation
    )
    return attended[:, :length, :, :channels].swapaxes(1, 2)
