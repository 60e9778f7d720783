"""The log of a bootstrap."""

import pathlib
import time


class Log:
    """Prints lines with the seconds since the start, and appends them to a file."""

    def __init__(self, path: pathlib.Path):
        self._begin, self._file = time.monotonic(), path.open("a", encoding="utf-8")

    def __call__(self, line: str) -> None:
        """Writes one line."""
        text = f"[{time.monotonic() - self._begin:6.1f}] {line}"
        print(text, flush=True)
        print(text, file=self._file, flush=True)
