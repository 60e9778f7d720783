"""Stops a training at a signal: preemption or a job queue, Ctrl-C, a lost connection, `train | head`."""

import os
import select
import signal
import stat
import sys
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STDOUT = 1  # the file descriptor


class StopRequest:
    """Context manager that records SIGTERM (preemption), SIGINT and SIGHUP (a lost connection).

    A second SIGTERM or SIGINT has its usual effect; SIGHUP often comes twice, from the kernel and from the shell. A
    standard output that nobody reads any more counts as a signal. An ignored signal (`nohup`) stays ignored.

    With several processes, `jax.distributed` sees a SIGTERM in any process, and all processes agree on a step that none
    of them has started. The other events become a SIGTERM there, except SIGINT, which keeps its usual effect.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}
        self._unread = False

    def requested_at(self, step: int) -> bool:
        """Returns whether to stop before the next step; all processes must call this before each step."""
        if not self._unread and _reader_left():
            self._unread = True
            _tell("nothing reads standard output any more: saving after this step")
            self._stop()
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self.requested

    def __enter__(self) -> "StopRequest":
        try:
            for number in (signal.SIGHUP,) if jax.process_count() > 1 else SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread: only that one receives signals
            pass
        return self

    def __exit__(self, *unused: Any) -> None:
        self._reset()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _tell("the connection is lost: saving after this step")
        else:
            _tell(f"signal {number}: saving after this step; repeat it to stop at once")
            self._reset()
        self._stop()

    def _stop(self) -> None:
        self.requested = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def _reset(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)


def _reader_left() -> bool:
    """Returns whether standard output is a pipe or a socket whose other end is closed."""
    try:
        mode = os.fstat(_STDOUT).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):  # a terminal that is gone sends SIGHUP
            return False
        poll = select.poll()
        poll.register(_STDOUT, 0)  # errors are always reported
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except OSError:  # closed from the beginning
        return False


def _tell(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, RuntimeError):  # a terminal that is gone; a signal within another print
        pass
