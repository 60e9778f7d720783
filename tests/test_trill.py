"""TRILL, run from a fake SavedModel with the same signature."""

import numpy as np
import pytest

from musiclm_jax.evaluation import embedders
from musiclm_jax.evaluation.embedders import embed, trill


def save(path, output):
    tf = pytest.importorskip("tensorflow")
    signature = [tf.TensorSpec([None, None], tf.float32, "samples"), tf.TensorSpec([], tf.int32, "sample_rate")]

    class Standin(tf.Module):
        """Takes samples and their rate, returns a vector per frame, like the released model."""

        @tf.function(input_signature=signature)
        def __call__(self, samples, sample_rate):
            level = tf.reduce_sum(samples, axis=1)
            return {output: tf.stack([level, tf.cast(sample_rate, tf.float32) + 0 * level], axis=1)[:, None]}

    tf.saved_model.save(Standin(), str(path))


def test_every_window_gets_the_saved_models_vector(tmp_path, monkeypatch):
    save(tmp_path / "trill", "embedding")
    monkeypatch.setenv("MUSICLM_TRILL", str(tmp_path / "trill"))
    embedder = embedders.load("trill")
    audio = np.random.default_rng(0).normal(0, 0.1, 21_000).astype(np.float32)
    (found,) = embed(embedder, [audio])
    expected = [[audio[s : s + 15_600].sum(), 16_000] for s in range(0, 5_401, trill.HOP)]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_another_saved_model_is_refused(tmp_path, monkeypatch):
    save(tmp_path / "other", "logits")
    monkeypatch.setenv("MUSICLM_TRILL", str(tmp_path / "other"))
    with pytest.raises(ValueError, match="returns no 'embedding': expected the SavedModel of TRILL"):
        list(embed(embedders.load("trill"), [np.zeros(16_000, np.float32)]))
