"""Signals that end a command: none is swallowed, and unfinished files are removed."""

import _thread
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupt(KeyboardInterrupt):
    """Raised by a signal other than Ctrl-C's.

    Attributes:
      number: the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def number_of(interrupt: BaseException | None) -> int:
    """Returns the signal that caused an interrupt."""
    return interrupt.number if isinstance(interrupt, Interrupt) else int(signal.SIGINT)


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP raise `Interrupt` while the block runs, and repeats interrupts that Python discards.

    Python discards exceptions that are raised in callbacks: finalizers, and those of the garbage collector, of which
    JAX installs one. A signal that arrives there is sent again. An ignored signal (`nohup`) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one receives signals
        yield
        return
    discarded = sys.unraisablehook

    def repeat(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            discarded(unraisable)
            return
        # Not at once: it would arrive in this function, and be discarded again.
        _thread.start_new_thread(_send, (number_of(unraisable.exc_value),))

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    sys.unraisablehook = repeat
    for number in numbers:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        sys.unraisablehook = discarded


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupt(number)


def _send(number: int) -> None:
    time.sleep(0.05)
    signal.pthread_kill(threading.main_thread().ident or 0, number)  # also wakes it if it sleeps
