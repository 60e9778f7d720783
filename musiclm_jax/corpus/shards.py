"""Writes a folder of records, resumable by shard: a shard gets its final name when it is complete."""

import json
import pathlib
import time
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from musiclm_jax.data import files, records

SHARDS = {"train": 16, "validation": 4, "test": 4}
Make = Callable[[str, int], tuple[bytes, dict]]  # (split, index) -> record, metadata


def write(
    folder: pathlib.Path,
    counts: Mapping[str, int],
    make: Make,
    worker: tuple[int, int],
    progress: Callable[[str], None],
    what: str = "clips",
) -> list[dict] | None:
    """Writes the shards of a folder that are missing.

    Args:
      folder: existing output folder.
      counts: number of examples in each split.
      make: returns record and metadata of an example; must depend only on its arguments.
      worker: (index, count): this process writes every count-th shard.
      progress: called with lines of text.
      what: name of the examples in progress lines.

    Returns:
      Metadata of all examples, which metadata.jsonl also contains; None if other workers are still running.
    """
    (folder / ".metadata").mkdir(exist_ok=True)
    shards = []
    for split in ("test", "validation", "train"):
        edges = np.linspace(0, counts[split], SHARDS[split] + 1).astype(int)
        shards += [
            (split, records.shard_path(folder, split, i, SHARDS[split]), range(int(edges[i]), int(edges[i + 1])))
            for i in range(SHARDS[split])
        ]
    mine = [shard for number, shard in enumerate(shards) if number % worker[1] == worker[0] and not shard[1].exists()]
    todo, done, began = sum(len(indices) for _, _, indices in mine), 0, time.monotonic()
    progress(f"corpus: {sum(counts.values())} {what} in {len(shards)} shards, {todo} {what} to make here")
    last = began

    def tick() -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last >= 10:
            rate = done / (now - began)
            progress(f"corpus: {done}/{todo} {what}, {rate:.1f} {what}/s, {(todo - done) / rate / 60:.1f} min left")
            last = now

    for split, path, indices in mine:
        _write_shard(path, split, make, indices, tick)
        progress(f"corpus: wrote {path.name}")
    if not all(path.exists() for _, path, _ in shards):
        progress("corpus: this worker is done, others are still running")
        return None
    rows = [json.loads(line) for _, path, _ in shards for line in _metadata_path(path).read_text().splitlines()]
    files.write(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _write_shard(path: pathlib.Path, split: str, make: Make, indices: range, tick: Callable[[], None]) -> None:
    """Writes one shard and its metadata; a shard with its final name is complete and has metadata."""
    rows = []
    with files.replaced(path) as partial:
        with tf.io.TFRecordWriter(str(partial)) as writer:
            for index in indices:
                record, metadata = make(split, index)
                writer.write(record)
                rows.append(json.dumps(metadata))
                tick()
        files.write(_metadata_path(path), "".join(row + "\n" for row in rows))


def _metadata_path(shard: pathlib.Path) -> pathlib.Path:
    return shard.parent / ".metadata" / f"{shard.stem}.jsonl"
