"""Files and folders of the user: paths as typed, files that are written whole or not at all, locks of folders."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import re
import secrets
import socket
import sys
from collections.abc import Iterator
from typing import Any

LOCK = ".lock"  # in a folder in use: the host and the process that write into it
_URL = re.compile(r"[A-Za-z][\w+.-]+:/")  # also gs:/bucket, which pathlib makes of gs://bucket
_BUCKETS = "check the name, the network and the credentials, or give a path on this machine"
# Errors that say what a file is. Others (EIO, a network that is gone) say that a disk fails, and may pass.
_LASTING = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of file systems without locks


def local_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns a path on this machine as the user means it: with the home folder for "~".

    Raises:
      ValueError: if the path is empty or a URL. An empty path would be the current folder, a URL a folder of that name.
    """
    return pathlib.Path(local_name(path))


def local_name(path: str | os.PathLike) -> str:
    """Like `local_path`, as text, which keeps a leading "./"."""
    text = os.fspath(path)
    if not text.strip():
        raise ValueError("the path is empty: give a file or a folder (is a variable not set?)")
    if _URL.match(text):
        raise ValueError(f"{text!r} is a URL: give a path on this machine (copy the files here, or mount the bucket)")
    return os.path.expanduser(text)


def is_url(path: str | os.PathLike) -> bool:
    """Returns whether a path is a URL, such as gs://bucket/run."""
    return "://" in os.fspath(path)


def bucket(url: str | os.PathLike) -> Any:
    """Returns a path in a bucket, an `epath.Path`.

    Raises:
      ValueError: if buckets of this kind are not known.
    """
    from etils import epath

    try:
        return epath.Path(url)
    except KeyError as error:
        raise ValueError(f"{url} cannot be read (buckets of this kind are not known): {_BUCKETS}") from error


def check_bucket(url: str | os.PathLike) -> None:
    """Checks that a bucket can be read; does nothing for a path on this machine.

    Raises:
      ValueError: if it cannot; gives the reason in one line.
    """
    if not is_url(url):
        return
    folder = bucket(url)
    try:
        next(iter(folder.glob("*")), None)
    except Exception as error:  # of the libraries for each kind of bucket
        reason = str(getattr(error, "message", error)).strip() or type(error).__name__
        raise ValueError(f"{url} cannot be read ({reason.splitlines()[0]}): {_BUCKETS}") from error


def shown(path: str | os.PathLike) -> str:
    r"""Returns a path as UTF-8 text; other bytes become escapes such as "\xe9", so that names stay distinct."""
    return os.fsencode(path).decode(errors="backslashreplace")


def below(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files below a folder, sorted. Folders that are links count too; each real folder counts once.

    A folder that may not be read is left out, with a line on standard error.
    """

    def report(error: OSError) -> None:
        print(f"left out: {error.filename} ({error.strerror})", file=sys.stderr)

    found: list[pathlib.Path] = []
    seen: set[str] = set()
    for here, folders, names in os.walk(folder, onerror=report, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()  # a link to a folder that was visited, or to one around it
            continue
        seen.add(real)
        folders.sort()
        found += [pathlib.Path(here, name) for name in names]
    return sorted(found)


def partial_path(path: pathlib.Path) -> pathlib.Path:
    """Returns a hidden name next to `path`, for a file that is not complete yet: short, and different in every call."""
    return path.with_name(f".{secrets.token_hex(6)}.partial")


def disk_failed(error: BaseException) -> bool:
    """Returns whether an error, or its cause, is that of a disk that could not be read now, though it may be later.

    Who leaves out unreadable files must not leave out such a file, if the next run would not look at it again.
    """
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno is not None and cause.errno not in _LASTING


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Adds the path to errors of the operating system that name no file, such as those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def replaced(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a partial file's path, which becomes `path` when the block ends and disappears if the block fails.

    Readers see the old file or the whole new one. The content is on the disk before the file gets its name, so a full
    disk or a loss of power leaves no empty file.
    """
    partial = partial_path(path)
    try:
        with naming(path):
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def give_name(partial: pathlib.Path, path: pathlib.Path, force: bool = False) -> None:
    """Gives a complete file its name.

    Raises:
      FileExistsError: if a file has that name and `force` is not set: another process finished before.
    """
    if force:
        os.replace(partial, path)
        return
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(partial, path)
    else:
        partial.unlink()


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
      OSError: if it cannot be written; names `path`.
    """
    try:
        with replaced(path) as partial:
            # A name that is not UTF-8 becomes \udce9, which JSON reads again.
            partial.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def read(path: pathlib.Path) -> bytes:
    """Reads a file.

    Raises:
      OSError: if it cannot be read; names `path`, which errors of a disk that fails do not.
    """
    with naming(path):
        return path.read_bytes()


def from_json(text: str | bytes) -> Any:
    """Reads JSON.

    Raises:
      ValueError: if it is not JSON, or nested more deeply than Python can read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: pathlib.Path, advice: str, kind: type = dict) -> Any:
    """Reads a JSON file.

    Args:
      path: the file.
      advice: what to do if it is damaged, for the message.
      kind: type of its content.

    Raises:
      ValueError: if it cannot be read; names the file.
    """
    try:
        content = from_json(path.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError(f"it holds a {type(content).__name__}, expected a {kind.__name__}")
        return content
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or cannot be read ({error}): {advice}") from error


@contextlib.contextmanager
def locked(folder: pathlib.Path, task: str, wait: bool = False) -> Iterator[None]:
    """Keeps other processes from writing into a folder while the block runs.

    The operating system drops the lock when the process ends, however it ends, so a lock cannot outlive its process. A
    file system without locks is used without one.

    Args:
      folder: existing folder.
      task: what this process does there ("training"), for the messages of others.
      wait: wait for the other process instead of raising.

    Raises:
      ValueError: if another process has the lock; names its host and process.
    """
    path = folder / LOCK
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(file, 1000).decode(errors="replace").strip() or "another process"
            raise ValueError(
                f"{folder} is in use by {owner}: wait until it ends or stop it, or give another folder"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        if left := os.read(file, 1000).decode(errors="replace").strip():
            print(f"{folder}: {left} was killed while it wrote here; this process takes over", file=sys.stderr)
        with contextlib.suppress(OSError):  # a full disk: the task itself says what cannot be written
            os.truncate(file, 0)
            os.pwrite(file, f"{task} on {socket.gethostname()}, process {os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the error of the task is the one to report
                os.truncate(file, 0)
    finally:
        os.close(file)
