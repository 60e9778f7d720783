"""A folder of recordings: which of them are used, in which split, cut into clips; and which are left out, and why."""

import collections
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Collection, Iterator, Sequence

from musiclm_jax.data import audio, files, text_files
from musiclm_jax.data.samples import is_silent
from musiclm_jax.data.tokens import SAMPLE_RATE, SEMANTIC

FILE = "rejected.jsonl"
WHOLE = ("copy", "unreadable", "too short", "silent")  # kinds of reasons for which all of a file is left out


class Rejected:
    """What is left out and why: a JSON object for each file and kind of reason, in a file next to the tokens."""

    def __init__(self, folder: pathlib.Path):
        """Reads what an earlier, interrupted run left out.

        Raises:
          ValueError: if the file is damaged.
        """
        self.path = folder / FILE
        self._reasons: dict[tuple[str, str], str] = {}
        for number, line in enumerate(text_files.lines(self.path) if self.path.exists() else [], 1):
            try:
                entry = files.from_json(line)
                self._reasons[entry["file"], entry["kind"]] = entry["reason"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path}, line {number}: damaged ({error}): delete the file") from error

    def add(self, name: str, kind: str, reason: str) -> None:
        """Leaves out a file, or a part of it, and says so on standard error.

        Args:
          name: the file, relative to the folder of recordings.
          kind: one of `WHOLE`, or another word if the file is still used.
          reason: a sentence for the user.
        """
        print(f"left out: {reason}", file=sys.stderr)
        self._reasons[name, kind] = reason

    def save(self) -> None:
        """Writes the file, sorted, so that an interrupted run ends with the same bytes."""
        entries = [
            {"file": name, "kind": kind, "reason": reason} for (name, kind), reason in sorted(self._reasons.items())
        ]
        files.write(self.path, "".join(json.dumps(entry) + "\n" for entry in entries))

    def counts(self) -> collections.Counter[str]:
        """Returns the number of files left out, by kind of reason."""
        return collections.Counter(kind for _, kind in sorted(self._reasons))


def sound_files(folder: pathlib.Path, suffixes: Collection[str] = audio.READABLE) -> list[pathlib.Path]:
    """Returns the sound files below a folder. Hidden ones, such as the resource forks of macOS, do not count."""
    return [path for path in files.below(folder) if path.suffix.lower() in suffixes and not path.name.startswith(".")]


def copies(recordings: Sequence[pathlib.Path]) -> dict[pathlib.Path, pathlib.Path]:
    """Finds files with the same bytes as an earlier one: a copy in another split would be learned by heart.

    Args:
      recordings: the files, sorted; only those of equal size are read.

    Returns:
      Each copy, and the file that it copies. Files that cannot be read are none.

    Raises:
      OSError: if the disk fails: the file would be taken for another one.
    """
    by_size: dict[int, list[pathlib.Path]] = {}
    for path in recordings:
        try:
            by_size.setdefault(path.stat().st_size, []).append(path)
        except OSError:  # `audio.load` will say why
            continue
    first: dict[bytes, pathlib.Path] = {}
    found = {}
    for path in (path for same in by_size.values() if len(same) > 1 for path in same):
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            if files.disk_failed(error):
                raise OSError(error.errno, error.strerror, str(path)) from error
            continue
        if first.setdefault(digest, path) != path:
            found[path] = first[digest]
    return found


def splits(recordings: Sequence[pathlib.Path], folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Splits files by a hash of their names: 1 in 20 for validation, 1 in 20 for test, the rest for training."""
    own: dict[str, list[pathlib.Path]] = {"train": [], "validation": [], "test": []}
    for path in sorted(recordings, key=lambda path: hashlib.sha256(os.fsencode(path.relative_to(folder))).digest()):
        position = sum(map(len, own.values())) % 20
        own["validation" if position == 1 else "test" if position == 2 else "train"].append(path)
    return own


def clips(
    recordings: Sequence[pathlib.Path], folder: pathlib.Path, clip_seconds: float, rejected: Rejected
) -> Iterator[dict]:
    """Cuts recordings into clips and drops remainders.

    Captions are the lines of a text file next to the recording (song.wav, song.txt), if there is one.

    Args:
      recordings: files below `folder`.
      folder: ids and names are relative to it.
      clip_seconds: length of the clips, rounded down to whole semantic frames.
      rejected: gets what is unreadable, too short or silent.

    Yields:
      Records as of a corpus: "id", "audio" float32 `[samples]`, "caption", and the other fields.

    Raises:
      ValueError: if the disk fails: a resumed command would not look at the file again.
    """
    samples = SEMANTIC.frames(clip_seconds) * SAMPLE_RATE // SEMANTIC.frame_rate
    for path in recordings:
        name = files.shown(path.relative_to(folder))
        try:
            sound = audio.load(path)
        except audio.AudioError as error:
            if files.disk_failed(error):
                raise
            rejected.add(name, "unreadable", str(error))
            continue
        starts = range(0, len(sound) - samples + 1, samples)
        audible = [start for start in starts if not is_silent(sound[start : start + samples])]
        if not starts:
            rejected.add(name, "too short", f"{path} is shorter than a clip of {clip_seconds:g} s")
        elif len(audible) < len(starts):
            kind = "some silence" if audible else "silent"
            rejected.add(name, kind, f"{len(starts) - len(audible)} of {len(starts)} clips of {path} are silent")
        sidecar = path.with_suffix(".txt")
        try:
            captions = text_files.lines(sidecar) if sidecar.exists() else []
        except ValueError as error:
            if files.disk_failed(error):
                raise
            rejected.add(name, "captions", f"the captions of {name}: {error}")
            captions = []
        for start in audible:
            yield {
                "id": f"{name}@{start / SAMPLE_RATE:g}",
                "audio": sound[start : start + samples],
                "caption": captions or [""],
                "instrument": "",
                "composition": name,
                "held_out_pair": 0,
            }
