"""Stopping at a signal: SIGTERM of a pre-empted machine or of a queue, Ctrl-C of a person."""

import signal
import sys
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Notes SIGTERM (pre-emption) and SIGINT while it is entered; a second signal acts as it would have.

    With several processes it leaves the signals alone: `jax.distributed` notes SIGTERM in any of them, and agrees with
    all others on a step that none has begun.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def requested_at(self, step: int) -> bool:
        """Whether to stop before the next step; to be asked before each step, by all processes."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self.requested

    def __enter__(self) -> "StopRequest":
        if jax.process_count() > 1:
            return self
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread, which alone receives signals
            pass
        return self

    def __exit__(self, *unused: Any) -> None:
        self._reset()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        print(f"signal {number}: saving after this step; once more to stop at once", file=sys.stderr, flush=True)
        self._reset()

    def _reset(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
