"""Disks that fail: counts what a command writes or reads below a folder, and makes one of these operations fail.

Covered is what goes through Python: `open` and `os.open`, the content of the files so opened, fsync, replace, rename,
link, mkdir, truncate and unlink, also of the libraries, in any thread. Below Python are libsndfile, TensorFlow and
TensorStore (the arrays of a checkpoint): that a sound file or a shard is opened for writing fails as the library fails.
"""

import builtins
import contextlib
import errno
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import soundfile
import tensorflow as tf

_WRITING = ("replace", "rename", "link", "mkdir", "unlink", "truncate", "fsync", "pwrite")


class Disk:
    """Counts operations below a folder, of which one may fail.

    Attributes:
      folder: other files are not counted.
      writes: whether writes are counted, or reads.
      failing: index of the operation that fails; None for none.
      number: error number of the failure.
      lasting: whether all later operations fail too, as on a disk that is full or was mounted anew.
      seen: the operations and their files, in order.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        writes: bool = True,
        failing: int | None = None,
        number: int = errno.ENOSPC,
        lasting: bool = False,
    ) -> None:
        self.folder, self.writes, self.failing, self.number = str(folder), writes, failing, number
        self.lasting = lasting
        self.seen: list[tuple[str, str]] = []

    @property
    def failed(self) -> tuple[str, str] | None:
        """The operation that failed first."""
        return self.seen[self.failing] if self.failing is not None and self.failing < len(self.seen) else None

    def fails(self, operation: str, path: str) -> bool:
        """Counts an operation; returns whether it fails."""
        index = len(self.seen)
        self.seen.append((operation, os.path.basename(path)))
        if self.failing is None:
            return False
        # What is removed gives room.
        return index == self.failing or (self.lasting and index > self.failing and operation != "unlink")

    def error(self, *names: str) -> OSError:
        """Returns the failure; without a name, as the content of a file fails."""
        return OSError(self.number, os.strerror(self.number), *names)

    def below(self, path: Any) -> str | None:
        """Returns the path of a file below the folder, also by its number; None for others."""
        try:
            if isinstance(path, int):
                path = os.readlink(f"/proc/self/fd/{path}")
            path = os.path.abspath(os.fsdecode(path))
        except (OSError, TypeError, ValueError):
            return None
        return path if path.startswith(self.folder + os.sep) or path == self.folder else None


class _Failing(io.FileIO):
    """A file whose content cannot be written or read."""

    def __init__(self, path: Any, mode: str, disk: Disk) -> None:
        self._disk = disk
        super().__init__(path, mode)

    def write(self, content: Any) -> int:
        raise self._disk.error()

    def readinto(self, buffer: Any) -> int:
        raise self._disk.error()

    def readall(self) -> bytes:
        raise self._disk.error()


@contextlib.contextmanager
def injected(disk: Disk) -> Iterator[Disk]:
    """Replaces the functions of Python that write and read while the block runs."""
    opened, opened_low = io.open, os.open

    def open_file(file: Any, mode: str = "r", buffering: int = -1, *more: Any, **named: Any) -> Any:
        writing = any(letter in mode for letter in "wax+")
        path = None if isinstance(file, int) else disk.below(file)
        if path is None or writing is not disk.writes:
            return opened(file, mode, buffering, *more, **named)
        if disk.fails("open", path):
            raise disk.error(path)
        if not disk.fails("content", path):
            return opened(file, mode, buffering, *more, **named)
        raw = _Failing(file, mode.replace("b", "").replace("t", ""), disk)
        if buffering == 0:
            return raw
        buffered = (
            io.BufferedWriter(raw) if writing and "+" not in mode else io.BufferedRandom(raw) if writing else None
        )
        return opened_as(buffered or io.BufferedReader(raw), mode, *more, **named)

    def opened_as(buffered: Any, mode: str, encoding: Any = None, errors: Any = None, newline: Any = None, **_: Any):
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def open_low(path: Any, flags: int, *more: Any, **named: Any) -> int:
        found = disk.below(path) if named.get("dir_fd") is None else None
        writing = bool(flags & (os.O_WRONLY | os.O_RDWR))  # also of files without a name, which "open" a folder
        if (
            found
            and writing is disk.writes
            and (writing or not flags & os.O_DIRECTORY)
            and disk.fails("os.open", found)
        ):
            raise disk.error(found)
        return opened_low(path, flags, *more, **named)

    def failing(name: str) -> Any:
        original = getattr(os, name)

        def operation(path: Any, *more: Any, **named: Any) -> Any:
            found = disk.below(path) if disk.writes else None
            if found and disk.fails(name, found):
                raise disk.error(*([] if isinstance(path, int) else [found]))
            return original(path, *more, **named)

        return operation

    class Sound(soundfile.SoundFile):
        def __init__(self, file: Any, mode: str = "r", *more: Any, **named: Any) -> None:
            path = disk.below(file) if mode == "w" and disk.writes else None
            if path and disk.fails("libsndfile", path):
                raise soundfile.LibsndfileError(2, f"Error opening {path!r}: ")
            super().__init__(file, mode, *more, **named)

    def shard(path: str, *more: Any) -> Any:
        found = disk.below(path) if disk.writes else None
        if found and disk.fails("TensorFlow", found):
            raise tf.errors.ResourceExhaustedError(None, None, f"{found}; {os.strerror(disk.number)}")
        return writer(path, *more)

    writer = tf.io.TFRecordWriter
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soundfile, "SoundFile", Sound)
        patch.setattr(tf.io, "TFRecordWriter", shard)
        for name in _WRITING:
            patch.setattr(os, name, failing(name))
        patch.setattr(os, "open", open_low)
        patch.setattr(io, "open", open_file)
        patch.setattr(builtins, "open", open_file)
        yield disk
