"""Datasets in the memory of the devices: a compiled function draws the crops of a batch from arrays of all clips.

Nothing is read or transferred while a model trains, and neither TensorFlow nor seqio is needed. An epoch gives each
clip once, in an order drawn from the seed and the epoch, like `datasets.TaskDataset`; the crop of an example depends
on seed, epoch and the example's number in the epoch alone. So batches do not depend on the number of devices, and a
run resumes at any example.
"""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from musiclm_jax.data import clip_arrays, shards, wordpiece
from musiclm_jax.data.clip_arrays import CAPTION_MULAN, FRAMES
from musiclm_jax.data.samples import from_pcm16
from musiclm_jax.data.tokens import MULAN, SAMPLE_RATE, SEMANTIC, STREAMS

Arrays = Mapping[str, jax.Array]
Crop = Callable[[jax.Array, jax.Array, Arrays], dict[str, jax.Array]]  # (key, row of the clip, arrays) -> example
TAG_LISTS = 8  # lists of aspects that are drawn for each clip when it is read


@dataclasses.dataclass(frozen=True, eq=False)
class ResidentDataset:
    """Batches of one split, as `trainer.train` takes them; made by `tokens`, `audio` and `pairs`.

    Attributes:
      arrays: one row per clip, on every device.
      crop: takes a random crop of a clip.
      batch_size: examples per batch, over all hosts.
      hours: hours of audio that the clips last.
      seed: of the order and the crops.
      shuffle: if False, clips come in the order of the records (crops are still random).
      sharding: of the batches, from `partitioning.batch_sharding`; None for one device.
    """

    arrays: Arrays
    crop: Crop
    batch_size: int
    hours: float
    seed: int = 0
    shuffle: bool = True
    sharding: NamedSharding | None = None

    @property
    def clips(self) -> int:
        """The number of clips."""
        return len(next(iter(self.arrays.values())))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, on each device."""
        return sum(values.nbytes for values in self.arrays.values())

    def __str__(self) -> str:
        return f"{self.clips:,} clips, {self.hours:,.3g} h, {shown_bytes(self.nbytes)} on each device"

    def summary(self) -> dict[str, int]:
        """Returns clips and bytes of the split, which tell when a resumed run has other data."""
        return {"clips": self.clips, "bytes": self.nbytes}

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, jax.Array]]:
        """Yields the batches of an epoch, on the devices; examples that do not fill the last batch are dropped.

        Args:
          epoch: number of the epoch, from 0.
          skip: examples to skip at the beginning.

        Yields:
          As `datasets.TaskDataset`, with the rows of all hosts.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), epoch)
        order = self._order(key)
        for first in range(skip, self.clips - self.batch_size + 1, self.batch_size):
            yield self._batch(self.arrays, key, order, np.int32(first))

    @functools.cached_property
    def _order(self) -> Callable[[jax.Array], jax.Array]:
        """Compiled: the order of the clips in an epoch."""

        def order(key: jax.Array) -> jax.Array:
            clips = jnp.arange(self.clips)
            return jax.random.permutation(jax.random.fold_in(key, 0), clips) if self.shuffle else clips

        return jax.jit(order, out_shardings=_replicated(self.sharding))

    @functools.cached_property
    def _batch(self) -> Callable[..., dict[str, jax.Array]]:
        """Compiled: the batch whose first example has the number `first` in the epoch."""

        def batch(arrays: Arrays, key: jax.Array, order: jax.Array, first: jax.Array) -> dict[str, jax.Array]:
            numbers = first + jnp.arange(self.batch_size)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 1), numbers)
            return jax.vmap(lambda own, row: self.crop(own, row, arrays))(keys, order[numbers])

        return jax.jit(batch, out_shardings=self.sharding)


def _replicated(sharding: NamedSharding | None) -> NamedSharding | None:
    return sharding and NamedSharding(sharding.mesh, PartitionSpec())


def tokens(
    source: str | os.PathLike,
    split: str,
    batch_size: int,
    *,
    streams: Collection[str],
    seconds: float,
    caption_share: float = 0.0,
    seed: int = 0,
    shuffle: bool = True,
    sharding: NamedSharding | None = None,
    reserved: int = 0,
) -> ResidentDataset:
    """Reads the tokens of a split onto the devices, for training a stage.

    Args:
      source: folder of token records, or an `.npz` file, both of `musiclm tokenize`.
      split: "train", "validation" or "test".
      batch_size: examples per batch, over all hosts.
      streams: names of the streams that the stage reads, such as ("mulan", "semantic").
      seconds: length of a crop; shorter clips are padded with -1.
      caption_share: probability of MuLan codes from one of the clip's captions instead of its audio; see
        `tasks.streams.token_task`.
      seed: of the order and the crops.
      shuffle: whether to draw the order of the clips.
      sharding: of the batches, from `partitioning.batch_sharding`; None for one device.
      reserved: bytes that the training needs on a device besides.

    Returns:
      The dataset. Batches: int32 "semantic" `[b, t]`, "acoustic" `[b, 2 t, 12]`, "mulan" `[b, 12]`, "melody"
      `[b, 72]`.

    Raises:
      ValueError: if the records are damaged or lack a stream, or the devices have too little memory.
    """
    lengths = {name: STREAMS[name].frames(seconds) for name in streams}
    names = {*streams, *([CAPTION_MULAN] if caption_share else [])}
    arrays = clip_arrays.tokens(source, split, sorted(names))
    clip_arrays.check_has(arrays, source, sorted(names))
    for name, length in lengths.items():
        if STREAMS[name].frame_rate and (missing := length - arrays[name].shape[1]) > 0:
            padding = [(0, 0), (0, missing)] + [(0, 0)] * (arrays[name].ndim - 2)
            arrays[name] = np.pad(arrays[name], padding, constant_values=-1)
    hours = float(arrays[FRAMES].sum(dtype=np.int64)) / SEMANTIC.frame_rate / 3600
    crop = functools.partial(crop_tokens, lengths=lengths, caption_share=caption_share)
    on_devices = put(arrays, f"the tokens of {source} ({split})", sharding, reserved)
    return ResidentDataset(on_devices, crop, batch_size, hours, seed, shuffle, sharding)


def crop_tokens(
    key: jax.Array, row: jax.Array, arrays: Arrays, *, lengths: Mapping[str, int], caption_share: float = 0.0
) -> dict[str, jax.Array]:
    """Takes the same random crop of all streams of a clip that have a time axis.

    Args:
      key: random key of the example.
      row: int32 scalar, the clip.
      arrays: of `clip_arrays.tokens`.
      lengths: frames of a crop of each stream to return.
      caption_share: see `tokens`.

    Returns:
      int32 codes of each stream: `[t]`, `[t, q]` or `[q]`; -1 is padding.
    """
    start_key, share_key, caption_key = jax.random.split(key, 3)
    rates = {name: STREAMS[name].frame_rate for name in lengths}
    slowest = min(rate for rate in rates.values() if rate)
    # Counted in frames of the slowest stream, so that all streams start at a whole frame.
    frames = arrays[FRAMES][row] * (slowest // SEMANTIC.frame_rate)
    length = next(lengths[name] for name, rate in rates.items() if rate == slowest)
    start = jax.random.randint(start_key, (), 0, jnp.maximum(frames - length, 0) + 1)
    example = {}
    for name, rate in rates.items():
        codes = arrays[name]
        if rate:
            corner = (row, start * (rate // slowest), *[jnp.int32(0)] * (codes.ndim - 2))
            codes = jax.lax.dynamic_slice(codes, corner, (1, lengths[name], *codes.shape[2:]))[0]
        else:
            codes = codes[row]
        example[name] = codes.astype(jnp.int32)
    if caption_share:
        of_texts = arrays[CAPTION_MULAN][row].astype(jnp.int32)
        known = jnp.sum(of_texts[:, 0] >= 0)
        drawn = of_texts[jax.random.randint(caption_key, (), 0, jnp.maximum(known, 1))]
        of_text = jax.random.bernoulli(share_key, caption_share) & (known > 0)
        example[MULAN.name] = jnp.where(of_text, drawn, example[MULAN.name])
    return example


def audio(
    folder: str | os.PathLike,
    split: str,
    batch_size: int,
    *,
    seconds: float,
    seed: int = 0,
    shuffle: bool = True,
    sharding: NamedSharding | None = None,
    reserved: int = 0,
) -> ResidentDataset:
    """Reads the audio of a split onto the devices as 16-bit integers, for training SoundStream or w2v-BERT.

    Args:
      folder: folder of audio records, of `musiclm corpus`.
      split: "train", "validation" or "test".
      batch_size: examples per batch, over all hosts.
      seconds: length of a crop; shorter clips are padded with silence.
      seed: of the order and the crops.
      shuffle: whether to draw the order of the clips.
      sharding: of the batches, from `partitioning.batch_sharding`; None for one device.
      reserved: bytes that the training needs on a device besides.

    Returns:
      The dataset. Batches: "audio" float32 `[b, samples]` in [-1, 1].

    Raises:
      ValueError: if the records are damaged, or the devices or the host have too little memory.
    """
    arrays, _, samples = _audio(folder, split, seconds, sharding, reserved)
    hours = float(arrays["samples"].sum(dtype=np.int64)) / SAMPLE_RATE / 3600
    crop = functools.partial(crop_audio, samples=samples)
    on_devices = put(arrays, f"the audio of {folder} ({split})", sharding, reserved)
    return ResidentDataset(on_devices, crop, batch_size, hours, seed, shuffle, sharding)


def _audio(
    folder: str | os.PathLike, split: str, seconds: float, sharding: NamedSharding | None, reserved: int
) -> tuple[dict[str, np.ndarray], list[tuple[list[str], list[str]]], int]:
    """Returns the arrays and texts of a split, and the samples of a crop."""
    samples = round(seconds * SAMPLE_RATE)
    # Audio is as large on the device as on the disk, so what does not fit is known before it is read.
    paths = shards.shard_paths(folder, split)
    stored = sum(pathlib.Path(path).stat().st_size for path in paths if "://" not in path)
    check_fits(stored, f"the audio of {folder} ({split})", sharding, reserved)
    arrays, texts = clip_arrays.audio(folder, split)
    if (missing := samples - arrays["audio"].shape[1]) > 0:
        arrays["audio"] = np.pad(arrays["audio"], [(0, 0), (0, missing)])
    return arrays, texts, samples


def crop_audio(key: jax.Array, row: jax.Array, arrays: Arrays, *, samples: int) -> dict[str, jax.Array]:
    """Takes a random crop of a clip: {"audio": float32 `[samples]`}; see `crop_tokens`."""
    start = jax.random.randint(key, (), 0, jnp.maximum(arrays["samples"][row] - samples, 0) + 1)
    return {"audio": from_pcm16(jax.lax.dynamic_slice(arrays["audio"], (row, start), (1, samples))[0])}


def pairs(
    folder: str | os.PathLike,
    split: str,
    batch_size: int,
    *,
    seconds: float,
    vocab: str,
    max_text_tokens: int,
    aspect_probability: float,
    seed: int = 0,
    shuffle: bool = True,
    sharding: NamedSharding | None = None,
    reserved: int = 0,
) -> ResidentDataset:
    """Reads the audio and the texts of a split onto the devices, for training MuLan.

    Args:
      folder: folder of audio records with captions, of `musiclm corpus`.
      split: "train", "validation" or "test".
      batch_size: examples per batch, over all hosts.
      seconds: length of a crop; shorter clips are padded with silence.
      vocab: the text encoder's vocab.txt, a path or package:path.
      max_text_tokens: length of text rows; longer texts are truncated.
      aspect_probability: probability that the text is one of the clip's TAG_LISTS random lists of aspects instead of a
        caption.
      seed: of the order, the crops and the lists.
      shuffle: whether to draw the order of the clips.
      sharding: of the batches, from `partitioning.batch_sharding`; None for one device.
      reserved: bytes that the training needs on a device besides.

    Returns:
      The dataset. Batches: "audio" float32 `[b, samples]`, "text_ids" and "text_mask" int32 `[b, max_text_tokens]`.

    Raises:
      ValueError: as `audio`, or if a clip has no caption or none that the text encoder knows.
    """
    arrays, texts, samples = _audio(folder, split, seconds, sharding, reserved)
    hours = float(arrays["samples"].sum(dtype=np.int64)) / SAMPLE_RATE / 3600
    if without := sum(not captions for captions, _ in texts):
        raise ValueError(f"{without:,} of {len(texts):,} clips of {folder} ({split}) have no caption: MuLan needs one")
    rng = np.random.default_rng(seed)
    content = wordpiece.read_vocab(vocab)
    rows: dict[str, list[np.ndarray]] = {"caption_ids": [], "tag_ids": []}
    for captions, aspects in texts:
        for name, own in (("caption_ids", captions), ("tag_ids", _tag_lists(aspects, rng))):
            rows[name].append(wordpiece.tokenize_texts(content, own, max_text_tokens)[0])
    arrays |= {name: clip_arrays.stacked(own, 0) for name, own in rows.items()}
    crop = functools.partial(crop_pair, samples=samples, aspect_probability=aspect_probability)
    on_devices = put(arrays, f"the audio and texts of {folder} ({split})", sharding, reserved)
    return ResidentDataset(on_devices, crop, batch_size, hours, seed, shuffle, sharding)


def _tag_lists(aspects: list[str], rng: np.random.Generator) -> list[str]:
    """Returns random non-empty subsets of aspects in random order, like typed lists of tags."""
    if not aspects:
        return []
    counts = rng.integers(1, len(aspects) + 1, TAG_LISTS)
    return [", ".join(aspects[i] for i in rng.permutation(len(aspects))[:count]) for count in counts]


def crop_pair(
    key: jax.Array, row: jax.Array, arrays: Arrays, *, samples: int, aspect_probability: float
) -> dict[str, jax.Array]:
    """Takes a random crop of a clip and one of its texts; see `crop_tokens`.

    Returns:
      {"audio": float32 `[samples]`, "text_ids" and "text_mask": int32 `[length]`}.
    """
    audio_key, caption_key, tag_key, share_key = jax.random.split(key, 4)

    def chosen(key: jax.Array, texts: jax.Array) -> tuple[jax.Array, jax.Array]:
        known = jnp.sum(texts[:, 0] > 0)  # every text begins with [CLS]; padding is 0
        return texts[jax.random.randint(key, (), 0, jnp.maximum(known, 1))], known

    ids, _ = chosen(caption_key, arrays["caption_ids"][row])
    if arrays["tag_ids"].shape[1]:
        tags, known = chosen(tag_key, arrays["tag_ids"][row])
        ids = jnp.where(jax.random.bernoulli(share_key, aspect_probability) & (known > 0), tags, ids)
    texts = {"text_ids": ids.astype(jnp.int32), "text_mask": (ids > 0).astype(jnp.int32)}
    return crop_audio(audio_key, row, arrays, samples=samples) | texts


def put(arrays: dict[str, Any], what: str, sharding: NamedSharding | None, reserved: int = 0) -> Arrays:
    """Copies arrays to every device.

    Args:
      arrays: by name; emptied, so that the host need not keep them.
      what: what they are, for the message.
      sharding: of the batches; None for one device.
      reserved: bytes that the training needs on a device besides.

    Raises:
      ValueError: if they do not fit.
    """
    check_fits(sum(values.nbytes for values in arrays.values()), what, sharding, reserved)
    where = _replicated(sharding) or SingleDeviceSharding(jax.local_devices()[0])

    def copied(values: np.ndarray) -> jax.Array:  # `device_put` would compare the values of all processes
        return jax.make_array_from_callback(values.shape, where, lambda index: values[index])

    return {name: copied(arrays.pop(name)) for name in sorted(arrays)}


def check_fits(needed: int, what: str, sharding: NamedSharding | None, reserved: int = 0) -> None:
    """Checks that data fits into the free memory of the devices.

    Raises:
      ValueError: if it does not; gives the figures.
    """
    devices = sharding.mesh.local_devices if sharding else jax.local_devices()[:1]
    for device in devices:
        free = free_memory(device)
        # CPU devices share the memory of the machine.
        copies = len(devices) if device.platform == "cpu" else 1
        if free is not None and copies * (needed + reserved) > free:
            besides = f" and {shown_bytes(copies * reserved)} for the training" if reserved else ""
            raise ValueError(
                f"{what} need {shown_bytes(copies * needed)}{besides}, {device.device_kind} has "
                f"{shown_bytes(free)} free: train without --resident (from tf.data), on fewer clips, or on a device "
                "with more memory"
            )


def free_memory(device: Any) -> int | None:
    """Returns the bytes that JAX can still allocate on a device; None if the platform does not tell."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def shown_bytes(number: int) -> str:
    """Formats bytes as "12.3 MiB"."""
    power = min(int(math.log2(max(number, 1)) // 10), 4)
    return f"{number / 1024**power:,.4g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
