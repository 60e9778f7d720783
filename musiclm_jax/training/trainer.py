"""The training loop: `train` trains all model families and stages, and reads from top to bottom.

A run is a pure function of its configuration. Step s uses a key folded from the seed and s, and batch s of data that is
seeded by epoch, so a run that is stopped and resumed takes the same steps as an uninterrupted one.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from musiclm_jax.data import files
from musiclm_jax.training import checkpoints, divergence, partitioning, resume
from musiclm_jax.training import learner as learners
from musiclm_jax.training.checkpoints import Position
from musiclm_jax.training.divergence import TakenSteps
from musiclm_jax.training.learner import Dataset, Learner
from musiclm_jax.training.preemption import StopRequest
from musiclm_jax.training.profiling import StepProfiler
from musiclm_jax.training.progress import StepProgress, Work, peak_flops, scalars
from musiclm_jax.training.summaries import SummaryWriter


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Length of a run and its periodic tasks.

    Attributes:
      total_steps: step at which the run ends.
      checkpoint_period: steps between checkpoints; one is also written at the end.
      checkpoint_minutes: minutes after which a checkpoint is written in between (single process only); 0 for never.
      eval_period: steps between evaluations; one is also made at the end.
      eval_steps: batches per evaluation.
      log_period: steps between progress lines.
      steps_per_call: steps that one call of the compiled program takes, for models whose steps are so short that calls
        limit the rate. Where a period, a traced step or the run ends sooner, the steps up to there are taken one by
        one. The result differs from single steps by rounding. Convolutions on CPUs are slower with more than 1.
      profile_steps: first and last step, counted from 1, to trace with JAX's profiler; None for no trace.
      keep: number of latest checkpoints to keep, in addition to the best one by held-out loss.
      seed: for initialisation, dropout and all else but the data, which has its own.

    Raises:
      ValueError: if a period is not a whole number of 1 or more.
    """

    total_steps: int
    checkpoint_period: int = 1_000
    checkpoint_minutes: float = 10.0
    eval_period: int = 1_000
    eval_steps: int = 8
    log_period: int = 50
    steps_per_call: int = 1
    profile_steps: tuple[int, int] | None = None
    keep: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("total_steps", "eval_steps", "checkpoint_period", "eval_period", "log_period", "steps_per_call"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:  # gin does not check types
                raise ValueError(f"{name} is {value!r}, expected a whole number, 1 or more")

    def next_call(self, step: int) -> int:
        """Returns the number of steps to take in the next call after `step` steps."""
        due = [step - step % period + period for period in (self.checkpoint_period, self.eval_period, self.log_period)]
        traced = (self.profile_steps[0] - 1, self.profile_steps[1]) if self.profile_steps else ()
        room = min(end for end in (*due, *traced, self.total_steps) if end > step) - step
        return self.steps_per_call if room >= self.steps_per_call else 1


def train(
    learner: Learner,
    train_dataset: Dataset,
    eval_dataset: Dataset | None,
    model_dir: str | os.PathLike,
    run: RunConfig,
    *,
    mesh: Mesh | None = None,
    start_variables: Mapping[str, Any] | None = None,
    config_files: Mapping[str, str] | None = None,
) -> Any:
    """Trains a learner, resuming from model_dir's latest checkpoint if there is one.

    SIGTERM, SIGINT (Ctrl-C), SIGHUP (a lost connection), or a pipe at standard output that nobody reads any more: saves
    a checkpoint after the current step (or call of `steps_per_call` steps) and returns; the same call resumes from
    there.
    With several processes (`jax.distributed`), SIGTERM to any of them stops all after a step that they agree on.

    Args:
      learner: what to train.
      train_dataset: training batches.
      eval_dataset: held-out batches, the first `eval_steps` of epoch 0 each time; None for no evaluation.
      model_dir: folder of checkpoints and TensorBoard events.
      run: how long to train, and the periods.
      mesh: from `partitioning.make_mesh`; None for all devices as data parallel.
      start_variables: variables of a bundle's part; a new run starts with them instead of random weights.
      config_files: text files by name, written into model_dir once its checkpoint is known to fit.

    Returns:
      The final state.

    Raises:
      DivergedError: if a metric is not finite, see `divergence.check_finite`; the checkpoints are sound.
      ValueError: if the data is empty, the settings do not continue those of the run (see `resume.check`), or a
        checkpoint does not fit, cannot be read or cannot be written.
    """
    model_dir = checkpoints.run_folder(model_dir)
    mesh = mesh or partitioning.make_mesh()
    key = jax.random.key(run.seed)
    # All processes use the same keys; dropout masks are drawn for the global array, so rows still differ.
    init_key, train_key, eval_key = (jax.random.fold_in(key, stream) for stream in range(3))
    abstract = learners.abstract_state(learner, mesh)
    train_steps = learners.TrainSteps(learner, abstract, mesh, train_key)
    eval_step = jax.jit(learner.eval_step, out_shardings=partitioning.replicated(mesh))
    profiler = StepProfiler(model_dir, run.profile_steps)

    with checkpoints.open_manager(model_dir, run.keep) as manager:
        restored = checkpoints.restore_latest(manager, abstract, train_dataset.batch_size)
        step, state, position = restored or (0, None, Position())
        if restored:
            changed = resume.check(model_dir, config_files or {}, step, run.total_steps, position)
        batches = _batches(train_dataset, position)
        if step < run.total_steps:  # unreadable data is reported before anything is compiled
            batches = itertools.chain([next(batches)], batches)
            if eval_dataset is not None:
                _eval_batches(eval_dataset, 1)
        if restored is None:
            state = learners.init_state(learner, abstract, init_key)
            if start_variables is not None:
                state = learners.started_from(learner, state, abstract, start_variables)
        else:
            _say(f"resuming from step {step:,} (epoch {position.epoch}, example {position.examples}) in {model_dir}")
            if changed:
                _say(f"from here on with other settings: {', '.join(changed)}")
        _say(f"{learners.summary(learner, abstract, mesh)}, to {model_dir}")
        _write_files(model_dir, config_files or {})

        writer = SummaryWriter(model_dir)
        progress = StepProgress(step, run.total_steps, peak_flops(mesh.devices.flat))
        taken: list[TakenSteps] = []  # calls since the last check; their metrics are still on the device
        count = 1  # steps of the last call
        saved_at = time.monotonic()
        saved_step = step if restored else -1
        evaluated: tuple[int, float] = (-1, 0.0)  # step and loss of the last evaluation

        with StopRequest() as stop, profiler, partitioning.activation_rules(mesh):
            # Asked for every step, since the processes agree on one.
            while step < run.total_steps and not any(map(stop.requested_at, range(step - count + 1, step + 1))):
                count = run.next_call(step)
                drawn, positions = zip(*itertools.islice(batches, count), strict=True)
                fed = [partitioning.shard_batch(mesh, batch) for batch in drawn]
                progress.work = Work.of_step(learner, fed[0])
                if step == 0 and start_variables is None:
                    state = learners.warm_started(learner, state, abstract, fed[0], jax.random.fold_in(init_key, 1))
                with profiler.step(step + 1):
                    state, metrics = train_steps(state, fed, step)
                taken.append(TakenSteps(step + 1, positions, metrics))
                step, position = step + count, positions[-1]
                if profiler.after(step, metrics):
                    _say(f"  steps {run.profile_steps} are traced in {model_dir}/plugins/profile")

                last = step == run.total_steps
                overdue = run.checkpoint_minutes > 0 and time.monotonic() - saved_at > 60 * run.checkpoint_minutes
                save = step % run.checkpoint_period == 0 or last or (overdue and jax.process_count() == 1)
                evaluate = eval_dataset is not None and (step % run.eval_period == 0 or last)
                # Metrics are checked before every checkpoint, so that none holds a diverged state.
                if step % run.log_period == 0 or progress.is_first or save or evaluate:
                    means = _look(taken, state, train_dataset, model_dir, manager)
                    _say(progress.line(step, means))
                    writer.write(step, means, "train/")
                    writer.write(step, progress.rate().scalars())
                if evaluate and eval_dataset is not None:
                    means = _evaluate(eval_step, state, eval_dataset, run.eval_steps, eval_key, mesh)
                    _say(f"  held out after {step:,} steps: {scalars(means)}")
                    writer.write(step, means, "eval/")
                    evaluated = (step, means["loss"])
                if save:
                    writer.flush()  # a resumed run does not repeat the scalars before its checkpoint
                    checkpoints.save(manager, step, state, position, evaluated[1] if evaluated[0] == step else None)
                    saved_at, saved_step = time.monotonic(), step
                if evaluate or save:
                    progress.restart(step)  # the rate covers training only
            if step < run.total_steps and saved_step != step:
                _look(taken, state, train_dataset, model_dir, manager)
                checkpoints.save(manager, step, state, position)
            checkpoints.wait(manager)
        writer.close()
    if step < run.total_steps:
        _say(f"stopped by a signal, saved at step {step:,}: the same command resumes from there")
    else:
        _say(f"done: step {step:,} of {run.total_steps:,}")
    return state


def _look(
    taken: list[TakenSteps], state: Any, dataset: Dataset, model_dir: epath.Path, manager: Any
) -> dict[str, float]:
    """Returns the means of the metrics since the last check, and clears them.

    Raises:
      DivergedError: if a metric is not finite.
      ValueError: if a checkpoint could not be written in the background.
    """
    checkpoints.check(manager)
    fetched = jax.device_get([call.metrics for call in taken])
    calls = [dataclasses.replace(call, metrics=metrics) for call, metrics in zip(taken, fetched, strict=True)]
    steps = [step for call in calls for step in call.each()]
    divergence.check_finite(steps, state, dataset, model_dir, manager)
    taken.clear()
    return _means([step.metrics for step in steps])


def _batches(dataset: Dataset, position: Position) -> Iterator[tuple[Mapping[str, Any], Position]]:
    """Yields batches endlessly, each with the position after it."""
    epoch, examples = position.epoch, position.examples
    while True:
        for batch in dataset.epoch(epoch, examples):
            examples += dataset.batch_size
            yield batch, Position(epoch, examples)
        if examples == 0:
            raise ValueError("an epoch of the training data holds no batch: give more records or a smaller batch size")
        epoch, examples = epoch + 1, 0


def _evaluate(eval_step: Any, state: Any, dataset: Dataset, steps: int, key: jax.Array, mesh: Mesh) -> dict[str, float]:
    """Returns the means of the metrics over the first batches; batches and keys are the same each time."""
    collected = []
    for index, batch in enumerate(_eval_batches(dataset, steps)):
        collected.append(eval_step(state, partitioning.shard_batch(mesh, batch), jax.random.fold_in(key, index)))
    means = _means(jax.device_get(collected))
    if "loss" not in means:
        raise ValueError(f"eval_step returned {sorted(means)}, expected a metric called 'loss' among them")
    return means


def _eval_batches(dataset: Dataset, steps: int) -> list[Mapping[str, Any]]:
    """Returns the first batches of the evaluation data, the same number in all processes, since they step together.

    Raises:
      ValueError: if a process has no batch.
    """
    batches = list(itertools.islice(dataset.epoch(0, 0), steps))
    count = int(np.min(multihost_utils.process_allgather(np.int32(len(batches)))))
    if count == 0:
        raise ValueError("the evaluation data holds no batch: give more held-out records or a smaller batch size")
    return batches[:count]


def _means(collected: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the mean of each metric over the steps that report it."""
    names = dict.fromkeys(name for metrics in collected for name in metrics)
    return {name: float(np.mean([m[name] for m in collected if name in m], dtype=np.float64)) for name in names}


def _write_files(folder: epath.Path, contents: Mapping[str, str]) -> None:
    """Writes text files, in process 0 only."""
    if jax.process_index() > 0:
        return
    for name, content in contents.items():
        try:
            if files.is_url(folder):
                (folder / name).write_text(content)  # a bucket has no half written objects
            else:
                files.write(pathlib.Path(folder / name), content)
        except OSError as error:
            raise ValueError(f"cannot write {folder / name} ({error.strerror}): choose another model_dir") from error


def _say(line: str) -> None:
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):  # a full disk or a reader that left; StopRequest sees the latter
            print(line, flush=True)
