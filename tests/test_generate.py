"""Text to audio: windows, seeds, batches and bad requests, on a miniature bundle of random weights."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import miniature
import numpy as np
import pytest

import musiclm_jax
from musiclm_jax import bundles, generate, mulan, soundstream, stages
from musiclm_jax.decoding import Sampling
from musiclm_jax.generate import Request

SECONDS = 1.1  # 0.8 s + 0.4 s: two coarse windows, and three fine ones


@pytest.fixture(scope="module")
def bundle():
    return bundles.load(miniature.path())


@pytest.fixture(scope="module")
def music(bundle):
    """Two pieces for each of two prompts."""
    return generate.generate(bundle, ["a slow piano", "jig on the fiddle"], seconds=SECONDS, seed=3, num_samples=2)


class Recorder:
    """Stands in for a stage: continues a piece by a rule, and notes what it was given."""

    def __init__(self, rule):
        self.rule, self.calls = rule, []

    def __call__(self, part, conditioning, prefix, frames, keys, sampling, report):
        self.calls.append((conditioning, np.asarray(prefix), frames, sampling))
        report(frames)
        new = self.rule({name: jnp.asarray(codes) for name, codes in conditioning.items()}, prefix, frames)
        return jnp.concatenate([prefix, new[:, prefix.shape[1] :]], axis=1)


def keys(rows):
    return jax.random.split(jax.random.key(0), rows)


def silent(name, done, total):
    pass


def test_semantic_stage_goes_on_from_its_last_half(monkeypatch, bundle):
    def count_on(conditioning, prefix, frames):
        first = prefix[:, :1, 0] if prefix.shape[1] else jnp.zeros((2, 1), int)
        return (first + jnp.arange(frames)[None])[..., None]

    stage = Recorder(count_on)
    monkeypatch.setattr(generate, "sample_stage", stage)
    part = bundle.part("semantic")  # windows of 1.6 s: 40 frames
    codes = generate.semantic_windows(part, jnp.zeros((2, 12), int), 70, Request(), keys(2), silent)
    np.testing.assert_array_equal(codes[..., 0], np.tile(np.arange(70), (2, 1)))
    assert [(prefix.shape[1], frames) for _, prefix, frames, _ in stage.calls] == [(0, 40), (20, 40), (20, 30)]
    np.testing.assert_array_equal(stage.calls[1][1][0, :, 0], np.arange(20, 40))


def test_coarse_windows_see_their_part_of_the_semantic_codes(monkeypatch, bundle):
    stage = Recorder(lambda c, prefix, frames: jnp.repeat(c["semantic"], 2, axis=1)[..., None] + jnp.arange(4))
    monkeypatch.setattr(generate, "sample_stage", stage)
    part = bundle.part("coarse")  # windows of 0.8 s: 20 semantic frames, 40 acoustic ones
    semantic = jnp.stack([jnp.arange(50), 100 + jnp.arange(50)])
    codes = generate.coarse_windows(part, jnp.zeros((2, 12), int), semantic[..., None], Request(), keys(2), silent)
    np.testing.assert_array_equal(codes, np.repeat(semantic, 2, axis=1)[..., None] + np.arange(4))
    assert [(prefix.shape[1], frames) for _, prefix, frames, _ in stage.calls] == [
        (0, 40),
        (20, 40),
        (20, 40),
        (20, 40),
    ]


@pytest.mark.parametrize("frames, windows", [(60, 3), (50, 3), (40, 2), (12, 1)])
def test_fine_windows_cover_the_piece_once(monkeypatch, bundle, frames, windows):
    stage = Recorder(lambda c, prefix, frames: jnp.tile(c["acoustic"][..., :1], (1, 1, 8)) + 7)
    monkeypatch.setattr(generate, "sample_stage", stage)
    coarse = jnp.stack([jnp.arange(frames), 1000 + jnp.arange(frames)])[..., None] * jnp.ones(4, int)
    codes = generate.fine_windows(bundle.part("fine"), coarse, Request(), keys(2), silent)
    np.testing.assert_array_equal(codes, np.asarray(coarse)[..., :1] + np.full(8, 7))
    assert len(stage.calls) == 1 and stage.calls[0][0]["acoustic"].shape[0] == 2 * windows


def test_windows_draw_with_different_keys():
    drawn = [generate._window_keys(keys(2), stage, start) for stage in range(3) for start in (0, 10)]
    assert len(np.unique(np.concatenate([jax.random.key_data(k) for k in drawn]), axis=0)) == 12


def test_pieces_have_their_shapes_and_order(music):
    assert [(m.prompt, m.sample) for m in music] == [
        ("a slow piano", 0),
        ("a slow piano", 1),
        ("jig on the fiddle", 0),
        ("jig on the fiddle", 1),
    ]
    for m in music:
        assert m.audio.shape == (26_400,) and m.audio.dtype == np.float32 and np.isfinite(m.audio).all()
        assert m.tokens["mulan"].shape == (12,)
        assert m.tokens["semantic"].shape == (30,) and m.tokens["acoustic"].shape == (60, 12)
        for codes in m.tokens.values():
            assert codes.min() >= 0 and codes.max() < miniature.CODES and len(np.unique(codes)) > 1


def test_audio_is_that_of_the_tokens(bundle, music):
    decoded = jax.jit(soundstream.decode, static_argnums=0)(
        *bundle.part("soundstream"), music[1].tokens["acoustic"][None]
    )
    np.testing.assert_allclose(music[1].audio, decoded[0, :26_400], atol=1e-5)


def test_text_tokens_are_mulans(bundle, music):
    part = bundle.mulan()
    embeddings = mulan.embed_text(*part, ["a slow piano"])
    np.testing.assert_array_equal(music[0].tokens["mulan"], mulan.tokens(*part, embeddings, "text")[0])
    heard = mulan.embed_audio(*part, music[0].audio[None])
    assert music[0].similarity == pytest.approx(float((heard @ embeddings.T)[0, 0]), abs=1e-4)


def test_a_piece_depends_on_prompt_seed_and_number_alone(bundle, music):
    [alone] = generate.generate(bundle, ["jig on the fiddle"], seconds=SECONDS, seed=3)
    for name in alone.tokens:
        np.testing.assert_array_equal(alone.tokens[name], music[2].tokens[name])
    np.testing.assert_allclose(alone.audio, music[2].audio, atol=1e-4)
    assert not np.array_equal(music[2].tokens["semantic"], music[3].tokens["semantic"])
    [other_seed] = generate.generate(bundle, ["jig on the fiddle"], seconds=SECONDS, seed=4)
    assert not np.array_equal(other_seed.tokens["semantic"], alone.tokens["semantic"])


def test_best_of_keeps_the_most_similar_candidate(bundle, music):
    best = generate.generate(bundle, ["a slow piano"], seconds=SECONDS, seed=3, best_of=2)
    assert len(best) == 1
    assert best[0].similarity == pytest.approx(max(m.similarity for m in music[:2]), abs=1e-5)
    chosen = max(music[:2], key=lambda m: m.similarity)
    np.testing.assert_array_equal(best[0].tokens["acoustic"], chosen.tokens["acoustic"])


def test_options_reach_their_stages():
    request = Request(temperature=(0.5, 0.6, 0.7), top_k=9, top_p=0.8, guidance=(2.0, 3.0))
    assert [request.sampling(stage) for stage in ("semantic", "coarse", "fine")] == [
        Sampling(0.5, 9, 0.8, 2.0),
        Sampling(0.6, 9, 0.8, 3.0),
        Sampling(0.7, 9, 0.8, 1.0),
    ]


def test_the_bundles_settings_are_the_default(tmp_path, bundle, music):
    folder = miniature.copy(tmp_path / "mini")
    settings = bundles.GenerationConfig(max_seconds=3.0, temperature=(0.0, 0.0, 0.0))
    bundles.save_generation(folder, settings)
    pieces = [
        musiclm_jax.load(folder).generate(["a slow piano"], seconds=SECONDS, seed=seed)[0].tokens for seed in (0, 1)
    ]
    np.testing.assert_array_equal(pieces[0]["acoustic"], pieces[1]["acoustic"])


def test_temperature_zero_ignores_the_seed(bundle):
    pieces = [
        bundle.generate(["piano"], seconds=1.0, seed=seed, temperature=(0.0, 0.0, 0.0))[0].tokens["acoustic"]
        for seed in (0, 1)
    ]
    np.testing.assert_array_equal(*pieces)


def test_progress_tells_every_stage_to_its_end(bundle):
    told = {}
    generate.generate(
        bundle, ["piano"], lambda *report: told.setdefault(report[0], []).append(report[1:]), seconds=SECONDS
    )
    assert list(told) == ["text", "semantic", "coarse", "fine", "audio"]
    for reports in told.values():
        done = [report[0] for report in reports]
        assert done == sorted(done) and done[-1] == reports[-1][1]


def test_finished_pieces_come_before_the_next_ones_are_made(bundle):
    request = Request(seconds=1.0, batch_size=1)
    told = []
    pieces = generate.stream(bundle, ["piano", "fiddle"], request, lambda name, done, total: told.append(name))
    assert next(pieces).prompt == "piano"
    assert told.count("audio") == 2  # begun and done, once
    assert next(pieces).prompt == "fiddle"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"seconds": 0}, "seconds is 0: this bundle makes 1 to 3 seconds"),
        ({"seconds": -1}, "seconds is -1"),
        ({"seconds": 1e6}, r"seconds is 1e\+06"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"best_of": -2}, "best_of is -2"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"temperature": (1.0, 1.0)}, "three numbers"),
        ({"temperature": (1.0, -1.0, 1.0)}, "three numbers"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"guidance": (1.0,)}, "two numbers"),
        ({"guidance": (1.0, 3.0)}, "the coarse stage of this bundle was trained without dropping"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_requests_are_one_line(bundle, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        bundle.generate(["piano"], **({"seconds": 1.0} | options))
    assert "\n" not in str(raised.value)


def test_missing_stage_is_named(tmp_path):
    folder = miniature.copy(tmp_path / "mini")
    (folder / "fine.safetensors").unlink()
    with pytest.raises(bundles.BundleError, match=r"fine\.safetensors is missing"):
        heard = []
        musiclm_jax.load(folder).generate(["piano"], seconds=1.0, progress=lambda *report: heard.append(report))
    assert not heard  # before any work


def test_parts_that_do_not_fit_are_named(tmp_path):
    folder = miniature.copy(tmp_path / "mini")
    config, variables = bundles.load(folder).part("coarse")
    stage = stages.coarse_stage(seconds=0.8, **(miniature.STAGE_SIZES | {"acoustic_codebook_size": 32}))
    bundles.save_part(folder, "coarse", dataclasses.replace(config, stage=stage), variables)
    with pytest.raises(bundles.BundleError, match=r"coarse stage knows 4 levels of 32 acoustic codes.* have 12 of 16"):
        musiclm_jax.load(folder).generate(["piano"], seconds=1.0)


def test_text_to_audio_imports_no_tensorflow_seqio_or_gin():
    program = f"""
import sys, musiclm_jax
import musiclm_jax.launch.generate, musiclm_jax.audio
music = musiclm_jax.load({str(miniature.path())!r}).generate(["piano"], seconds=1.0)
assert music[0].audio.shape == (24000,)
found = {{"tensorflow", "seqio", "gin", "librosa", "orbax", "tensorflow_datasets"}} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-P", "-c", program], check=True)
