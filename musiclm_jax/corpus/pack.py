"""Packs the inputs of the corpus, parsed scores and reduced sound fonts, for machines that have neither.

A packed corpus can be rendered without music21, pretty_midi and the Debian packages (resident.py).
"""

import dataclasses
import json
import pathlib
import shutil

import numpy as np

from musiclm_jax.corpus import compositions, instruments, rendering, scores, soundfonts
from musiclm_jax.corpus.scores import Score
from musiclm_jax.data import files

SCORES = "scores.npz"
# TimGM6mb is packed whole: game music uses many of its programs and drum kits.
FONTS = {instruments.TIMGM: "TimGM6mb.sf2", instruments.MUSESCORE: "MuseScore_General_cut.sf3"}
_SCALE = 10_000  # exact, since parsed scores are rounded to four decimals (scores.load_scores)


def write_scores(path: pathlib.Path, found: list[Score]) -> None:
    """Writes scores, including their composition ids, to one file."""
    notes = [np.round(score.notes.astype(float) * _SCALE).astype(np.int64) for score in found]
    for rows in notes:
        rows[1:, 0] = np.diff(rows[:, 0])  # small numbers compress well
    columns = np.concatenate(notes).astype(np.int32).T
    rest = []
    for score in found:
        fields = {field.name: getattr(score, field.name) for field in dataclasses.fields(score)}
        rest.append({name: value for name, value in fields.items() if name != "notes"})
    np.savez_compressed(
        path,
        counts=np.array([len(rows) for rows in notes]),
        rest=np.frombuffer(json.dumps(rest).encode(), np.uint8),
        **{f"column{number}": column for number, column in enumerate(columns)},  # type: ignore[arg-type]
    )


def read_scores(path: pathlib.Path) -> list[Score]:
    """Reads scores that `write_scores` wrote."""
    with np.load(path) as arrays:
        rest = json.loads(arrays["rest"].tobytes())
        edges = np.concatenate([[0], np.cumsum(arrays["counts"])])
        columns = np.stack([arrays[f"column{number}"] for number in range(5)], axis=1).astype(np.int64)
    found = []
    for fields, start, end in zip(rest, edges[:-1], edges[1:], strict=True):
        rows = columns[start:end]
        rows[:, 0] = np.cumsum(rows[:, 0])
        notes = (rows / _SCALE).astype(np.float32)
        found.append(Score(**{**fields, "meter": tuple(fields["meter"]), "notes": notes}))
    return found


def pack(output: pathlib.Path) -> None:
    """Packs all scores that are installed on this machine, and both sound fonts.

    Parsed scores are cached next to the folder (`<output>.scores`), since parsing takes minutes.

    Args:
      output: folder of the pack.
    """
    output.mkdir(parents=True, exist_ok=True)
    found, _ = scores.load_scores(output.with_name(output.name + ".scores"))
    compositions.group(found)
    write_scores(output / SCORES, found)
    installed = rendering.font_paths()
    shutil.copyfile(installed[instruments.TIMGM], output / FONTS[instruments.TIMGM])
    presets = {(0, program) for program in instruments.programs(instruments.MUSESCORE)}
    whole = installed[instruments.MUSESCORE].read_bytes()
    files.write(output / FONTS[instruments.MUSESCORE], soundfonts.cut(whole, presets))


def is_whole(output: pathlib.Path) -> bool:
    """Returns whether a folder is a finished pack: the sound font that is written last is there."""
    return (output / FONTS[instruments.MUSESCORE]).is_file()


def read_pack(folder: pathlib.Path) -> tuple[list[Score], dict[str, pathlib.Path]]:
    """Reads a pack: scores with `composition` set, and sound font name to path, as `rendering.Renderer` takes it."""
    return read_scores(folder / SCORES), {name: folder / file for name, file in FONTS.items()}
