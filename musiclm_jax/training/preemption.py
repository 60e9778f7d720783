"""Stops a training at a signal: SIGTERM from preemption or a job queue, or Ctrl-C."""

import signal
import sys
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Context manager that records SIGTERM (preemption) and SIGINT; a second signal has its usual effect.

    With several processes it installs no handlers: `jax.distributed` sees a SIGTERM in any process, and all processes
    agree on a step that none of them has started.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def requested_at(self, step: int) -> bool:
        """Returns whether to stop before the next step; all processes must call this before each step."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self.requested

    def __enter__(self) -> "StopRequest":
        if jax.process_count() > 1:
            return self
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread: only that one receives signals
            pass
        return self

    def __exit__(self, *unused: Any) -> None:
        self._reset()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        print(f"signal {number}: saving after this step; repeat it to stop at once", file=sys.stderr, flush=True)
        self._reset()

    def _reset(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
