"""The three encoders together, on a miniature bundle with random weights."""

import jax
import miniature
import numpy as np
import pytest

from musiclm_jax import bundles
from musiclm_jax.bundles.encode import Tokenizers
from musiclm_jax.tokenizers import mulan, soundstream, w2v_bert


@pytest.fixture(scope="module")
def tokenizers():
    return Tokenizers.from_bundle(bundles.load(miniature.path()))


def clips(rows):
    return np.random.default_rng(0).normal(0, 0.1, (rows, 24_000)).astype(np.float32)


def test_streams_have_their_rates_and_ranges(tokenizers):
    streams = tokenizers.tokenize(clips(2))
    assert {name: codes.shape for name, codes in streams.items()} == {
        "semantic": (2, 25),
        "acoustic": (2, 50, 12),
        "mulan": (2, 12),
    }
    for codes in streams.values():
        assert codes.dtype == np.int32 and codes.min() >= 0 and codes.max() < miniature.CODES
        assert len(np.unique(codes)) > 1


def test_streams_match_the_models(tokenizers):
    audio = clips(2)
    streams = tokenizers.tokenize(audio)
    # Jitted like the tokenizers: run op by op, ties may be resolved differently.
    semantic = jax.jit(w2v_bert.semantic_tokens, static_argnums=0)(*tokenizers.w2v_bert, audio)
    np.testing.assert_array_equal(streams["semantic"], semantic)
    acoustic = jax.jit(soundstream.encode, static_argnums=0)(*tokenizers.soundstream, audio)
    np.testing.assert_array_equal(streams["acoustic"], acoustic)
    embeddings = mulan.embed_audio(*tokenizers.mulan, audio)
    np.testing.assert_array_equal(streams["mulan"], mulan.tokens(*tokenizers.mulan, embeddings, "audio"))


def test_a_clip_does_not_depend_on_its_batch(tokenizers):
    audio = clips(3)
    together = tokenizers.tokenize(audio)
    for row in range(3):
        for name, codes in tokenizers.tokenize(audio[row : row + 1]).items():
            np.testing.assert_array_equal(codes[0], together[name][row])


@pytest.mark.parametrize("shape", [(24_000,), (1, 0), (1, 1000)])
def test_other_shapes_are_refused(tokenizers, shape):
    with pytest.raises(ValueError, match="multiple of 960"):
        tokenizers.tokenize(np.zeros(shape, np.float32))


def test_bundle_without_a_tokenizer_is_refused(tmp_path):
    folder = miniature.copy(tmp_path / "mini")
    (folder / "w2v_bert.safetensors").unlink()
    with pytest.raises(bundles.BundleError, match=r"w2v_bert\.safetensors is missing"):
        Tokenizers.from_bundle(bundles.load(folder))
