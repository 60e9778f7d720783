"""Conversion of prompts to MuLan codes over time: mixes, stories, blends."""

import miniature
import numpy as np
import pytest

from musiclm_jax import bundles
from musiclm_jax.generation import conditions, prompts
from musiclm_jax.tokenizers import melody, mulan

X, Y = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)


def test_a_melody_is_looped_and_its_codes_match_its_time(tmp_path):
    part = bundles.load(miniature.melodic(tmp_path / "bundle")).part("melody")
    hertz = np.repeat([220.0, 4000.0, 900.0], 24_000)  # 3 s, 75 semantic frames
    audio = np.sin(2 * np.pi * np.cumsum(hertz) / 24_000).astype(np.float32)
    tune = conditions.Melody(part, audio)
    twice = np.tile(audio, 5)
    for frame in (0, 50, 125):
        start = 960 * (frame % 75)
        expected = melody.tokens(*part, twice[None, start : start + 240_000])[0]
        np.testing.assert_array_equal(tune.at(frame), expected)
    np.testing.assert_array_equal(tune.at(0), tune.at(75))
    assert tune.at(0).shape == (72,) and (tune.at(0) != tune.at(30)).any()


def test_a_mix_lies_between_its_texts_with_unit_norm():
    np.testing.assert_allclose(conditions.mix([X, Y], [3.0, 4.0]), [0.6, 0.8])
    np.testing.assert_allclose(conditions.mix([X, Y], [1.0, 1.0]), [0.5**0.5] * 2)
    assert conditions.mix([X], [0.3]) is X


def test_a_story_switches_or_blends():
    pairs = [("0:00", "piano"), ("0:10", "jig"), ("0:20", "organ")]
    line = conditions.timeline(prompts.timed_story(pairs), np.stack([X, Y, X]))
    assert [time for time, _ in line] == [0, 10, 20]
    np.testing.assert_array_equal([embedding for _, embedding in line], [X, Y, X])
    line = conditions.timeline(prompts.timed_story(pairs, blend=2.0), np.stack([X, Y, X]))
    assert [time for time, _ in line] == [0, 9, 10, 11, 19, 20, 21]
    shares = [embedding[1] / embedding.sum() for _, embedding in line]
    np.testing.assert_allclose(shares, [0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0], atol=1e-6)
    np.testing.assert_allclose([np.linalg.norm(embedding) for _, embedding in line], 1, atol=1e-6)


@pytest.fixture(scope="module")
def part():
    return bundles.load(miniature.path()).mulan()


def test_codes_match_the_sections(part):
    embedded = np.asarray(mulan.embed_text(*part, ["a slow piano", "jig on the fiddle"]))
    stories = [
        prompts.timed_story([("0:00", "a slow piano"), ("0:02", "jig on the fiddle")]),
        prompts.timed_story([("0:00", "a slow piano"), ("0:02", "a slow piano")]),
        prompts.parse_mix(["a slow piano:1", "jig on the fiddle:3"]),
    ]
    story, still, mix = conditions.of_stories(part, stories)
    codes = np.asarray(mulan.tokens(*part, embedded, "text"))
    assert (codes[0] != codes[1]).any()
    np.testing.assert_array_equal(story.codes, codes)
    assert (story.starts, story.times) == ((0, 50), (0.0, 2.0))
    np.testing.assert_array_equal(still.codes, codes[:1])
    assert still.starts == (0,)  # equal codes are merged
    mixed = embedded[0] + 3 * embedded[1]
    np.testing.assert_allclose(mix.embeddings[0], mixed / np.linalg.norm(mixed), atol=1e-6)
    np.testing.assert_array_equal(mix.codes, mulan.tokens(*part, mix.embeddings, "text"))


def test_a_recordings_codes_are_audio_codes(part):
    # The modalities have different means, as in a real MuLan.
    apart = part._replace(variables=part.variables | {"text_mean": part.variables["audio_mean"] + 0.3})
    condition = conditions.of_recording(apart, miniature.tone())
    embedding = mulan.embed_audio(*apart, miniature.tone()[None])
    np.testing.assert_array_equal(condition.codes, mulan.tokens(*apart, embedding, "audio"))
    assert (condition.codes != mulan.tokens(*apart, embedding, "text")).any()
    assert conditions.similarities(apart, [condition], miniature.tone()[None]) == pytest.approx(1, abs=1e-5)
