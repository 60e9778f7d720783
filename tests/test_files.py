"""Paths as users type them, files written whole or not at all, and locks of folders."""

import os
import pathlib
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
