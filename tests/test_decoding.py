import dataclasses
import re

import jax
import jax.numpy as jnp
import miniature
import numpy as np
import pytest

from musiclm_jax.kernels.transposed import transposed_kernels
from musiclm_jax.stages import decoding, transformer
from musiclm_jax.stages.layout import coarse_stage, flatten, shift_right
from musiclm_jax.stages.sampling import Sampling
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training.partitioning import unbox

STAGE = coarse_stage(
    seconds=0.4,
    mulan_quantizers=2,
    mulan_codebook_size=8,
    semantic_codebook_size=8,
    acoustic_quantizers=3,
    acoustic_codebook_size=16,
    coarse_quantizers=3,
    full_vocabulary=False,
    condition_dropout=0.1,
)
CONFIG = TransformerConfig(
    num_layers=2,
    num_heads=2,
    d_model=16,
    d_ff=24,
    relative_buckets=8,
    relative_max_distance=12,
    time_embedding=True,
    aligned_condition=True,
)
ROWS, FRAMES = 3, 20


@pytest.fixture(autouse=True)
def short_caches(monkeypatch):
    """Makes the KV cache grow several times within a few frames: 13 tokens are known, 60 are sampled."""
    monkeypatch.setattr(decoding, "CACHE_STEP", 32)


@pytest.fixture(scope="module")
def params():
    made = unbox(jax.jit(lambda key: transformer.init_params(CONFIG, STAGE.vocabulary.rows, key))(jax.random.key(0)))
    return transformer.unstack_layers(made)


@pytest.fixture(scope="module")
def conditioning():
    rng = np.random.default_rng(0)
    codes = {"mulan": rng.integers(0, 8, (ROWS, 2)), "semantic": rng.integers(0, 8, (ROWS, 10))}
    codes["semantic"][1, 4:6] = -1  # padding
    return codes


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(1), ROWS)


def logits_of(params, conditioning, codes, drop=None):
    """Computes the logits `[b, t, q, k]` of given codes in one pass, without a KV cache."""
    stacked = miniature.stack_layers(params)
    ids, valid = decoding.condition_ids(STAGE, conditioning, drop)
    ids = jnp.concatenate([ids, flatten(STAGE, STAGE.target, codes)], axis=1)
    valid = jnp.concatenate(
        [jnp.ones((len(ids), 1), bool), valid, jnp.ones((len(ids), codes[0].size - 1), bool)], axis=1
    )
    frames = (1, 10, codes.shape[1])
    hidden = transformer.hidden_states(
        CONFIG, stacked, shift_right(STAGE, ids), STAGE.times(frames)[:-1], STAGE.spans(frames), valid
    )
    hidden = hidden[:, -codes[0].size :].reshape(*codes.shape, -1)
    return transformer.level_logits(params, hidden, STAGE.vocabulary.offset("acoustic"), 3, 16)


def test_greedy_decoding_with_cache_matches_argmax_without(params, conditioning, keys):
    codes = decoding.sample(CONFIG, STAGE, params, conditioning, None, FRAMES, keys, Sampling(temperature=0))
    assert codes.shape == (ROWS, FRAMES, 3) and codes.dtype == jnp.int32
    logits = logits_of(params, conditioning, codes)
    np.testing.assert_array_equal(codes, jnp.argmax(logits, axis=-1))
    assert len(np.unique(codes)) > 4  # not stuck on one code


def test_logits_with_and_without_cache_are_equal(params, conditioning, keys):
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 16, (ROWS, 7, 3))
    expected = logits_of(params, conditioning, codes)[:, 6, 0]
    state = decoding.prefill(CONFIG, STAGE, params, conditioning, codes[:, :6], FRAMES, keys)
    caches = decoding._grown(state.valid.shape[1], state.caches)
    model = transformer.Transformer(CONFIG, STAGE.vocabulary.rows, stacked=False)
    added = state.features[:, state.position]
    hidden, _ = model.apply(
        {"params": params}, state.token, added, state.valid, caches, state.position, method=transformer.Transformer.step
    )
    logits = transformer.level_logits(params, hidden[:, None, None], STAGE.vocabulary.offset("acoustic"), 1, 16)
    np.testing.assert_allclose(logits[:, 0, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_guidance_is_the_difference_that_the_conditioning_makes(params, conditioning, keys, guidance):
    sampling = Sampling(temperature=0, guidance=guidance)
    codes = decoding.sample(CONFIG, STAGE, params, conditioning, None, FRAMES, keys, sampling)
    with_it = logits_of(params, conditioning, codes)
    without = logits_of(params, conditioning, codes, jnp.ones(ROWS, bool))
    np.testing.assert_array_equal(codes, jnp.argmax(without + guidance * (with_it - without), axis=-1))
    assert (codes != jnp.argmax(with_it, axis=-1)).any()
    # The same in chunks and after a prefix.
    state = decoding.prefill(CONFIG, STAGE, params, conditioning, codes[:, :5], FRAMES, keys, guided=True)
    np.testing.assert_array_equal(
        decoding.decode_frames(CONFIG, STAGE, params, state, FRAMES - 5, sampling)[1], codes[:, 5:]
    )


def test_transposed_kernels_draw_the_same_codes(params, conditioning, keys):
    expected = decoding.sample(CONFIG, STAGE, params, conditioning, None, FRAMES, keys)
    transposed = transposed_kernels(params)
    assert "gate_transposed" in transposed["layers_0"]["mlp"]
    np.testing.assert_array_equal(
        decoding.sample(CONFIG, STAGE, transposed, conditioning, None, FRAMES, keys), expected
    )


def test_equal_keys_give_equal_codes_and_other_keys_do_not(params, conditioning, keys):
    first = decoding.sample(CONFIG, STAGE, params, conditioning, None, FRAMES, keys)
    again = decoding.sample(CONFIG, STAGE, miniature.stack_layers(params), conditioning, None, FRAMES, keys)
    np.testing.assert_array_equal(first, again)
    other = decoding.sample(CONFIG, STAGE, params, conditioning, None, FRAMES, keys[::-1])
    assert (first != other).mean() > 0.5
    assert first.min() >= 0 and first.max() <= 15


def test_a_row_does_not_depend_on_its_batch(params, conditioning, keys):
    together = decoding.sample(CONFIG, STAGE, params, conditioning, None, FRAMES, keys)
    alone = {name: codes[1:2] for name, codes in conditioning.items()}
    np.testing.assert_array_equal(
        decoding.sample(CONFIG, STAGE, params, alone, None, FRAMES, keys[1:2])[0], together[1]
    )


def test_pieces_and_prefixes_do_not_change_the_result(params, conditioning, keys):
    whole = decoding.sample(CONFIG, STAGE, params, conditioning, None, FRAMES, keys)
    state = decoding.prefill(CONFIG, STAGE, params, conditioning, None, FRAMES, keys)
    pieces = []
    for frames in (1, 12, 7):
        state, codes = decoding.decode_frames(CONFIG, STAGE, params, state, frames)
        pieces.append(codes)
    np.testing.assert_array_equal(jnp.concatenate(pieces, axis=1), whole)
    np.testing.assert_array_equal(
        decoding.sample(CONFIG, STAGE, params, conditioning, whole[:, :8], FRAMES, keys), whole
    )


def test_padding_in_the_conditioning_is_masked(params, conditioning, keys):
    other = dict(conditioning, semantic=np.where(conditioning["semantic"] < 0, 3, conditioning["semantic"]))
    other["semantic_mask"] = conditioning["semantic"] >= 0
    one = decoding.sample(CONFIG, STAGE, params, conditioning, None, 4, keys)
    np.testing.assert_array_equal(one, decoding.sample(CONFIG, STAGE, params, other, None, 4, keys))


@pytest.mark.parametrize("rows", [1, 2])
def test_a_step_does_not_copy_its_cache_for_each_use(params, rows):
    shape = (rows, 2, 32, 8)
    state = decoding.DecodeState(
        start=13,
        position=20,
        end=32,
        token=jnp.zeros(rows, jnp.int32),
        keys=jax.random.split(jax.random.key(0), rows),
        valid=jnp.ones((rows, 32), bool),
        features=jnp.zeros((1, 32, 16)),
        caches=[],
    )
    caches = [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(CONFIG.num_layers)]
    drawing = decoding.Drawing.of(Sampling())
    text = decoding._decode.lower(CONFIG, STAGE, None, params, caches, state, 4, drawing).compile().as_text()
    copies = re.findall(r"= f32\[(?:\d,)?2,32,8\]\S* copy\(", text)
    assert len(copies) <= 2 * CONFIG.num_layers
    if jax.default_backend() == "cpu":  # XLA's own operations are several times slower
        assert len(re.findall(r'custom_call_target="musiclm_attention"', text)) == CONFIG.num_layers


def frequencies(temperature=1.0, top_k=None, top_p=None):
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.split(jax.random.key(0), 4000)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (4,)))(keys)
    codes = jax.jit(jax.vmap(lambda own: decoding.choose(logits, own, temperature, top_k, top_p)))(noise)
    return np.bincount(codes, minlength=4) / 4000


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [25 / 36.5, 9 / 36.5, 2.25 / 36.5, 0.25 / 36.5]),
        ({"top_k": 2}, [5 / 8, 3 / 8, 0, 0]),
        ({"top_p": 0.7}, [5 / 8, 3 / 8, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
    ],
)
def test_codes_are_drawn_with_their_probabilities(options, expected):
    drawn = frequencies(**options)
    np.testing.assert_allclose(drawn, expected, atol=0.03)
    assert (drawn[np.array(expected) == 0] == 0).all()


def test_options_reach_the_draw(params, conditioning, keys):
    greedy = decoding.sample(CONFIG, STAGE, params, conditioning, None, 4, keys, Sampling(temperature=0))
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-5}):
        np.testing.assert_array_equal(
            decoding.sample(CONFIG, STAGE, params, conditioning, None, 4, keys, Sampling(**options)), greedy
        )


def test_wrong_calls_are_named(params, conditioning, keys):
    with pytest.raises(ValueError, match=r"prefix has shape \(3, 2, 1\), expected \[3, frames, 3\]"):
        decoding.prefill(CONFIG, STAGE, params, conditioning, np.zeros((3, 2, 1), int), FRAMES, keys)
    with pytest.raises(ValueError, match="num_frames is 2, expected more than the 2 frames of the prefix"):
        decoding.prefill(CONFIG, STAGE, params, conditioning, np.zeros((3, 2, 3), int), 2, keys)
    with pytest.raises(ValueError, match=r"keys have shape \(\), expected \[3\]"):
        decoding.prefill(CONFIG, STAGE, params, conditioning, None, FRAMES, keys[0])
    state = decoding.prefill(CONFIG, STAGE, params, conditioning, None, 4, keys)
    with pytest.raises(ValueError, match="num_frames is 5, expected 1 to 4"):
        decoding.decode_frames(CONFIG, STAGE, params, state, 5)
    with pytest.raises(ValueError, match=r"guidance is 2\.0: prefill must be called with guided"):
        decoding.decode_frames(CONFIG, STAGE, params, state, 1, Sampling(guidance=2.0))
    never_dropped = dataclasses.replace(STAGE, condition_dropout=0.0)
    with pytest.raises(ValueError, match="the coarse stage never saw its conditioning dropped"):
        decoding.prefill(CONFIG, never_dropped, params, conditioning, None, 4, keys, guided=True)


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", -1), ("top_k", -2), ("top_p", 0), ("top_p", 1.5), ("guidance", -1)]
)
def test_invalid_sampling_options_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        Sampling(**{field: value})
