"""Kernels in 8 bits for decoding, where each step reads all weights for a few tokens.

A kernel is kept transposed, [outward, inward] int8, with a scale per output, chosen so that the largest weight of an
output is 127. Activations are rounded as they come, with a scale per token, so that the product is one of integers: on
a CPU, XLA has fast ones for those, and none for 8-bit weights beside float32 activations. This is the common W8A8 with
dynamic scales (arXiv 2206.01861, section 4.1). Embeddings, norms and biases stay as they are.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

SCALE = "_scale"  # ends the name of the parameter that holds a kernel's scales
LARGEST = 127
KERNELS = {"qkv": 1, "out": 2, "gate": 1, "up": 1, "down": 1}  # how many leading axes are those of the input
Params = Mapping[str, Any]


def int8_kernels(params: Params) -> Params:
    """Parameters of unrolled layers with their kernels in 8 bits: "gate" becomes "gate" and "gate_scale", and so on.

    Args:
      params: from `unstack_layers`.

    Returns:
      The same tree; `layers.linear` knows such kernels by their scales.

    Raises:
      ValueError: if the layers are stacked.
    """
    if "layers" in params:
        raise ValueError("the layers are stacked: take them apart with transformer.unstack_layers first")
    changed: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            changed[name] = int8_kernels(value)
        elif name in KERNELS:
            changed[name], changed[name + SCALE] = rounded(value.reshape(math.prod(value.shape[: KERNELS[name]]), -1).T)
        else:
            changed[name] = value
    return changed


def rounded(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Int8 [..., n] and float32 scales [...] whose product is nearest `values` [..., n]."""
    wide = jnp.asarray(values, jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=-1), 1e-12) / LARGEST
    return jnp.round(wide / scale[..., None]).astype(jnp.int8), scale


def int8_product(x: jax.Array, kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """x [b, l, d] times a kernel of `int8_kernels`, int8 [f, d] and float32 [f]: [b, l, f] in the dtype of x."""
    rows, own = rounded(x.reshape(-1, x.shape[-1]))
    count = len(rows)
    # XLA's product of one row is a plain loop, slower than that of two (benchmarks/decode.py --parts kernels).
    rows = jnp.repeat(rows, 2, axis=0) if count == 1 else rows
    whole = jax.lax.dot_general(rows, kernel, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)[:count]
    return (whole * own[:, None] * scale).reshape(*x.shape[:-1], -1).astype(x.dtype)
