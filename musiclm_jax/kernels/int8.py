"""Kernels in 8 bits for decoding, a quarter of the bytes that each step reads.

A kernel is [outward, inward] int8, with a scale per output, chosen so that the largest weight of an output is 127.
Activations are rounded as they come, with a scale per token, so that the product is one of integers: on a CPU, XLA has
fast ones for those, and none for 8-bit weights beside float32 activations. This is the common W8A8 with dynamic scales
(arXiv 2206.01861, section 4.1). Embeddings, norms and biases stay as they are. Keys and values, which a step reads as
well, are kept in bfloat16: their 8 bits round less than those of the activations that they come from.
"""

import jax
import jax.numpy as jnp

from musiclm_jax.kernels.transposed import TRANSPOSED, Params, change_kernels, kernel_first

SCALE = "_scale"  # ends the name of the parameter that holds a kernel's scales
LARGEST = 127
FEW_ON_CPU = 2  # tokens; with more of them, XLA multiplies as fast as `cpu_decoding` does


def int8_kernels(params: Params) -> Params:
    """Parameters with kernels in 8 bits: "gate" becomes "gate_transposed" and "gate_scale", and so on.

    Args:
      params: of unrolled layers, from `transformer.unstack_layers` or `transposed.transposed_kernels`.

    Returns:
      The same tree; `layers.linear` knows such kernels by their scales.

    Raises:
      ValueError: if the layers are stacked.
    """

    def change(name: str, kernel: jax.Array) -> dict[str, jax.Array]:
        values, scale = rounded(kernel)
        return {name + TRANSPOSED: values, name + SCALE: scale}

    return change_kernels(params, change)


def rounded(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Int8 [..., n] and float32 scales [...] whose product is nearest `values` [..., n]."""
    wide = jnp.asarray(values, jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=-1), 1e-12) / LARGEST
    return jnp.round(wide / scale[..., None]).astype(jnp.int8), scale


def int8_product(x: jax.Array, kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """x [b, l, d] times a kernel of `int8_kernels`, int8 [f, d] and float32 [f]: [b, l, f] in the dtype of x."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) <= FEW_ON_CPU and x.dtype == jnp.float32:
        from musiclm_jax.kernels import cpu_decoding  # compiles when it is imported

        found = jax.lax.platform_dependent(rows, kernel, scale, cpu=cpu_decoding.int8_product, default=product)
    else:
        found = product(rows, kernel, scale)
    return found.reshape(*x.shape[:-1], -1).astype(x.dtype)


def product(x: jax.Array, kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """`int8_product` of x [n, d] as XLA computes it: [n, f]."""
    rows, own = rounded(x)
    return kernel_first(rows, kernel, jnp.int32) * own[:, None] * scale
