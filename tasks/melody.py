"""The melody model: random renditions of each passage, redrawn every epoch."""

import functools

import seqio
import tensorflow as tf

from musiclm_jax.data import records
from musiclm_jax.data.datasets import TaskSpec
from musiclm_jax.data.samples import FULL_SCALE
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.tasks import streams

_COMPOSITIONS = 2**31 - 2  # hash buckets for composition names


def melody_task(
    data_dir: str | None, window_seconds: float = 4.0, renditions: int = 2, name: str = "melody"
) -> TaskSpec:
    """Registers the task with seqio.

    Args:
      data_dir: folder of rendition records, from `musiclm corpus --passages`; None if only shapes are needed.
      window_seconds: length of a rendition.
      renditions: number of renditions to draw for each passage.
      name: name in seqio's registry.

    Returns:
      A task for `datasets.TaskDataset`. Batches: "audio" float32 `[b, renditions * samples]`, the renditions
      concatenated, and "melody" int32 `[b, 1]`, a number for the composition.

    Raises:
      ValueError: if `renditions` is below 2, or the records have fewer renditions or another length.
    """
    samples = round(window_seconds * SAMPLE_RATE)
    if renditions < 2 or samples < 1:
        raise ValueError(
            f"renditions is {renditions} and window_seconds {window_seconds}: expected 2 or more and more than 0"
        )
    if data_dir is not None:
        check_renditions(data_dir, renditions, samples)
    composition = seqio.Feature(seqio.PassThroughVocabulary(_COMPOSITIONS + 1), add_eos=False, dtype=tf.int32, rank=1)
    streams.register(
        name,
        streams.source(data_dir, records.parse_rendition_example),
        [functools.partial(draw_renditions, count=renditions, samples=samples)],
        {"audio": streams.audio_feature(), "melody": composition},
        example_bytes=4 * renditions * samples,
    )
    return TaskSpec(name, {"audio": renditions * samples, "melody": 1})


def check_renditions(data_dir: str, renditions: int, samples: int) -> None:
    """Checks the first record.

    Raises:
      ValueError: if it has fewer renditions, or renditions of another length.
    """
    paths = records.shard_paths(data_dir, "train")[:1]
    found = next((record["renditions"].shape for record in records.read_rendition_records(paths)), None)
    if found is not None and (found[0] < renditions or found[1] != samples):
        raise ValueError(
            f"{data_dir} holds {found[0]} renditions of {found[1]} samples: asked for {renditions} of {samples}; build "
            "renditions with musiclm corpus --passages"
        )


@seqio.map_over_dataset(num_seeds=1)
def draw_renditions(example, seed, count, samples):
    """Draws `count` different renditions and concatenates them.

    Args:
      example: output of `records.parse_rendition_example`.
      seed: pair of integers.
      count: number of renditions to draw.
      samples: length of one rendition.
    """
    pcm = example["renditions"]
    drawn = tf.argsort(tf.random.stateless_uniform([tf.shape(pcm)[0]], seed))[:count]
    audio = tf.cast(tf.gather(pcm, drawn), tf.float32) / FULL_SCALE
    number = tf.strings.to_hash_bucket_fast(example["composition"], _COMPOSITIONS)
    # + 1: like a code, see feature_converter.py.
    return {"audio": tf.reshape(audio, [count * samples]), "melody": tf.cast(number, tf.int32)[None] + 1}
