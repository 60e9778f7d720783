"""Nearest tags and captions, and codebook use, on a miniature bundle."""

import miniature
import numpy as np
import pytest

from musiclm_jax import bundles
from musiclm_jax.generation import describe
from musiclm_jax.tokenizers import mulan


@pytest.fixture(scope="module")
def bundle():
    return bundles.load(miniature.path())


def test_tags_and_captions_are_ranked_by_cosine(bundle):
    sound = miniature.tone(1.0)
    description = describe.describe(bundle, sound)
    part = bundle.mulan()
    heard = np.asarray(mulan.embed_audio(*part, sound[None]))[0]
    for ranked, texts in [
        (description.tags, ["fiddle", "piano", "slow"]),
        (description.captions, ["a jig on the fiddle", "a slow piano"]),
    ]:
        assert sorted(text for text, _ in ranked) == sorted(texts)
        scores = [score for _, score in ranked]
        assert scores == sorted(scores, reverse=True)
        for text, score in ranked:
            expected = float(np.asarray(mulan.embed_text(*part, [text]))[0] @ heard)
            assert score == pytest.approx(expected, abs=1e-5)


def test_tokens_cover_whole_frames(bundle):
    description = describe.describe(bundle, np.append(miniature.tone(1.0), np.zeros(500, np.float32)))
    assert description.seconds == 1.0
    assert description.tokens["semantic"].shape == (25,) and description.tokens["acoustic"].shape == (50, 12)
    assert len(description.acoustic_use) == 12 and description.semantic_use.codebook_size == miniature.CODES


def test_codebook_use_counts_codes_and_bits():
    use = describe.codebook_use(np.array([2, 2, 3, 7]), level=3, codebook_size=8)
    assert use == describe.CodebookUse(level=3, frames=4, distinct=3, codebook_size=8, bits=1.5)
    assert describe.codebook_use(np.array([5, 5]), 0, 8) == describe.CodebookUse(0, 2, 1, 8, 0.0)


@pytest.mark.parametrize(
    "sound, message", [(np.zeros(24_000), "silent"), (np.ones(100), "shorter than 40 ms"), (np.zeros(0), "shorter")]
)
def test_nothing_to_describe(bundle, sound, message):
    with pytest.raises(ValueError, match=message):
        describe.describe(bundle, sound.astype(np.float32))


@pytest.mark.parametrize("text", ["{", '{"tags": []}', '{"tags": [], "captions": []}', '{"tags": [1], "captions": []}'])
def test_damaged_candidates(tmp_path, text):
    folder = miniature.copy(tmp_path / "mini")
    (folder / "tags.json").write_text(text)
    with pytest.raises(bundles.BundleError, match=r"tags\.json"):
        describe.read_candidates(bundles.load(folder))
