"""Answers of a listening test: a JSON Lines file, counts of wins, and Wilcoxon's signed-rank test."""

import dataclasses
import errno
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from musiclm_jax.data import files
from musiclm_jax.evaluation.listening_test.trials import Trial

# Answers 1 to 5, about the clips played as A and B.
SCALE = ("A is much better", "A is better", "No difference", "B is better", "B is much better")
MIDDLE = 3
EXACT_PAIRS = 13  # up to this number of unequal pairs the p-value is exact (2^n signs); above, a normal approximation
_FIELDS: dict[str, type] = {"id": str, "a": str, "b": str, "answer": int, "listener": str}


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
      id: id of the two clips.
      a: system played as A.
      b: system played as B.
      answer: 1 to 5, see `SCALE`.
      listener: name of the listener, or "".
      caption: the caption that was shown.
      seconds: from showing the pair to the answer.
      time: time of the answer, ISO 8601 in UTC.
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
    """Appends an answer to the file and syncs it to disk before returning; what a full disk cuts off is removed."""
    line = (json.dumps(dataclasses.asdict(answer), ensure_ascii=False) + "\n").encode(errors="backslashreplace")
    with files.naming(path), path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def read(path: str | os.PathLike) -> list[Answer]:
    """Reads the answers from a file, in order.

    Raises:
      ValueError: if the file is missing, or a line is not an answer; the message names it.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{path}: no such answers file")
    answers = []
    for number, line in enumerate(files.read(path).decode("utf-8-sig", errors="replace").split("\n"), 1):
        if not line.strip():
            continue
        try:
            answers.append(_answer(files.from_json(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: not a listening test's answer ({error}): use another file or delete the line"
            ) from error
    return answers


def _answer(fields: Any) -> Answer:
    if not isinstance(fields, dict):
        raise ValueError("expected a JSON object")
    for name, kind in _FIELDS.items():
        if type(fields.get(name)) is not kind:
            raise ValueError(f"{name} is {fields.get(name)!r}")
    if not 1 <= fields["answer"] <= len(SCALE) or fields["a"] == fields["b"]:
        raise ValueError(f"answer {fields['answer']} about {fields['a']!r} and {fields['b']!r}")
    return Answer(**fields)


def unanswered(trials: Sequence[Trial], answers: Sequence[Answer], listener: str) -> list[int]:
    """Returns the indices of the trials that a listener has not answered yet, regardless of sides."""
    done = {(own.id, frozenset((own.a, own.b))) for own in answers if own.listener == listener}
    return [index for index, trial in enumerate(trials) if (trial.id, frozenset(trial.systems)) not in done]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of two systems by listeners.

    Attributes:
      systems: the two systems, sorted by name.
      counts: number of each answer, from "the first is much better" to "the second is much better".
      clips: number of clips compared.
      listeners: number of listeners.
      mean: mean answer, from -2 (the first is much better) to 2 (the second is much better).
      statistic: Wilcoxon's statistic, the smaller of the two rank sums.
      p_value: two-sided p-value under the null hypothesis that the systems are equally good.
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
        """Numbers of answers in favor of the first and of the second system."""
        return self.counts[0] + self.counts[1], self.counts[3] + self.counts[4]

    @property
    def ties(self) -> int:
        """Number of answers that hear no difference."""
        return self.counts[2]


def compare(answers: Sequence[Answer]) -> list[Comparison]:
    """Counts wins and runs the signed-rank test for each pair of systems.

    If a listener answered a clip several times, the last answer counts. The test uses the mean over listeners for each
    clip, since their answers about one pair are not independent.
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
    """Computes Wilcoxon's two-sided signed-rank test of paired differences `[pairs]`; zero differences are dropped.

    Up to `EXACT_PAIRS` pairs, the p-value is exact, even with ties. Above, it uses the normal approximation with tie
    correction.

    Returns:
      The smaller rank sum and the p-value; 0 and 1 if no pair differs.
    """
    unequal = np.asarray(differences, np.float64)
    unequal = unequal[unequal != 0]
    if not len(unequal):
        return 0.0, 1.0
    method = scipy.stats.PermutationMethod() if len(unequal) <= EXACT_PAIRS else "asymptotic"
    result = scipy.stats.wilcoxon(unequal, method=method)
    return float(result.statistic), float(result.pvalue)
