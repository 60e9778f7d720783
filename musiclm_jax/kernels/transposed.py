"""Transposed kernels for decoding, where each step reads every kernel for a few tokens.

They are stored as [out_features, in_features]. On CPUs, `cpu_decoding` computes the product for very few tokens. For a
few more, XLA's product with the kernel as its first factor reads the kernel as it is stored. The usual product, tokens
times [in_features, out_features], first copies the kernel into another layout in every step
(benchmarks/decode.py --parts kernels compares all of them).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

TRANSPOSED = "_transposed"  # suffix of a parameter that holds a kernel [out_features, in_features]
INPUT_AXES = {"qkv": 1, "out": 2, "gate": 1, "up": 1, "down": 1}  # number of leading axes that are input features
FLOAT_TOKENS_ON_CPU = 16  # for more tokens, the float32 product of XLA is as fast as that of `cpu_decoding`
LARGE = 2**20  # float32 weights; larger kernels are bound by memory, and `cpu_decoding` is no faster
FEW = 64  # tokens; for more of them, the usual product is as fast or faster
Params = Mapping[str, Any]


def transposed_kernels(params: Params) -> Params:
    """Transposes kernels to [out_features, in_features]: "gate" becomes "gate_transposed", and so on.

    Args:
      params: parameters of unrolled layers, from `transformer.unstack_layers` or already transposed.

    Returns:
      The same tree with transposed kernels, which `layers.linear` recognizes by their names.

    Raises:
      ValueError: if the layers are stacked.
    """
    return change_kernels(params, lambda name, kernel: {name + TRANSPOSED: kernel})


def change_kernels(params: Params, change: Callable[[str, jax.Array], dict[str, jax.Array]]) -> dict[str, Any]:
    """Replaces each kernel by the parameters that `change(name, kernel [out_features, in_features])` returns.

    Raises:
      ValueError: if the layers are stacked.
    """
    if "layers" in params:
        raise ValueError("the layers are stacked: unstack them with transformer.unstack_layers first")
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
    """Multiplies x [n, d] by a kernel [f, d]: [n, f]."""
    if few_on_cpu(x, kernel):
        from musiclm_jax.kernels import cpu_decoding  # compiles when it is imported

        return jax.lax.platform_dependent(
            x, kernel, cpu=cpu_decoding.transposed_product_numba, default=transposed_product_xla
        )
    return transposed_product_xla(x, kernel)


def few_on_cpu(x: jax.Array, kernel: jax.Array) -> bool:
    """Returns whether `cpu_decoding` is the fastest on CPUs for tokens [n, d] and a kernel [f, d]."""
    return len(x) <= FLOAT_TOKENS_ON_CPU and kernel.size <= LARGE and x.dtype == kernel.dtype == jnp.float32


def transposed_product_xla(x: jax.Array, kernel: jax.Array, sums: Any = None) -> jax.Array:
    """Computes `transposed_product` with XLA; `sums` is the dtype of the sums and the result, by default that of x."""
    if len(x) > FEW:
        return jax.lax.dot_general(x, kernel, (((1,), (1,)), ((), ())), preferred_element_type=sums)
    whole = jax.lax.dot_general(kernel, x, (((1,), (1,)), ((), ())), preferred_element_type=sums)
    # Without the barrier, XLA would swap the factors to get rid of the transpose.
    return jax.lax.optimization_barrier(whole).T
