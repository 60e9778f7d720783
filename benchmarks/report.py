"""What the benchmarks share: their arguments, held-out clips, and figures as a table and JSON."""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from musiclm_jax.evaluation.metrics import Estimate


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of evidence.

    Attributes:
      name: what was measured.
      value: the figure, with its 95 % interval where there is one.
      target: what is asked of it, in words; "" where nothing is asked.
      passed: whether it is met; None where nothing is asked.
      note: how to read it.
    """

    name: str
    value: Estimate | float
    target: str = ""
    passed: bool | None = None
    note: str = ""

    def cells(self) -> tuple[str, str, str, str]:
        """The line's cells in the markdown table."""
        value = str(self.value) if isinstance(self.value, Estimate) else f"{self.value:.3f}"
        verdict = {True: "yes", False: "NO", None: ""}[self.passed]
        return f"{self.name}{f' ({self.note})' if self.note else ''}", value, self.target, verdict


def table(figures: Sequence[Figure]) -> str:
    """Figures as a markdown table."""
    lines = ["| figure | value [95 % interval] | asked | met |", "|---|---|---|---|"]
    return "\n".join(lines + ["| " + " | ".join(figure.cells()) + " |" for figure in figures])


def arguments(description: str, corpus: bool = True) -> argparse.ArgumentParser:
    """The arguments of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--bundle", default="tiny", help="folder of a bundle, or the name of one in the package")
    if corpus:
        parser.add_argument("--corpus", required=True, help="folder of audio records, made by `musiclm corpus`")
    parser.add_argument("--output", default="", help="JSON file for the figures")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of clips and of the intervals")
    return parser


def publish(benchmark: str, figures: Sequence[Figure], output: str, details: dict[str, Any]) -> None:
    """Prints the table and writes the JSON file.

    Args:
      benchmark: name of the benchmark.
      figures: the lines.
      output: path of the file; "" writes none.
      details: numbers behind the figures that JSON can hold.
    """
    print(f"\n### {benchmark}\n\n{table(figures)}\n", flush=True)
    if output:
        content = {"benchmark": benchmark, "figures": [dataclasses.asdict(f) for f in figures], "details": details}
        path = pathlib.Path(output).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1, default=float), encoding="utf-8")


def read_published(path: pathlib.Path) -> list[Figure]:
    """Figures of a file that `publish` wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return [
        Figure(**{**f, "value": Estimate(*f["value"]) if isinstance(f["value"], list) else f["value"]}) for f in found
    ]


def check_settings(work: pathlib.Path, settings: dict[str, Any]) -> None:
    """Makes a folder for the pieces of one run, or checks that it is that of this run.

    Raises:
      ValueError: if it holds pieces of other settings.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work / "settings.json"
    if path.exists() and (known := json.loads(path.read_text(encoding="utf-8"))) != settings:
        differing = [name for name in settings if known.get(name) != settings[name]]
        raise ValueError(f"{work} holds pieces of another run (other {', '.join(differing)}): choose another --work")
    path.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def sample_clips(corpus: str, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Clips of a split, see `records.sample_audio_records`."""
    from musiclm_jax.data.records import sample_audio_records  # here: it imports TensorFlow

    return sample_audio_records(corpus, split, count, seed)
