"""Folders of recordings as people have them: copies, silence, broken and hidden files; and what is said about them."""

import json

import miniature
import numpy as np
import pytest
import record_folders

from musiclm_jax.data import audio, recordings, records
from musiclm_jax.launch import main, tokenize


@pytest.fixture(autouse=True)
def no_models(monkeypatch):
    monkeypatch.setattr(tokenize, "tokenize_batch", record_folders.silent_codes)


def tone(path, pitch=440.0, seconds=1.0, silent=0.0):
    """Writes a tone that is preceded by silence."""
    path.parent.mkdir(exist_ok=True, parents=True)
    sound = 0.1 * np.sin(2 * np.pi * pitch / 24_000 * np.arange(int(24_000 * seconds)))
    audio.write(path, np.concatenate([np.zeros(int(24_000 * silent)), sound]))


@pytest.fixture
def folder(tmp_path):
    """Six good recordings, one in two copies, one with a silent clip; and six kinds of others."""
    songs = tmp_path / "songs"
    for number in range(6):
        tone(songs / f"{number}.wav", 200.0 + number)
    for name in ("0 (1).wav", "more/0.wav"):
        (songs / name).parent.mkdir(exist_ok=True)
        (songs / name).write_bytes((songs / "0.wav").read_bytes())
    tone(songs / "late.wav", 300.0, silent=1.0)
    tone(songs / "short.wav", 400.0, seconds=0.5)
    tone(songs / "silent.wav", seconds=0.0, silent=2.0)
    (songs / "empty.mp3").write_bytes(b"")
    (songs / "page.ogg").write_text("<!DOCTYPE html><html>not found</html>")
    (songs / "._0.wav").write_bytes(b"\0\5\26\7a resource fork")
    return songs


KINDS = {
    "0.wav": "copy",  # of "0 (1).wav", which comes first
    "more/0.wav": "copy",
    "late.wav": "some silence",
    "short.wav": "too short",
    "silent.wav": "silent",
    "empty.mp3": "unreadable",
    "page.ogg": "unreadable",
}


def run(folder, *more):
    output = folder.parent / "tokens"
    options = ["--bundle", miniature.path(), "--corpus", folder, "--output", output, "--shards", 2, "--clip_seconds", 1]
    return main.main(["tokenize", *map(str, [*options, *more])])


def rejected(output):
    return [json.loads(line) for line in (output / recordings.FILE).read_text().splitlines()]


def ids(output):
    names = [records.read_token_records(records.shard_paths(output, split)) for split in records.SPLITS]
    return sorted(clip["id"] for clips in names for clip in clips)


def test_what_is_left_out_is_listed_with_the_reason(folder, capsys):
    assert run(folder) == 0
    output = folder.parent / "tokens"
    found = rejected(output)
    assert {entry["file"]: entry["kind"] for entry in found} == KINDS
    assert found == sorted(found, key=lambda entry: entry["file"])
    reasons = {entry["file"]: entry["reason"] for entry in found}
    assert reasons["more/0.wav"].endswith("more/0.wav has the same bytes as " + str(folder / "0 (1).wav"))
    assert "1 of 2 clips" in reasons["late.wav"] and "web page" in reasons["page.ogg"]
    assert ids(output) == sorted(["0 (1).wav@0", *(f"{number}.wav@0" for number in range(1, 6)), "late.wav@1"])
    err = capsys.readouterr().err
    assert "7 clips (" in err and "2 copy, 1 silent, 1 some silence, 1 too short, 2 unreadable" in err
    assert "._0" not in err


def test_an_interrupted_run_ends_with_the_same_bytes(folder, monkeypatch, capsys):
    output = folder.parent / "tokens"
    assert run(folder) == 0
    whole = {path.name: path.read_bytes() for path in output.iterdir()}
    for path in output.iterdir():
        path.unlink()
    write, shards = tokenize.write_shard, []

    def second_fails(target, examples):
        if len(shards) == 2:
            raise OSError(28, "No space left on device", str(target))
        shards.append(target)
        write(target, examples)

    monkeypatch.setattr(tokenize, "write_shard", second_fails)
    assert run(folder) == 2 and len(list(output.glob("*.tfrecord"))) == 2
    monkeypatch.setattr(tokenize, "write_shard", write)
    assert run(folder) == 0
    assert {path.name: path.read_bytes() for path in output.iterdir()} == whole
    assert run(folder) == 0 and "2 copy" in capsys.readouterr().err, "once more, when all is done"


def test_a_folder_without_a_usable_file_ends_with_1(tmp_path, capsys):
    tone(tmp_path / "songs" / "short.wav", seconds=0.5)
    assert run(tmp_path / "songs") == 1
    assert "no file of the corpus gave a clip" in capsys.readouterr().err.splitlines()[-1]


def test_copies_are_those_of_the_first_name(tmp_path):
    for name, content in (("b", b"one"), ("a", b"two"), ("c", b"two"), ("d", b"twoo"), ("e", b"two"), ("f", b"one")):
        (tmp_path / name).write_bytes(content)
    found = recordings.copies(sorted(tmp_path.iterdir()))
    assert {copy.name: original.name for copy, original in found.items()} == {"c": "a", "e": "a", "f": "b"}


def test_a_damaged_list_is_named(folder):
    output = folder.parent / "tokens"
    output.mkdir()
    (output / recordings.FILE).write_text('{"file": "a.wav"}\n')
    with pytest.raises(ValueError, match=r"rejected.jsonl, line 1: damaged \('reason'\): delete the file"):
        recordings.Rejected(output)
