import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.tokenizers import melody
from musiclm_jax.tokenizers.melody import MelodyConfig, MelodyEncoder, MelodyLearner, semi_hard_triplet_loss
from musiclm_jax.tokenizers.melody.encoder import features
from musiclm_jax.tokenizers.melody.spectrum import log_semitones, pitch_classes
from musiclm_jax.training.optimizers import OptimizerConfig

SMALL = MelodyConfig(
    mel_hop=1200, num_mels=24, patch_mels=24, num_layers=1, num_heads=2, head_dim=4, width=16, mlp_width=16,
    embedding_dim=12, codebook_size=8,
)  # fmt: skip


def test_the_paper_s_sizes():
    config = MelodyConfig()
    shapes = jax.eval_shape(
        lambda key: MelodyEncoder(config).init(key, jnp.zeros((1, 200, config.num_mels))), jax.random.key(0)
    )["params"]
    # Per layer: q, k, v and out with 6 heads of 64, feed-forward of 1024, two norms.
    layer = 3 * (512 * 384 + 384) + 384 * 512 + 512 + 512 * 1024 + 1024 + 1024 * 512 + 512 + 4 * 512
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["layer_11"])) == layer
    assert "layer_12" not in shapes and shapes["projection"]["kernel"].shape == (512, 192)
    assert (config.patches, config.clip_samples) == (50, 240_000)


def triplets(embeddings, passages, compositions, margin):
    """Computes the loss with loops, by FaceNet's definition."""
    losses = []
    distances = [[float(np.sum((a - b) ** 2)) for b in embeddings] for a in embeddings]
    for a in range(len(passages)):
        for p in range(len(passages)):
            if a == p or passages[a] != passages[p]:
                continue
            others = [distances[a][n] for n in range(len(passages)) if compositions[n] != compositions[a]]
            further = [d for d in others if d > distances[a][p]]
            losses.append(max(0.0, distances[a][p] - (min(further) if further else max(others)) + margin))
    return np.mean(losses), np.mean(np.array(losses) > 0)


@pytest.mark.parametrize("spread", [0.05, 0.5, 5.0])
def test_triplet_loss_matches_its_definition(spread):
    rng = np.random.default_rng(0)
    passages = np.repeat(np.arange(5), [2, 2, 3, 1, 2])
    compositions = np.array([4, 9, 4, 1, 2])[passages]  # passages 0 and 2 come from one composition
    embeddings = rng.normal(size=(5, 8))[passages] + spread * rng.normal(size=(10, 8))
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    loss, metrics = semi_hard_triplet_loss(
        jnp.asarray(embeddings), jnp.asarray(passages), jnp.asarray(compositions), 0.3
    )
    expected, active = triplets(embeddings, passages, compositions, 0.3)
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    assert float(metrics["triplet/active"]) == pytest.approx(active)


def test_triplet_loss_of_known_vectors():
    axes, two = jnp.eye(4), jnp.array([7, 7, 9, 9])
    loss, metrics = semi_hard_triplet_loss(axes[jnp.array([0, 0, 1, 1])], two, two, 0.2)
    assert float(loss) == 0 and float(metrics["triplet/nearest_is_same"]) == 1
    assert float(metrics["triplet/distance_other"]) == 2
    loss, metrics = semi_hard_triplet_loss(axes[jnp.array([0, 1, 0, 1])], two, two, 0.2)
    assert float(loss) == pytest.approx(2 - 2 + 0.2)  # no negative is farther than the positive: take the farthest
    assert float(metrics["triplet/nearest_is_same"]) == 0


def test_other_passages_of_the_tune_are_neither_positives_nor_negatives():
    axes, passages = jnp.eye(4), jnp.array([0, 0, 1, 1, 2, 2])
    # The second passage comes from the first one's tune and equals it; the third, from another tune, is far away.
    embeddings = axes[jnp.array([0, 1, 0, 1, 2, 2])]
    loss, metrics = semi_hard_triplet_loss(embeddings, passages, jnp.array([5, 5, 5, 5, 6, 6]), 0.2)
    # Four pairs at distance 2 with negatives at 2, and two at 0.
    assert float(loss) == pytest.approx(4 * 0.2 / 6)
    embeddings = axes[jnp.array([0, 0, 0, 0, 2, 2])]
    loss, metrics = semi_hard_triplet_loss(embeddings, passages, jnp.array([5, 5, 5, 5, 6, 6]), 0.2)
    assert float(loss) == 0 and float(metrics["triplet/nearest_is_same"]) == 1
    loss, _ = semi_hard_triplet_loss(embeddings, passages, passages, 0.2)
    assert float(loss) == pytest.approx(4 * 0.0 / 6)  # their farthest negatives are beyond the margin


def test_loss_and_gradient_are_finite_without_pairs():
    embeddings = jnp.eye(3)
    for melodies in (jnp.array([1, 2, 3]), jnp.array([1, 1, 1])):
        loss, gradient = jax.value_and_grad(lambda e, m=melodies: semi_hard_triplet_loss(e, m, m, 0.2)[0])(embeddings)
        assert float(loss) == 0 and np.isfinite(gradient).all()


def test_loudness_does_not_matter():
    audio = np.random.default_rng(0).normal(size=(1, SMALL.window_samples)).astype(np.float32)
    np.testing.assert_allclose(features(SMALL, 0.03 * audio), features(SMALL, 0.3 * audio), atol=1e-3)


@pytest.fixture(scope="module")
def learner():
    return MelodyLearner(SMALL, OptimizerConfig(name="adamw", learning_rate=3e-3, schedule="constant", warmup_steps=0))


@pytest.fixture(scope="module")
def batch():
    """Returns tones of three pitches, each twice with different noise."""
    rng, times = np.random.default_rng(0), np.arange(SMALL.window_samples) / 24_000
    tones = np.stack([np.sin(2 * np.pi * hz * times) for hz in (220, 700, 2000)])
    pairs = tones[:, None] + 0.5 * rng.normal(size=(3, 2, SMALL.window_samples))
    return {"audio": pairs.reshape(3, -1).astype(np.float32), "melody": np.array([[3], [5], [8]], np.int32)}


def test_training_pulls_renditions_together(learner, batch):
    state, step = learner.init(jax.random.key(0)), jax.jit(learner.train_step)
    before = learner.eval_step(state, batch, jax.random.key(0))
    for i in range(20):
        state, metrics = step(state, batch, jax.random.key(i))
    after = learner.eval_step(state, batch, jax.random.key(0))
    assert int(state.step) == 20 and np.isfinite(metrics["gradient_norm"])
    assert after["loss"] < 0.5 * before["loss"]
    assert after["triplet/nearest_is_same"] == 1
    assert after["triplet/distance_same"] < 0.5 * after["triplet/distance_other"]


def test_tokens_match_the_windows(learner):
    variables = learner.variables(learner.init(jax.random.key(0)))
    audio = np.random.default_rng(0).normal(size=(2, 11 * 24_000)).astype(np.float32)
    embedded = melody.embed(SMALL, variables, audio)
    assert embedded.shape == (2, 3, 12)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=-1), 1, atol=1e-5)
    # The second window begins 3 s later.
    later = melody.embed(SMALL, variables, audio[:, 72_000 : 72_000 + 96_000])
    np.testing.assert_allclose(embedded[:, 1], later[:, 0], atol=1e-5)
    points = np.random.default_rng(1).normal(size=(64, 12)).astype(np.float32)
    with pytest.raises(ValueError, match="7 windows of renditions for codebooks of"):
        melody.fit_quantizer(SMALL, variables, points[:7], None, jax.random.key(0))
    variables = melody.fit_quantizer(SMALL, variables, points, None, jax.random.key(0), iterations=2)
    codes = melody.tokens(SMALL, variables, audio)
    assert codes.shape == (2, 72) and codes.min() >= 0 and codes.max() < 8
    codebook = np.asarray(variables["codebooks"][0])
    first = np.argmin(np.sum((codebook - np.asarray(embedded)[:, :, None]) ** 2, axis=-1), axis=-1)
    np.testing.assert_array_equal(codes[:, :3], first)  # the first level of the three windows
    short = melody.tokens(SMALL, variables, audio[:, :96_000])  # silence follows
    np.testing.assert_array_equal(short[:, ::3], codes[:, ::3])


KEYED = dataclasses.replace(
    SMALL, semitones=True, lowest_pitch=48, num_mels=54, patch_mels=18, mel_window=2048, mel_fft_size=2048,
    mel_floor=1e-3, mel_mean=-5.9, mel_scale=1.0, chroma_parts=4,
)  # fmt: skip


def tune(pitches):
    """Returns a window of sines at the given MIDI pitches, with equal durations."""
    hz = np.repeat(440 * 2 ** ((np.array(pitches) - 69) / 12), KEYED.window_samples // len(pitches))
    return (0.3 * np.sin(2 * np.pi * np.cumsum(hz) / 24_000)).astype(np.float32)


def test_pitch_classes_of_each_part_do_not_depend_on_octave_and_loudness():
    fading = tune([57, 60, 64, 67]) * np.repeat([1, 0.3, 0.03, 0], 24_000)
    audio = np.stack([tune([57, 60, 64, 67]), 0.1 * tune([69, 72, 76, 79]), fading, np.zeros(96_000)])
    spectra = log_semitones(jnp.asarray(audio, jnp.float32), KEYED.mel, KEYED.lowest_pitch)
    heard = np.asarray(pitch_classes(spectra, KEYED.lowest_pitch, 4))
    assert heard.shape == (4, 4, 12)
    assert heard[0].argmax(axis=1).tolist() == heard[1].argmax(axis=1).tolist() == [9, 0, 4, 7]  # A, C, E, G
    lengths = np.linalg.norm(heard, axis=2)
    np.testing.assert_allclose(lengths[:2], 1, atol=1e-4)
    np.testing.assert_allclose(lengths[2, :2], 1, atol=1e-4)
    assert 0.15 < lengths[2, 2] < 0.6 and lengths[2, 3] < 0.1  # -30 dB, and the decay after it
    np.testing.assert_allclose(lengths[3], 0, atol=1e-4)
    np.testing.assert_allclose(heard.mean(axis=2), 0, atol=1e-5)


def test_tokens_may_encode_the_key_unlike_embeddings():
    learner, rng = MelodyLearner(KEYED), np.random.default_rng(0)
    variables = learner.variables(learner.init(jax.random.key(0)))
    audio = np.tile(np.stack([tune([60, 64, 67, 64]), tune([62, 66, 69, 66])]), 3)[:, :240_000]
    heard = np.asarray(melody.chroma(KEYED, audio))
    assert heard.shape == (2, 3, 4, 12)
    assert (heard.argmax(axis=3)[:, 0] == [[0, 4, 7, 4], [2, 6, 9, 6]]).all()
    points, classes = rng.normal(size=(64, 12)), rng.normal(size=(64, 12))
    with pytest.raises(ValueError, match="chroma_parts is 4: give the pitch classes"):
        melody.fit_quantizer(KEYED, variables, points, None, jax.random.key(0))
    variables = melody.fit_quantizer(KEYED, variables, points, classes, jax.random.key(0), iterations=2)
    assert variables["codebooks"].shape == (20, 8, 12) and variables["chroma_codebook"].shape == (8, 12)
    codes = np.asarray(melody.tokens(KEYED, variables, audio)).reshape(2, 24, 3)
    nearest = np.argmin(np.sum((np.asarray(variables["chroma_codebook"]) - heard[..., None, :]) ** 2, axis=-1), axis=-1)
    np.testing.assert_array_equal(codes[:, :4], nearest.swapaxes(1, 2))
    plain = dataclasses.replace(KEYED, chroma_parts=0)  # the RVQ codes do not depend on the chroma codes
    np.testing.assert_array_equal(codes[:, 4:].reshape(2, -1), melody.tokens(plain, variables, audio))
    stand_for = melody.entries(KEYED, variables)
    assert stand_for.shape == (24, 8, 24)
    np.testing.assert_array_equal(stand_for[2], np.pad(variables["chroma_codebook"], ((0, 0), (12, 0))))
    np.testing.assert_array_equal(stand_for[4, :, :12], variables["codebooks"][0])
    assert not stand_for[4:, :, 12:].any()


def test_bad_configurations_are_named():
    with pytest.raises(ValueError, match=r"chroma_parts is 4: expected 0, or with semitones=True 1 to 23, fewer"):
        dataclasses.replace(SMALL, chroma_parts=4)
    with pytest.raises(ValueError, match=r"windows x num_quantizers is 3 x 12, expected the 72 tokens"):
        dataclasses.replace(SMALL, num_quantizers=12)
    with pytest.raises(ValueError, match=r"window_seconds 4\.1 are 98400 samples, expected a multiple"):
        dataclasses.replace(SMALL, window_seconds=4.1)
    with pytest.raises(ValueError, match=r"patch_mels 25 of num_mels 24 filters"):
        dataclasses.replace(SMALL, patch_mels=25)
    with pytest.raises(ValueError, match=r"audio is \(5,\), expected \[batch, samples\]"):
        melody.embed(SMALL, {}, np.zeros(5))
