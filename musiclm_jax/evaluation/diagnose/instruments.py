"""Is the asked instrument heard? musicnn's tags that stand for the instruments of the corpus of rendered scores."""

import functools
import importlib.util
from collections.abc import Sequence

import numpy as np

from musiclm_jax.data.audio import resample
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.evaluation.embedders import Embedder, embed, musicnn

MIN_SECONDS = 3.0  # of a clip: one patch of musicnn

# Both networks' tags in one list: the columns of `tags`.
TAGS = musicnn.MTT_TAGS + tuple(f"msd_{tag}" for tag in musicnn.MSD_TAGS)

# Tags whose mean log-odds stand for an instrument: its own tag, and what separates real renders of the training split,
# chosen by `separating_tags` on 500 clips (python -m benchmarks.judges --choose), never on generated music. Where an
# instrument has no tag of its name, these are what such a sound is called in musicnn's training sets, not what it is.
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
    """Why these instruments cannot be told in clips of `samples` at 24 kHz; "" if they can."""
    if importlib.util.find_spec("musicnn") is None:
        return "musicnn is not installed (pip install --no-deps musicnn)"
    if unknown := sorted(set(instruments) - set(TAG_GROUPS)):
        return f"it has no tags for {', '.join(map(repr, unknown))}"
    if len(set(instruments)) < 2:
        return "all clips are of one instrument"
    if samples < MIN_SECONDS * SAMPLE_RATE:
        return f"it needs clips of {MIN_SECONDS:g} s"
    return ""


def tags(audio: np.ndarray) -> np.ndarray:
    """musicnn's tag probabilities of one clip, averaged over its patches of 3 s.

    Args:
      audio: float32 `[samples]` at 24 kHz, at least 3 s.

    Returns:
      float32 `[100]` in the order of `TAGS`: the MagnaTagATune network, then the Million Song one.

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
    """Log-odds of probabilities, so that rare tags weigh as much as frequent ones in a mean."""
    bounded = np.clip(np.asarray(tag_probabilities, np.float64), 1e-7, 1 - 1e-7)
    return np.log(bounded / (1 - bounded))


def group_scores(tag_probabilities: np.ndarray, instruments: Sequence[str]) -> np.ndarray:
    """Mean log-odds of each instrument's tag group: float64 `[instruments]`.

    Raises:
      ValueError: if an instrument has no tag group.
    """
    if unknown := sorted(set(instruments) - set(TAG_GROUPS)):
        raise ValueError(f"no tag group for {', '.join(unknown)}: choose one with --choose and add it to TAG_GROUPS")
    odds = log_odds(tag_probabilities)
    return np.array([np.mean([odds[TAGS.index(tag)] for tag in TAG_GROUPS[name]]) for name in instruments])
