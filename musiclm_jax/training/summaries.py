"""TensorBoard events of a run, written by clu in the background; process 0 alone writes."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from musiclm_jax.training.checkpoints import reason


class SummaryWriter:
    """Scalars by step, in the run's folder. All methods raise ValueError, in one line, if they cannot be written."""

    def __init__(self, folder: epath.Path) -> None:
        from clu import metric_writers  # here, since it imports TensorFlow

        self.folder = folder
        self._writer: Any = None
        if jax.process_index() == 0:
            with self._clear_errors():
                self._writer = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(folder)))

    def write(self, step: int, scalars: Mapping[str, float], prefix: str = "") -> None:
        """Adds scalars, their names behind a prefix such as "train/"."""
        if self._writer:
            with self._clear_errors():
                self._writer.write_scalars(step, {prefix + name: value for name, value in scalars.items()})

    def flush(self) -> None:
        """Waits until all is written."""
        if self._writer:
            with self._clear_errors():
                self._writer.flush()

    def close(self) -> None:
        """Writes what is left; nothing can be added after it."""
        if self._writer:
            with self._clear_errors():
                self._writer.close()

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of TensorFlow, which nothing here imports
            raise ValueError(
                f"cannot write TensorBoard events to {self.folder} ({reason(error)}): make room or mend it, then "
                "give the same command again, which goes on from the last checkpoint"
            ) from error
