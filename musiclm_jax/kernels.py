"""Kernels laid out for decoding, where each step reads all of them for a few tokens.

On a CPU, XLA's product with the kernel as its first factor, [outward, inward], reads it as it lies. The usual one,
tokens times [inward, outward], first copies the kernel into another order in each step, for all but one token
(benchmarks/decode.py --parts kernels sets the orders beside each other).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

TRANSPOSED = "_transposed"  # ends the name of a parameter that holds a kernel [outward, inward]
INPUT_AXES = {"qkv": 1, "out": 2, "gate": 1, "up": 1, "down": 1}  # how many leading axes of a kernel are its input
LARGE = 2**20  # weights; stages of smaller ones decode faster in the usual order (benchmarks/decode.py --parts layout)
FEW = 64  # tokens; with more of them, the usual product is as fast or faster
Params = Mapping[str, Any]


def transposed_kernels(params: Params, smallest: int = 0) -> Params:
    """Parameters of unrolled layers whose kernels are [outward, inward]: "gate" becomes "gate_transposed", and so on.

    Args:
      params: from `transformer.unstack_layers`, or transposed already.
      smallest: kernels of fewer weights stay as they are.

    Returns:
      The same tree; `layers.linear` knows such kernels by their names.

    Raises:
      ValueError: if the layers are stacked.
    """
    return change_kernels(params, lambda name, kernel: {name + TRANSPOSED: kernel}, smallest)


def change_kernels(
    params: Params, change: Callable[[str, jax.Array], dict[str, jax.Array]], smallest: int = 0
) -> dict[str, Any]:
    """The tree with each kernel replaced by what `change` makes of its name and of itself, [outward, inward].

    Kernels of fewer weights than `smallest` stay as they are.

    Raises:
      ValueError: if the layers are stacked.
    """
    if "layers" in params:
        raise ValueError("the layers are stacked: take them apart with transformer.unstack_layers first")
    changed: dict[str, Any] = {}
    for name, value in params.items():
        plain = name.removesuffix(TRANSPOSED)
        if isinstance(value, Mapping):
            changed[name] = change_kernels(value, change, smallest)
        elif plain not in INPUT_AXES or value.size < smallest:
            changed[name] = value
        elif plain != name:
            changed |= change(plain, value)
        else:
            changed |= change(name, value.reshape(math.prod(value.shape[: INPUT_AXES[name]]), -1).T)
    return changed


def transposed_product(x: jax.Array, kernel: jax.Array, sums: Any = None) -> jax.Array:
    """x [n, d] times a kernel [f, d]: [n, f], in the dtype of x or in `sums`, in which products are then added up."""
    if len(x) > FEW:
        return jax.lax.dot_general(x, kernel, (((1,), (1,)), ((), ())), preferred_element_type=sums)
    whole = jax.lax.dot_general(kernel, x, (((1,), (1,)), ((), ())), preferred_element_type=sums)
    # Without the barrier XLA would swap the factors to be rid of the transposition.
    return jax.lax.optimization_barrier(whole).T
