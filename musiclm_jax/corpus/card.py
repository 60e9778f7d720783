"""Text of the corpus's CARD.md: description, sources and rights, counts."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.corpus import arrangement, captions, compositions, excerpts, performance, rendering, scores
from musiclm_jax.data import tokens


def _table(rows: Sequence[Mapping[str, Any]], field: str) -> str:
    """Formats a Markdown table of the number of clips per split for each value of a field, most frequent first."""
    names = collections.Counter(row[field] for row in rows)
    lines = [f"| {field} | train | validation | test |", "|---|---|---|---|"]
    for name, _ in names.most_common():
        cells = [str(sum(row[field] == name and row["split"] == split for row in rows)) for split in tokens.SPLITS]
        lines.append(f"| {name or 'not stated'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _sources(found: Sequence[scores.Score], missing: Mapping[str, str]) -> str:
    counts = collections.Counter(score.source for score in found)
    tunes = sum(counts[book] for book in scores.TUNE_BOOKS)
    classical = sum(count for source, count in counts.items() if source.startswith("music21"))
    free = "compositions in the public domain; encodings under various terms: read from the package, not redistributed"
    lines = [
        "| source | scores | rights |",
        "|---|---|---|",
        f"| music21: {', '.join(title for _, title in scores.TUNE_BOOKS.values())} | {tunes} | {free} |",
        f"| music21: Bach chorales, classical and Romantic movements | {classical} | {free} |",
        f"| OpenTTD's openmsx (Debian openttd-openmsx) | {counts['openmsx']} | GPL-2 |",
        f"| Freedoom (Debian freedoom) | {counts['freedoom']} | BSD-3-Clause |",
        "| sound font TimGM6mb (in pretty_midi) | - | GPL-2 |",
        "| sound font MuseScore General (Debian musescore-general-soundfont-small) | - | MIT |",
    ]
    notes = ["", "Left out of the music21 corpus: Palestrina, Monteverdi and the Essen collection."]
    notes += [
        f"Not included, since it was not installed at build time: {name} (`{how}`)." for name, how in missing.items()
    ]
    return "\n".join(lines + notes)


def card(
    rows: Sequence[Mapping[str, Any]],
    found: Sequence[scores.Score],
    pool_sizes: Mapping[str, int],
    missing: Mapping[str, str],
    settings: Mapping[str, Any],
) -> str:
    """Writes the card.

    Args:
      rows: metadata of all clips.
      found: all scores.
      pool_sizes: compositions per split.
      missing: name of each source that is not installed, and the command that installs it.
      settings: version, seed and hours of the build.
    """
    clips = collections.Counter(row["split"] for row in rows)
    hours = {split: clips[split] * arrangement.CLIP_SECONDS / 3600 for split in tokens.SPLITS}
    splits = ", ".join(f"{s} {pool_sizes[s]} compositions, {clips[s]} clips, {hours[s]:.2f} h" for s in tokens.SPLITS)
    levels = np.array([row["rms_db"] for row in rows])
    low, high = rendering.RMS_RANGE_DB
    slow, fast = arrangement.TEMPO_LIMITS
    pairs = ", ".join(f"{lead} x {kind}" for lead, kind in arrangement.HELD_OUT_PAIRS)
    moods = "\n".join(f"- {mode}, {tempo}: {', '.join(words)}" for (mode, tempo), words in captions.MOODS.items())
    tables = "\n\n".join(
        _table(rows, field) for field in ("instrument", "kind", "texture", "room", "tempo", "mode", "piece")
    )
    return f"""# Corpus card

Real compositions in synthetic performance: people wrote the notes, sound fonts make the sound.
No part of it is a recording of a person playing or singing.

- Command: `musiclm corpus --output DIR --seed {settings["seed"]} --hours {settings["hours"]:g}` (version
  {settings["version"]})
- {len(rows)} clips of {arrangement.CLIP_SECONDS:g} s, 24 kHz mono, 16 bit: {sum(hours.values()):.2f} h
- Split by composition, not by clip: {splits}. Scores with the same title or the same beginning of the melody
  count as one composition. Kinds with fewer than {compositions.RARE_KIND} compositions are in train only.
- Held-out pairs (instrument x kind) occur in test only, where `held_out_pair` is 1: {pairs};
  {sum(row["held_out_pair"] for row in rows)} clips.
- Loudness: RMS {levels.min():.1f} to {levels.max():.1f} dBFS (asserted: {low:g} to
  {high:g} dB), peaks at most {max(row["peak"] for row in rows):.3f}; `gain_db` is relative to
  {rendering.NOMINAL_RMS_DB:g} dBFS.

## Sources and rights
{_sources(found, missing)}

## How it is played
Phrases of {min(performance.PHRASE_BARS)} to {max(performance.PHRASE_BARS)} bars rise and fall in loudness, bars and
beats are accented, the tempo drifts by at most {100 * performance.RUBATO:g} % around the stated one, and single
notes are a few milliseconds off. About {100 * excerpts.START_SHARE:g} % of clips are the start of a piece after
silence, {100 * excerpts.END_SHARE:g} % the end of one followed by silence (`piece`). Most lead instruments have a
sound in each font (`font`).

## What captions say
Facts of the arrangement only: instrument, kind of piece, tempo word (slow below {slow:g} bpm, fast above {fast:g};
the beat is a dotted quarter in 6/8, 9/8 and 12/8), mode (only if the notation and the key analyses of the piece
and of the passage agree), texture, accompaniment, drums, room, loudness. Tunes are written melodies; rules generate
their drones, basses, chords and drum beats (harmony.py). In game music the lead instrument plays the melody, and the
other parts keep their programs. Mood words follow from mode (mixolydian counts as major) and tempo:

{moods}

## Counts
{tables}
"""
