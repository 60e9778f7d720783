"""Groups scores into compositions, and assigns compositions to splits."""

import collections
import hashlib
import itertools
import re

import numpy as np

from musiclm_jax.corpus.scores import DRUMS, TUNE_BOOKS, TUNE_KINDS, Score
from musiclm_jax.data import tokens

SPLIT_NUMBERS = {"train": 0, "validation": 1, "test": 2}  # part of each clip's seed
SHARES = {"train": 0.88, "validation": 0.04, "test": 0.08}  # of compositions and of clips
# Kinds with fewer compositions stay in train: otherwise, a kind could be tested without training examples.
RARE_KIND = 8


def _title_key(title: str) -> str:
    title = re.sub(r"\(.*?\)|'s\b|\b(the|a|1st|2nd|3rd|setting)\b", " ", title.lower())
    title = re.sub(r"--.*$|[^a-z0-9 ]", "", title)
    words = [word for word in title.split() if word not in TUNE_KINDS]
    return " ".join(words) if len(words) >= 2 else ""


def _melody_key(score: Score) -> str:
    """Returns the intervals between the first 13 notes of the top voice that fall on beats, after the pickup."""
    notes = score.notes[score.notes[:, 3] == score.notes[0, 3]] if DRUMS in score.programs else score.notes
    phase = notes[:, 0] - score.pickup
    notes = notes[(np.abs(phase - np.round(phase)) < 0.01) & (phase >= 0)]
    top: dict[float, float] = {}
    for onset, _, pitch, part, _ in notes:
        if part == notes[0, 3]:
            top[float(onset)] = max(top.get(float(onset), 0.0), float(pitch))
    pitches = [top[onset] for onset in sorted(top)][:13]
    steps = [int(b - a) for a, b in itertools.pairwise(pitches)]
    # Repeated notes do not identify a melody: unrelated pieces may share them.
    return ",".join(map(str, steps)) if len(steps) == 12 and sum(step != 0 for step in steps) >= 5 else ""


def group(scores: list[Score]) -> None:
    """Sets `composition`: scores that share a title or the beginning of the melody are one composition."""
    parent = list(range(len(scores)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, score in enumerate(scores):
        tune = score.source in TUNE_BOOKS
        for key in (("title", _title_key(score.title) if tune else ""), ("melody", _melody_key(score))):
            if key[1]:
                other = root(first.setdefault(key, index))
                parent[root(index)] = other
    for index, score in enumerate(scores):
        score.composition = scores[root(index)].id


def split_of(composition: str) -> str:
    """Returns the split of a composition, from a hash of its id."""
    value = int.from_bytes(hashlib.sha256(composition.encode()).digest()[:8], "big") / 2**64
    return "train" if value < SHARES["train"] else "validation" if value < 1 - SHARES["test"] else "test"


def split_scores(found: list[Score]) -> dict[str, list[Score]]:
    """Returns scores by split, from a hash of their composition; compositions of a rare kind go to train."""
    by_kind = collections.defaultdict(set)
    for score in found:
        by_kind[score.kind].add(score.composition)
    rare = {composition for same in by_kind.values() if len(same) < RARE_KIND for composition in same}
    result: dict[str, list[Score]] = {split: [] for split in tokens.SPLITS}
    for score in found:
        result["train" if score.composition in rare else split_of(score.composition)].append(score)
    return result
