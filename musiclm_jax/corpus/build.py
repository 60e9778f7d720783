"""Builds the corpus: scores -> arrangements -> audio and captions -> records, a card, and metadata.

An interrupted build resumes at the first incomplete shard (shards.py).
"""

import pathlib
from collections.abc import Callable

import numpy as np

from musiclm_jax.corpus import arrangement, card, compositions, rendering, scores, shards
from musiclm_jax.corpus.clips import Clip, make_clip
from musiclm_jax.data import files, records
from musiclm_jax.data.samples import level_db
from musiclm_jax.data.settings import check_settings

CORPUS_VERSION = 2  # increase it when a change alters the clips of a seed


def clip_counts(hours: float) -> dict[str, int]:
    """Returns the number of clips in each split of a corpus of `hours`.

    Raises:
      ValueError: if a split would have no clips.
    """
    total = hours * 3600 / arrangement.CLIP_SECONDS
    counts = {split: round(total * share) for split, share in compositions.SHARES.items()}
    if min(counts.values()) < 1:
        raise ValueError(f"hours = {hours} give {counts} clips: each split needs at least one, give 0.1 hours or more")
    return counts


def _metadata(clip: Clip) -> dict:
    kept = {name: value for name, value in clip.fields.items() if name != "audio"}
    kept["pitch_class"] = [int(value) for value in kept["pitch_class"]]
    kept["rms_db"] = round(level_db(clip.fields["audio"]), 2)
    kept["peak"] = round(float(np.abs(clip.fields["audio"]).max()), 4)
    return {**kept, **clip.extra}


def build(
    output: str, seed: int, hours: float, worker: tuple[int, int] = (0, 1), progress: Callable[[str], None] = print
) -> bool:
    """Builds the corpus, or its missing shards.

    Args:
      output: folder of the corpus.
      seed: each seed gives another corpus of the same compositions.
      hours: hours of audio in all splits together.
      worker: (index, count): this process builds every count-th shard; the last to finish writes card and metadata.
      progress: called with lines of text.

    Returns:
      Whether the corpus is complete; False if other workers are still running.

    Raises:
      ValueError: if the folder contains a corpus with other settings, or `hours` is too small.
    """
    counts = clip_counts(hours)  # first, to reject bad hours before minutes of parsing
    folder = pathlib.Path(output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    found, missing = scores.load_scores(folder / ".scores", progress)
    compositions.group(found)
    settings = {"version": CORPUS_VERSION, "seed": seed, "hours": hours, "scores": len(found)}
    check_settings(folder, settings, "choose another --output")
    pools = compositions.split_scores(found)
    renderer = rendering.Renderer()

    def make(split: str, index: int) -> tuple[bytes, dict]:
        clip = make_clip(renderer, pools[split], seed, split, index)
        return records.audio_example(**clip.fields), _metadata(clip)

    rows = shards.write(folder, counts, make, worker, progress)
    if rows is None:
        return False
    pool_sizes = {split: len({score.composition for score in pool}) for split, pool in pools.items()}
    files.write(folder / "CARD.md", card.card(rows, found, pool_sizes, missing, settings))
    progress(f"corpus: complete, {len(rows)} clips, {len(rows) * arrangement.CLIP_SECONDS / 3600:.2f} h in {folder}")
    return True
