"""Int8 kernels for decoding: each step reads a quarter of the bytes.

A kernel is int8 [out_features, in_features] with one scale per output feature, chosen so that the largest weight of the
feature is 127. Activations are quantized on the fly with one scale per token, so the product is an integer product: on
CPUs, XLA has fast ones, but none for int8 weights with float32 activations. This is the common W8A8 with dynamic
activation scales (arXiv 2206.01861, section 4.1). Embeddings, norms and biases are not quantized. The KV cache, which
each step reads too, is bfloat16, whose rounding is finer than that of the activations it is computed from.
"""

import jax
import jax.numpy as jnp

from musiclm_jax.kernels.rounding import rounded
from musiclm_jax.kernels.transposed import TRANSPOSED, Params, change_kernels, transposed_product_xla

SCALE = "_scale"  # suffix of the parameter that holds a kernel's scales
INT8_TOKENS_ON_CPU = 2  # for more tokens, the int8 product of XLA is as fast as that of `cpu_decoding`


def int8_kernels(params: Params) -> Params:
    """Quantizes kernels to int8: "gate" becomes "gate_transposed" and "gate_scale", and so on.

    Args:
      params: parameters of unrolled layers, from `transformer.unstack_layers` or `transposed.transposed_kernels`.

    Returns:
      The same tree with quantized kernels, which `layers.linear` recognizes by their scales.

    Raises:
      ValueError: if the layers are stacked.
    """

    def change(name: str, kernel: jax.Array) -> dict[str, jax.Array]:
        values, scale = rounded(kernel)
        return {name + TRANSPOSED: values, name + SCALE: scale}

    return change_kernels(params, change)


def int8_product(x: jax.Array, kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """Multiplies x [b, l, d] by an int8 kernel [f, d] with float32 scales [f]: [b, l, f] in the dtype of x."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) <= INT8_TOKENS_ON_CPU and x.dtype == jnp.float32:
        from musiclm_jax.kernels import cpu_decoding  # compiles when it is imported

        found = jax.lax.platform_dependent(
            rows, kernel, scale, cpu=cpu_decoding.int8_product_numba, default=int8_product_xla
        )
    else:
        found = int8_product_xla(rows, kernel, scale)
    return found.reshape(*x.shape[:-1], -1).astype(x.dtype)


def int8_product_xla(x: jax.Array, kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """Computes `int8_product` of x [n, d] with XLA: [n, f]."""
    rows, own = rounded(x)
    return transposed_product_xla(rows, kernel, jnp.int32) * own[:, None] * scale[None, :]
