"""Builds the training data of the melody model: passages of the corpus's tunes, each in several renditions."""

import functools
import pathlib
from collections.abc import Callable

import numpy as np

from musiclm_jax.corpus import compositions, rendering, renditions, scores, shards
from musiclm_jax.corpus.excerpts import UnsuitableError
from musiclm_jax.corpus.scores import TUNE_BOOKS, Score
from musiclm_jax.data import records
from musiclm_jax.data.settings import check_settings

VERSION = 1  # increase it when a change alters the renditions of a seed
RENDITIONS = 4  # per passage
MAX_DRAWS = 40
OWN_DRAWS = 8  # draws from the scheduled composition, before any other is tried


def make_passage(
    renderer: rendering.Renderer, pools: dict[str, list[Score]], seed: int, split: str, index: int
) -> tuple[bytes, dict]:
    """Draws passage `index` of a split and renders it RENDITIONS times; depends only on its arguments.

    Args:
      renderer: the synthesizer.
      pools: tunes of each split.
      seed: the build's seed.
      split: name of the split.
      index: number of the passage. Compositions take turns, so that even a few passages cover many tunes.

    Returns:
      The record and its metadata.

    Raises:
      RuntimeError: if none of MAX_DRAWS draws gives a suitable passage.
    """
    rng = np.random.default_rng((seed, compositions.SPLIT_NUMBERS[split], index))
    known = sorted({score.composition for score in pools[split]})
    order = np.random.default_rng((seed, compositions.SPLIT_NUMBERS[split])).permutation(len(known))
    reasons = []
    for draw in range(MAX_DRAWS):
        turn = order[index % len(known)] if draw < OWN_DRAWS else rng.integers(len(known))
        same = [score for score in pools[split] if score.composition == known[turn]]
        score = same[rng.integers(len(same))]
        try:
            played = renditions.passage(rng, score)
            made = [renditions.render(rng, renderer, played) for _ in range(RENDITIONS)]
            break
        except (UnsuitableError, rendering.SilentError) as error:
            reasons.append(str(error))
    else:
        raise RuntimeError(f"passage {split}-{index}: none of {MAX_DRAWS} draws is suitable; the last: {reasons[-3:]}")
    name, players = f"{split}-{index:05d}", [rendition.player for rendition in made]
    audio = np.stack([rendition.audio for rendition in made])
    record = records.rendition_example(id=name, renditions=audio, players=players, composition=score.composition)
    metadata = {
        "id": name,
        "split": split,
        "composition": score.composition,
        "score": score.id,
        "title": score.title,
        "start": played.start,
        "players": players,
        "redrawn": len(reasons),
    }
    return record, metadata


def build(
    output: str, seed: int, passages: int, worker: tuple[int, int] = (0, 1), progress: Callable[[str], None] = print
) -> bool:
    """Builds the renditions, or their missing shards.

    Args:
      output: folder of the records.
      seed: each seed gives other passages of the same tunes.
      passages: number in all splits together; compositions are split as in the corpus.
      worker: (index, count): this process builds every count-th shard.
      progress: called with lines of text.

    Returns:
      Whether they are complete; False if other workers are still running.

    Raises:
      ValueError: if the folder contains a build with other settings, or there are too few passages for the splits.
    """
    counts = {split: round(passages * share) for split, share in compositions.SHARES.items()}
    if min(counts.values()) < 2:
        raise ValueError(f"passages = {passages} give {counts}: each split needs at least two, give 50 or more")
    folder = pathlib.Path(output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    found, _ = scores.load_scores(folder / ".scores", progress)
    compositions.group(found)
    settings = {"version": VERSION, "seed": seed, "passages": passages, "renditions": RENDITIONS, "scores": len(found)}
    check_settings(folder, settings, "choose another --output")
    pools = {
        split: [score for score in pool if score.source in TUNE_BOOKS]
        for split, pool in compositions.split_scores(found).items()
    }
    make = functools.partial(make_passage, rendering.Renderer(), pools, seed)
    rows = shards.write(folder, counts, make, worker, progress, what="passages")
    if rows is None:
        return False
    seconds = len(rows) * RENDITIONS * renditions.SECONDS
    progress(f"corpus: complete, {len(rows)} passages, {seconds / 3600:.2f} h of renditions in {folder}")
    return True
