"""Text to audio: seeds, batches, stories, recordings, streams, bad requests, on a miniature random bundle."""

import base64
import dataclasses
import io
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import miniature
import numpy as np
import pytest
import soundfile

import musiclm_jax
from musiclm_jax import bundles
from musiclm_jax.bundles import encode
from musiclm_jax.data import audio
from musiclm_jax.data.tokens import STAGES
from musiclm_jax.generation import conditions, generate, prompts, windows
from musiclm_jax.generation.generate import Request
from musiclm_jax.generation.pipeline import Pipeline, decode_audio
from musiclm_jax.stages import decoding, layout
from musiclm_jax.stages.sampling import Sampling
from musiclm_jax.tokenizers import mulan, soundstream

SECONDS = 1.1  # 28 semantic frames: two coarse windows and three fine windows


@pytest.fixture(scope="module")
def bundle():
    return bundles.load(miniature.path())


@pytest.fixture(scope="module")
def melodic(tmp_path_factory):
    return bundles.load(miniature.melodic(tmp_path_factory.mktemp("melodic") / "bundle"))


@pytest.fixture(scope="module")
def music(bundle):
    """Two pieces for each of two prompts."""
    return generate.generate(bundle, ["a slow piano", "jig on the fiddle"], seconds=SECONDS, seed=3, num_samples=2)


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
        assert m.tokens["semantic"].shape == (28,) and m.tokens["acoustic"].shape == (56, 12)
        for codes in m.tokens.values():
            assert codes.min() >= 0 and codes.max() < miniature.CODES and len(np.unique(codes)) > 1


def test_audio_is_decoded_from_the_tokens(bundle, music):
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


def test_a_piece_depends_only_on_prompt_seed_and_number(bundle, music):
    [alone] = generate.generate(bundle, ["jig on the fiddle"], seconds=SECONDS, seed=3)
    for name in alone.tokens:
        np.testing.assert_array_equal(alone.tokens[name], music[2].tokens[name])
    np.testing.assert_allclose(alone.audio, music[2].audio, atol=1e-4)
    assert not np.array_equal(music[2].tokens["semantic"], music[3].tokens["semantic"])
    [other_seed] = generate.generate(bundle, ["jig on the fiddle"], seconds=SECONDS, seed=4)
    assert not np.array_equal(other_seed.tokens["semantic"], alone.tokens["semantic"])


def test_best_of_keeps_the_candidate_whose_coarse_levels_are_closest_to_the_text(bundle, music):
    part, coarse = bundle.mulan(), bundle.part("coarse").config.stage.target.levels
    wanted = mulan.embed_text(*part, ["a slow piano", "jig on the fiddle"])
    for prompt, candidates in (("a slow piano", music[:2]), ("jig on the fiddle", music[2:4])):
        [best] = generate.generate(bundle, [prompt], seconds=SECONDS, seed=3, best_of=2)
        codes = np.stack([candidate.tokens["acoustic"][:, :coarse] for candidate in candidates])
        heard = mulan.embed_audio(*part, decode_audio(bundle.part("soundstream"), codes)[:, :26_400])
        text = wanted[0 if prompt == "a slow piano" else 1]
        scores = np.asarray(heard @ text)
        assert abs(scores[0] - scores[1]) > 1e-4, "the test can tell them apart"
        chosen = candidates[int(scores.argmax())]
        for name in chosen.tokens:
            np.testing.assert_array_equal(best.tokens[name], chosen.tokens[name])
        assert best.similarity == pytest.approx(chosen.similarity, abs=1e-5)


def test_pieces_of_several_candidates_do_not_depend_on_the_batch(bundle):
    options = {"seconds": SECONDS, "seed": 3, "best_of": 2, "num_samples": 3}
    one_by_one = generate.generate(bundle, ["a slow piano"], batch_size=2, **options)
    together = generate.generate(bundle, ["a slow piano"], batch_size=4, **options)
    assert [piece.sample for piece in together] == [0, 1, 2]
    for one, other in zip(one_by_one, together, strict=True):
        np.testing.assert_array_equal(one.tokens["acoustic"], other.tokens["acoustic"])


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
    for weights in ("float32", "int8"):
        bundles.save_generation(folder, dataclasses.replace(settings, weights=weights))
        assert generate.request_for(bundles.load(folder)).weights == weights
        assert generate.request_for(bundles.load(folder), weights="bfloat16").weights == "bfloat16"


def test_temperature_zero_ignores_the_seed(bundle):
    pieces = [
        generate.generate(bundle, ["piano"], seconds=1.0, seed=seed, temperature=(0.0, 0.0, 0.0))[0].tokens["acoustic"]
        for seed in (0, 1)
    ]
    np.testing.assert_array_equal(*pieces)


def test_progress_reports_every_stage_to_its_end(bundle):
    told = {}
    generate.generate(
        bundle, ["piano"], lambda *report: told.setdefault(report[0], []).append(report[1:]), seconds=SECONDS
    )
    assert list(told) == ["text", "semantic", "coarse", "fine", "audio"]
    for reports in told.values():
        done = [report[0] for report in reports]
        assert done == sorted(done) and done[-1] == reports[-1][1]


def test_finished_pieces_are_yielded_before_the_next_are_generated(bundle):
    request = Request(seconds=1.0, batch_size=1)
    told = []
    pieces = generate.pieces(bundle, ["piano", "fiddle"], request, lambda name, done, total: told.append(name))
    assert next(pieces).prompt == "piano"
    assert told.count("audio") == 2  # started and done, once each
    assert next(pieces).prompt == "fiddle"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"seconds": 0}, "seconds is 0: give 1 to 600"),
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
        ({"guidance": (1.0, 3.0)}, "the coarse stage of this bundle was trained without conditioning dropout"),
        ({"seed": -1}, "seed is -1"),
        ({"vary": "melody"}, "vary is 'melody': give one of all, acoustics"),
        ({"weights": "int4"}, "weights is 'int4': give one of float32, bfloat16, int8"),
        ({"like": miniature.tone()}, r"both a text and a recording \(like\)"),
        ({"like": miniature.tone()[:99], "vary": "acoustics"}, "like: the recording lasts 0.00413 s"),
        ({"continue_from": np.zeros(24_000, np.float32)}, "continue_from: the recording is silent"),
        ({"continue_from": np.full(24_000, np.nan)}, "contains NaN"),
        ({"continue_from": miniature.tone()[None]}, r"expected float audio \[samples\]"),
        ({"continue_from": miniature.tone(2.0), "seconds": 599}, "601 s together: the maximum is 600"),
    ],
)
def test_bad_requests_are_one_line(bundle, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        generate.generate(bundle, ["piano"], **({"seconds": 1.0} | options))
    assert "\n" not in str(raised.value)


def tokens_of(pieces, name):
    return np.stack([piece.tokens[name] for piece in pieces])


def test_a_stream_equals_the_piece_and_arrives_early(bundle, monkeypatch):
    made = []
    sample_window = windows.sample_window

    def counted(part, *arguments):
        for codes in sample_window(part, *arguments):
            made.append((part.config.stage.name, codes.shape[1]))
            yield codes

    monkeypatch.setattr(windows, "sample_window", counted)
    request = generate.request_for(bundle, seconds=2.4, seed=5)
    blocks, made_by_then, told = [], [], []
    for block in generate.stream(bundle, ["piano"], request, lambda *report: told.append(report)):
        blocks.append(block)
        made_by_then.append({name: sum(n for own, n in made if own == name) for name in ("semantic", "coarse", "fine")})
    assert [len(block) for block in blocks] == [24_000, 24_000, 9600]
    assert told == [("audio", 1.0, 2.4), ("audio", 2.0, 2.4), ("audio", 2.4, 2.4)]
    # The first second takes three fine windows of 0.4 s, two coarse windows, and the semantic codes for these.
    assert made_by_then[0] == {"semantic": 40, "coarse": 60, "fine": 60}
    assert made_by_then[-1] == {"semantic": 60, "coarse": 120, "fine": 120}
    [whole] = generate.pieces(bundle, ["piano"], request)
    assert np.abs(whole.audio).max() > 1e-3
    np.testing.assert_allclose(np.concatenate(blocks), whole.audio, atol=1e-5)
    assert len(np.unique(whole.tokens["semantic"])) > 4  # the codes vary, so that equal audio means equal codes


def test_a_story_switches_its_tokens(bundle, monkeypatch):
    monkeypatch.setattr(generate, "piece_key", lambda *_: jax.random.key(5))
    story = prompts.timed_story([("0", "a slow piano"), ("1.2", "jig on the fiddle")])
    [piece] = generate.generate(bundle, [story], seconds=2.4)
    [plain] = generate.generate(bundle, ["a slow piano"], seconds=2.4)
    assert piece.prompt == "0:00 a slow piano 0:01.2 jig on the fiddle"
    for name, change in (("semantic", 30), ("acoustic", 60)):
        np.testing.assert_array_equal(piece.tokens[name][:change], plain.tokens[name][:change])
        assert (piece.tokens[name][change:] != plain.tokens[name][change:]).any()
    part = bundle.mulan()
    asked = np.asarray(mulan.embed_text(*part, ["a slow piano", "jig on the fiddle"]))
    heard = [np.asarray(mulan.embed_audio(*part, half[None]))[0] for half in np.split(piece.audio, 2)]
    assert piece.similarity == pytest.approx((asked[0] @ heard[0] + asked[1] @ heard[1]) / 2, abs=1e-4)


def test_a_recording_is_continued(bundle):
    recording = miniature.tone(1.205)  # 30 semantic frames and a remainder
    pieces = generate.generate(bundle, ["piano"], seconds=1.0, continue_from=recording, num_samples=2)
    tokenized = encode.Tokenizers.from_bundle(bundle).tokenize(recording[None, -28_800:])
    for name, known in (("semantic", 30), ("acoustic", 60)):
        codes = tokens_of(pieces, name)
        assert codes.shape[1] == known / 30 * 55
        np.testing.assert_array_equal(codes[:, :known], np.repeat(tokenized[name], 2, axis=0))
        assert (codes[0, known:] != codes[1, known:]).any()
    assert len(pieces[0].audio) == 28_800 + 24_000
    # Without a text the recording is the prompt.
    [unprompted] = generate.generate(bundle, seconds=1.0, continue_from=recording)
    assert unprompted.prompt == "the recording"
    np.testing.assert_array_equal(unprompted.tokens["mulan"], encode.encode_mulan(bundle.mulan(), recording[None])[0])


def test_times_of_a_story_count_from_the_end_of_the_recording(bundle, monkeypatch):
    given = []

    def generate_semantic(part, conditions, known, frames, *_):
        given.append((conditions.starts, known.shape, frames))
        raise KeyboardInterrupt

    monkeypatch.setattr(windows, "generate_semantic", generate_semantic)
    story = prompts.timed_story([("0:00", "a slow piano"), ("0:01", "jig on the fiddle")])
    with pytest.raises(KeyboardInterrupt):
        generate.generate(bundle, [story], seconds=2.0, continue_from=miniature.tone(1.205))
    assert given == [((0, 30 + 25), (1, 30, 1), 30 + 50)]


def test_8_bit_weights_are_used_by_the_stages(bundle):
    for weights, dtype in (("float32", np.float32), ("int8", np.int8)):
        parts = Pipeline.of(bundle, Request(seconds=SECONDS, weights=weights)).parts
        kernels = [parts[name].variables["params"]["layers_0"]["mlp"]["up_transposed"] for name in STAGES]
        assert [kernel.dtype for kernel in kernels] == [dtype] * 3


def test_in_bfloat16_kernels_and_cache_take_half_the_memory(bundle, music):
    for name, part in Pipeline.of(bundle, Request(seconds=SECONDS, weights="bfloat16")).parts.items():
        if name == "soundstream":
            assert {leaf.dtype for leaf in jax.tree.leaves(part.variables)} == {np.dtype(np.float32)}
            continue
        layer = part.variables["params"]["layers_0"]
        assert layer["mlp"]["up_transposed"].dtype == part.variables["params"]["embedding"].dtype == jnp.bfloat16
        assert layer["mlp_norm"]["scale"].dtype == np.float32
        exact = decoding.unstacked(bundle.part(name).variables["params"])
        caches = [
            decoding._prefill(
                config, params, jnp.zeros((1, 8), int), jnp.zeros((1, 8, config.d_model)), jnp.ones((1, 8), bool)
            )
            for config, params in (
                (part.config.transformer, part.variables["params"]),
                (bundle.part(name).config.transformer, exact),
            )
        ]
        for own, other in zip(*map(jax.tree.leaves, caches), strict=True):
            assert own.dtype == jnp.bfloat16 and other.dtype == np.float32
            np.testing.assert_allclose(own.astype(np.float32), other, atol=0.05 * np.abs(other).max())
    (piece,) = generate.generate(bundle, ["a slow piano"], seconds=SECONDS, seed=3, weights="bfloat16")
    assert np.isfinite(piece.audio).all() and piece.audio.shape == music[0].audio.shape


def test_acoustics_alone_vary(bundle, music):
    varied = generate.generate(bundle, ["a slow piano"], seconds=SECONDS, seed=3, num_samples=2, vary="acoustics")
    for name in ("semantic", "acoustic"):  # the first piece is the same as with vary="all"
        np.testing.assert_array_equal(varied[0].tokens[name], music[0].tokens[name])
    np.testing.assert_array_equal(varied[1].tokens["semantic"], music[0].tokens["semantic"])
    assert (varied[1].tokens["acoustic"] != music[0].tokens["acoustic"]).mean() > 0.3


def test_a_recording_takes_the_place_of_a_text(bundle):
    recording = miniature.tone(1.0)
    alike = generate.generate(bundle, like=recording, seconds=1.0, num_samples=2)
    codes = np.asarray(encode.encode_mulan(bundle.mulan(), recording[None]))[0]
    assert [piece.prompt for piece in alike] == ["the recording"] * 2
    np.testing.assert_array_equal(tokens_of(alike, "mulan"), [codes, codes])
    assert (alike[0].tokens["semantic"] != alike[1].tokens["semantic"]).any()
    # With vary="acoustics" its semantic tokens are kept for any text, and continued where it ends.
    kept = encode.encode_semantic(bundle.part("w2v_bert"), recording[None])[0]
    [restyled] = generate.generate(bundle, ["piano"], like=recording, vary="acoustics", seconds=1.2)
    np.testing.assert_array_equal(restyled.tokens["semantic"][:25], kept)
    assert restyled.tokens["semantic"].shape == (30,) and restyled.tokens["acoustic"].shape == (60, 12)


def test_music_follows_a_melody(bundle, melodic, monkeypatch):
    def codes(part, audio):  # a model with random weights may give two tones the same tokens
        assert audio.shape == (1, part.config.clip_samples)
        return np.full((1, 72), 3 if np.abs(np.diff(audio)).mean() < 0.2 * np.abs(audio).mean() else 9)

    monkeypatch.setattr(conditions, "encode_melody", codes)
    tune, high = (np.sin(2 * np.pi * hertz / 24_000 * np.arange(48_000)).astype(np.float32) for hertz in (220, 4000))
    options = {"seconds": SECONDS, "seed": 3}
    first = generate.generate(melodic, ["piano"], melody=tune, **options)[0].tokens
    again = generate.generate(melodic, ["piano"], melody=0.1 * tune, **options)[0].tokens
    other = generate.generate(melodic, ["piano"], melody=high, **options)[0].tokens
    without = generate.generate(melodic, ["piano"], **options)[0].tokens
    np.testing.assert_array_equal(first["semantic"], again["semantic"])  # regardless of its loudness
    assert (first["semantic"] != other["semantic"]).any()
    assert (first["semantic"] != without["semantic"]).any()
    plain = generate.generate(bundle, ["piano"], **options)[0].tokens
    np.testing.assert_array_equal(without["semantic"], plain["semantic"])
    request = generate.request_for(melodic, melody=tune, **options)
    whole = generate.generate(melodic, ["piano"], melody=tune, **options)[0].audio
    streamed = np.concatenate(list(generate.stream(melodic, ["piano"], request)))
    np.testing.assert_allclose(streamed, whole, atol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"melody": np.zeros(48_000, np.float32)}, "melody: the recording is silent"),
        ({"melody": miniature.tone()[:99]}, "melody: the recording lasts"),
        ({"melody": miniature.tone(), "continue_from": miniature.tone()}, "omit continue_from"),
        ({"melody": miniature.tone(), "vary": "acoustics"}, "vary at 'all'"),
    ],
)
def test_bad_melodies_are_one_line(melodic, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        generate.generate(melodic, ["piano"], seconds=1.0, **options)
    assert "\n" not in str(raised.value)


def test_a_bundle_without_a_melody_model_says_so(bundle):
    with pytest.raises(ValueError, match="has no stage that follows a melody: omit the melody"):
        generate.generate(bundle, ["piano"], seconds=1.0, melody=miniature.tone())


def test_a_stage_for_other_melody_codes_is_refused(tmp_path):
    folder = miniature.melodic(tmp_path / "bundle")
    part = bundles.load(folder).part("semantic_melody")
    sizes = {"melody_quantizers": 6, "melody_codebook_size": miniature.CODES, "melody_parts": 2}
    keyed = layout.semantic_stage(seconds=1.6, **sizes, **miniature.STAGE_SIZES)
    config = dataclasses.replace(part.config, stage=keyed)
    bundles.save_part(folder, "semantic_melody", config, part.variables)
    with pytest.raises(bundles.BundleError, match=r"takes 2 codes .* \(melody_parts\), the melody model makes 0"):
        generate.generate(bundles.load(folder), ["piano"], seconds=1.0, melody=miniature.tone())


def test_only_one_piece_can_be_streamed(bundle):
    for asked, options in [(["piano", "fiddle"], {}), (["piano"], {"num_samples": 2}), (["piano"], {"best_of": 2})]:
        with pytest.raises(ValueError, match="only one piece can be streamed"):
            next(generate.stream(bundle, asked, Request(**options)))


def test_a_story_must_fit_its_length(bundle):
    story = prompts.timed_story([("0:00", "piano"), ("0:15", "fiddle")])
    with pytest.raises(ValueError, match="seconds is 15: the last section of the story begins at 15 s"):
        generate.generate(bundle, [story], seconds=15)


def test_missing_stage_is_named(tmp_path):
    folder = miniature.copy(tmp_path / "mini")
    (folder / "fine.safetensors").unlink()
    with pytest.raises(bundles.BundleError, match=r"fine\.safetensors is missing"):
        heard = []
        musiclm_jax.load(folder).generate(["piano"], seconds=1.0, on_progress=lambda *report: heard.append(report))
    assert not heard  # before any work


def test_incompatible_parts_are_named(tmp_path):
    folder = miniature.copy(tmp_path / "mini")
    config, variables = bundles.load(folder).part("coarse")
    stage = layout.coarse_stage(seconds=0.8, **(miniature.STAGE_SIZES | {"acoustic_codebook_size": 32}))
    bundles.save_part(folder, "coarse", dataclasses.replace(config, stage=stage), variables)
    with pytest.raises(bundles.BundleError, match=r"coarse stage knows 4 levels of 32 acoustic codes.* have 12 of 16"):
        musiclm_jax.load(folder).generate(["piano"], seconds=1.0)


def test_one_text_needs_no_list_and_streams_as_it_is_generated(music):
    loaded = musiclm_jax.load(miniature.path())
    heard: list[tuple] = []
    options = {"seconds": SECONDS, "seed": 3}
    [piece] = loaded.generate("a slow piano", on_progress=lambda *report: heard.append(report), **options)
    np.testing.assert_array_equal(piece.tokens["acoustic"], music[0].tokens["acoustic"])
    assert {name for name, _, _ in heard} == {"text", "semantic", "coarse", "fine", "audio"}
    np.testing.assert_allclose(np.concatenate(list(loaded.stream("a slow piano", **options))), piece.audio, atol=1e-4)


def test_a_piece_saves_itself_and_plays_in_a_notebook(music, tmp_path):
    piece = dataclasses.replace(music[0], audio=2 * music[0].audio / np.abs(music[0].audio).max(), prompt="<b>&")
    gain = piece.save(tmp_path / "piece.wav")
    read, rate = soundfile.read(tmp_path / "piece.wav")
    assert rate == 24_000 and gain < 0.5
    np.testing.assert_allclose(read, gain * piece.audio, atol=1e-4)
    with pytest.raises(audio.AudioError, match="exists"):
        piece.save(tmp_path / "piece.wav")
    page = piece._repr_html_()
    [encoded] = re.findall(r'src="data:audio/wav;base64,([^"]+)"', page)
    read, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded)))
    assert rate == 24_000 and "&lt;b&gt;&amp; (seed 3, sample 0" in page
    np.testing.assert_allclose(read, piece.audio / 2, atol=1e-4)


def test_text_to_audio_imports_no_tensorflow_seqio_or_gin():
    program = f"""
import sys, musiclm_jax
import musiclm_jax.launch.generate, musiclm_jax.data.audio
music = musiclm_jax.load({str(miniature.path())!r}).generate(["piano"], seconds=1.0)
assert music[0].audio.shape == (24000,)
found = {{"tensorflow", "seqio", "gin", "librosa", "orbax", "tensorflow_datasets"}} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-P", "-c", program], check=True)
