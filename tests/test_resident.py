"""Training from arrays in the accelerator's memory: aligned crops, texts, and a learning rate that depends on time."""

import dataclasses
import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.bootstrap import resident
from musiclm_jax.data.samples import FULL_SCALE
from musiclm_jax.stages import layout
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training import partitioning
from musiclm_jax.training.optimizers import OptimizerConfig

CLIPS, FRAMES = 5, 50
STAGE = layout.coarse_stage(
    seconds=0.4, mulan_quantizers=2, semantic_codebook_size=1024, coarse_quantizers=2, full_vocabulary=False
)
LEARNER = StageLearner(
    STAGE,
    TransformerConfig(num_layers=1, num_heads=2, d_model=16, d_ff=16, dropout=0.0, scan_layers=True),
    OptimizerConfig(name="adamw", learning_rate=1e-2, schedule="constant", warmup_steps=0, weight_decay=0.1),
)


def token_data() -> dict[str, jax.Array]:
    """Returns codes that identify their position: semantic and acoustic codes the frame, MuLan codes the clip."""
    acoustic = np.broadcast_to(np.arange(2 * FRAMES)[None, :, None], (CLIPS, 2 * FRAMES, 3))
    rows = np.arange(CLIPS)
    return {
        "semantic": jnp.asarray(np.broadcast_to(np.arange(FRAMES), (CLIPS, FRAMES)), jnp.int16),
        "acoustic": jnp.asarray(acoustic, jnp.int16),
        "mulan": jnp.asarray(np.stack([rows, rows], 1), jnp.int16),
        "caption_mulan": jnp.asarray(np.broadcast_to(100 + rows[:, None, None], (CLIPS, 4, 2)), jnp.int16),
    }


def draw(key: jax.Array, data: resident.Data) -> dict[str, jax.Array]:
    """Draws four crops for LEARNER."""
    return resident.draw_tokens(key, data, batch=4, stage=STAGE)


def test_token_crops_are_aligned_in_time():
    batch = resident.draw_tokens(jax.random.key(0), token_data(), batch=64, stage=STAGE)
    assert batch["semantic"].shape == (64, 10) and batch["acoustic"].shape == (64, 20, 3)
    starts = np.asarray(batch["semantic"][:, 0])
    np.testing.assert_array_equal(batch["semantic"], starts[:, None] + np.arange(10))
    np.testing.assert_array_equal(batch["acoustic"][:, :, 1], 2 * starts[:, None] + np.arange(20))
    assert starts.min() == 0 and starts.max() == FRAMES - 10  # both ends are drawn


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (1.0, 1, 1), (0.5, 0.35, 0.65)])
def test_caption_share_is_the_share_of_rows_with_codes_of_a_text(share, low, high):
    data = token_data()
    batch = resident.draw_tokens(jax.random.key(1), data, batch=200, stage=STAGE, caption_share=share)
    of_text = np.asarray(batch["mulan"][:, 0]) >= 100
    assert low <= of_text.mean() <= high
    # A row's text belongs to the row's clip: without the text's offset, all clips occur.
    assert set(np.asarray(batch["mulan"][:, 0]) % 100) == set(range(CLIPS))


def test_audio_crops_come_from_valid_clips():
    samples = np.arange(CLIPS * 1000, dtype=np.int16).reshape(CLIPS, 1000)
    data = {"audio": jnp.asarray(samples), "clips": jnp.int32(2)}
    audio = resident.draw_audio(jax.random.key(0), data, batch=64, samples=100)["audio"]
    audio = np.round(audio * FULL_SCALE, 2)  # FULL_SCALE is not a power of 2
    assert audio.max() < 2000
    np.testing.assert_allclose(np.diff(audio, axis=1), 1.0)


def test_pairs_have_a_text_of_their_own_clip():
    samples = np.repeat(np.arange(CLIPS, dtype=np.int16)[:, None], 1000, axis=1)
    ids = np.zeros((CLIPS, 3, 6), np.int16)
    ids[:, :, :4] = np.arange(CLIPS)[:, None, None] + 1
    vectors = jnp.asarray(np.broadcast_to(np.arange(CLIPS)[:, None, None], (CLIPS, 3, 2)), jnp.float16)
    data = {"audio": jnp.asarray(samples), "clips": jnp.int32(CLIPS), "text_ids": jnp.asarray(ids)}
    data["text_vectors"] = vectors
    batch = resident.draw_pairs(jax.random.key(0), data, batch=32, samples=10)
    np.testing.assert_allclose(batch["audio"][:, 0] * FULL_SCALE + 1, batch["text_ids"][:, 0], rtol=1e-6)
    np.testing.assert_array_equal(batch["text_vectors"][:, 1] + 1, batch["text_ids"][:, 0])


def compiled(function, *arguments):
    """Compiles quickly to slow code, for programs that run once or twice."""
    return function.lower(*arguments).compile(compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def _state() -> object:
    init = jax.jit(functools.partial(resident.unboxed_init, LEARNER))
    return compiled(init, jax.random.key(0))(jax.random.key(0))


def state() -> object:
    """LEARNER's state at step 0; new arrays each time, since steps donate them."""
    return jax.tree.map(jnp.copy, _state())


def test_steps_in_one_call_equal_steps_in_two():
    data, key, one = token_data(), jax.random.key(3), jnp.float32(1)
    arguments = state(), data, key, jnp.int32(0), one
    whole, _ = compiled(resident.steps(LEARNER, draw, 4), *arguments)(*arguments)
    run = compiled(resident.steps(LEARNER, draw, 2), state(), *arguments[1:])
    parts, _ = run(run(state(), data, key, jnp.int32(0), one)[0], data, key, jnp.int32(2), one)
    assert int(parts.step) == 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole.params, parts.params)


def test_a_scaled_step_is_a_step_at_a_lower_rate():
    before = state()
    slow = dataclasses.replace(LEARNER, optimizer=dataclasses.replace(LEARNER.optimizer, learning_rate=0.3e-2))
    batch, key = draw(jax.random.key(5), token_data()), jax.random.key(6)
    expected, after = (
        compiled(jax.jit(learner.train_step), before, batch, key)(before, batch, key)[0] for learner in (slow, LEARNER)
    )
    got = resident.scaled(before, after, jnp.float32(0.3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), expected.params, got.params)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before.params, got.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_train_for_stops_in_time_and_lowers_the_rate():
    scales: list[float] = []

    def run(state, data, key, first, scale):
        time.sleep(0.01)
        scales.append(float(scale))
        return state + 1, {"loss": jnp.float32(1.0)}

    lines: list[str] = []
    final, done, metrics = resident.train_for(
        run, 0, itertools.repeat({}), jax.random.key(0), count=2, seconds=2.0, say=lines.append, every=0.1
    )
    assert done == 2 * final == 2 * len(scales) and 8 < final <= 202
    assert scales[0] > 0.9 and scales[-1] < 0.2 and scales == sorted(scales, reverse=True)
    assert metrics == {"loss": 1.0} and lines


def test_train_for_saves_the_state_as_it_goes():
    def run(state, data, key, first, scale):
        time.sleep(0.01)
        return state + 1, {"loss": jnp.float32(1.0)}

    saved: list[int] = []
    options = {"count": 1, "seconds": 0.6, "say": print, "save": saved.append, "save_every": 0.15}
    final, _, _ = resident.train_for(run, 0, itertools.repeat({}), jax.random.key(0), **options)
    assert 1 <= len(saved) <= 4 and saved == sorted(saved) and 0 < saved[0] < final


def test_a_loss_that_is_not_finite_ends_the_training():
    def run(state, data, key, first, scale):
        return state, {"loss": jnp.float32(np.nan)}

    with pytest.raises(FloatingPointError, match="loss is nan"):
        resident.train_for(run, 0, itertools.repeat({}), jax.random.key(0), count=1, seconds=0.2, say=print)


def test_abstract_state_has_the_shapes_of_the_state():
    shapes = jax.tree.map(lambda leaf: leaf.shape, resident.abstract_state(LEARNER))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, state())
    assert partitioning.unbox(shapes) == shapes
