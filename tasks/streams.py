"""Shared parts of the tasks: features, sources and preprocessors of token and audio records.

Every random choice of a task uses `map_over_dataset(num_seeds=1)`, so the epoch's seed determines it.
"""

import functools
import os

import numpy as np
import seqio
import tensorflow as tf

from musiclm_jax.data import records, resident
from musiclm_jax.data.clip_arrays import CAPTION_MULAN, is_npz
from musiclm_jax.data.datasets import TaskSpec
from musiclm_jax.data.tokens import ACOUSTIC, MELODY, SAMPLE_RATE, SEMANTIC, TokenStream

SHUFFLE_BYTES = 128 * 2**20  # size of a shuffle buffer, whatever the size of its examples
MAX_SHUFFLE_EXAMPLES = 8192


def codes_feature(stream: TokenStream) -> seqio.Feature:
    """Returns the feature of codes + 1 (0 is padding): `[frames, quantizers]`, `[frames]` or `[quantizers]`."""
    rank = 2 if stream.frame_rate and stream.quantizers > 1 else 1
    vocabulary = seqio.PassThroughVocabulary(stream.codebook_size + 1)
    return seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32, rank=rank)


def audio_feature() -> seqio.Feature:
    """Returns the feature of float32 audio `[samples]`."""
    return seqio.ContinuousFeature(dtype=tf.float32, rank=1)


def caption_feature() -> seqio.Feature:
    """Returns the feature of one caption, a string."""
    return seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0)


class _Shards(seqio.FileDataSource):
    """A data source of files that are listed, not searched: seqio would take their names for patterns."""

    def list_shards(self, split: str) -> list[str]:
        return list(self._split_to_filepattern[split])


def source(folder: str | os.PathLike | None, parse) -> seqio.DataSource:
    """Returns a data source of all splits in a folder of records.

    Args:
      folder: folder of shards, named as in records.py; None for a task without data, when only shapes are needed.
      parse: serialized record -> dict of tensors.

    Raises:
      ValueError: if a split is missing or unfinished.
    """
    paths = {split: records.shard_paths(folder, split) for split in records.SPLITS if folder is not None}
    return _Shards(
        read_file_fn=lambda file: tf.data.TFRecordDataset(file).map(parse),
        split_to_filepattern=paths,
        cycle_length=16,
        block_length=1,
    )


def bits(targets, scores) -> dict[str, float]:
    """Computes a stage's seqio metric, held-out bits per token.

    Args:
      targets: unused; seqio infers from the argument names that this metric needs scores.
      scores: mean log-likelihood of each example's target tokens, in nats.
    """
    del targets
    return {"bits": float(-np.mean(scores) / np.log(2))}


def register(
    name: str,
    source: seqio.DataSource,
    preprocessors: list,
    output_features: dict,
    example_bytes: int,
    metric_fns: tuple = (),
) -> None:
    """Adds a task to seqio's registry, replacing one of the same name (with another folder or crop)."""
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    buffer = max(16, min(SHUFFLE_BYTES // example_bytes, MAX_SHUFFLE_EXAMPLES))
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=preprocessors,
        output_features=output_features,
        shuffle_buffer_size=buffer,
        metric_fns=list(metric_fns),
    )


def check_crops(crop_seconds: float, crops_per_clip: int) -> None:
    """Checks a task's arguments.

    Raises:
      ValueError: if there is nothing to crop.
    """
    if crop_seconds <= 0 or crops_per_clip < 1:
        raise ValueError(
            f"crop_seconds {crop_seconds} and crops_per_clip {crops_per_clip}: expected more than 0 and 1 or more"
        )


def repeat(dataset: tf.data.Dataset, times: int) -> tf.data.Dataset:
    """Repeats every example in place, for several crops of a clip per epoch."""
    if times == 1:
        return dataset
    return dataset.flat_map(lambda example: tf.data.Dataset.from_tensors(example).repeat(times))


def keep(dataset: tf.data.Dataset, names: tuple[str, ...]) -> tf.data.Dataset:
    """Drops fields that the model does not read, before anything is buffered."""
    return dataset.map(lambda example: {name: example[name] for name in names})


@seqio.map_over_dataset(num_seeds=1)
def crop_streams(example, seed, seconds):
    """Takes the same random crop of all streams with a time axis; per-clip streams stay whole.

    Args:
      example: {"semantic": `[t]`, "acoustic": `[2 t, q]`, "mulan": `[q]`}, or some of these.
      seed: pair of integers.
      seconds: length of the crop; shorter clips stay whole.
    """
    rates = {"semantic": SEMANTIC.frame_rate, "acoustic": ACOUSTIC.frame_rate}
    in_time = {name: rate for name, rate in rates.items() if name in example}
    slowest = min(in_time.values())
    # Counted in frames of the slowest stream, so that all streams start at a whole frame.
    length = tf.reduce_min([tf.shape(example[name])[0] // (rate // slowest) for name, rate in in_time.items()])
    frames = round(seconds * slowest)
    start = tf.random.stateless_uniform([], seed, 0, tf.maximum(length - frames, 0) + 1, tf.int32)
    cropped = dict(example)
    for name, rate in in_time.items():
        factor = rate // slowest
        cropped[name] = example[name][start * factor : (start + frames) * factor]
    return cropped


@seqio.map_over_dataset(num_seeds=1)
def choose_mulan(example, seed, caption_share):
    """With probability `caption_share`, replaces "mulan" `[q]` by a random row of "caption_mulan" `[n, q]`, if any."""
    seeds = tf.unstack(tf.random.experimental.stateless_split(tf.stack(seed), 2))
    of_texts = example["caption_mulan"]
    chosen = tf.random.stateless_uniform([], seeds[0], 0, tf.maximum(tf.shape(of_texts)[0], 1), tf.int32)
    use_text = (tf.random.stateless_uniform([], seeds[1]) < caption_share) & (tf.shape(of_texts)[0] > 0)
    mulan = tf.cond(use_text, lambda: of_texts[chosen], lambda: example["mulan"])
    return {name: codes for name, codes in {**example, "mulan": mulan}.items() if name != "caption_mulan"}


@seqio.map_over_dataset
def codes_plus_one(example):
    """Converts int64 codes to int32 code + 1, which frees 0 for padding."""
    return {name: tf.cast(codes, tf.int32) + 1 for name, codes in example.items()}


@seqio.map_over_dataset(num_seeds=1)
def crop_audio(example, seed, seconds):
    """Takes a random crop of `seconds` from "audio" `[samples]`; shorter clips stay whole."""
    samples = round(seconds * SAMPLE_RATE)
    room = tf.maximum(tf.shape(example["audio"])[0] - samples, 0)
    start = tf.random.stateless_uniform([], seed, 0, room + 1, tf.int32)
    return {**example, "audio": example["audio"][start : start + samples]}


@seqio.map_over_dataset(num_seeds=1)
def choose_caption(example, seed, aspect_probability):
    """Replaces "caption" `[n]` and "aspects" `[m]` by one string "caption".

    With probability `aspect_probability` it is a random non-empty subset of the aspects in random order, joined by ", "
    like a typed list of tags. Otherwise, or without aspects, it is one of the captions.
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(tf.stack(seed), 4))
    captions, aspects = example["caption"], example["aspects"]
    caption = captions[tf.random.stateless_uniform([], seeds[0], 0, tf.shape(captions)[0], tf.int32)]
    count = tf.shape(aspects)[0]
    order = tf.argsort(tf.random.stateless_uniform([count], seeds[1]))
    chosen = order[: tf.random.stateless_uniform([], seeds[2], 1, tf.maximum(count, 1) + 1, tf.int32)]
    tags = tf.strings.reduce_join(tf.gather(aspects, chosen), separator=", ")
    use_tags = (tf.random.stateless_uniform([], seeds[3]) < aspect_probability) & (count > 0)
    return {"audio": example["audio"], "caption": tf.where(use_tags, tags, caption)}


def token_task(
    name: str,
    data_dir: str | None,
    streams: tuple[TokenStream, ...],
    crop_seconds: float,
    crops_per_clip: int,
    caption_share: float = 0.0,
) -> TaskSpec:
    """Registers a task of token records.

    Args:
      name: name in seqio's registry.
      data_dir: folder of token records, or their `.npz` file, which only `--resident` can read; None for no data.
      streams: the streams of the stage.
      crop_seconds: length of a crop; whole frames of all streams.
      crops_per_clip: random crops of each clip per epoch.
      caption_share: probability that a crop gets the MuLan codes of one of its captions, as in generation, instead of
        the codes of its audio. 0 in the paper, whose training music has no captions.

    Returns:
      The task, with frames (or codes per clip) of each stream.

    Raises:
      ValueError: if a share or a length is impossible, or the records lack a required stream.
    """
    check_crops(crop_seconds, crops_per_clip)
    if not 0 <= caption_share <= 1:
        raise ValueError(f"caption_share is {caption_share}, expected 0 to 1")
    names = tuple(stream.name for stream in streams)
    folder = None if data_dir is None or is_npz(data_dir) else data_dir
    if MELODY in streams and folder is not None:
        check_has(folder, MELODY.name, "melody", "`musiclm tokenize` and a bundle that has a melody model")
    if caption_share and folder is not None:
        check_has(folder, CAPTION_MULAN, "codes of captions", "`musiclm tokenize --captions 3` from captioned clips")
    lengths = {s.name: s.frames(crop_seconds) if s.frame_rate else s.quantizers for s in streams}
    register(
        name,
        source(folder, records.parse_token_example),
        [
            functools.partial(keep, names=(*names, CAPTION_MULAN) if caption_share else names),
            functools.partial(repeat, times=crops_per_clip),
            functools.partial(crop_streams, seconds=crop_seconds),
            *([functools.partial(choose_mulan, caption_share=caption_share)] if caption_share else []),
            codes_plus_one,
        ],
        {stream.name: codes_feature(stream) for stream in streams},
        example_bytes=4 * sum(length * s.quantizers for length, s in zip(lengths.values(), streams, strict=True)),
        metric_fns=(bits,),
    )
    read = functools.partial(resident.tokens, streams=names, seconds=crop_seconds, caption_share=caption_share)
    return TaskSpec(name, lengths, data_dir=data_dir, resident=read)


def check_has(data_dir: str, stream: str, what: str, how: str) -> None:
    """Checks that the first record has an optional stream; `how` tells the user how to make records with it.

    Raises:
      ValueError: if the stream is missing.
    """
    for record in records.read_token_records(records.shard_paths(data_dir, "train")[:1]):
        if not len(record[stream]):
            raise ValueError(f"{data_dir} has tokens without {what}: make them with {how}")
        return


def audio_task(name: str, data_dir: str | None, crop_seconds: float, crops_per_clip: int) -> TaskSpec:
    """Registers a task with the audio of audio records; returns it, with the number of samples per crop."""
    check_crops(crop_seconds, crops_per_clip)
    samples = round(crop_seconds * SAMPLE_RATE)
    register(
        name,
        source(data_dir, records.parse_audio_example),
        [
            functools.partial(keep, names=("audio",)),
            functools.partial(repeat, times=crops_per_clip),
            functools.partial(crop_audio, seconds=crop_seconds),
        ],
        {"audio": audio_feature()},
        example_bytes=4 * samples,
    )
    read = functools.partial(resident.audio, seconds=crop_seconds)
    return TaskSpec(name, {"audio": samples}, data_dir=data_dir, resident=read)
