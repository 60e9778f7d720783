"""Kernels laid out for decoding, where each step reads all of them for a few tokens.

They are transposed, [outward, inward]. On a CPU, the product is then that of `cpu_decoding` for very few tokens. For
some more, XLA's product with the kernel as its first factor reads it as it lies; the usual one, tokens times [inward,
outward], first copies the kernel into another order in each step (benchmarks/decode.py --parts kernels sets all of them
beside each other).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

TRANSPOSED = "_transposed"  # ends the name of a parameter that holds a kernel [outward, inward]
INPUT_AXES = {"qkv": 1, "out": 2, "gate": 1, "up": 1, "down": 1}  # how many leading axes of a kernel are its input
FEW_ON_CPU = 16  # tokens; with more of them, XLA multiplies as fast as `cpu_decoding` does
LARGE = 2**20  # weights in float32; kernels of more of them are no faster with `cpu_decoding`: memory is the bound
FEW = 64  # tokens; with more of them, the usual product is as fast or faster
Params = Mapping[str, Any]


def transposed_kernels(params: Params) -> Params:
    """Parameters of unrolled layers whose kernels are [outward, inward]: "gate" becomes "gate_transposed", and so on.

    Args:
      params: from `transformer.unstack_layers`, or transposed already.

    Returns:
      The same tree; `layers.linear` knows such kernels by their names.

    Raises:
      ValueError: if the layers are stacked.
    """
    return change_kernels(params, lambda name, kernel: {name + TRANSPOSED: kernel})


def change_kernels(params: Params, change: Callable[[str, jax.Array], dict[str, jax.Array]]) -> dict[str, Any]:
    """The tree with each kernel replaced by what `change` makes of its name and of itself, [outward, inward].

    Raises:
      ValueError: if the layers are stacked.
    """
    if "layers" in params:
        raise ValueError("the layers are stacked: take them apart with transformer.unstack_layers first")
    changed: dict[str, Any] = {}
    for name, value in params.items():
        plain = name.removesuffix(TRANSPOSED)
        if isinstance(value, Mapping):
            changed[name] = change_kernels(value, change)
        elif plain not in INPUT_AXES:
            changed[name] = value
        elif plain != name:
            changed |= change(plain, value)
        else:
            changed |= change(name, value.reshape(math.prod(value.shape[: INPUT_AXES[name]]), -1).T)
    return changed


def transposed_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [n, d] times a kernel [f, d]: [n, f]."""
    if few_on_cpu(x, kernel):
        from musiclm_jax.kernels import cpu_decoding  # compiles when it is imported

        return jax.lax.platform_dependent(x, kernel, cpu=cpu_decoding.float_product, default=kernel_first)
    return kernel_first(x, kernel)


def few_on_cpu(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether `cpu_decoding` is the fastest for tokens [n, d] and a kernel [f, d] in float32."""
    return len(x) <= FEW_ON_CPU and kernel.size <= LARGE and x.dtype == kernel.dtype == jnp.float32


def kernel_first(x: jax.Array, kernel: jax.Array, sums: Any = None) -> jax.Array:
    """`transposed_product` as XLA computes it, in the dtype of x or in `sums`, in which products are then added up."""
    if len(x) > FEW:
        return jax.lax.dot_general(x, kernel, (((1,), (1,)), ((), ())), preferred_element_type=sums)
    whole = jax.lax.dot_general(kernel, x, (((1,), (1,)), ((), ())), preferred_element_type=sums)
    # Without the barrier XLA would swap the factors to be rid of the transposition.
    return jax.lax.optimization_barrier(whole).T
