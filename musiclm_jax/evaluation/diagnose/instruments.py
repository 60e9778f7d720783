"""Judges whether the requested instrument is heard, by musicnn's tags for the instruments of the rendered corpus."""

import functools
import importlib.util
from collections.abc import Sequence

import numpy as np

from musiclm_jax.data.audio import resample
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.evaluation.embedders import Embedder, embed, musicnn

MIN_SECONDS = 3.0  # of a clip: one patch of musicnn

# The tags of both networks: the columns of `tags`.
TAGS = musicnn.MTT_TAGS + tuple(f"msd_{tag}" for tag in musicnn.MSD_TAGS)

# The score of an instrument is the mean log-odds of these tags: its own tag, and the tags that best separate real
# renders of the training split, chosen by `separating_tags` on 500 clips (python -m benchmarks.judges --choose), never
# on generated music. If no tag has the instrument's name, these are the tags that similar sounds have in musicnn's
# training sets, even if they do not describe the instrument.
TAG_GROUPS: dict[str, tuple[str, ...]] = {
    "acoustic guitar": ("guitar", "msd_acoustic"),
    "bagpipe": ("violin", "msd_alternative_rock"),
    "banjo": ("guitar", "sitar"),
    "celesta": ("msd_ambient", "msd_alternative_rock"),
    "choir": ("choir",),
    "church organ": ("classic", "msd_female_vocalists", "msd_country"),
    "electric piano": ("msd_chillout", "no_vocal"),
    "fiddle": ("violin", "female"),
    "flute": ("flute",),
    "harpsichord": ("harpsichord", "msd_happy"),
    "piano": ("piano",),
    "sitar": ("sitar",),
    "steel drums": ("msd_funk", "harp"),
    "string ensemble": ("strings", "vocals"),
    "synth bass": ("synth",),
    "synth lead": ("synth", "strings", "beats"),
    "trombone": ("msd_jazz",),
    "trumpet": ("msd_jazz", "msd_happy"),
    "tubular bells": ("no_vocals",),
    "vibraphone": ("msd_chill",),
}


def cannot_hear(instruments: Sequence[str], samples: int) -> str:
    """Returns why musicnn cannot judge these instruments in clips of `samples` at 24 kHz; "" if it can."""
    if importlib.util.find_spec("musicnn") is None:
        return "musicnn is not installed (pip install --no-deps musicnn)"
    if unknown := sorted(set(instruments) - set(TAG_GROUPS)):
        return f"it has no tags for {', '.join(map(repr, unknown))}"
    if len(set(instruments)) < 2:
        return "all clips have one instrument"
    if samples < MIN_SECONDS * SAMPLE_RATE:
        return f"clips must last at least {MIN_SECONDS:g} s"
    return ""


def tags(audio: np.ndarray) -> np.ndarray:
    """Computes musicnn's tag probabilities for one clip, averaged over its patches of 3 s.

    Args:
      audio: float32 `[samples]` at 24 kHz, at least 3 s.

    Returns:
      float32 `[100]` in the order of `TAGS`: the MagnaTagATune network, then the Million Song network.

    Raises:
      ValueError: if the clip is shorter than a patch.
    """
    if len(audio) < MIN_SECONDS * SAMPLE_RATE:
        raise ValueError(f"musicnn reads patches of 3 s, got {len(audio) / SAMPLE_RATE:.2f} s: pass a longer clip")
    low = resample(audio, SAMPLE_RATE, musicnn.SAMPLE_RATE)
    heard = [next(embed(_tagger(model), [low])) for model in (musicnn.MTT, musicnn.MSD)]
    return np.concatenate([probabilities.mean(axis=0) for probabilities in heard])


@functools.cache
def _tagger(model: str) -> Embedder:
    return musicnn.load_classifier(model)


def log_odds(tag_probabilities: np.ndarray) -> np.ndarray:
    """Converts probabilities to log-odds, so that rare and frequent tags have equal weight in a mean."""
    bounded = np.clip(np.asarray(tag_probabilities, np.float64), 1e-7, 1 - 1e-7)
    return np.log(bounded / (1 - bounded))


def group_scores(tag_probabilities: np.ndarray, instruments: Sequence[str]) -> np.ndarray:
    """Computes the mean log-odds of each instrument's tag group: float64 `[instruments]`.

    Raises:
      ValueError: if an instrument has no tag group.
    """
    if unknown := sorted(set(instruments) - set(TAG_GROUPS)):
        raise ValueError(f"no tag group for {', '.join(unknown)}: choose one with --choose and add it to TAG_GROUPS")
    odds = log_odds(tag_probabilities)
    return np.array([np.mean([odds[TAGS.index(tag)] for tag in TAG_GROUPS[name]]) for name in instruments])
