"""Checks token records: do the bundle's tokenizers reproduce them from the same clips?"""

from collections.abc import Mapping, Sequence

import numpy as np

from musiclm_jax.data.tokens import ACOUSTIC, MULAN, SEMANTIC
from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.diagnose.finding import Finding, grade

# Codes near a decision boundary may change with the batch shape; codes of another tokenizer hardly ever agree.
ASKED = 0.98
BROKEN = 0.8
SAME_LEVEL = 0.5  # two levels with at least this agreement count as the same one

_ADVICE = "tokenize the corpus again with this bundle (musiclm tokenize, into a new folder) and train the stages on it"


def judge_records(recorded: Sequence[Mapping], made: Sequence[Mapping], seed: int) -> list[Finding]:
    """Compares token records with tokens computed now.

    Args:
      recorded: streams of the records: "semantic" `[t]`, "acoustic" `[2 t, 12]`, "mulan" `[12]`.
      made: streams of the same clips from the bundle's tokenizers.
      seed: for the bootstrap intervals.

    Raises:
      ValueError: if the streams of a clip differ in shape.
    """
    for name in (SEMANTIC.name, ACOUSTIC.name, MULAN.name):
        for record, own in zip(recorded, made, strict=True):
            if np.shape(record[name]) != np.shape(own[name]):
                raise ValueError(
                    f"the records' {name} tokens have shape {np.shape(record[name])}, this bundle's have "
                    f"{np.shape(own[name])} for the same clip: they come from another tokenizer; {_ADVICE}"
                )
    old, new = _stacked(recorded, made, MULAN.name)
    of_mulan = _finding("MuLan tokens", np.mean(old == new, axis=1), "they come from another MuLan; " + _ADVICE, seed)
    return [_semantic(recorded, made, seed), _acoustic(recorded, made, seed), of_mulan]


def _stacked(recorded: Sequence[Mapping], made: Sequence[Mapping], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Stacks one stream of both, `[clips, ...]`."""
    old, new = (np.stack([np.asarray(streams[name]) for streams in of]) for of in (recorded, made))
    return old, new


def _finding(
    name: str, equal: np.ndarray, advice: str, seed: int, note: str = "", out_of_order: bool = False
) -> Finding:
    share = metrics.bootstrap(equal, seed=seed)
    return Finding(
        "token records",
        f"share of {name} that the tokenizers reproduce",
        share,
        grade(share.value < BROKEN or out_of_order, share.value < ASKED),
        f"ok from {ASKED}, broken under {BROKEN} or if levels are out of order",
        note,
        advice,
    )


def _semantic(recorded: Sequence[Mapping], made: Sequence[Mapping], seed: int) -> Finding:
    old, new = _stacked(recorded, made, SEMANTIC.name)
    size = 1 + int(max(old.max(), new.max()))
    # Upper bounds on the agreement: over any order of the frames within clips, and over any order of all frames.
    counts = np.stack([[np.bincount(codes, minlength=size) for codes in of] for of in (old, new)])  # [2, clips, codes]
    anywhere = float(counts.min(axis=0).sum() / old.size)
    whole = float(counts.sum(axis=1).min(axis=0).sum() / old.size)
    if anywhere >= BROKEN:
        what = "the right codes in the wrong places: the frames were shuffled or shifted in time"
    elif whole >= BROKEN:
        what = "the right codes in the wrong clips: the clips were shuffled"
    else:
        what = "other codes: they come from another w2v-BERT or other clusters"
    note = f"ignoring the order within the clip {anywhere:.2f}, over all clips {whole:.2f}"
    return _finding("semantic tokens", np.mean(old == new, axis=1), f"{what}; {_ADVICE}", seed, note)


def _acoustic(recorded: Sequence[Mapping], made: Sequence[Mapping], seed: int) -> Finding:
    old, new = _stacked(recorded, made, ACOUSTIC.name)
    levels = old.shape[2]
    agreement = np.array([[np.mean(old[..., i] == new[..., j]) for j in range(levels)] for i in range(levels)])
    best = np.argmax(agreement, axis=1)
    moved = [i for i in range(levels) if agreement[i, i] < SAME_LEVEL <= agreement[i, best[i]]]
    wrong = ", ".join(f"level {i + 1} holds the codes of level {best[i] + 1}" for i in moved)
    # Most codes still agree if only a few levels are swapped, so swapped levels count as broken in any case.
    what = f"the levels are out of order ({wrong})" if moved else "they come from another codec"
    note = "by level " + " ".join(f"{share:.2f}" for share in np.diag(agreement))
    equal = np.mean(old == new, axis=(1, 2))
    return _finding("acoustic tokens", equal, f"{what}; {_ADVICE}", seed, note, bool(moved))
