"""`musiclm tokenize` again: with other files, options or processes, with odd names, and from few songs."""

import json
import os
import zlib

import miniature
import numpy as np
import pytest
import record_folders

from musiclm_jax.data import audio, files, records
from musiclm_jax.data.datasets import TaskDataset
from musiclm_jax.launch import main, tokenize
from musiclm_jax.tasks import coarse


@pytest.fixture(autouse=True)
def no_models(monkeypatch):
    monkeypatch.setattr(tokenize, "tokenize_batch", record_folders.silent_codes)


@pytest.fixture
def songs(tmp_path):
    folder = tmp_path / "songs"
    folder.mkdir()
    for number in range(4):
        add(folder, f"{number}.wav")
    return folder


def add(folder, name, seconds=1):
    with open(os.path.join(folder, name), "wb") as file:
        plain = folder.parent / "plain.wav"
        pitch = 0.1 + zlib.crc32(os.fsencode(name)) / 2**32  # no two songs are copies
        audio.write(plain, 0.1 * np.sin(pitch * np.arange(24_000 * seconds)), force=True)
        file.write(plain.read_bytes())


def run(capsys, songs, *more, clip_seconds=1):
    options = ["--bundle", miniature.path(), "--corpus", songs, "--output", songs.parent / "tokens", "--shards", "2"]
    options += ["--clip_seconds", clip_seconds, *more]
    code = main.main(["tokenize", *map(str, options)])
    return code, capsys.readouterr().err


def ids(folder):
    tokens = {
        split: [record["id"] for record in records.read_token_records(records.shard_paths(folder, split))]
        for split in records.SPLITS
    }
    return tokens


@pytest.mark.parametrize("unfinished", [False, True])
@pytest.mark.parametrize(
    "change, named",
    [
        (lambda songs: add(songs, "new.wav"), "files: new.wav"),
        (lambda songs: (songs / "1.wav").unlink(), "files: 1.wav"),
        (lambda songs: add(songs, "2.wav", 3), "files: 2.wav"),
        (lambda songs: (songs / "3.txt").write_text("a jig"), "files: 3.txt"),
    ],
)
def test_other_songs_are_not_mixed_in(songs, capsys, unfinished, change, named):
    assert run(capsys, songs)[0] == 0
    if unfinished:
        next((songs.parent / "tokens").glob("train-*")).unlink()
    before = sorted((songs.parent / "tokens").iterdir())
    change(songs)
    code, err = run(capsys, songs)
    assert (
        code == 2 and f"was made with other settings ({named}): give another --output" in err and err.count("\n") == 1
    )
    assert sorted((songs.parent / "tokens").iterdir()) == before


@pytest.mark.parametrize(
    "more, seconds, named",
    [(["--shards", "3"], 1, "shards"), ([], 0.5, "clip_seconds"), (["--captions", 2], 1, "captions")],
)
def test_other_options_are_not_mixed_in(songs, capsys, more, seconds, named):
    assert run(capsys, songs)[0] == 0
    code, err = run(capsys, songs, *more, clip_seconds=seconds)
    assert code == 2 and f"was made with other settings ({named})" in err


def test_the_same_songs_go_on(songs, capsys):
    assert run(capsys, songs)[0] == 0
    expected = ids(songs.parent / "tokens")
    next((songs.parent / "tokens").glob("train-*")).unlink()
    code, err = run(capsys, songs)
    assert code == 0 and "4 shards, 3 of them done already" in err and ids(songs.parent / "tokens") == expected
    assert sorted(name for own in expected.values() for name in own) == [f"{number}.wav@0" for number in range(4)]


def test_two_processes_do_not_write_into_one_folder(songs, capsys):
    (songs.parent / "tokens").mkdir()
    with files.locked(songs.parent / "tokens", "musiclm tokenize"):
        code, err = run(capsys, songs)
    assert code == 2 and f"in use by musiclm tokenize on {os.uname().nodename}, process {os.getpid()}" in err


@pytest.mark.parametrize("name", ["settings.json", "tokenizers.json"])
def test_a_damaged_settings_file_is_named(songs, capsys, name):
    assert run(capsys, songs)[0] == 0
    (songs.parent / "tokens" / name).write_bytes(b"")
    code, err = run(capsys, songs)
    assert code == 2 and f"{name} is damaged or cannot be read" in err and "give another --output" in err


def test_names_in_other_encodings_are_read(songs, capsys):
    names = [b"caf\xe9.wav", b"caf\xe8.wav"]
    for name in names:
        add(songs, os.fsdecode(name))
    (songs / os.fsdecode(b"bad\xe9.wav")).write_text("no sound")
    code, err = run(capsys, songs)
    assert code == 0 and "left out" in err, err
    found = {name for own in ids(songs.parent / "tokens").values() for name in own}
    assert {r"caf\xe9.wav@0", r"caf\xe8.wav@0", "0.wav@0"} <= found and len(found) == 6
    assert r"caf\xe9.wav" in json.loads((songs.parent / "tokens" / "settings.json").read_text())["files"]


@pytest.mark.parametrize("count, message", [(1, "no clip in validation and test"), (2, "no clip in test")])
def test_few_songs_say_what_to_do(songs, capsys, count, message):
    for path in sorted(songs.iterdir())[count:]:
        path.unlink()
    code, err = run(capsys, songs)
    assert code == 0 and f"{message}: give three songs or more" in err and "--gin.train.eval_split=None" in err
    task = coarse.coarse_task(str(songs.parent / "tokens"), crop_seconds=0.4)
    TaskDataset(task, "train", 1)
    with pytest.raises(ValueError, match=r"split 'test' holds no records \(.*eval_split=None\)$"):
        TaskDataset(task, "test", 1)


def test_songs_that_cannot_be_used_are_said(songs, capsys):
    for path in sorted(songs.iterdir()):
        path.write_bytes(b"no sound")
    code, err = run(capsys, songs)
    assert code == 1 and "no file of the corpus gave a clip: " in err and "3 copy, 1 unreadable" in err
