"""Two commands with one output: nobody's finished work is lost."""

import errno
import os

import numpy as np
import pytest
import soundfile

from musiclm_jax import bundles
from musiclm_jax.bundles import GenerationConfig
from musiclm_jax.corpus import pack
from musiclm_jax.data import audio, files
from musiclm_jax.evaluation import clips, evaluate
from musiclm_jax.evaluation.listening_test import answers
from musiclm_jax.launch import generate, main

QUIET = np.full(2400, 0.1, np.float32)
LOUD = np.full(2400, 0.5, np.float32)


@pytest.mark.parametrize("name", ["jig.wav", "jig.flac"])
def test_a_piece_that_was_written_meanwhile_is_kept(tmp_path, name):
    path = tmp_path / name
    audio.check_writable(path)
    assert generate.write_piece(path, QUIET, False)[0] == path  # by the other process
    for number in (2, 3):
        assert generate.write_piece(path, LOUD, False)[0] == tmp_path / f"jig-{number}{path.suffix}"
    assert soundfile.read(path)[0].max() < 0.2 < soundfile.read(tmp_path / f"jig-2{path.suffix}")[0].max()
    assert generate.write_piece(path, LOUD, True)[0] == path and soundfile.read(path)[0].max() > 0.4
    assert len(list(tmp_path.iterdir())) == 3, "nothing else is left there"


def test_a_file_that_appears_while_a_piece_is_encoded_is_kept(tmp_path, monkeypatch):
    encode = audio._encode

    def slow(partial, sound, *more):
        encode(partial, sound, *more)
        (tmp_path / "a.wav").write_text("of the other process")

    monkeypatch.setattr(audio, "_encode", slow)
    with pytest.raises(audio.ExistsError, match="another process has written it meanwhile"):
        audio.write(tmp_path / "a.wav", QUIET)
    assert (tmp_path / "a.wav").read_text() == "of the other process"


def test_two_streams_do_not_write_into_one_file(tmp_path):
    path = tmp_path / "a.pcm"

    def blocks():
        yield QUIET
        with pytest.raises(audio.ExistsError):
            audio.write_stream(path, [LOUD])
        audio.write_stream(path, [LOUD], force=True)  # replaces the name, not what is being written
        yield QUIET

    audio.write_stream(path, blocks())
    assert np.fromfile(path, "<i2").max() > 10_000 and path.stat().st_size == 2 * len(LOUD)


def test_a_long_name_is_refused_before_the_work(tmp_path):
    for length, allowed in ((251, True), (252, False)):
        path = tmp_path / ("x" * length + ".wav")
        if allowed:
            audio.check_writable(path)
            audio.write(path, QUIET)
        else:
            with pytest.raises(
                audio.AudioError, match=r"cannot be written \(File name too long\): choose another name"
            ):
                audio.check_writable(path)


def test_an_evaluation_in_progress_is_not_joined(tmp_path, capsys):
    with files.locked(tmp_path, "musiclm evaluate"):
        code = main.main(["evaluate", f"--output={tmp_path}", "--gin.DATA_DIR='x'"])
    err = capsys.readouterr().err
    assert code == 2 and "is in use by musiclm evaluate on" in err and err.count("\n") == 1


def test_parts_that_are_exported_at_the_same_time_are_all_kept(tmp_path, monkeypatch):
    """While one process changes config.json, another waits."""
    seen = []

    def load(folder):
        with pytest.raises(ValueError, match="in use by musiclm export"), files.locked(folder, "another"):
            pass
        seen.append(folder)
        return loaded(folder)

    bundles.save_generation(tmp_path, GenerationConfig())
    from musiclm_jax.bundles import bundle

    loaded = bundle.load
    monkeypatch.setattr(bundle, "load", load)
    bundles.save_generation(tmp_path, GenerationConfig(top_p=0.9))
    assert seen == [tmp_path] and loaded(tmp_path).generation.top_p == 0.9


def test_a_damaged_cache_of_an_evaluation_is_named(tmp_path):
    class Embedder:
        name, version = "x", "1"

    cached = evaluate.hear_cached
    (tmp_path / "cache").mkdir()
    key = evaluate.hashlib.sha256(evaluate.json.dumps(["v", "x", "1"]).encode()).hexdigest()[:16]
    for content in (b"", b"PK\x03\x04 half", b"text"):
        (tmp_path / "cache" / f"x-{key}.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"x-\w+\.npz is damaged \(.*\): delete it, and it is made again"):
            cached(Embedder(), lambda: iter(()), "v", tmp_path / "cache")


def test_an_answer_that_a_full_disk_cuts_off_is_removed(tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    answers.append(path, answers.Answer("a", "x", "y", 1))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match="No space left"):
            answers.append(path, answers.Answer("b", "x", "y", 2))
    answers.append(path, answers.Answer("c", "x", "y", 3))
    assert [answer.id for answer in answers.read(path)] == ["a", "c"]


def test_a_bootstrap_in_progress_is_not_joined(tmp_path, capsys):
    with files.locked(tmp_path, "musiclm bootstrap"):
        code = main.main(["bootstrap", f"--from={tmp_path}", f"--output={tmp_path}"])
    assert code == 2 and "is in use by musiclm bootstrap on" in capsys.readouterr().err


def test_clips_of_other_captions_are_not_reused(tmp_path):
    """More clips may follow, as with a higher limit, but an id keeps its caption."""
    clips._check_captions(tmp_path, {"1": "a jig"})
    clips._check_captions(tmp_path, {"1": "a jig", "2": "a reel"})
    clips._check_captions(tmp_path, {"2": "a reel"})
    with pytest.raises(ValueError, match=r"has clips of other captions \(1\): choose another folder"):
        clips._check_captions(tmp_path, {"1": "a waltz", "2": "a reel"})


def test_an_interrupted_pack_is_made_again(tmp_path):
    assert not pack.is_whole(tmp_path)
    (tmp_path / pack.SCORES).touch()
    assert not pack.is_whole(tmp_path)
    for name in pack.FONTS.values():
        (tmp_path / name).touch()
    assert pack.is_whole(tmp_path)


@pytest.mark.parametrize(
    "command",
    [["diagnose", "--corpus=x", "--output"], ["plan", "--gin_file=coarse.gin", "--topology=v4:2x2x1", "--json"]],
)
def test_a_report_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys, command):
    code = main.main([*command, str(tmp_path / "none" / "a.json")])
    assert code == 2 and "there is no folder" in capsys.readouterr().err
