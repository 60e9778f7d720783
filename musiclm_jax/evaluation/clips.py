"""Clips to score: generated into a folder, or found in one by their ids, with a report of any problems."""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from musiclm_jax.bundles import Bundle
from musiclm_jax.data import audio as sound
from musiclm_jax.data import files, samples
from musiclm_jax.data.files import disk_failed
from musiclm_jax.data.settings import check_settings
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.generation.generate import Progress, Request, pieces

SILENT_DB = -60.0  # dBFS (RMS); a generated clip below it counts as silent
BEYOND = 1.5  # times full scale: lossy codecs come close to it, other audio does not
CAPTIONS_FILE = "captions.json"  # in a folder of generated clips: id to caption
LONGEST = 250  # bytes of an id that is the name of a file
SEGMENT_SECONDS = 10.0  # KLD and MCC score segments of this length: a clip of 30 s has three


def is_silent(audio: np.ndarray) -> bool:
    """Returns whether the level of `[samples]` is below `SILENT_DB`."""
    return samples.is_silent(audio, SILENT_DB)


def segments(audio: np.ndarray) -> list[np.ndarray]:
    """Cuts audio `[samples]` at 24 kHz into segments of 10 s.

    A remainder shorter than half a segment is dropped; a clip shorter than a segment is kept whole.
    """
    length = round(SEGMENT_SECONDS * SAMPLE_RATE)
    cut = [audio[start : start + length] for start in range(0, len(audio), length)]
    return [part for part in cut if len(part) >= length / 2] or cut[:1]


@dataclasses.dataclass
class Clips:
    """Clips of one system.

    `read` fills `broken`, `silent`, `loud`, `rates` and `seconds` on its first full pass over the files.

    Attributes:
      paths: id to file.
      missing: ids without a file.
      strangers: names of sound files that match no id.
      doubles: names of sound files that are ignored, since another file has the same id.
      broken: id to error message for files that cannot be read; they are not scored.
      silent: ids of silent clips; they are scored, since the system generated them.
      loud: ids of clips that exceed full scale; they are scored unchanged.
      rates: number of files at each sample rate in Hz; all are resampled to 24 kHz.
      seconds: length of each readable clip.
    """

    paths: dict[str, pathlib.Path]
    missing: list[str] = dataclasses.field(default_factory=list)
    strangers: list[str] = dataclasses.field(default_factory=list)
    doubles: list[str] = dataclasses.field(default_factory=list)
    broken: dict[str, str] = dataclasses.field(default_factory=dict)
    silent: list[str] = dataclasses.field(default_factory=list)
    loud: list[str] = dataclasses.field(default_factory=list)
    rates: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (id, float32 `[samples]` at 24 kHz) for each readable clip."""
        for name, path in self.paths.items():
            if name in self.broken:
                continue
            try:
                audio = sound.load(path)
            except sound.AudioError as error:
                if disk_failed(error):
                    raise
                self.broken[name] = str(error)
                continue
            if name not in self.seconds:
                self.seconds[name] = len(audio) / SAMPLE_RATE
                self.rates[sound.sample_rate_of(path)] += 1
                if is_silent(audio):
                    self.silent.append(name)
                if np.abs(audio).max() > BEYOND:
                    self.loud.append(name)
            yield name, audio

    def problems(self) -> list[str]:
        """Returns one line for each problem that readers of the figures should know about; call it after `read`."""
        found = []
        if self.missing:
            found.append(f"{len(self.missing)} clips are missing: {some(self.missing)}")
        if self.broken:
            found.append(f"{len(self.broken)} clips cannot be read: {some(self.broken.values())}")
        if self.silent:
            found.append(f"{len(self.silent)} clips are silent (they are scored): {some(self.silent)}")
        if self.loud:
            found.append(f"{len(self.loud)} clips exceed full scale (they are scored): {some(self.loud)}")
        if self.doubles:
            found.append(f"{len(self.doubles)} files are ignored, another has the same id: {some(self.doubles)}")
        if self.strangers:
            found.append(f"{len(self.strangers)} file names match no id: {some(self.strangers)}")
        others = {rate: count for rate, count in self.rates.items() if rate != SAMPLE_RATE}
        if others:
            listed = ", ".join(f"{count} at {rate or 'unknown'} Hz" for rate, count in others.items())
            found.append(f"{sum(others.values())} clips were resampled to {SAMPLE_RATE} Hz: {listed}")
        lengths = list(self.seconds.values())
        if lengths and max(lengths) - min(lengths) > 0.1:
            found.append(
                f"clips differ in length: {min(lengths):.2f} to {max(lengths):.2f} s, median {np.median(lengths):.2f} s"
            )
        return found


def some(names: Iterable[str]) -> str:
    """Lists the first three names, and says how many more there are."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def folder_clips(folder: str | pathlib.Path, ids: Sequence[str]) -> Clips:
    """Finds clips in a folder: files named <id> with an extension from `audio.READABLE`, such as .wav or .mp3.

    Raises:
      ValueError: if the folder does not exist, or contains none of the ids.
    """
    folder = pathlib.Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the folder of the clips, named <id>.wav")
    wanted = set(ids)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in sound.READABLE)
    found = {path.stem: path for path in reversed(files) if path.stem in wanted}
    if not found and wanted:
        what = f"{len(files)} sound files, but none is named after an id of the task" if files else "no sound files"
        raise ValueError(f"{folder} contains {what}: expected names such as {next(iter(ids))}.wav")
    paths = {name: found[name] for name in ids if name in found}
    strangers = [path.name for path in files if path.stem not in wanted]
    doubles = [path.name for path in files if path.stem in wanted and path != found[path.stem]]
    return Clips(paths, [name for name in ids if name not in found], strangers, doubles)


def _check_captions(folder: pathlib.Path, captions: Mapping[str, str]) -> None:
    """Keeps the captions of a folder's clips, and checks that no id has another one now.

    Raises:
      ValueError: if one has.
    """
    path = folder / CAPTIONS_FILE
    known = files.read_json(path, "it says what the clips are of, choose another folder") if path.exists() else {}
    if changed := [name for name, caption in captions.items() if known.get(name, caption) != caption]:
        raise ValueError(f"{folder} has clips of other captions ({some(changed)}): choose another folder")
    files.write(path, json.dumps(known | dict(captions), indent=1) + "\n")


def generate_clips(
    bundle: Bundle,
    captions: Mapping[str, str],
    folder: str | pathlib.Path,
    request: Request,
    progress: Progress | None = None,
) -> dict[str, pathlib.Path]:
    """Generates a clip for each caption, in batches; skips clips that are already in the folder.

    Args:
      bundle: must hold all six models.
      captions: id to text.
      folder: where clips are written as <id>.wav; created if missing. settings.json records how they were generated.
      request: generation options; one piece is generated for each caption.
      progress: called while the models run, and with ("clips", finished, total) after each clip.

    Returns:
      id to path.

    Raises:
      ValueError: if the folder contains clips of other models or settings, or an id is not a valid file name.
    """
    folder = pathlib.Path(folder).expanduser()
    if unusable := [name for name in captions if pathlib.Path(name).name != name or len(os.fsencode(name)) > LONGEST]:
        raise ValueError(f"the id {unusable[0]!r} is not a valid file name: rename it")
    # Without the batch size: a clip does not depend on its batch.
    settings = {"bundle": bundle.sha256} | dataclasses.asdict(request) | {"batch_size": None}
    check_settings(folder, settings, "choose another folder")
    _check_captions(folder, captions)
    paths = {name: folder / f"{name}.wav" for name in captions}
    waiting = [name for name in captions if not paths[name].exists()]
    if waiting:
        made = pieces(bundle, [captions[name] for name in waiting], request, progress)
        for index, (name, music) in enumerate(zip(waiting, made, strict=True), start=1):
            sound.write(paths[name], music.audio)
            if progress is not None:
                progress("clips", len(captions) - len(waiting) + index, len(captions))
    return paths
