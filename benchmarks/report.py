"""Shared parts of the benchmarks: arguments, held-out clips, and figures as a table and JSON."""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from musiclm_jax.data import files
from musiclm_jax.evaluation.metrics import Estimate


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of a benchmark's table.

    Attributes:
      name: what was measured.
      value: the figure, with a 95 % interval if available.
      target: requirement in words; "" if there is none.
      passed: whether the requirement is met; None if there is none.
      note: how to read the figure.
    """

    name: str
    value: Estimate | float
    target: str = ""
    passed: bool | None = None
    note: str = ""

    def cells(self) -> tuple[str, str, str, str]:
        """Returns the line's cells in the Markdown table."""
        value = str(self.value) if isinstance(self.value, Estimate) else f"{self.value:.3f}"
        verdict = {True: "yes", False: "NO", None: ""}[self.passed]
        return f"{self.name}{f' ({self.note})' if self.note else ''}", value, self.target, verdict


def table(figures: Sequence[Figure]) -> str:
    """Formats figures as a Markdown table."""
    lines = ["| figure | value [95 % interval] | asked | met |", "|---|---|---|---|"]
    return "\n".join(lines + ["| " + " | ".join(figure.cells()) + " |" for figure in figures])


def arguments(description: str, corpus: bool = True) -> argparse.ArgumentParser:
    """Returns a parser with the arguments that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--bundle", default="tiny", help="bundle: a folder, or a name in the package")
    if corpus:
        parser.add_argument("--corpus", required=True, help="folder of audio records, made by `musiclm corpus`")
    parser.add_argument("--output", default="", help="JSON file for the figures")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of clips and of the intervals")
    return parser


def publish(benchmark: str, figures: Sequence[Figure], output: str, details: dict[str, Any]) -> None:
    """Prints the table and writes the JSON file.

    Args:
      benchmark: name of the benchmark.
      figures: lines of the table.
      output: path of the JSON file; "" writes none.
      details: JSON-serialisable numbers behind the figures.
    """
    print(f"\n### {benchmark}\n\n{table(figures)}\n", flush=True)
    if output:
        content = {"benchmark": benchmark, "figures": [dataclasses.asdict(f) for f in figures], "details": details}
        path = pathlib.Path(output).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, json.dumps(content, indent=1, default=float))


def read_published(path: pathlib.Path) -> list[Figure]:
    """Reads the figures from a file written by `publish`."""
    found = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return [
        Figure(**{**f, "value": Estimate(*f["value"]) if isinstance(f["value"], list) else f["value"]}) for f in found
    ]


def sample_clips(corpus: str, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Samples clips of a split, see `records.sample_audio_records`."""
    from musiclm_jax.data.records import sample_audio_records  # here: it imports TensorFlow

    return sample_audio_records(corpus, split, count, seed)
