"""The one training loop: all model families and stages are trained by `train`, read from top to bottom.

A run is a pure function of its configuration: step s uses a key folded from the seed and s, and batch s of data that is
seeded by epoch, so a run that was stopped and resumed takes the same steps as one that was not.
"""

import itertools
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from musiclm_jax import checkpoints, partitioning
from musiclm_jax.checkpoints import Position

Batch = Mapping[str, Any]
Metrics = Mapping[str, jax.Array]


class Learner(Protocol):
    """What can be trained: a frozen dataclass of a model's config and of how to optimise it.

    The functions are pure and fit for `jax.jit`. A learner may also have `warm_start(state, batch, key) -> state`,
    called once with the first batch before the first step, for what is initialised from data (k-means of a codebook),
    and `start_from(state, variables) -> state`, the state with the weights of a bundle's part.
    """

    family: str  # "soundstream", "w2v_bert", "mulan" or "stage"

    def init(self, key: jax.Array) -> Any:
        """Returns the state: a flax.struct.PyTreeNode with an int32 scalar field `step`."""

    def train_step(self, state: Any, batch: Batch, key: jax.Array) -> tuple[Any, Metrics]:
        """Returns the next state and float32 scalars named by paths like "vq/commitment_loss"."""

    def eval_step(self, state: Any, batch: Batch, key: jax.Array) -> Metrics:
        """Returns float32 scalars; the main one is called "loss"."""


class Dataset(Protocol):
    """Batches in a fixed order for each epoch."""

    def epoch(self, epoch: int, skip: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields this host's batches of an epoch from number `skip` on."""


class DivergedError(RuntimeError):
    """A metric of training is not finite."""


def train(
    learner: Learner,
    train_dataset: Dataset,
    eval_dataset: Dataset | None,
    model_dir: str | pathlib.Path,
    *,
    total_steps: int,
    checkpoint_period: int = 1_000,
    checkpoint_minutes: float = 10.0,
    eval_period: int = 1_000,
    eval_steps: int = 8,
    log_period: int = 50,
    keep: int = 3,
    seed: int = 0,
    mesh: Mesh | None = None,
    start_variables: Mapping[str, Any] | None = None,
) -> Any:
    """Trains a learner, resuming from model_dir's latest checkpoint if there is one.

    SIGTERM or SIGINT (Ctrl-C) saves a checkpoint after the step under way and returns; the same call goes on there.
    With several processes (`jax.distributed`), SIGTERM to any of them stops all after a step that they agree on.

    Args:
      learner: what to train.
      train_dataset: its batches.
      eval_dataset: held-out batches, the first `eval_steps` of epoch 0 each time; None for no evaluation.
      model_dir: folder of checkpoints and TensorBoard events.
      total_steps: where to stop.
      checkpoint_period: steps between checkpoints; one is also written at the end.
      checkpoint_minutes: one is also written this many minutes after the last one (one process only); 0 for never.
      eval_period: steps between evaluations; one is also made at the end.
      eval_steps: batches of an evaluation.
      log_period: steps between progress lines.
      keep: latest checkpoints to keep, beside the best one by held-out loss.
      seed: of initialisation, dropout and the like (data has its own).
      mesh: from `partitioning.make_mesh`; None for all devices as data parallel.
      start_variables: of a bundle's part, to begin a new run with instead of random weights.

    Returns:
      The final state.

    Raises:
      DivergedError: if a metric is not finite. The state is then in model_dir/diverged, and the checkpoints are sound.
      ValueError: if a period is not positive, the data is empty or the checkpoint does not fit.
    """
    periods = {"checkpoint_period": checkpoint_period, "eval_period": eval_period, "log_period": log_period}
    for name, value in {"total_steps": total_steps, "eval_steps": eval_steps, **periods}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, expected 1 or more")
    model_dir = pathlib.Path(model_dir).expanduser().absolute()
    mesh = mesh or partitioning.make_mesh()
    key = jax.random.key(seed)
    init_key, train_key, eval_key = (jax.random.fold_in(key, stream) for stream in range(3))

    # Where the state lives, before it is made: boxes of logical axes are read here and never enter the loop.
    boxed = jax.eval_shape(learner.init, init_key)
    sharding = partitioning.state_sharding(mesh, boxed)
    abstract = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        partitioning.unbox(boxed),
        sharding,
    )
    train_step = jax.jit(learner.train_step, donate_argnums=0, out_shardings=(sharding, partitioning.replicated(mesh)))
    eval_step = jax.jit(learner.eval_step, out_shardings=partitioning.replicated(mesh))

    manager = checkpoints.open_manager(model_dir, keep)
    restored = checkpoints.restore_latest(manager, abstract)
    if restored is None:
        step, position = 0, Position()
        state = jax.jit(lambda k: partitioning.unbox(learner.init(k)), out_shardings=sharding)(init_key)
        if start_variables is not None:
            state = _started(learner, state, start_variables, sharding)
    else:
        step, state, position = restored
        _say(f"resuming from step {step:,} (epoch {position.epoch}, batch {position.step_in_epoch}) in {model_dir}")
    _say(f"{learner.family}: {_parameter_count(abstract):,} parameters, mesh {dict(mesh.shape)}, to {model_dir}")

    writer = _summary_writer(model_dir)
    stop = _StopRequest()
    progress = _Progress(step, total_steps)
    pending: list[Metrics] = []  # metrics of the steps since the last line, still on the device
    saved_at = time.monotonic()
    saved_step = step if restored else -1
    evaluated: tuple[int, float] = (-1, 0.0)  # step and loss of the last evaluation

    with stop, manager, partitioning.activation_rules(mesh):
        batches = _batches(train_dataset, position)
        while step < total_steps and not stop.requested_at(step):
            host_batch, position = next(batches)
            progress.examples = len(next(iter(host_batch.values()))) * jax.process_count()
            batch = partitioning.shard_batch(mesh, host_batch)
            if step == 0 and start_variables is None and hasattr(learner, "warm_start"):
                warm_key = jax.random.fold_in(init_key, 1)
                state = jax.jit(learner.warm_start, donate_argnums=0, out_shardings=sharding)(state, batch, warm_key)
            state, metrics = train_step(state, batch, jax.random.fold_in(train_key, step))
            pending.append(metrics)
            step += 1

            last = step == total_steps
            overdue = checkpoint_minutes > 0 and time.monotonic() - saved_at > 60 * checkpoint_minutes
            save = step % checkpoint_period == 0 or last or (overdue and jax.process_count() == 1)
            evaluate = eval_dataset is not None and (step % eval_period == 0 or last)
            # Every checkpoint comes after a look at the metrics, so that none holds a state gone wrong.
            if step % log_period == 0 or progress.is_first or save or evaluate:
                means = _means(pending)
                pending.clear()
                _check_finite(means, step, state, model_dir, manager)
                _say(progress.line(step, means))
                writer.write_scalars(step, {f"train/{name}": value for name, value in means.items()})
                writer.write_scalars(step, progress.rates())
            if evaluate and eval_dataset is not None:
                means = _evaluate(eval_step, state, eval_dataset, eval_steps, eval_key, mesh)
                _say(f"  held out after {step:,} steps: {_format(means)}")
                writer.write_scalars(step, {f"eval/{name}": value for name, value in means.items()})
                evaluated = (step, means["loss"])
            if save:
                checkpoints.save(manager, step, state, position, evaluated[1] if evaluated[0] == step else None)
                saved_at, saved_step = time.monotonic(), step
            if evaluate or save:
                progress.restart(step)  # the rate is that of training alone
        if step < total_steps and saved_step != step:
            _check_finite(_means(pending), step, state, model_dir, manager)
            checkpoints.save(manager, step, state, position)
        manager.wait_until_finished()
    writer.close()
    if step < total_steps:
        _say(f"stopped by a signal, saved at step {step:,}: the same command goes on from there")
    else:
        _say(f"done: step {step:,} of {total_steps:,}")
    return state


def _started(learner: Any, state: Any, variables: Mapping[str, Any], sharding: Any) -> Any:
    """The state with a bundle's weights.

    Raises:
      ValueError: if the family cannot be started from a bundle, or the bundle's model has another shape.
    """
    if not hasattr(learner, "start_from"):
        raise ValueError(f"a {learner.family} model cannot be started from a bundle: train it from its beginning")
    started = learner.start_from(state, variables)

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}

    found, wanted = shapes(started), shapes(state)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"the bundle's model does not fit this configuration: {name} is {found.get(name, 'absent')} there and "
                f"{wanted.get(name, 'absent')} here; use the configuration it was trained with"
            )
    return jax.device_put(started, sharding)


def _batches(dataset: Dataset, position: Position) -> Iterator[tuple[dict[str, np.ndarray], Position]]:
    """Yields batches without end, each with the position after it."""
    epoch, index = position.epoch, position.step_in_epoch
    while True:
        for batch in dataset.epoch(epoch, index):
            index += 1
            yield batch, Position(epoch, index)
        if index == 0:
            raise ValueError("an epoch of the training data holds no batch: give more records or a smaller batch size")
        epoch, index = epoch + 1, 0


def _evaluate(eval_step: Any, state: Any, dataset: Dataset, steps: int, key: jax.Array, mesh: Mesh) -> dict[str, float]:
    """Returns the means of the metrics over the first batches; the same batches and keys each time."""
    batches = list(itertools.islice(dataset.epoch(0, 0), steps))
    # A process with fewer batches than the others would leave them waiting.
    counts = multihost_utils.process_allgather(np.int32(len(batches)))
    collected = []
    for index, batch in enumerate(batches[: int(np.min(counts))]):
        collected.append(eval_step(state, partitioning.shard_batch(mesh, batch), jax.random.fold_in(key, index)))
    if not collected:
        raise ValueError("the evaluation data holds no batch: give more held-out records or a smaller batch size")
    means = _means(collected)
    if "loss" not in means:
        raise ValueError(f"eval_step returned {sorted(means)}, expected a metric called 'loss' among them")
    return means


def _means(collected: list[Metrics]) -> dict[str, float]:
    """Returns the mean of each metric over the steps that report it."""
    fetched = jax.device_get(collected)
    names = dict.fromkeys(name for metrics in fetched for name in metrics)
    return {name: float(np.mean([m[name] for m in fetched if name in m], dtype=np.float64)) for name in names}


def _check_finite(means: Mapping[str, float], step: int, state: Any, model_dir: pathlib.Path, manager: Any) -> None:
    """Raises DivergedError if a metric is not finite, after saving the state aside for a look."""
    bad = [name for name, value in means.items() if not np.isfinite(value)]
    if not bad:
        return
    folder = model_dir / "diverged"
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
    with checkpoints.open_manager(folder, keep=1) as aside:
        checkpoints.save(aside, step, state, Position())
    manager.wait_until_finished()
    raise DivergedError(
        f"{', '.join(bad)} not finite at or before step {step:,}. The state is in {folder}; the last sound checkpoint "
        f"is step {manager.latest_step()}. Lower the learning rate, warm up longer or clip more, then run again."
    )


def _parameter_count(abstract: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(getattr(abstract, "params", abstract)))


def _summary_writer(model_dir: pathlib.Path) -> Any:
    """Returns clu's TensorBoard writer, in the background; only process 0 writes."""
    from clu import metric_writers  # here, since it imports TensorFlow

    if jax.process_index() > 0:
        return metric_writers.MultiWriter([])
    return metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(model_dir)))


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


def _format(means: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in means.items())


class _Progress:
    """Rates and time left, without the first step (compilation), evaluations and checkpoints."""

    def __init__(self, step: int, total_steps: int) -> None:
        self.first_step, self.total_steps, self.examples = step + 1, total_steps, 0
        self.is_first = True  # until the first line: it shows at once that training runs
        self.steps_per_second = 0.0
        self.restart(step)

    def restart(self, step: int) -> None:
        self.start_step, self.start_time = step, time.monotonic()

    def line(self, step: int, means: Mapping[str, float]) -> str:
        elapsed, steps = time.monotonic() - self.start_time, step - self.start_step
        if self.is_first:
            rate = f"first step {elapsed:.1f} s with compilation"
            self.is_first = False
        else:
            self.steps_per_second = steps / max(elapsed, 1e-9) if steps else self.steps_per_second
            left = (self.total_steps - step) / self.steps_per_second if self.steps_per_second else float("nan")
            rate = (
                f"{self.steps_per_second:.3g} steps/s, {self.steps_per_second * self.examples:.3g} examples/s, "
                f"{_duration(left)} left"
            )
        self.restart(step)
        return f"step {step:,}/{self.total_steps:,} | {_format(means)} | {rate}"

    def rates(self) -> dict[str, float]:
        return {
            "steps_per_second": self.steps_per_second,
            "examples_per_second": self.steps_per_second * self.examples,
        }


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


class _StopRequest:
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

    def __enter__(self) -> "_StopRequest":
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
