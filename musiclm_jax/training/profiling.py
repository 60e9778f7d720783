"""A trace of some steps of a run, for TensorBoard's profiler and for Perfetto."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath


class StepProfiler:
    """Traces the steps `first` to `last` of a run into its folder (plugins/profile); each process its own devices."""

    def __init__(self, folder: epath.Path, steps: tuple[int, int] | None) -> None:
        """Profiler of steps counted from 1, both ends included; None for no trace.

        Raises:
          ValueError: if `steps` is no such pair.
        """
        pair = isinstance(steps, (tuple, list)) and len(steps) == 2  # it comes from gin, which checks no types
        if steps is not None and not (pair and 1 <= steps[0] <= steps[1]):
            raise ValueError(f"profile_steps is {steps}, expected the first and the last step, such as (10, 15)")
        self.folder, self.steps = folder, steps
        self.running = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """To be entered around the call of a step."""
        if self.steps is not None and number == self.steps[0]:
            jax.profiler.start_trace(self.folder, create_perfetto_trace=True)
            self.running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def after(self, number: int, result: Any) -> bool:
        """Ends the trace after its last step, when `result` is there; returns whether it did."""
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
