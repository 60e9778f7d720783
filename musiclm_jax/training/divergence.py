"""Stops a run whose metrics are no longer finite, and saves its state and batches for inspection."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from musiclm_jax.data import files
from musiclm_jax.training import checkpoints
from musiclm_jax.training.checkpoints import Position
from musiclm_jax.training.learner import Dataset, Metrics

FOLDER = "diverged"


class DivergedError(RuntimeError):
    """Raised if a training metric is not finite."""


@dataclasses.dataclass(frozen=True)
class TakenStep:
    """A training step that was taken."""

    number: int  # counted from 1
    position: Position  # in this process's data after the step
    metrics: Metrics


@dataclasses.dataclass(frozen=True)
class TakenSteps:
    """The training steps that one call took."""

    first: int  # number of the first, counted from 1
    positions: Sequence[Position]  # in this process's data after each step
    metrics: Metrics  # scalars, or `[steps]` if there are several

    def each(self) -> list[TakenStep]:
        """Returns the steps one by one; the metrics must be on the host."""
        return [
            TakenStep(self.first + i, position, {name: np.ravel(value)[i] for name, value in self.metrics.items()})
            for i, position in enumerate(self.positions)
        ]


def check_finite(taken: Sequence[TakenStep], state: Any, dataset: Dataset, model_dir: epath.Path, manager: Any) -> None:
    """Stops a run whose metrics are not finite.

    Saves the state to a separate folder, with this process's rows of two batches: that of the first bad step, and the
    one before it in the epoch, whose update may be the cause. The position determines a batch, so both are read again.

    Args:
      taken: the steps since the last check, with their metrics on the host.
      state: state after the last of these steps.
      dataset: the training data.
      model_dir: the run's folder.
      manager: manager of the run's checkpoints.

    Raises:
      DivergedError: if a metric is not finite; names the metrics, the step, its position in the data and the files.
    """
    finite = [all(np.isfinite(value) for value in step.metrics.values()) for step in taken]
    if all(finite):
        return
    bad, last = taken[finite.index(False)], taken[-1]
    names = [name for name, value in bad.metrics.items() if not np.isfinite(value)]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    folder = model_dir / FOLDER
    if jax.process_index() == 0:
        folder.rmtree(missing_ok=True)  # from an earlier run
    multihost_utils.sync_global_devices("diverged")
    with checkpoints.open_manager(folder, keep=1) as aside:
        checkpoints.save(aside, last.number, state, last.position)
    saved = _save_batches(folder, bad, dataset)
    checkpoints.wait(manager)
    sound = checkpoints.latest_whole(manager)
    index = bad.position.examples // dataset.batch_size - 1
    raise DivergedError(
        f"{shown} not finite at step {bad.number:,} (epoch {bad.position.epoch}, batch {index}). In {folder} are "
        f"the state after step {last.number:,} and the batches {' and '.join(saved)}; the last sound checkpoint is "
        f"{'none' if sound is None else f'step {sound:,}'}. Lower the learning rate, warm up longer or clip more, then "
        "run again."
    )


def _on_host(value: Any) -> np.ndarray:
    """Returns an array's values; those of other processes as well, if it is a global array."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        value = multihost_utils.process_allgather(value, tiled=True)
    return np.asarray(value)


def _save_batches(folder: epath.Path, step: TakenStep, dataset: Dataset) -> list[str]:
    """Writes this process's rows of a step's batch and of the batch before it; returns the file names."""
    epoch, end = step.position.epoch, step.position.examples
    count = 2 if end >= 2 * dataset.batch_size else 1
    names = []
    batches = itertools.islice(dataset.epoch(epoch, end - count * dataset.batch_size), count)
    for number, batch in enumerate(batches, step.number - count + 1):
        arrays: dict[str, Any] = {name: _on_host(value) for name, value in batch.items()}
        file = folder / f"batch_{number}-process_{jax.process_index()}.npz"
        with files.naming(file), file.open("wb") as out:
            np.savez(out, **arrays)
        names.append(file.name)
    return names
