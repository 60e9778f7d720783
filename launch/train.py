"""`musiclm train`: trains one model, selected and configured by gin files."""

import ast
import contextlib
import dataclasses
import functools
import inspect
import json
import logging
import os
import pathlib
import re
import sys
import tokenize
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any

from musiclm_jax.launch import quiet_tensorflow  # noqa: F401  before anything imports TensorFlow

# isort: split
import gin
import jax

from musiclm_jax import bundles
from musiclm_jax.data import files, text_files
from musiclm_jax.data.datasets import TaskDataset, TaskSpec, fake_batch
from musiclm_jax.data.resident import ResidentDataset
from musiclm_jax.data.tokens import MELODY
from musiclm_jax.launch import command, gin_bindings
from musiclm_jax.planning import dry_run
from musiclm_jax.stages import weights as stage_weights
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.tokenizers import melody
from musiclm_jax.training import partitioning, trainer
from musiclm_jax.training.divergence import DivergedError
from musiclm_jax.training.learner import Learner, abstract_state, state_bytes
from musiclm_jax.training.trainer import RunConfig

if __name__ == "__main__":  # here, since `musiclm` imports this module: what gin registers below, it would know twice
    from musiclm_jax.launch.main import main as musiclm

    sys.exit(musiclm(["train", *sys.argv[1:]]))

GIN_FOLDER = "musiclm_jax/gin_configs/"  # as gin files include one another
USAGE = """musiclm train --gin_file=soundstream_tiny.gin --model_dir=DIR [--gin.NAME=VALUE ...]

Each gin file is a path or the name of a file in the package. Values use gin's syntax, so strings need inner quotes:
--gin.DATA_DIR="'corpus'" sets a macro, --gin.train.total_steps=10 a parameter. The same command resumes an
interrupted run. --dry_run takes two steps on synthetic data and reports their time and memory; it needs neither
DATA_DIR nor --model_dir, and writes nothing."""


def main(arguments: list[str]) -> int:
    """Runs the command.

    Args:
      arguments: command-line arguments without the command's name.

    Raises:
      ValueError: if the input cannot be used; the message has one line.
    """
    parser = command.Parser("train", "train one model: a tokenizer or a stage, selected by a gin file", usage=USAGE)
    parser.add_argument(
        "--gin_file",
        type=command.local_path,
        action="append",
        required=True,
        help="gin file; may be repeated, later ones override",
    )
    parser.add_argument(
        "--gin_bindings", action="append", default=[], help="one gin binding NAME = VALUE; may be repeated"
    )
    parser.add_argument(
        "--model_dir", type=command.path_or_bucket, help="folder of the run: checkpoints, configuration, TensorBoard"
    )
    parser.add_argument("--dry_run", action="store_true", help="take two steps on synthetic data, no files")
    parser.add_argument(
        "--resident", action="store_true", help="keep all data in the devices' memory, where each step draws its crops"
    )
    parser.add_argument(
        "--start_from", type=command.bundle, help="bundle (a folder, or tiny) whose weights a new run starts from"
    )
    parser.add_argument("--coordinator_address", help="host:port of process 0, for a run with several processes")
    parser.add_argument("--process_count", type=int, help="number of processes in the run")
    parser.add_argument("--process_index", type=int, help="index of this process, from 0")
    args, bindings = parser.parse_with_bindings(arguments)
    if args.model_dir is None and not args.dry_run:
        parser.error("--model_dir is missing: give the folder of the run, or --dry_run to try it without one")
    join_processes(args.coordinator_address, args.process_count, args.process_index)
    command.enable_compilation_cache()
    if os.environ.get("MUSICLM_TRACEBACK") != "1":
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what Orbax logs as an error it also raises
    no_data = ["DATA_DIR = None"] if args.dry_run else []
    parse_gin(args.gin_file, args.gin_bindings + bindings + no_data)
    try:
        with one_line_errors():
            built = gin.get_bindings("train")  # the learner, the task and the mesh are made here
        train(Run(**built), args.model_dir, args.start_from, args.dry_run, args.resident)
    except DivergedError as error:
        raise ValueError(str(error)) from error
    return 0


def join_processes(coordinator_address: str | None, process_count: int | None, process_index: int | None) -> None:
    """Connects to the other processes of the run; does nothing for a single process.

    With MUSICLM_DISTRIBUTED=1 in the environment, JAX discovers the other processes on TPU VMs, GKE and Slurm.
    Elsewhere give all three arguments, named like T5X's flags. Call this before JAX initialises its devices.

    Raises:
      ValueError: if only some of the arguments are given, or the other processes cannot be reached.
    """
    given = (coordinator_address, process_count, process_index)
    found = os.environ.get("MUSICLM_DISTRIBUTED", "0") not in ("", "0")
    if not found and all(value is None for value in given):
        return
    if not found and any(value is None for value in given):
        raise ValueError(
            "--coordinator_address, --process_count and --process_index belong together: give all three, or set "
            "MUSICLM_DISTRIBUTED=1 where JAX discovers the processes by itself (TPU VMs, GKE, Slurm)"
        )
    if process_count is not None and process_index is not None and not 0 <= process_index < process_count:
        raise ValueError(f"--process_index is {process_index}, expected 0 to {process_count - 1} (--process_count - 1)")
    try:
        jax.distributed.initialize(*given)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ValueError(f"the processes of the run could not connect to each other ({reason})") from error


def parse_gin(gin_files: list[str], bindings: list[str]) -> None:
    """Reads gin files, then bindings, into gin's global configuration.

    Args:
      gin_files: paths, or names of files in musiclm_jax/gin_configs, with that folder or without. Such a name means the
        package's file, whatever the current folder holds: a file of that name is ./coarse.gin.
      bindings: lines like `train.total_steps=10`.

    Raises:
      ValueError: if a file is missing, or a name or value is invalid.
    """
    gin.clear_config()
    package = pathlib.Path(str(resources.files("musiclm_jax.gin_configs")))
    paths = []
    for file in gin_files:
        name = file.removeprefix(GIN_FOLDER)
        path, shipped = files.local_path(file), package / name
        if os.path.basename(name) == name and shipped.is_file():
            if name == file and path.is_file() and path.read_bytes() != shipped.read_bytes():
                print(f"{file} is the file of the package: the one here is ./{file}", file=sys.stderr)
            path = shipped
        if not path.is_file():
            names = ", ".join(sorted(p.name for p in package.glob("*.gin")))
            raise ValueError(f"there is no gin file {file!r} here or in the package, which has {names}")
        if text_files.read(path).encode() != path.read_bytes():
            raise ValueError(f"{path}: gin reads UTF-8 without a byte-order mark: save it so")
        paths.append(str(path))
    gin.clear_config()
    bindings = [checked_binding(binding) for binding in bindings]
    with one_line_errors(bindings):
        gin.parse_config_files_and_bindings(paths, bindings, finalize_config=True)
    # gin silently accepts unused macros: a misspelt --gin.TRAIN_STEP would have no effect.
    read = set(re.findall(r"%(\w+)", gin.config_str()))
    for name in (binding.split("=")[0].strip() for binding in bindings):
        if name.isidentifier() and name not in read | {"DATA_DIR"}:
            raise ValueError(f"these gin files have no macro {name!r}: they use {', '.join(sorted(read))}")


def checked_binding(binding: str) -> str:
    """Returns a binding of the command line for gin, with literal backslashes: 'C:\\new' holds no line break.

    Raises:
      ValueError: if the value is a text without quotes, the commonest slip, for which gin has no message.
    """
    name, equals, value = (part.strip() for part in binding.partition("="))
    if value[:1] in ("'", '"') and "\\" in value and value.count(value[0]) == 2 and value[-1] == value[0]:
        return f"{name} = {value[1:-1]!r}"
    if not equals or value[:1] in tuple("'\"([{@%"):
        return binding
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two if it is nested too deeply
        meant = value.capitalize() if value.lower() in ("true", "false", "none") else f"\"'{value}'\""
        raise ValueError(
            f"--gin.{name}={value}: {value or 'nothing'} is not a value in gin's syntax, where texts have quotes: "
            f"give --gin.{name}={meant}"
        ) from None
    return binding


@contextlib.contextmanager
def one_line_errors(bindings: Sequence[str] = ()) -> Iterator[None]:
    """Turns gin's errors into one-line ValueErrors.

    The first line of gin's message names the problem, a later line the place.

    Args:
      bindings: bindings of the command line, which gin's errors refer to by number.
    """
    try:
        yield
    except tokenize.TokenError as error:
        raise ValueError(f"a gin value is incomplete ({error.args[0]}): close all quotes and brackets") from error
    except (MemoryError, RecursionError) as error:  # of Python's parser
        raise ValueError("a gin value is nested too deeply: write it in fewer brackets") from error
    except (ValueError, TypeError, SyntaxError, AttributeError, RuntimeError, OSError, ImportError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        place = next((line[3:].split(" (<")[0] for line in lines[1:] if line.startswith("In ")), "")
        if (found := re.match(r"bindings string line (\d+)", place)) and int(found[1]) <= len(bindings):
            place = f"--gin.{bindings[int(found[1]) - 1]}"
        said = f"a value has the wrong type: {lines[0]}" if isinstance(error, TypeError) else lines[0]
        raise ValueError(with_choices(said) + (f" (in {place})" if place else "")) from error


def with_choices(message: str) -> str:
    """Adds the valid choices to gin's message about an unknown or missing name."""
    known = {own.__name__: own for own in gin_bindings.CONFIGURABLES} | {"train": Run}
    if found := re.match(r"Configurable '(\w+)' doesn't have a parameter", message):
        parameters = inspect.signature(known[found[1]]).parameters if found[1] in known else ()
        return f"{message.rstrip('.')}: it has {', '.join(parameters)}" if parameters else message
    if message.startswith("No configurable matching"):
        return f"{message.rstrip('.')}: gin files can name {', '.join(sorted(known))}"
    if found := re.match(r"(\w+)/macro\.value set to `%gin\.REQUIRED`", message):
        return f"{found[1]} is not set: give --gin.{found[1]}=VALUE; strings need inner quotes (\"'text'\")"
    return message


@gin.configurable("train")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(RunConfig):
    """A run as gin files describe it: each field is a parameter of `train` there.

    Attributes:
      learner: what is trained.
      task: what it is trained on.
      batch_size: rows of a batch, over all processes.
      mesh: from `partitioning.make_mesh`; None for all devices as data parallel.
      train_split: split of the task to train on.
      eval_split: held-out split; None for no evaluation.
      data_seed: seed of the order and the crops of the data.

    Raises:
      ValueError: if a value is of another kind; gin does not check types.
    """

    learner: Learner = gin.REQUIRED
    task: TaskSpec = gin.REQUIRED
    batch_size: int = gin.REQUIRED
    total_steps: int = gin.REQUIRED
    mesh: jax.sharding.Mesh | None = None
    train_split: str = "train"
    eval_split: str | None = "validation"
    data_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.task, TaskSpec):
            raise ValueError(f"train.task is {self.task!r}, expected a task: bind it as train.task = @coarse_task()")
        if not hasattr(self.learner, "train_step") or isinstance(self.learner, type):
            raise ValueError(
                f"train.learner is {self.learner!r}, expected a learner: bind it as train.learner = @StageLearner()"
            )
        if self.mesh is not None and not isinstance(self.mesh, jax.sharding.Mesh):
            raise ValueError(f"train.mesh is {self.mesh!r}, expected a mesh: bind it as train.mesh = @make_mesh()")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ValueError(f"train.batch_size is {self.batch_size!r}, expected a whole number, 1 or more")


def train(
    run: Run,
    model_dir: str | os.PathLike | None,
    start_from: str | None = None,
    try_out: bool = False,
    in_device_memory: bool = False,
) -> Any:
    """Builds a run's datasets and trains, see `trainer.train`.

    Args:
      run: what gin files describe.
      model_dir: folder of the run; None with `try_out`.
      start_from: bundle whose weights a new run starts from.
      try_out: takes two steps on synthetic data instead, see `dry_run.report`.
      in_device_memory: keeps the data in the memory of the devices, see `musiclm_jax.data.resident`.

    Returns:
      The final state, None with `try_out`.
    """
    mesh = run.mesh or partitioning.make_mesh()
    partitioning.check_batch_size(mesh, run.batch_size)
    start_variables = weights_of(bundles.load(start_from), run.learner) if start_from else None
    if try_out:
        rows = run.batch_size // jax.process_count()
        for line in dry_run.report(run.learner, fake_batch(run.task, rows), mesh, start_variables):
            if jax.process_index() == 0:
                print(line, flush=True)
        return None
    if model_dir is None:
        raise ValueError("model_dir is None: give the folder of the run, or try_out=True to try it without one")
    make: Callable[..., Any] = functools.partial(TaskDataset, run.task)
    if in_device_memory:
        make = functools.partial(resident_dataset, run, mesh)
    train_dataset = make(run.train_split, run.batch_size, seed=run.data_seed)
    eval_dataset = None
    if run.eval_split:
        eval_dataset = make(run.eval_split, run.batch_size, seed=run.data_seed, shuffle=False)
    return trainer.train(
        run.learner,
        train_dataset,
        eval_dataset,
        model_dir,
        run,
        mesh=mesh,
        start_variables=start_variables,
        config_files=config_files(run.learner) | {"data.json": json.dumps(train_dataset.summary()) + "\n"},
    )


def resident_dataset(run: Run, mesh: jax.sharding.Mesh, split: str, batch_size: int, **options: Any) -> ResidentDataset:
    """Reads a split of a run's task onto the devices of the mesh, and says how much it is.

    Raises:
      ValueError: if the task cannot be read so, or its data does not fit.
    """
    task = run.task
    if task.resident is None:
        raise ValueError(f"--resident cannot read the task {task.name!r} (docs/training.md): train without --resident")
    if task.data_dir is None:
        raise ValueError(f"task {task.name!r} has no data: give its data_dir")
    # The state is there twice while a step updates it, or as gradients.
    reserved = 2 * state_bytes(abstract_state(run.learner, mesh))
    sharding = partitioning.batch_sharding(mesh)
    dataset = task.resident(task.data_dir, split, batch_size, **options, sharding=sharding, reserved=reserved)
    if jax.process_index() == 0:
        print(f"{split}: {dataset}", flush=True)
    return dataset


def part_name(learner: Learner) -> str:
    """Returns the name of the bundle part that a learner trains."""
    return learner.stage.name if isinstance(learner, StageLearner) else learner.family


def weights_of(bundle: bundles.Bundle, learner: Learner) -> dict[str, Any]:
    """Returns a bundle's variables for the learner to start from.

    Raises:
      BundleError: if the bundle lacks the part, or the part is damaged.
    """
    config, variables = bundle.mulan() if learner.family == "mulan" else bundle.part(part_name(learner))
    if not isinstance(learner, StageLearner):
        return variables
    codebooks = {MELODY.name: melody.entries(*bundle.part("melody"))} if bundle.has("melody") else {}
    params = stage_weights.carried_over(variables["params"], config.stage, learner.stage, codebooks)
    return {"params": params}


def config_files(learner: Learner) -> dict[str, str]:
    """Returns the settings files of a run: config.gin (all gin values) and config.json (family, config, learner)."""
    described = dataclasses.asdict(learner)
    content = {"family": learner.family, "config": described.pop("config"), "learner": described}
    return {"config.json": json.dumps(content, indent=2) + "\n", "config.gin": gin.config_str()}
