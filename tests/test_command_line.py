"""The `musiclm` command: help, generate, describe, tokenize, and one line for each kind of bad input."""

import dataclasses
import re
import subprocess
import sys

import miniature
import numpy as np
import pytest
import soundfile

from musiclm_jax import bundles
from musiclm_jax.data import audio
from musiclm_jax.generation import generate
from musiclm_jax.launch import command, main


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUSICLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def run(capsys):
    """Runs the command; returns (exit code, standard output, standard error)."""

    def run(*arguments):
        try:
            code = main.main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse ends the process
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def no_models(monkeypatch):
    """Fails the test when generation begins."""
    for name in ("pieces", "stream"):
        monkeypatch.setattr(generate, name, lambda *_: pytest.fail("the request should have been refused before"))


def generate_arguments(output, *more):
    return ["generate", "--bundle", miniature.path(), "--seconds", "1", "--output", output, *more]


def test_help_shows_every_command_and_an_example(run):
    for arguments in (["--help"], []):
        code, out, _ = run(*arguments)
        assert code == 0 and 'musiclm generate "' in out
        for name in main.COMMANDS:
            assert re.search(rf"^  {name} +\w", out, re.MULTILINE)


@pytest.mark.parametrize("name", ["generate", "describe", "export", "tokenize", "diagnose", "listen", "bootstrap"])
def test_help_of_a_command(run, name):
    code, out, _ = run(name, "--help")
    assert code == 0 and f"usage: musiclm {name}" in out


def test_help_imports_nothing_heavy():
    program = """
import sys
from musiclm_jax.launch import main
assert main.main(["--help"]) == 0
try:
    main.main(["generate", "--help"])
except SystemExit as end:
    assert end.code == 0
assert not {"jax", "tensorflow", "librosa"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-P", "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_unknown_command(run):
    code, _, err = run("sing")
    assert code == 2 and "no command 'sing'" in err and err.count("\n") == 1


def test_generate_writes_numbered_files_and_pictures(run, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\na jig on the fiddle\n\n")
    options = ["a slow piano", "--prompts_file", prompts, "--spectrogram", tmp_path / "s.png"]
    code, out, err = run(*generate_arguments(tmp_path / "m.flac", *options))
    assert code == 0, err
    names = ["m-1.flac", "m-2.flac", "prompts.txt", "s-1.png", "s-2.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    pieces = [audio.load(tmp_path / name) for name in names[:2]]
    assert [len(piece) for piece in pieces] == [24_000, 24_000] and not np.array_equal(*pieces)
    assert (tmp_path / "s-1.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"m-1.flac: 'a slow piano', similarity -?\d", out) and "m-2.flac: 'a jig on the fiddle'" in out
    for stage in ("semantic", "coarse", "fine"):
        assert re.search(rf"^{stage}: done in", err, re.MULTILINE)

    before = (tmp_path / "m-1.flac").stat().st_mtime_ns
    code, _, err = run(*generate_arguments(tmp_path / "m.flac", *options))
    assert code == 2 and "m-1.flac: exists already" in err and "--force" in err
    assert (tmp_path / "m-1.flac").stat().st_mtime_ns == before


def test_generate_overwrites_with_force_and_repeats_itself(run, tmp_path):
    path = tmp_path / "m.wav"
    path.write_text("old")
    code, _, err = run(*generate_arguments(path, "piano", "--force"))
    assert code == 0, err
    first = path.read_bytes()
    assert run(*generate_arguments(path, "piano", "--force", "--temperature", "1", "0.95", "0.4"))[0] == 0
    assert path.read_bytes() == first
    assert run(*generate_arguments(path, "piano", "--force", "--seed", "1"))[0] == 0
    assert path.read_bytes() != first


def test_finished_pieces_are_kept_when_interrupted(run, tmp_path, monkeypatch):
    def pieces(bundle, prompts, request, progress):
        yield generate.GeneratedMusic(miniature.tone(), {}, 0.5, str(prompts[0]), 0, 0)
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "pieces", pieces)
    code, _, err = run(*generate_arguments(tmp_path / "m.wav", "piano", "fiddle"))
    assert code == 130 and err.endswith("interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["m-1.wav"]
    np.testing.assert_allclose(audio.load(tmp_path / "m-1.wav"), miniature.tone(), atol=1e-3)


def test_loud_music_is_turned_down_and_reported(run, tmp_path, monkeypatch):
    loud = generate.GeneratedMusic(4 * miniature.tone(), {}, 0.5, "piano", 0, 0)
    monkeypatch.setattr(generate, "pieces", lambda *_: iter([loud]))
    _, out, _ = run(*generate_arguments(tmp_path / "m.wav", "piano"))
    assert "turned down by 6.1 dB" in out and np.abs(audio.load(tmp_path / "m.wav")).max() <= 1


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "give a prompt"),
        ([""], "contains no words"),
        (["x" * 10_000], "10,000 characters"),
        (["piano", "--seconds", "0"], "seconds is 0"),
        (["piano", "--seconds", "-1"], "seconds is -1"),
        (["piano", "--seconds", "86400"], "seconds is 86400: give 1 to 600"),
        (["piano", "--seconds", "many"], "invalid float value: 'many'"),
        (["piano", "--temperature", "1"], "expected 3 arguments"),
        (["piano", "--num_samples", "0"], "num_samples is 0"),
        (["piano", "--loud"], "unrecognized arguments: --loud"),
        (["piano", "--prompts_file", "/nowhere/prompts.txt"], "cannot be read as text"),
        (["piano", "--output", "music.mp3"], "cannot write .mp3: use .wav, .flac, .ogg"),
        (["piano", "--output", "/nowhere/m.wav"], "there is no folder /nowhere"),
        (["piano", "--output", "/proc/m.wav"], "cannot write into /proc"),
        (["piano", "--spectrogram", "picture.jpg"], "ends in .png"),
        (["piano", "--spectrogram", "/nowhere/s.png"], "there is no folder /nowhere"),
        (["piano", "--bundle", "nonesuch"], "neither a folder with a config.json"),
        (["piano", "--story", "/nowhere/s.txt"], "--story and PROMPT exclude each other: give one"),
        (["piano", "jig", "--at", "0:15", "fiddle"], "--at takes one PROMPT"),
        (["--at", "0:15", "fiddle"], "the story begins at 0:15: begin it at 0:00"),
        (["piano", "--at", "0:30", "fiddle", "--at", "0:15", "organ"], "0:15 follows 0:30: put the times"),
        (["piano", "--at", "later", "fiddle"], "'later' is not a time"),
        (["piano", "--at", "0:15", "fiddle", "--seconds", "10"], "seconds is 10: the last section of the story begins"),
        (["piano", "--blend", "2"], "--blend needs a story"),
        (["--story", "/nowhere/s.txt"], "/nowhere/s.txt: cannot be read as text"),
        (["--mix", "piano:0.5", "fiddle"], "'fiddle' has no weight"),
        (["--mix", "piano:0"], "give each of 1 texts more than 0"),
        (["--continue", "/nowhere/a.wav"], "/nowhere/a.wav: no such sound file"),
        (["piano", "--like", "/nowhere/a.wav"], "/nowhere/a.wav: no such sound file"),
        (["piano", "--output", "-"], "add --stream"),
        (["piano", "jig", "--stream"], "only one piece can be streamed"),
        (["piano", "--stream", "--output", "m.mp3"], "cannot write .mp3: use .wav, .flac, .ogg, .pcm, .raw"),
        (["piano", "--stream", "--output", "/nowhere/m.pcm"], "there is no folder /nowhere"),
        (["piano", "--stream", "--spectrogram", "s.png"], "remove --stream"),
    ],
)
def test_bad_input_is_one_line_before_any_work(run, no_models, tmp_path, options, message):
    code, out, err = run(*generate_arguments(tmp_path / "m.wav", *options))
    assert code == 2 and out == ""
    assert message in err and err.startswith("musiclm generate: ") and err.count("\n") == 1, err
    assert list(tmp_path.iterdir()) == []


BAD_RECORDINGS = {
    "silent": (np.zeros(24_000), "the recording is silent"),
    "short": (np.ones(2400) / 2, "the recording lasts 0.1 s: give one that lasts 1 to 300 s"),
    "empty": (b"", "the file is empty (0 bytes)"),
    "broken": (b"RIFFwords" * 99, "not a sound file that can be read"),
}


@pytest.mark.parametrize("name", BAD_RECORDINGS)
@pytest.mark.parametrize("option", ["--like", "--continue"])
def test_bad_recordings_are_one_line_before_any_work(run, no_models, tmp_path, name, option):
    content, message = BAD_RECORDINGS[name]
    path = tmp_path / f"{name}.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        audio.write(path, content)
    code, out, err = run(*generate_arguments(tmp_path / "m.wav", option, path))
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(f"musiclm generate: {path}: ") and message in err


def requested(monkeypatch, run, *arguments):
    """Returns the stories and the request that the command makes, and its output; nothing is generated."""
    asked = []

    def pieces(bundle, stories, request, progress):
        asked.append((stories, request))
        yield generate.GeneratedMusic(miniature.tone(), {}, 0.5, "piano", 0, 0)

    monkeypatch.setattr(generate, "pieces", pieces)
    arguments = ["generate", "--bundle", miniature.path(), *arguments]
    code, out, err = run(*arguments)
    assert code == 0, err
    return *asked[0], out, err


def test_recordings_of_any_format_reach_the_request(run, monkeypatch, tmp_path):
    for name, rate, channels in (("a.wav", 96_000, 2), ("a.mp3", 44_100, 1)):
        tone = np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)
        soundfile.write(tmp_path / name, np.stack([tone] * channels, axis=1) / 2, rate)
        for option, field in (("--like", "like"), ("--continue", "continue_from")):
            output = ["--output", tmp_path / "m.wav", "--force"]
            stories, request, _, _ = requested(monkeypatch, run, option, tmp_path / name, *output)
            heard = getattr(request, field)
            assert stories == [] and request.seconds == 10 and heard.ndim == 1
            assert len(heard) == pytest.approx(48_000, abs=2000)
            assert np.abs(heard[5000:40_000]).max() == pytest.approx(0.5, abs=0.02)
    varied = ["--like", tmp_path / "a.wav", "--vary", "acoustics", *output]
    assert requested(monkeypatch, run, *varied)[1].seconds == 2  # as long as the recording


def test_stories_reach_the_request(run, monkeypatch, tmp_path):
    output = ["--output", tmp_path / "m.wav", "--force"]
    [story], request, _, err = requested(monkeypatch, run, "piano", "--at", "0:20", "jig", "--blend", "4", *output)
    assert str(story) == "0:00 piano 0:20 jig" and story.blend == 4 and request.seconds == 35
    assert "this bundle is meant for 3 s: longer music may drift" in err
    (tmp_path / "story.txt").write_text("# mine\n0:00 piano\n0:20: jig\n")
    assert requested(monkeypatch, run, "--story", tmp_path / "story.txt", *output)[0] == [
        dataclasses.replace(story, blend=0.0)
    ]
    [mix], request, out, _ = requested(monkeypatch, run, "--mix", "piano:0.7", "jig:0.3", "--report", *output)
    assert str(mix) == "piano:0.7 jig:0.3" and request.seconds == 10
    assert re.search(r"^  0:00 to 0:01 +-9\.0 dB +\d{3} Hz$", out, re.MULTILINE)


def test_a_stream_is_written_as_it_comes(monkeypatch, tmp_path, capfdbinary):
    seen = []

    def stream(bundle, stories, request, progress):
        yield 3 * miniature.tone()
        seen.append((tmp_path / "m.pcm").stat().st_size if (tmp_path / "m.pcm").exists() else None)
        yield miniature.tone()
        if request.seed:
            raise KeyboardInterrupt

    monkeypatch.setattr(generate, "stream", stream)
    monkeypatch.setattr(command, "enable_compilation_cache", lambda: None)
    whole = np.concatenate([np.clip(3 * miniature.tone(), -1, 1), miniature.tone()])

    def written(output, *more):
        code = main.main(list(map(str, generate_arguments(output, "piano", "--stream", *more))))
        captured = capfdbinary.readouterr()
        assert b"first sound after" in captured.err
        return code, captured

    code, captured = written("-", "--report")
    heard = np.frombuffer(captured.out, "<i2") / 32767
    np.testing.assert_allclose(heard, whole, atol=1e-4)
    assert code == 0 and b"0:00 to 0:02" in captured.err and b"samples clipped" in captured.err
    assert written(tmp_path / "m.pcm")[0] == 0 and seen[-1] == 48_000
    assert (tmp_path / "m.pcm").read_bytes() == captured.out
    # An interrupted stream keeps the audio received so far.
    assert written(tmp_path / "m.wav", "--seed", "1")[0] == 130
    np.testing.assert_allclose(audio.load(tmp_path / "m.wav"), whole, atol=1e-4)


def test_damaged_bundle_is_one_line(run, tmp_path):
    folder = miniature.copy(tmp_path / "mini")
    (folder / "coarse.safetensors").write_bytes(b"short")
    code, _, err = run(*generate_arguments(tmp_path / "m.wav", "piano", "--bundle", folder))
    assert code == 2 and "coarse.safetensors is damaged" in err.splitlines()[-1] and "Traceback" not in err


def test_weights_of_another_release_are_one_line(run, tmp_path):
    folder = miniature.copy(tmp_path / "mini")
    config, variables = bundles.load(folder).part("semantic")
    del variables["params"]["final_norm"]
    bundles.save_part(folder, "semantic", config, variables)
    code, _, err = run(*generate_arguments(tmp_path / "m.wav", "piano", "--bundle", folder))
    assert code == 2 and "do not fit the models of this release" in err.splitlines()[-1] and "Traceback" not in err


def test_other_script_warns(run, tmp_path, monkeypatch):
    piece = generate.GeneratedMusic(miniature.tone(), {}, 0.0, "静かなピアノ", 0, 0)
    monkeypatch.setattr(generate, "pieces", lambda *_: iter([piece]))
    code, _, err = run(*generate_arguments(tmp_path / "m.wav", "静かなピアノ"))
    assert code == 0 and err.count("\n") == 1 and "does not look like English" in err


def test_traceback_on_request(run, monkeypatch):
    monkeypatch.setenv("MUSICLM_TRACEBACK", "1")
    with pytest.raises(bundles.BundleError):
        run("generate", "piano", "--bundle", "nonesuch")


def test_describe_prints_tags_captions_tokens(run, tmp_path):
    audio.write(tmp_path / "a.wav", miniature.tone(1.0))
    code, out, err = run("describe", tmp_path / "a.wav", "--bundle", miniature.path(), "--top", "2")
    assert code == 0, err
    assert out.startswith(f"{tmp_path / 'a.wav'} (1.0 s)\n")
    assert len(re.findall(r"^ +-?\d\.\d\d  \w", out, re.MULTILINE)) == 4  # two tags, two captions
    assert re.search(r"MuLan tokens: +(\d+ ?){12}\n", out)
    assert len(re.findall(r"^    acoustic \d+ +\d+ of 16 in 50 frames, \d\.\d bits$", out, re.MULTILINE)) == 12


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("none.wav", None, "no such sound file"),
        ("text.wav", "words" * 99, "not a sound file"),
        ("e.wav", "", "0 bytes"),
    ],
)
def test_describe_refuses_files_that_are_not_audio(run, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    code, out, err = run("describe", tmp_path / name, "--bundle", miniature.path())
    assert code == 2 and out == "" and message in err and err.count("\n") == 1


def test_describe_goes_on_after_a_file_that_cannot_be_used(run, tmp_path):
    audio.write(tmp_path / "a.wav", miniature.tone(1.0))
    audio.write(tmp_path / "silent.wav", np.zeros(24_000, np.float32))
    names = [tmp_path / name for name in ("none.wav", "silent.wav", "a.wav")]
    code, out, err = run("describe", *names, "--bundle", miniature.path())
    assert code == 2 and out.startswith(f"{names[2]} (1.0 s)\n")
    assert f"left out: {names[0]}: no such sound file\n" in err
    assert f"left out: {names[1]}: the recording is silent" in err
    assert err.endswith(f"musiclm describe: 2 of 3 files were left out: {names[0]}, {names[1]}\n")


def test_progress_shows_the_time_left(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    progress = command.ProgressPrinter(sys.stderr)
    for done, seconds in [(0, 0), (10, 20), (11, 1), (100, 179)]:
        now[0] += seconds
        progress("coarse", done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "coarse: started",
        "coarse: 10%, about 3 min left",
        "coarse: done in 200.0 s",
    ]
