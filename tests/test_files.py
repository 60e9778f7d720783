"""Paths as users type them, files written whole or not at all, and locks of folders."""

import errno
import os
import pathlib
import re
import subprocess
import sys

import pytest

from musiclm_jax.data import files

HOLDER = """
import pathlib, sys, time
from musiclm_jax.data import files
with files.locked(pathlib.Path(sys.argv[1]), "training"):
    print("locked", flush=True)
    time.sleep(60)
"""


def hold(folder):
    """Starts a process that locks a folder and keeps the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_path_is_what_the_user_means():
    assert files.local_path("~/b") == pathlib.Path.home() / "b"
    assert files.local_name("./tiny") == "./tiny" and files.local_path("a[x]/b:c") == pathlib.Path("a[x]/b:c")


@pytest.mark.parametrize(
    "given, message",
    [
        ("", "the path is empty"),
        (" ", "the path is empty"),
        ("gs://bucket/x", "'gs://bucket/x' is a URL: give a path on this machine"),
        (pathlib.Path("s3://bucket/x"), "is a URL"),
        ("file:///tmp/x", "is a URL"),
    ],
)
def test_what_is_no_local_path_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        files.local_path(given)


def test_names_in_other_encodings_are_shown_in_ascii():
    names = [os.fsdecode(name) for name in (b"caf\xe9.wav", b"caf\xe8.wav", "café.wav".encode())]
    assert [files.shown(name) for name in names] == [r"caf\xe9.wav", r"caf\xe8.wav", "café.wav"]


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / ("x" * 250)  # a temporary name made from it would be too long
    files.write(path, "old")
    with pytest.raises(RuntimeError), files.replaced(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with files.replaced(path) as one, files.replaced(path) as other:
        assert one != other, "two processes do not write into one temporary file"
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


def test_a_damaged_file_is_named_with_what_to_do(tmp_path):
    (tmp_path / "a.json").touch()
    with pytest.raises(ValueError, match=r"a\.json is damaged or cannot be read \(Expecting value.*\): delete it$"):
        files.read_json(tmp_path / "a.json", "delete it")


def test_a_folder_in_use_names_host_and_process(tmp_path, capsys):
    process = hold(tmp_path)
    try:
        message = rf"is in use by training on {os.uname().nodename}, process {process.pid}: wait until it ends"
        with pytest.raises(ValueError, match=message), files.locked(tmp_path, "training"):
            pass
    finally:
        process.kill()
        process.wait()
    # The lock of a killed process is free, and its end is reported once.
    for expected in (f"process {process.pid} was killed while it wrote here", ""):
        with files.locked(tmp_path, "training"):
            pass
        assert expected in capsys.readouterr().err
    assert (tmp_path / files.LOCK).read_text() == ""


def test_a_file_that_exists_is_not_replaced(tmp_path, monkeypatch):
    partial, path = tmp_path / "partial", tmp_path / "a"
    for links in (True, False):
        if not links:
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
        path.unlink(missing_ok=True)
        partial.write_text("new")
        files.give_name(partial, path)
        assert path.read_text() == "new" and not partial.exists()
        partial.write_text("newer")
        with pytest.raises(FileExistsError):
            files.give_name(partial, path)
        assert path.read_text() == "new"
        files.give_name(partial, path, force=True)
        assert path.read_text() == "newer" and not partial.exists()


# Files that are not read again, or whose readers know that they grow: logs, counters, streams of sound, probes.
UNFINISHED = {
    "corpus/render_worker.py",
    "corpus/resident.py",
    "data/audio.py",
    "data/files.py",
    "evaluation/listening_test/server.py",
    "training/checkpoints.py",
    "training/divergence.py",
    "training/summaries.py",  # TensorBoard's event files grow
    "training/trainer.py",
}


def test_files_are_written_whole_by_every_module():
    root = pathlib.Path(__file__).parents[1]
    found = {
        path.relative_to(root).as_posix().removeprefix("musiclm_jax/")
        for folder in ("musiclm_jax", "launch", "tasks")
        for path in (root / folder).rglob("*.py")
        if re.search(
            r"(?<!partial)\.write_(text|bytes)\(|(?<!partial\.)\bopen\([^)\n]*['\"][wx]b?['\"]",
            path.read_text(encoding="utf-8"),
        )
    }
    assert found <= UNFINISHED, "use files.write or files.replaced"


def test_a_full_disk_leaves_the_file_as_it_was_and_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write(path, "old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for place in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, place, lambda *_: (_ for _ in ()).throw(full))
            with pytest.raises(OSError, match=r"No space left on device: '\S+a\.json'"):
                files.write(path, "new")
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_errors_that_name_no_file_get_its_name(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '\S+a\.npz'"):
        with files.replaced(tmp_path / "a.npz"), open("/dev/full", "wb", buffering=0) as full:
            full.write(b"a")


def test_folders_that_are_links_are_searched_once(tmp_path, capsys):
    songs, elsewhere = tmp_path / "songs", tmp_path / "elsewhere"
    (songs / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    for path in (songs / "a.wav", songs / "deep" / "b.wav", elsewhere / "c.wav"):
        path.touch()
    (songs / "linked").symlink_to(elsewhere)
    (songs / "again").symlink_to(songs / "deep")
    (songs / "deep" / "around").symlink_to(songs)
    names = [path.name for path in files.below(songs)]
    assert sorted(names) == ["a.wav", "b.wav", "c.wav"]
    assert capsys.readouterr().err == ""
