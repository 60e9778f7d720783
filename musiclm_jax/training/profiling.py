"""Traces some steps of a run for TensorBoard's profiler and for Perfetto."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath


class StepProfiler:
    """Traces a range of steps into the run's folder (plugins/profile); each process traces its own devices."""

    def __init__(self, folder: epath.Path, steps: tuple[int, int] | None) -> None:
        """Creates a profiler for (first, last) step, counted from 1 and both included; None for no trace.

        Raises:
          ValueError: if `steps` is not such a pair.
        """
        pair = isinstance(steps, (tuple, list)) and len(steps) == 2  # gin does not check types
        if steps is not None and not (pair and 1 <= steps[0] <= steps[1]):
            raise ValueError(f"profile_steps is {steps}, expected the first and the last step, such as (10, 15)")
        self.folder, self.steps = folder, steps
        self.running = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Enters the context for step `number`; starts the trace at the first step to trace."""
        if self.steps is not None and number == self.steps[0]:
            jax.profiler.start_trace(self.folder, create_perfetto_trace=True)
            self.running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def after(self, number: int, result: Any) -> bool:
        """Ends the trace after its last step, once `result` is computed; returns whether it did."""
        if not (self.running and self.steps and number == self.steps[1]):
            return False
        jax.block_until_ready(result)
        self._stop()
        return True

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, *unused: Any) -> None:
        if self.running:
            self._stop()

    def _stop(self) -> None:
        self.running = False
        jax.profiler.stop_trace()
