"""Blind pairs: clips of two systems with the same id, in random order and with random sides."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from musiclm_jax.data import audio as sound
from musiclm_jax.data import text_files
from musiclm_jax.data.files import from_json


@dataclasses.dataclass(frozen=True)
class Trial:
    """One pair of clips.

    Attributes:
      id: id of the two clips.
      systems: names of the systems played as A and as B.
      paths: sound files of A and B.
      caption: the text both clips were generated from; "" if it is not shown.
    """

    id: str
    systems: tuple[str, str]
    paths: tuple[pathlib.Path, pathlib.Path]
    caption: str = ""


def make_trials(
    first: str | pathlib.Path, second: str | pathlib.Path, captions: Mapping[str, str] | None = None, seed: int = 0
) -> list[Trial]:
    """Pairs the clips of two folders by name, in random order and with random sides.

    A system's name is its folder as given. Every file is read once, so that broken files are found now.

    Args:
      first: folder of the first system's clips, named `<id>` with an extension from `audio.READABLE`.
      second: folder of the second system's clips.
      captions: id to text; None shows no captions.
      seed: for order and sides. The same seed gives the same test, so that it can be resumed.

    Raises:
      ValueError: if a folder is missing or empty, both are the same, they share no id, or an id has no caption.
      AudioError: if a file cannot be read; the message names the first one.
    """
    folders = [pathlib.Path(folder) for folder in (first, second)]
    found = [_sound_files(folder) for folder in folders]
    if folders[0].expanduser().resolve() == folders[1].expanduser().resolve():
        raise ValueError(f"both systems are {folders[0]}: give two folders")
    ids = sorted(found[0].keys() & found[1].keys())
    if not ids:
        names = [next(iter(files.values())).name for files in found]
        raise ValueError(
            f"{folders[0]} and {folders[1]} share no id: clips of a pair need the same name, found for example "
            f"{names[0]} and {names[1]}"
        )
    if captions is not None and (missing := [name for name in ids if name not in captions]):
        raise ValueError(
            f"{len(missing)} of {len(ids)} ids have no caption, such as {missing[0]}: add them, or omit the captions"
        )
    pairs = []
    rng = np.random.default_rng(seed)
    for name in ids:
        for files in found:
            sound.load(files[name])
        left = int(rng.integers(2))
        sides = (left, 1 - left)
        caption = "" if captions is None else captions[name]
        pairs.append(Trial(name, _pair(map(str, folders), sides), _pair((f[name] for f in found), sides), caption))
    return [pairs[index] for index in rng.permutation(len(pairs))]


def _pair(items, sides: tuple[int, int]) -> tuple:
    items = list(items)
    return items[sides[0]], items[sides[1]]


def _sound_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the sound files of a folder by their names without extension.

    Raises:
      ValueError: if the folder does not exist, has no sound files, or has two with the same name.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the folder of a system's clips, named <id>.wav")
    files: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in sound.READABLE:
            continue
        if path.stem in files:
            raise ValueError(f"{folder} contains {files[path.stem].name} and {path.name}: keep one clip for each id")
        files[path.stem] = path
    if not files:
        raise ValueError(f"{folder} contains no sound files: expected clips named <id>.wav")
    return files


def read_captions(path: str | pathlib.Path) -> dict[str, str]:
    """Reads captions by id.

    Args:
      path: a .csv with the columns "caption" and "id" (or "ytid", as in MusicCaps), or a .jsonl with an object per
        clip that has "id" and "caption", like a corpus's metadata.jsonl. If "caption" is a list, the first one is used.

    Raises:
      ValueError: if the file is missing or has another format.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{path}: no such captions file")
    captions: dict[str, str] = {}
    for row in text_files.table(path)[1] if path.suffix.lower() == ".csv" else _json_lines(path):
        name = row.get("id", row.get("ytid"))
        caption = row.get("caption")
        caption = caption[0] if isinstance(caption, list) and caption else caption
        if not isinstance(name, str) or not isinstance(caption, str):
            raise ValueError(
                f"{path}: expected a .csv with the columns id (or ytid) and caption, or a .jsonl with these keys; "
                f"found {', '.join(map(str, row))}"
            )
        captions[name] = caption
    return captions


def _json_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text_files.read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = from_json(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: the file is neither .csv nor .jsonl ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected id and caption, found {line[:40].strip()}")
        yield row
