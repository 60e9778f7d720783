"""Reads all clips of a split into NumPy arrays, from records or from one `.npz` file, without TensorFlow.

Arrays have one row per clip. Shorter clips are padded at the end: codes with -1, audio with silence.
"""

import os
import pathlib
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from musiclm_jax.data import files, shards, tfrecord
from musiclm_jax.data.tokens import ACOUSTIC, MELODY, MULAN, SEMANTIC, SPLITS

CAPTION_MULAN = "caption_mulan"  # MuLan codes of texts about a clip
FRAMES = "frames"  # frames of a clip, at the rate of semantic tokens
CODES = (SEMANTIC.name, ACOUSTIC.name, MULAN.name, MELODY.name, CAPTION_MULAN)
Arrays = dict[str, np.ndarray]
_RATIO = ACOUSTIC.frame_rate // SEMANTIC.frame_rate
_QUANTIZERS = {ACOUSTIC.name: ACOUSTIC.quantizers, CAPTION_MULAN: MULAN.quantizers}  # of streams stored flat
_LARGEST = np.iinfo(np.int16).max
_MISSING = {
    MELODY.name: ("melody", "`musiclm tokenize` and a bundle that has a melody model"),
    CAPTION_MULAN: ("codes of captions", "`musiclm tokenize --captions 3` from captioned clips"),
}


def is_npz(source: str | os.PathLike) -> bool:
    """Returns whether a source of tokens is one `.npz` file instead of a folder of records."""
    return os.fspath(source).endswith(".npz")


def tokens(source: str | os.PathLike, split: str, streams: Collection[str] = CODES) -> Arrays:
    """Reads the tokens of a split.

    Args:
      source: folder of token records, or an `.npz` file of `write_npz`.
      split: "train", "validation" or "test".
      streams: what to read, among CODES.

    Returns:
      int16 "semantic" `[clips, t]`, "acoustic" `[clips, 2 t, 12]`, "mulan" `[clips, 12]`, "melody" `[clips, 72]` and
      "caption_mulan" `[clips, n, 12]`, as asked for, and int32 "frames" `[clips]`, see FRAMES. What no clip has is
      left out.

    Raises:
      ValueError: if a file is missing, damaged or of another kind, the split holds no clips, or some clips have a
        stream and others do not; names the file.
    """
    arrays = _of_npz(source, split, streams) if is_npz(source) else _of_records(source, split, streams)
    if not len(arrays[FRAMES]):
        otherwise = "" if split == "train" else ", or train without evaluation"
        raise ValueError(f"split {split!r} of {source} holds no clips: make it from three songs or more{otherwise}")
    return arrays


def check_has(arrays: Mapping[str, np.ndarray], source: str | os.PathLike, streams: Iterable[str]) -> None:
    """Checks that tokens have what a training needs.

    Raises:
      ValueError: if a stream is missing; says how to make it.
    """
    for name in streams:
        if name not in arrays:
            what, how = _MISSING.get(name, (name, "`musiclm tokenize`"))
            raise ValueError(f"{source} has tokens without {what}: make them with {how}")


def _of_records(folder: str | os.PathLike, split: str, streams: Collection[str]) -> Arrays:
    clips, where = [], []
    for path in shards.shard_paths(folder, split):
        for position, data in tfrecord.read(path):
            try:
                clips.append(_token_clip(data, streams))
            except ValueError as error:
                raise ValueError(
                    f"{path} has a record at byte {position} that is damaged or of another kind ({error}): stages "
                    "train on token records (musiclm tokenize)"
                ) from error
            where.append((path, position))
    arrays = {FRAMES: np.array([clip.pop(FRAMES) for clip in clips], np.int32)}
    for name in streams:
        rows = [clip.pop(name) for clip in clips]
        if name == MELODY.name and (without := [i for i, row in enumerate(rows) if not len(row)]):
            if len(without) < len(rows):
                path, position = where[without[0]]
                raise ValueError(
                    f"{path} has a record without melody at byte {position}, others have one: tokenize again"
                )
            continue
        if any(len(row) for row in rows):
            arrays[name] = stacked(rows, -1)
    return arrays


def _token_clip(data: bytes, streams: Collection[str]) -> dict[str, Any]:
    """Parses and checks one token record.

    Raises:
      ValueError: if its streams do not fit together, or a code is impossible; gives the reason alone.
    """
    found = tfrecord.parse_example(data, CODES)
    codes: dict[str, Any] = {}
    for name in CODES:
        values = found.get(name, np.zeros(0, np.int64))
        if not isinstance(values, np.ndarray) or values.dtype != np.int64:
            raise ValueError(f"{name} is not a list of integers")
        if len(values) and not (values.min() >= 0 and values.max() <= _LARGEST):
            raise ValueError(f"{name} has codes from {values.min()} to {values.max()}")
        if len(values) % _QUANTIZERS.get(name, 1):
            raise ValueError(f"{len(values)} codes of {name} are no multiple of {_QUANTIZERS[name]}")
        rows = values.astype(np.int16)
        codes[name] = rows.reshape(-1, _QUANTIZERS[name]) if name in _QUANTIZERS else rows
    frames = len(codes[SEMANTIC.name])
    if not frames or len(codes[ACOUSTIC.name]) != _RATIO * frames:
        raise ValueError(f"{frames} frames of semantic codes and {len(codes[ACOUSTIC.name])} of acoustic ones")
    for name, allowed in ((MULAN.name, (MULAN.quantizers,)), (MELODY.name, (0, MELODY.quantizers))):
        if len(codes[name]) not in allowed:
            raise ValueError(f"{len(codes[name])} codes of {name}, expected {allowed[-1]}")
    return {name: codes[name] for name in streams} | {FRAMES: frames}


def audio(folder: str | os.PathLike, split: str) -> tuple[Arrays, list[tuple[list[str], list[str]]]]:
    """Reads the audio of a split.

    Args:
      folder: folder of audio records.
      split: "train", "validation" or "test".

    Returns:
      int16 "audio" `[clips, samples]` and int32 "samples" `[clips]`, the lengths of the clips; and the captions and
      aspects of each clip.

    Raises:
      ValueError: if a record is damaged or of another kind, or the split holds no clips; names the file.
    """
    rows: list[np.ndarray] = []
    texts = []
    for path in shards.shard_paths(folder, split):
        for position, data in tfrecord.read(path):
            try:
                found = tfrecord.parse_example(data, ("audio", "caption", "aspects"))
                pcm, captions, aspects = (found.get(name, []) for name in ("audio", "caption", "aspects"))
                if not isinstance(pcm, list) or len(pcm) != 1:
                    raise ValueError("it has no audio")
                rows.append(np.frombuffer(pcm[0], "<i2"))
                texts.append(([text.decode() for text in captions], [text.decode() for text in aspects]))
            except (ValueError, AttributeError) as error:
                raise ValueError(
                    f"{path} has a record at byte {position} that is damaged or of another kind ({error}): tokenizers "
                    "train on audio records (musiclm corpus)"
                ) from error
    if not rows:
        raise ValueError(f"split {split!r} of {folder} holds no clips: make it from three songs or more")
    lengths = np.array([len(row) for row in rows], np.int32)
    return {"audio": stacked(rows, 0), "samples": lengths}, texts


def stacked(rows: list[np.ndarray], fill: int) -> np.ndarray:
    """Stacks arrays `[n, ...]` of different lengths into `[rows, longest, ...]`; empties the list, to save memory."""
    longest = max(map(len, rows))
    result = np.full((len(rows), longest, *rows[0].shape[1:]), fill, rows[0].dtype)
    while rows:
        row = rows.pop()
        result[len(rows), : len(row)] = row
    return result


def write_npz(folder: str | os.PathLike, path: str | os.PathLike) -> dict[str, int]:
    """Writes the tokens of all splits of a folder of records into one compressed `.npz` file, whole or not at all.

    Returns:
      The number of clips of each split that has records.

    Raises:
      ValueError: as `tokens`, except that splits may be empty.
    """
    arrays: dict[str, Any] = {}
    clips = {}
    root = files.local_path(folder)
    for split in (split for split in SPLITS if any(root.glob(f"{split}-*.tfrecord"))):
        own = _of_records(root, split, CODES)
        clips[split] = len(own[FRAMES])
        arrays |= {f"{split}/{name}": values for name, values in own.items()}
    with files.replaced(pathlib.Path(path)) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return clips


def _of_npz(path: str | os.PathLike, split: str, streams: Collection[str]) -> Arrays:
    file = files.local_path(path)
    if not file.is_file():
        raise ValueError(f"there is no file {path}: make it with `musiclm tokenize --npz`")
    try:
        with np.load(file, allow_pickle=False) as content:
            if f"{split}/{FRAMES}" not in content:
                raise ValueError(f"it has no split {split!r}")
            names = [name for name in (*streams, FRAMES) if f"{split}/{name}" in content]
            arrays = {name: content[f"{split}/{name}"] for name in names}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise ValueError(
            f"{path} is damaged or no file of `musiclm tokenize --npz` ({error}): write it again"
        ) from error
    for problem in _problems(arrays):
        raise ValueError(f"{path} is no file of `musiclm tokenize --npz` ({problem}): write it again")
    return arrays


def _problems(arrays: Arrays) -> Iterator[str]:
    """Yields what is wrong with the tokens of a file."""
    frames = arrays[FRAMES]
    clips = frames.size
    if frames.ndim != 1 or frames.dtype != np.int32 or (clips and frames.min() < 1):
        yield f"{FRAMES} is {frames.dtype} {frames.shape}"
        return
    longest = int(frames.max(initial=0))
    shapes: dict[str, tuple] = {
        SEMANTIC.name: (clips, longest),
        ACOUSTIC.name: (clips, _RATIO * longest, ACOUSTIC.quantizers),
        MULAN.name: (clips, MULAN.quantizers),
        MELODY.name: (clips, MELODY.quantizers),
        CAPTION_MULAN: (clips, None, MULAN.quantizers),
    }
    for name, codes in arrays.items():
        if name == FRAMES:
            continue
        expected = shapes[name]
        fits = codes.ndim == len(expected) and all(b in (None, a) for a, b in zip(codes.shape, expected, strict=True))
        if not fits or codes.dtype != np.int16:
            yield f"{name} is {codes.dtype} {codes.shape}, expected int16 {expected}"
        elif codes.min(initial=0) < -1:
            yield f"{name} has a code of {codes.min()}"
