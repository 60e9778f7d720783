"""Standard output and standard error that never end a command: what cannot be printed is lost, the work is not."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

_REPLACING = ("backslashreplace", "ignore", "namereplace", "replace", "xmlcharrefreplace")  # print any character


class SteadyStream:
    """A text stream on which printing cannot fail.

    Characters that the encoding lacks are printed as escapes. After the first failure (a full disk, a reader that left,
    a terminal that is gone) nothing more is printed.

    Attributes:
      error: the first failure, or None.
    """

    def __init__(self, stream: TextIO | None):
        self.error: Exception | None = None
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper) and stream.errors not in _REPLACING:
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Prints text, or drops it."""
        if self._stream is not None and self.error is None:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                self.error = error
        return len(text)

    def flush(self) -> None:
        """Hands buffered text to the operating system."""
        if self._stream is not None and self.error is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self.error = error

    def isatty(self) -> bool:
        """Returns whether a person sees the text as it is printed."""
        return self._stream is not None and self._stream.isatty()

    def discard(self) -> None:
        """Keeps Python from printing the rest of the buffer at its exit, which would fail again."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, cast(TextIO, self._stream).fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def steady() -> Iterator[SteadyStream]:
    """Makes `sys.stdout` and `sys.stderr` steady while the block runs; yields the first."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened, such as a piece of music, would become standard output
            os.open(os.devnull, os.O_RDONLY)  # the lowest free number; writing to it fails as before
    before = sys.stdout, sys.stderr
    out, err = (SteadyStream(stream) for stream in before)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before
        for stream in (out, err):
            stream.flush()
            if stream.error is not None:
                stream.discard()
