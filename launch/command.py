"""Shared parts of the commands: one-line errors, progress with the time left, the compilation cache."""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from typing import NoReturn, TextIO

from musiclm_jax.data import files
from musiclm_jax.launch import caches, jax_environment


def local_path(given: str) -> str:
    """Checks an argument that is a path on this machine, and replaces "~"; a `type` for `Parser`."""
    try:
        return files.local_name(given)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def path_or_bucket(given: str) -> str:
    """Like `local_path`, but also takes URLs of buckets, such as gs://bucket/run."""
    return given if files.is_url(given) else local_path(given)


def output_path(given: str) -> str:
    """Like `local_path`, but also takes "-" for standard output."""
    return given if given == "-" else local_path(given)


def bundle(given: str) -> str:
    """Like `local_path`, for a bundle; a folder with the name of a bundle in the package needs a path, ./tiny.

    Addresses on the Hugging Face Hub, hf://OWNER/NAME, stay as they are.
    """
    if given.startswith("hf://"):
        return given
    name = local_path(given)
    if os.path.isdir(name):
        from musiclm_jax.bundles import shipped  # here: it imports JAX

        if name in shipped():
            print(f"the bundle {name} is that of the package: the folder here is ./{name}", file=sys.stderr)
    return name


def text(given: str) -> str:
    """Checks an argument that is stored as text; a `type` for `Parser`."""
    try:
        given.encode()
    except UnicodeEncodeError as error:  # the bytes of another encoding, as Python has them
        raise argparse.ArgumentTypeError(f"{given!a} is not UTF-8: set the terminal to UTF-8") from error
    return given


class Parser(argparse.ArgumentParser):
    """Argument parser that reports errors in one line."""

    def __init__(self, name: str, description: str, **options):
        super().__init__(prog=f"musiclm {name}", description=description, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Ends the process with code 2."""
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help lists the arguments)\n")

    def parse_with_bindings(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parses arguments among which gin bindings are written --gin.NAME=VALUE; returns these as NAME=VALUE."""
        args, rest = self.parse_known_args(arguments)
        if unknown := [argument for argument in rest if not argument.startswith("--gin.") or "=" not in argument]:
            self.error(f"unknown argument {unknown[0]!r}: bindings are written --gin.NAME=VALUE")
        return args, [argument.removeprefix("--gin.") for argument in rest]


def enable_compilation_cache() -> None:
    """Caches compiled programs on disk, so that a command starts faster the second time; call it before JAX is used.

    The folder is `caches.folder()`. If it cannot be written, JAX does not cache.
    """
    import jax

    jax_environment.quiet_libtpu()
    # A disk that is full later on costs a repeated compilation, which needs no line for each program.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    if caches.why_unusable(caches.folder()):
        return
    jax.config.update("jax_compilation_cache_dir", str(caches.folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many programs are small
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


class ProgressPrinter:
    """Prints "name: 40%, about 12 s left": updates one line on a terminal, otherwise prints a line every few seconds.

    Attributes:
      interval: seconds between two lines if the stream is not a terminal.
    """

    interval = 10.0

    def __init__(self, stream: TextIO = sys.stderr):
        self._stream = stream
        self._terminal = stream.isatty()
        self._name = ""
        self._begun = self._printed = 0.0
        self._width = 0

    def __call__(self, name: str, done: float, total: float) -> None:
        """Reports that `done` of `total` units of a job are finished; a new first word of `name` starts a new job."""
        now = time.monotonic()
        if name.split(" ")[0] != self._name:
            self._name, self._begun, self._printed = name.split(" ")[0], now, -self.interval
        finished = done >= total
        if not finished and now - self._printed < (0.2 if self._terminal else self.interval):
            return
        self._printed = now
        elapsed = now - self._begun
        if finished:
            text = f"{name}: done in {elapsed:.1f} s"
        elif done > 0:
            from musiclm_jax.training.progress import format_seconds  # here: it imports JAX

            text = f"{name}: {done / total:.0%}, about {format_seconds(elapsed / done * (total - done))} left"
        else:
            text = f"{name}: started"
        if self._terminal:
            self._stream.write("\r" + text.ljust(self._width) + ("\n" if finished else ""))
            self._width = 0 if finished else len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
