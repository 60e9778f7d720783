"""Writes the TensorBoard events of a run with clu, in the background and only in process 0."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from musiclm_jax.training.checkpoints import reason


class SummaryWriter:
    """Writes scalars by step to the run's folder. All methods raise a ValueError of one line if writing fails."""

    def __init__(self, folder: epath.Path) -> None:
        from clu import metric_writers  # here, since it imports TensorFlow

        self.folder = folder
        self._writer: Any = None
        if jax.process_index() == 0:
            with self._clear_errors():
                self._writer = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(folder)))

    def write(self, step: int, scalars: Mapping[str, float], prefix: str = "") -> None:
        """Adds scalars, with a prefix such as "train/" before their names."""
        if self._writer:
            with self._clear_errors():
                self._writer.write_scalars(step, {prefix + name: value for name, value in scalars.items()})

    def flush(self) -> None:
        """Waits until everything is written."""
        if self._writer:
            with self._clear_errors():
                self._writer.flush()

    def close(self) -> None:
        """Writes what is left; nothing can be added afterwards."""
        if self._writer:
            with self._clear_errors():
                self._writer.close()

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # TensorFlow's errors have types that this module does not import
            raise ValueError(
                f"cannot write TensorBoard events to {self.folder} ({reason(error)}): make room or repair the disk, "
                "then run the same command again, which resumes from the last checkpoint"
            ) from error
