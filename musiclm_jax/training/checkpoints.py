"""Checkpoints of a training run: state and data position, written by Orbax in the background.

A run's folder holds `checkpoints/<step>/`. Orbax writes into a temporary folder and renames it when it is complete, so
a half-written checkpoint is never found. States are stored as nested dicts: `load` reads them without the code that
wrote them.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from musiclm_jax.data import files
from musiclm_jax.training.learner import check_fits

FOLDER = "checkpoints"
_PATTERN = re.compile(r"[*?\[\\]")


@dataclasses.dataclass(frozen=True)
class Position:
    """Position of a process in its data: the epoch, from 0, and the examples that were read in it.

    Examples are counted over all processes (a step adds the batch size), so that a run can continue with another batch
    size or number of processes. Each process reads its own shards, so epochs may differ in length between processes.
    """

    epoch: int = 0
    examples: int = 0


def run_folder(model_dir: str | os.PathLike) -> epath.Path:
    """Returns a run's folder as an absolute path; a URL such as gs://bucket/run is returned unchanged."""
    if files.is_url(model_dir):
        return files.bucket(model_dir)
    return epath.Path(files.local_path(model_dir)).absolute()


@contextlib.contextmanager
def open_manager(model_dir: str | os.PathLike, keep: int = 3) -> Iterator[ocp.CheckpointManager]:
    """Opens a run's checkpoints for writing, and removes the remains of an interrupted write.

    On exit, waits until all checkpoints are written. Meanwhile no other process of this machine, or of others with the
    same disk, can open them (a bucket has no locks).

    Args:
      model_dir: the run's folder, created if missing.
      keep: number of latest checkpoints to keep; the best one by held-out loss is kept as well.

    Raises:
      ValueError: if keep is less than 1, the folder's name is a pattern, the folder is in use, or cannot be created or
        written to, or a checkpoint could not be written.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, expected 1 or more checkpoints to keep")
    folder = run_folder(model_dir) / FOLDER
    files.check_bucket(folder.parent)
    if found := _PATTERN.search(os.fspath(folder)):
        # Orbax searches the folder for the files of each process, and would not find them.
        raise ValueError(f"{folder} has {found[0]!r} in its path, which checkpoints cannot have: rename that folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write checkpoints to {folder} ({reason(error)}): choose another model_dir") from error
    with _locked(folder.parent), _open_manager(folder, keep) as manager:
        yield manager


def _locked(folder: epath.Path) -> contextlib.AbstractContextManager[None]:
    """Locks a run's folder in process 0; the other processes of the run share it."""
    if jax.process_index() > 0 or files.is_url(folder):
        return contextlib.nullcontext()
    return files.locked(pathlib.Path(folder), "musiclm train")


@contextlib.contextmanager
def _open_manager(folder: epath.Path, keep: int) -> Iterator[ocp.CheckpointManager]:
    policy = preservation_policy.AnyPreservationPolicy(
        [
            preservation_policy.LatestN(n=keep),
            preservation_policy.BestN(get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        best_fn=_quality,  # without it Orbax writes no metrics
        preservation_policy=policy,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
        # Fails at once if the folder is no longer writable; otherwise Orbax's threads wait minutes for each other.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    manager = _manager(folder, options)
    try:
        yield manager
    except BaseException:
        # The first error is reported, not that a checkpoint could not be finished either.
        with contextlib.suppress(Exception):
            manager.close()
        raise
    with _clear_write_errors(manager):
        manager.close()


def save(
    manager: ocp.CheckpointManager, step: int, state: Any, position: Position, eval_loss: float | None = None
) -> None:
    """Starts to write a checkpoint in the background; `wait` waits until it is written.

    Args:
      manager: from `open_manager`.
      step: number of training steps that led to the state.
      state: training state; it is copied to the host before this returns, so it may be donated at once.
      position: position in this process's data after these steps.
      eval_loss: held-out loss of exactly this state, used to find the best checkpoint; None if not measured.

    Raises:
      ValueError: if it cannot be written.
    """
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(serialization.to_state_dict(state)),
        position=ocp.args.JsonSave({"examples": _of_all_processes(position)}),
    )
    with _clear_write_errors(manager):
        manager.save(step, args=args, metrics={} if eval_loss is None else {"loss": float(eval_loss)}, force=True)


def check(manager: ocp.CheckpointManager) -> None:
    """Raises if a background write has failed; does not block.

    Raises:
      ValueError: if a checkpoint could not be written.
    """
    with _clear_write_errors(manager):
        manager.check_for_errors()


def wait(manager: ocp.CheckpointManager) -> None:
    """Waits until all checkpoints are written.

    Raises:
      ValueError: if one cannot be written.
    """
    with _clear_write_errors(manager):
        manager.wait_until_finished()


@contextlib.contextmanager
def _clear_write_errors(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Turns the errors of Orbax and TensorStore, which have many types, into a ValueError of one line."""
    try:
        yield
    except Exception as error:
        whole = latest_whole(manager)
        raise ValueError(
            f"cannot write a checkpoint to {manager.directory} ({reason(error)}): make room or repair the disk, then "
            f"run the same command again, which resumes from {'the beginning' if whole is None else f'step {whole:,}'}"
        ) from error


def latest_whole(manager: ocp.CheckpointManager) -> int | None:
    """Returns the step of the latest complete checkpoint on disk, or None if there is none."""
    manager.reload()
    return manager.latest_step()


def reason(error: BaseException) -> str:
    """Returns the root cause of an error of Orbax, TensorStore or TensorFlow in a few words."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # The message names nested files, then the cause; TensorStore appends its own details in brackets.
    return re.split('": |; ', line.split(" [")[0])[-1][:200]


def restore_latest(
    manager: ocp.CheckpointManager, abstract_state: Any, batch_size: int = 1
) -> tuple[int, Any, Position] | None:
    """Restores the latest complete checkpoint.

    Args:
      manager: from `open_manager`.
      abstract_state: the state that the run's configuration builds, as a tree of jax.ShapeDtypeStruct with shardings.
      batch_size: examples of a batch, for checkpoints of earlier releases, whose positions count batches.

    Returns:
      (step, state, position), or None if there is no checkpoint. The position is this process's own. If a different
      number of processes wrote the checkpoint, it is the earliest position of any of them: no example is skipped, but
      some may be read twice.

    Raises:
      ValueError: if the shapes of the checkpoint differ from those of abstract_state (the message names the first
        difference), or the checkpoint cannot be read.
    """
    step = manager.latest_step()
    if step is None:
        return None
    expected = serialization.to_state_dict(abstract_state)
    with _clear_read_errors(manager, step):
        metadata = _as_dict(manager.item_metadata(step).state)
    check_fits(f"{manager.directory}/{step}", metadata, expected, ", or another model_dir")
    with _clear_read_errors(manager, step):
        restored = manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(expected), position=ocp.args.JsonRestore())
        )
        position = _of_this_process(restored.position, batch_size)
    return step, serialization.from_state_dict(abstract_state, restored.state), position


def load(model_dir: str | os.PathLike, step: int | None = None, best: bool = False) -> tuple[int, dict[str, Any]]:
    """Reads a checkpoint's state as nested dicts of NumPy arrays, without the code that wrote it.

    Args:
      model_dir: the run's folder.
      step: step of the checkpoint; None for the latest.
      best: take the checkpoint with the lowest held-out loss instead (the latest if none was evaluated).

    Returns:
      (step, nested dicts with the names of the state's fields).

    Raises:
      ValueError: if there is no such checkpoint, or it cannot be read.
    """
    folder = run_folder(model_dir) / FOLDER
    files.check_bucket(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist: give the model_dir of a `musiclm train` run")
    with _manager(folder, ocp.CheckpointManagerOptions(create=False, save_root_metadata=False)) as manager:
        steps = manager.all_steps()
        if not steps or (step is not None and step not in steps):
            raise ValueError(f"{folder} holds the steps {sorted(steps)}, not {'any' if step is None else step}")
        if step is None:
            losses = {s: m["loss"] for s in steps if best and (m := manager.metrics(s))}
            step = min(losses, key=lambda s: losses[s]) if losses else max(steps)
        with _clear_read_errors(manager, step):
            metadata = _as_dict(manager.item_metadata(step).state)
            # NumPy arrays in host memory: the devices that wrote the checkpoint need not exist here.
            abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata)
            restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))
    return step, jax.tree.map(np.asarray, restored.state)


def _of_all_processes(position: Position) -> list[list[int]]:
    """Gathers (epoch, examples) of each process."""
    own = np.array([position.epoch, position.examples], np.int32)
    return np.asarray(multihost_utils.process_allgather(own)).reshape(-1, 2).tolist()


def _of_this_process(saved: dict[str, Any], batch_size: int) -> Position:
    """Returns the position in a checkpoint that belongs to this process; see `restore_latest`."""
    if "examples" in saved:
        positions = saved["examples"]
    else:  # of an earlier release
        positions = [[epoch, batches * batch_size] for epoch, batches in saved["processes"]]
    same = len(positions) == jax.process_count()
    return Position(*(positions[jax.process_index()] if same else min(positions)))


def _quality(metrics: dict[str, float]) -> float:
    """Returns a checkpoint's quality, higher is better; a checkpoint without evaluation is never the best."""
    return -metrics["loss"] if "loss" in metrics else -math.inf


def _manager(folder: epath.Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    """Opens Orbax's manager; it must know the items to read the shapes in a checkpoint that it did not write itself."""
    handlers = {"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()}
    try:
        return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)
    except (ValueError, OSError) as error:  # the manager reads the held-out loss of each checkpoint
        raise ValueError(f"the metrics of a checkpoint in {folder} cannot be read ({reason(error)})") from error


@contextlib.contextmanager
def _clear_read_errors(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    """Turns read errors into a ValueError that says in one line what to do."""
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise  # out of device memory, for example: the checkpoint is sound
    except Exception as error:
        before = max((other for other in manager.all_steps() if other < step), default=None)
        raise ValueError(
            f"checkpoint {manager.directory}/{step} is damaged or cannot be read ({reason(error)}): move that folder "
            f"away, and the same command resumes from {'the beginning' if before is None else f'step {before:,}'}"
        ) from error


def _as_dict(metadata: Any) -> Any:
    """Returns the tree inside Orbax's metadata of an item.

    Raises:
      ValueError: if there is none.
    """
    tree = getattr(metadata, "tree", metadata)
    if not tree:
        raise ValueError("its state has no _METADATA")
    return tree
