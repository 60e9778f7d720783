"""Kernels transposed for decoding: the same products, in the memory order that is fast."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.kernels.transposed import FEW, FLOAT_TOKENS_ON_CPU, INPUT_AXES, transposed_kernels, transposed_product
from musiclm_jax.stages import decoding, transformer
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training.partitioning import unbox

CONFIG = TransformerConfig(num_layers=2, num_heads=2, d_model=16, d_ff=24, dropout=0.0)


@pytest.fixture(scope="module")
def stacked():
    return unbox(jax.jit(lambda key: transformer.init_params(CONFIG, 40, key))(jax.random.key(0)))


@pytest.mark.parametrize("rows", [1, 8, FLOAT_TOKENS_ON_CPU + 1, FEW + 1])
def test_the_product_matches_the_kernels(rows):
    rng = np.random.default_rng(rows)
    x, kernel = rng.normal(size=(rows, 12)).astype(np.float32), rng.normal(size=(12, 7)).astype(np.float32)
    found = jax.jit(transposed_product)(x, np.ascontiguousarray(kernel.T))
    np.testing.assert_allclose(found, x @ kernel, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 8])
def test_the_kernel_stays_the_first_factor(rows):
    """If the result is transposed, XLA may swap the factors, and then copies the kernel in every step."""
    text = jax.jit(lambda x, kernel: transposed_product(x, kernel) + 1).lower(
        jnp.zeros((rows, 1024)), jnp.zeros((2048, 1024))
    )
    text = text.compile().as_text()
    assert re.search(rf"= f32\[2048,{rows}\]\S* (?:dot|fusion|custom-call)\(", text)
    assert not re.search(rf"= f32\[{rows},2048\]\S* (?:dot|custom-call)\(", text)


def test_a_model_with_transposed_kernels_computes_the_same(stacked):
    tokens = np.random.default_rng(0).integers(0, 40, (2, 9))
    arguments = (tokens, np.zeros(9, int), (), jnp.ones((2, 9), bool))
    apart = transformer.unstack_layers(stacked)
    expected = transformer.hidden_states(CONFIG, apart, *arguments)
    transposed = transposed_kernels(apart)
    np.testing.assert_allclose(
        transformer.hidden_states(CONFIG, transposed, *arguments), expected, rtol=1e-4, atol=1e-5
    )
    assert transposed["layers_1"]["mlp"]["gate_transposed"].shape == (24, 16)
    assert sorted(transposed["layers_0"]["attention"]) == ["out_transposed", "qkv_transposed"]
    assert transposed["embedding"] is apart["embedding"]


def test_parameters_for_decoding_are_made_once(stacked):
    made = decoding.unstacked(stacked)
    expected = transposed_kernels(transformer.unstack_layers(stacked))
    assert jax.tree.structure(made) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, made, expected)
    assert decoding.unstacked(made) is made
    with pytest.raises(ValueError, match="the layers are stacked"):
        transposed_kernels(stacked)


def test_kernels_of_the_papers_size_are_transposed_for_decoding():
    boxed = jax.eval_shape(lambda: transformer.init_params(TransformerConfig(num_layers=1), 128, jax.random.key(0)))
    made = jax.eval_shape(decoding.unstacked, unbox(boxed))["layers_0"]
    assert sorted(made["attention"]) == ["out_transposed", "qkv_transposed"]
    assert sorted(made["mlp"]) == ["down_transposed", "gate_transposed", "up_transposed"]
    assert made["mlp"]["down_transposed"].shape == (1024, 4096)


def test_kernel_names_match_the_layers(stacked):
    """A kernel that `transposed.py` does not know would not be transposed."""
    apart = transformer.unstack_layers(stacked)["layers_0"]
    names = [*apart["attention"], *apart["mlp"]]
    assert sorted(INPUT_AXES) == sorted(names)
