import jax
import jax.numpy as jnp
import miniature
import numpy as np
import pytest

from musiclm_jax.kernels.int8 import int8_kernels, int8_product, rounded
from musiclm_jax.kernels.transposed import FEW, transposed_kernels
from musiclm_jax.stages import decoding, transformer
from musiclm_jax.stages.layout import condition_ids, flatten, semantic_stage, shift_right
from musiclm_jax.stages.sampling import Sampling
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training.partitioning import unbox

STAGE = semantic_stage(
    seconds=0.4, mulan_quantizers=2, mulan_codebook_size=8, semantic_codebook_size=16, full_vocabulary=False
)
CONFIG = TransformerConfig(
    num_layers=2, num_heads=2, d_model=16, d_ff=24, relative_buckets=8, relative_max_distance=12, dropout=0.0
)


def test_rounding_keeps_the_largest_value_and_errs_by_at_most_half_a_step():
    values = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    values[1] = 0
    whole, scale = rounded(values)
    assert whole.dtype == jnp.int8
    assert np.abs(whole).max(axis=-1).tolist() == [127, 0, 127]
    assert (np.abs(values - whole * scale[:, None]) <= 0.501 * scale[:, None]).all()


@pytest.mark.parametrize("rows", [1, 2, FEW + 1])
def test_a_product_of_whole_numbers_is_exact(rows):
    rng = np.random.default_rng(rows)
    x, kernel = rng.integers(-127, 128, (rows, 1, 20)), rng.integers(-127, 128, (20, 6))
    x[..., 0], kernel[0] = 127, -127  # scales of 1
    values, scale = rounded(jnp.asarray(kernel.T, jnp.float32))
    found = int8_product(jnp.asarray(x / 4, jnp.float32), values, scale)
    np.testing.assert_allclose(found, x / 4 @ kernel, rtol=1e-6)


@pytest.fixture(scope="module")
def params():
    made = unbox(jax.jit(lambda key: transformer.init_params(CONFIG, STAGE.vocabulary.rows, key))(jax.random.key(0)))
    return transformer.unstack_layers(made)


def logits_of(params, conditioning, codes):
    """Computes the logits `[b, t, k]` of given codes in one pass, without a KV cache."""
    ids = jnp.concatenate([condition_ids(STAGE, conditioning)[0], flatten(STAGE, STAGE.target, codes)], axis=1)
    frames = (1, codes.shape[1])
    hidden = transformer.hidden_states(
        CONFIG,
        params,
        shift_right(STAGE, ids),
        STAGE.times(frames)[:-1],
        STAGE.spans(frames),
        jnp.ones(ids.shape, bool),
    )
    hidden = hidden[:, -codes.shape[1] :, None]
    return transformer.level_logits(params, hidden, STAGE.vocabulary.offset("semantic"), 1, 16)[:, :, 0]


@pytest.mark.parametrize("rows", [1, 3])
def test_decoding_uses_8_bit_kernels(params, rows, monkeypatch):
    monkeypatch.setattr(decoding, "CACHE_STEP", 8)
    small, conditioning = int8_kernels(params), {"mulan": np.random.default_rng(0).integers(0, 8, (rows, 2))}
    keys = jax.random.split(jax.random.key(0), rows)
    codes = decoding.sample(CONFIG, STAGE, small, conditioning, None, 10, keys, Sampling(temperature=0))
    expected = logits_of(small, conditioning, codes)
    np.testing.assert_array_equal(codes[..., 0], jnp.argmax(expected, axis=-1))
    exact = logits_of(params, conditioning, codes)
    assert 0 < np.abs(exact - expected).max() < 0.1 * np.std(exact)


def test_keys_and_values_are_kept_in_16_bits(params):
    """With and without a KV cache, so that both agree and the loss includes the rounding."""
    conditioning = {"mulan": np.random.default_rng(0).integers(0, 8, (2, 2))}
    keys = jax.random.split(jax.random.key(0), 2)
    for own, dtype in ((params, jnp.float32), (int8_kernels(params), jnp.uint16)):
        state = decoding.prefill(CONFIG, STAGE, own, conditioning, None, 10, keys)
        state, _ = decoding.decode_frames(CONFIG, STAGE, own, state, 4)
        assert {kept.dtype for layer in state.caches for kept in layer} == {jnp.dtype(dtype)}
    codes = np.random.default_rng(1).integers(0, 16, (2, 10, 1))
    wide = int8_kernels(params)
    for name in ("layers_0", "layers_1"):  # without a scale for qkv, the layer does not know that it is in 8 bits
        attention = dict(wide[name]["attention"])
        kernel, scale = attention.pop("qkv_transposed"), attention.pop("qkv_scale")
        wide[name] = wide[name] | {"attention": attention | {"qkv_transposed": kernel * scale[:, None]}}
    rounded, exact = (logits_of(own, conditioning, codes) for own in (int8_kernels(params), wide))
    assert 0 < np.abs(rounded - exact).max() < 0.1 * np.std(exact)


def test_only_kernels_change(params):
    small = int8_kernels(params)
    layer = small["layers_0"]
    assert small["embedding"] is params["embedding"] and layer["mlp_norm"] == params["layers_0"]["mlp_norm"]
    assert layer["attention"]["qkv_transposed"].shape == (48, 16) and layer["attention"]["out_scale"].shape == (16,)
    assert sorted(layer["mlp"]) == [
        f"{name}_{part}" for name in ("down", "gate", "up") for part in ("scale", "transposed")
    ]
    with pytest.raises(ValueError, match="the layers are stacked"):
        int8_kernels(miniature.stack_layers(params))


def test_transposed_kernels_are_rounded_alike(params):
    for one, other in zip(
        jax.tree.leaves(int8_kernels(transposed_kernels(params))), jax.tree.leaves(int8_kernels(params)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
