"""`musiclm evaluate`: reports FAD, KLD and MCC of our models or any system's clips; writes a table, JSON and a page."""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from musiclm_jax.launch import quiet_tensorflow  # noqa: F401  before anything imports TensorFlow

# isort: split
import gin
import numpy as np

from musiclm_jax import bundles
from musiclm_jax.data import files
from musiclm_jax.evaluation import clips, evaluate, metrics
from musiclm_jax.evaluation.evaluate import EvaluationSet, Hearing, Scores
from musiclm_jax.generation import generate
from musiclm_jax.launch import command, evaluation_page, gin_bindings  # noqa: F401  registers what gin files can name
from musiclm_jax.launch.train import parse_gin

USAGE = """musiclm evaluate --output=DIR --gin.DATA_DIR="'CORPUS'"
       musiclm evaluate --output=DIR --gin.DATA_DIR="'CORPUS'" --generated=CLIPS --system=NAME
       musiclm evaluate --output=DIR --gin_file=evaluate_musiccaps.gin --gin.DATA_DIR="'MUSICCAPS'" ...

Generates a clip for each caption of a task and scores the clips. With --generated, scores another system's clips, named
by the task's ids (ID.wav). The same command resumes an interrupted run. DIR receives report.json, report.html and the
clips."""
# Additional rows of the report, by their gin names.
CONTROLS = {"real": "real clips", "codec": "codec round trip", "shuffled": "shuffled captions", "noise": "noise"}
SAMPLES = 12  # clips with players on the page
FAULTS = ("missing", "broken", "silent", "loud", "doubles", "strangers")  # of `clips.Clips`, named in full in the JSON


def main(arguments: list[str]) -> int:
    """Runs the command.

    Raises:
      ValueError: if the input cannot be used; the message has one line.
    """
    parser = command.Parser("evaluate", "FAD, KLD and MCC of generated clips", usage=USAGE)
    parser.add_argument(
        "--gin_file",
        type=command.local_path,
        action="append",
        help="gin file; may be repeated, later ones override (default: evaluate.gin)",
    )
    parser.add_argument(
        "--gin_bindings", action="append", default=[], help="one gin binding NAME = VALUE; may be repeated"
    )
    parser.add_argument(
        "--output",
        type=command.local_path,
        required=True,
        help="folder for the report and the clips; created if missing",
    )
    parser.add_argument(
        "--generated",
        type=command.local_path,
        help="folder of another system's clips, named by id (default: generate with the bundle)",
    )
    parser.add_argument(
        "--system", type=command.text, help="name of the system in the report (default: the bundle or the folder)"
    )
    args, bindings = parser.parse_with_bindings(arguments)
    command.enable_compilation_cache()
    parse_gin(args.gin_file or ["evaluate.gin"], args.gin_bindings + bindings)
    folder = pathlib.Path(args.output)
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder, "musiclm evaluate"):
        evaluate_system(output=folder, generated=args.generated, system=args.system)
    return 0


@gin.configurable("evaluate", denylist=["output", "generated", "system"])
def evaluate_system(
    output: str | pathlib.Path,
    generated: str | None = None,
    system: str | None = None,
    task: EvaluationSet = gin.REQUIRED,
    bundle: str = gin.REQUIRED,
    embedder_names: Sequence[str] = gin.REQUIRED,
    seconds: float = 10.0,
    best_of: int = 1,
    batch_size: int = 8,
    seed: int = 0,
    controls: Sequence[str] = tuple(CONTROLS),
    kld_direction: str = metrics.KLD_DIRECTIONS[0],
    cache_dir: str | None = None,
) -> list[Scores]:
    """Generates or finds the clips, scores them and writes the report; gin sets every argument except the first three.

    Args:
      output: folder of the report.
      generated: folder of clips to score; None generates them into output/clips.
      system: its name in the report.
      task: captions and references, from `corpus_task` or `musiccaps_task`.
      bundle: generates the clips; its MuLan computes MCC.
      embedder_names: embedders to use; the report names those without weights.
      seconds: length of generated clips.
      best_of: candidates for each clip; the closest to the text by MuLan is kept, which inflates MCC by the same MuLan.
      batch_size: clips generated at once.
      seed: seed of the music, the intervals and the shuffling.
      controls: additional rows: "real" clips, their "codec" round trip, the system's clips under "shuffled" captions,
        "noise".
      kld_direction: one of `metrics.KLD_DIRECTIONS`.
      cache_dir: folder for embeddings of the references; output/cache if None.

    Returns:
      The scores of the system and of the controls.

    Raises:
      ValueError: if an argument cannot be used.
    """
    if not isinstance(task, EvaluationSet):
        raise ValueError(f"evaluate.task is {task!r}, expected a task: bind it as evaluate.task = @corpus_task()")
    if strange := sorted(set(controls) - set(CONTROLS)):
        raise ValueError(f"evaluate.controls has {', '.join(strange)}: use {', '.join(CONTROLS)}")
    folder = pathlib.Path(output).expanduser()
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files.write(folder / "config.gin", gin.config_str())
    models = bundles.load(bundle)
    listeners, remarks = evaluate.load_embedders(embedder_names, models)
    captions = {item.id: item.caption for item in task.items}
    progress = command.ProgressPrinter(sys.stderr)
    if generated is None:
        request = generate.request_for(models, seconds=seconds, best_of=best_of, batch_size=batch_size, seed=seed)
        found = clips.Clips(clips.generate_clips(models, captions, folder / "clips", request, progress))
    else:
        found = clips.folder_clips(generated, list(captions))
    progress("references", 0, 1)
    cache = pathlib.Path(cache_dir).expanduser() if cache_dir else folder / "cache"
    judges = evaluate.Judges(task, listeners, models, cache, kld_direction, seed)
    progress("references", 1, 1)

    name = system or (pathlib.Path(generated).name if generated else f"bundle {models.path.name}")
    rows = control_rows(judges, models, task, controls, seconds, seed)
    hearing, scores = score_rows(judges, name, found, rows, progress)

    of_clips = [*found.problems(), *evaluate.unheard(listeners, hearing, found.seconds)]
    remarks = [*task.remarks, *evaluate.silent_references(task), *of_clips, *remarks, *warnings_of(scores[0])]
    settings = {
        "bundle": str(models.path),
        "seconds": seconds,
        "best_of": best_of,
        "seed": seed,
        "generated": generated,
    }
    write_report(folder, task, scores, remarks, found, settings)
    print_report(folder, scores, remarks)
    return scores


def control_rows(
    judges: evaluate.Judges,
    models: bundles.Bundle,
    task: EvaluationSet,
    controls: Sequence[str],
    seconds: float,
    seed: int,
) -> dict[str, Callable[[Hearing], Hearing]]:
    """Returns the function that computes each control's embeddings.

    Args:
      judges: compute the embeddings.
      models: bundle for the codec round trip.
      task: captions and references.
      controls: names from `CONTROLS`; without references in the task, "real" and "codec" are left out.
      seconds: length of noise clips.
      seed: seed of the shuffling and the noise.

    Returns:
      {row name: function from the system's embeddings to the control's}, in the order of `CONTROLS`.
    """
    ids = [item.id for item in task.items]
    hear: dict[str, Callable[[Hearing], Hearing]] = {
        "real": lambda _: judges.references(),
        "codec": lambda _: judges.hear(evaluate.codec_round_trip(models, task.references)),
        "shuffled": lambda own: evaluate.shuffled(own, ids, seed),
        "noise": lambda _: judges.hear(evaluate.noise(ids, seconds, seed)),
    }
    if next(iter(task.references()), None) is None:
        del hear["real"], hear["codec"]
    return {row: hear[control] for control, row in CONTROLS.items() if control in controls and control in hear}


def score_rows(
    judges: evaluate.Judges,
    system: str,
    found: clips.Clips,
    rows: dict[str, Callable[[Hearing], Hearing]],
    progress: command.ProgressPrinter,
) -> tuple[Hearing, list[Scores]]:
    """Scores a system's clips, then the controls.

    Args:
      judges: compute embeddings and scores.
      system: name of the system.
      found: clips of the system.
      rows: output of `control_rows`.
      progress: called before each row.

    Returns:
      The embeddings of the system's clips, and the scores of each row.
    """
    progress("scoring", 0, 1 + len(rows))
    hearing = judges.hear(found.read)
    scores = [judges.score(system, hearing)]
    for row, hear in rows.items():
        progress("scoring", len(scores), 1 + len(rows))
        scores.append(judges.score(row, hear(hearing)))
    progress("scoring", 1 + len(rows), 1 + len(rows))
    return hearing, scores


@contextlib.contextmanager
def writable(folder: pathlib.Path) -> Iterator[None]:
    """Turns write errors into a one-line ValueError."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}): choose another --output") from error


def warnings_of(scores: Scores) -> list[str]:
    """Returns remarks on figures that could not be computed or that come from few clips."""
    return [
        f"{figure.metric} by {figure.embedder}: {figure.note}"
        for figure in scores.figures
        if figure.estimate is None or "biased" in figure.note
    ]


def table(scores: Sequence[Scores]) -> str:
    """Formats the figures as a Markdown table: one row per metric, embedder and system."""
    lines = ["| metric | by | system | value [95 % interval] | at infinite N | clips |", "|---|---|---|---|---|---|"]
    for index, figure in enumerate(scores[0].figures):
        for row in scores:
            shown = evaluation_page.cells(row.figures[index])[:-1]
            lines.append("| " + " | ".join((figure.metric, figure.embedder, row.system, *shown)) + " |")
    return "\n".join(lines)


def write_report(
    folder: pathlib.Path,
    task: EvaluationSet,
    scores: Sequence[Scores],
    remarks: Sequence[str],
    found: clips.Clips,
    settings: dict[str, Any],
) -> None:
    """Writes report.json (figures, remarks, the ids behind them, the values of every clip and tag) and report.html."""
    content: dict[str, Any] = {
        "task": task.name,
        "captions": len(task.items),
        "settings": settings,
        "remarks": list(remarks),
        "clips": {name: getattr(found, name) for name in FAULTS},
        "systems": [dataclasses.asdict(row) for row in scores],
    }
    for system in content["systems"]:
        for figure in system["figures"]:
            figure["estimate"] = figure["estimate"] and figure["estimate"]._asdict()
    files.write(folder / "report.json", json.dumps(content, indent=1, ensure_ascii=False))
    sheet = evaluation_page.page(task, scores, remarks, samples_of(task, found))
    files.write(folder / "report.html", sheet)


def print_report(folder: pathlib.Path, scores: Sequence[Scores], remarks: Sequence[str]) -> None:
    """Prints the table, the remarks and where the report lies."""
    print(table(scores))
    for remark in remarks:
        print(f"* {remark}")
    print(f"{folder / 'report.json'}\n{folder / 'report.html'}")


def samples_of(task: EvaluationSet, found: clips.Clips) -> list[evaluation_page.Sample]:
    """Returns readable clips spread over the task, each with its reference if there is one."""
    readable = [item for item in task.items if item.id in found.seconds]
    step = max(1, len(readable) // SAMPLES)
    chosen = {item.id: item for item in readable[::step][:SAMPLES]}
    audio: dict[str, np.ndarray] = {}
    for name in chosen:  # one by one, so that the other clips are not read again
        audio |= dict(dataclasses.replace(found, paths={name: found.paths[name]}).read())
    references: dict[str, Any] = {}
    for name, clip in task.references():
        if name in chosen:
            references[name] = clip
        if len(references) == len(chosen):
            break
    return [
        evaluation_page.Sample(item.id, item.caption, audio[name], references.get(name))
        for name, item in chosen.items()
        if name in audio
    ]
