"""Answers of a listening test: a file with a line of JSON for each, wins, and Wilcoxon's signed-rank test."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from musiclm_jax.evaluation.listening_test.trials import Trial

# Answers 1 to 5, about the clips that are heard as A and B.
SCALE = ("A is much better", "A is better", "No difference", "B is better", "B is much better")
MIDDLE = 3
EXACT_PAIRS = 13  # up to so many unequal pairs all 2^n signs are looked at, above them the normal distribution
_FIELDS: dict[str, type] = {"id": str, "a": str, "b": str, "answer": int, "listener": str}


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
      id: of the two clips.
      a: system that was heard as A.
      b: system that was heard as B.
      answer: 1 to 5, see `SCALE`.
      listener: who answered; "" where nobody asked.
      caption: what was shown.
      seconds: from the first sight of the pair to the answer.
      time: of the answer, ISO 8601 in UTC.
    """

    id: str
    a: str
    b: str
    answer: int
    listener: str = ""
    caption: str = ""
    seconds: float = 0.0
    time: str = ""


def append(path: pathlib.Path, answer: Answer) -> None:
    """Writes an answer to the end of the file, and to the disk before it returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(answer), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: str | os.PathLike) -> list[Answer]:
    """Answers of a file, in order.

    Raises:
      ValueError: naming the line that is no answer, or the file that is missing.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{path}: no such file of answers")
    answers = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        if not line.strip():
            continue
        try:
            answers.append(_answer(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: no answer of a listening test ({error}): name another file, or delete the line"
            ) from error
    return answers


def _answer(fields: Any) -> Answer:
    if not isinstance(fields, dict):
        raise ValueError("expected an object")
    for name, kind in _FIELDS.items():
        if type(fields.get(name)) is not kind:
            raise ValueError(f"{name} is {fields.get(name)!r}")
    if not 1 <= fields["answer"] <= len(SCALE) or fields["a"] == fields["b"]:
        raise ValueError(f"answer {fields['answer']} about {fields['a']!r} and {fields['b']!r}")
    return Answer(**fields)


def unanswered(trials: Sequence[Trial], answers: Sequence[Answer], listener: str) -> list[int]:
    """Numbers of the trials that a listener has not answered yet, whatever the sides were."""
    done = {(own.id, frozenset((own.a, own.b))) for own in answers if own.listener == listener}
    return [index for index, trial in enumerate(trials) if (trial.id, frozenset(trial.systems)) not in done]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What listeners said of two systems.

    Attributes:
      systems: the two, in the order of their names.
      counts: of the five answers, from "the first is much better" to "the second is much better".
      clips: ids that were heard.
      listeners: who answered.
      mean: of the answers, -2 (the first is much better) to 2 (the second is).
      statistic: Wilcoxon's, the smaller one of the two sums of ranks.
      p_value: two-sided: how often as much or more would come about if the systems were equally good.
    """

    systems: tuple[str, str]
    counts: tuple[int, int, int, int, int]
    clips: int
    listeners: int
    mean: float
    statistic: float
    p_value: float

    @property
    def wins(self) -> tuple[int, int]:
        """Answers in which the first, and in which the second system is better."""
        return self.counts[0] + self.counts[1], self.counts[3] + self.counts[4]

    @property
    def ties(self) -> int:
        """Answers without a difference."""
        return self.counts[2]


def compare(answers: Sequence[Answer]) -> list[Comparison]:
    """Counts wins and tests every two systems that were compared.

    Of several answers of a listener about a clip the last counts. The test takes each clip once, with the mean over its
    listeners: their answers about one pair are not independent.
    """
    last: dict[tuple[str, str], dict[tuple[str, str], int]] = {}
    for own in answers:
        systems = (min(own.a, own.b), max(own.a, own.b))
        towards_second = (own.answer - MIDDLE) * (1 if own.b == systems[1] else -1)
        last.setdefault(systems, {})[own.id, own.listener] = towards_second
    comparisons = []
    for systems, preferences in sorted(last.items()):
        of_clip: dict[str, list[int]] = {}
        for (clip, _), preference in preferences.items():
            of_clip.setdefault(clip, []).append(preference)
        values = np.array(list(preferences.values()))
        statistic, p_value = signed_rank(np.array([np.mean(own) for own in of_clip.values()]))
        counts = np.bincount(values + MIDDLE - 1, minlength=len(SCALE))
        comparisons.append(
            Comparison(
                systems,
                tuple(counts.tolist()),
                len(of_clip),
                len({listener for _, listener in preferences}),
                float(values.mean()),
                statistic,
                p_value,
            )
        )
    return comparisons


def signed_rank(differences: np.ndarray) -> tuple[float, float]:
    """Wilcoxon's signed-rank test of paired differences `[pairs]`, two-sided; pairs without a difference are left out.

    Up to `EXACT_PAIRS` pairs the p-value is exact, also with ties; above, the normal distribution with the correction
    for ties.

    Returns:
      The smaller sum of ranks and the p-value; 0 and 1 where no pair differs.
    """
    unequal = np.asarray(differences, np.float64)
    unequal = unequal[unequal != 0]
    if not len(unequal):
        return 0.0, 1.0
    method = scipy.stats.PermutationMethod() if len(unequal) <= EXACT_PAIRS else "asymptotic"
    result = scipy.stats.wilcoxon(unequal, method=method)
    return float(result.statistic), float(result.pvalue)
