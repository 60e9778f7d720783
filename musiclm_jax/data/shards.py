"""Shards of records: their names, and whether they are whole. Needs no TensorFlow."""

import os
import pathlib
import re
import struct

from etils import epath

from musiclm_jax.data import files

_HEADER, _FOOTER = 12, 4  # bytes before and after a record of a TFRecord file
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.tfrecord$")


def shard_path(folder: str | os.PathLike, split: str, index: int, count: int) -> pathlib.Path:
    """Returns the path of shard `index` of `count`."""
    return pathlib.Path(folder).expanduser() / f"{split}-{index:05d}-of-{count:05d}.tfrecord"


def shard_paths(folder: str | os.PathLike, split: str) -> list[str]:
    """Returns the sorted paths of a split's shards.

    Raises:
      ValueError: if the split has no shards or some of them are missing (an unfinished build).
    """
    if files.is_url(folder):
        files.check_bucket(folder)
        root: epath.Path | pathlib.Path = epath.Path(folder)
    else:
        root = files.local_path(folder)  # pathlib takes the folder as it is, epath as a pattern
    paths = sorted(str(path) for path in root.glob(f"{split}-*.tfrecord") if _SHARD.search(path.name))
    if not paths:
        raise ValueError(
            f"{root} holds no shards of split {split!r}: expected {split}-00000-of-NNNNN.tfrecord; build them first"
        )
    expected = int(paths[0].removesuffix(".tfrecord").rsplit("-", 1)[1])
    if len(paths) != expected:
        raise ValueError(
            f"{root} holds {len(paths)} shards of split {split!r}: expected {expected}; run the same build again"
        )
    return paths


def check_whole(path: str | os.PathLike) -> int:
    """Checks that a TFRecord file ends with a complete record; reads only the lengths of the records.

    Returns:
      The number of records.

    Raises:
      ValueError: if the last record is incomplete.
    """
    size, position, count = os.path.getsize(path), 0, 0
    file = os.open(path, os.O_RDONLY)
    try:
        while position + _HEADER <= size:
            # A record consists of its length, a checksum of the length, its data and a checksum of the data.
            (length,) = struct.unpack("<Q", os.pread(file, 8, position))
            position += _HEADER + length + _FOOTER
            count += 1
    finally:
        os.close(file)
    if position != size:
        raise ValueError(
            f"{path} is cut off within record {max(count - (position > size), 0)} or is not a TFRecord file: write it "
            "again"
        )
    return count
