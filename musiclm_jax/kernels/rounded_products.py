"""Matrix products of float32 arrays whose operands are rounded to bfloat16, summed in float32.

TPUs compute float32 products this way by default. CPUs with bfloat16 instructions gain speed from it
(benchmarks/stage_step.py), but XLA's CPU compiler ignores `jax.default_matmul_precision`, so operands are rounded here.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def rounded_einsum(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes a product of two arrays with operands rounded to bfloat16, in its gradients as well.

    Args:
      subscripts: as for `jnp.einsum`, written out, such as "bld,df->blf". Each index is in two of the three terms or in
        all, so that the gradients are products, too.
      a: float array.
      b: float array.

    Returns:
      float32, the sum in float32.
    """
    return _product(subscripts, a, b)


def _product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def _forward(subscripts: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    # Rounded operands are kept, which halves their memory. Empty arrays keep the dtypes of the gradients.
    narrow = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return _product(subscripts, *narrow), (*narrow, jnp.zeros(0, a.dtype), jnp.zeros(0, b.dtype))


def _backward(
    subscripts: str, saved: tuple[jax.Array, jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b, like_a, like_b = saved
    operands, result = subscripts.split("->")
    of_a, of_b = operands.split(",")
    return (
        _product(f"{result},{of_b}->{of_a}", gradient, b).astype(like_a.dtype),
        _product(f"{of_a},{result}->{of_b}", a, gradient).astype(like_b.dtype),
    )


rounded_einsum.defvjp(_forward, _backward)
