import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.kernels.block_attention import block_attention
from musiclm_jax.kernels.rounded_products import rounded_einsum
from musiclm_jax.stages.layers import product

PRODUCTS = [
    ("bld,df->blf", (2, 24, 32), (32, 48)),
    ("bhqc,bhkc->bhqk", (2, 3, 16, 32), (2, 3, 24, 32)),
    ("bhqk,bhkc->bhqc", (2, 3, 16, 24), (2, 3, 24, 32)),
    ("qnd,qkd->qnk", (4, 40, 32), (4, 16, 32)),
]


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    return np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize(("subscripts", "left", "right"), PRODUCTS)
def test_operands_are_rounded_and_sums_are_not(subscripts, left, right):
    a, b = random(0, *left), random(1, *right)
    ours = jax.jit(rounded_einsum, static_argnums=0)(subscripts, a, b)
    exact = np.einsum(subscripts, rounded(a).astype(np.float64), rounded(b).astype(np.float64))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)
    assert np.abs(ours - np.einsum(subscripts, a, b)).max() > 1e-3, "float32 operands would not show rounding"


@pytest.mark.parametrize(("subscripts", "left", "right"), PRODUCTS)
def test_gradients_are_products_of_rounded_operands(subscripts, left, right):
    a, b = random(0, *left), random(1, *right)
    operands, result = subscripts.split("->")
    of_a, of_b = operands.split(",")
    weight = random(2, *np.einsum(subscripts, a, b).shape)
    loss = lambda a, b: jnp.sum(weight * rounded_einsum(subscripts, a, b))  # noqa: E731
    from_a, from_b = jax.jit(jax.grad(loss, (0, 1)))(a, b)
    weight, a, b = (rounded(x).astype(np.float64) for x in (weight, a, b))
    np.testing.assert_allclose(from_a, np.einsum(f"{result},{of_b}->{of_a}", weight, b), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(from_b, np.einsum(f"{of_a},{result}->{of_b}", a, weight), rtol=1e-5, atol=1e-5)


def test_gradients_have_the_dtypes_of_their_operands():
    a, b = jnp.ones((1, 2, 4), jnp.bfloat16), jnp.ones((4, 8))
    gradients = jax.grad(lambda a, b: rounded_einsum("bld,df->blf", a, b).sum(), (0, 1))(a, b)
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.float32]


def test_products_of_a_layer_differ_by_rounding_only():
    x, kernel = random(0, 2, 24, 64), random(1, 64, 32)
    exact, ours = product(x, kernel), rounded_einsum("bld,df->blf", x, kernel)
    error = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 4e-3  # bfloat16 has 8 bits


def test_attention_in_rounded_blocks():
    q, k, v = (random(seed, 2, 3, 40, 16) for seed in range(3))
    arguments = (q / 4, k, v, jnp.asarray(random(3, 3, 9)), jnp.ones((2, 40), bool), 16)
    exact, ours = block_attention(*arguments), block_attention(*arguments, rounded=True)
    error = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 1e-2
