"""The rendered corpus as an evaluation: held-out captions, with their renders as references."""

import functools
import itertools
import os

import seqio
import tensorflow as tf

from musiclm_jax.data import files, records
from musiclm_jax.evaluation.evaluate import EvaluationSet
from musiclm_jax.tasks import evaluation, streams


@seqio.map_over_dataset
def as_example(example):
    """Maps an audio record to "inputs" (one of its captions, chosen by the clip's id), "targets" (id) and "tags"."""
    captions = example["caption"]
    chosen = tf.strings.to_hash_bucket_fast(example["id"], 1 << 20) % tf.shape(captions, tf.int64)[0]
    return {"inputs": [captions[chosen]], "targets": [example["id"]], "tags": example["aspects"]}


def corpus_task(
    data_dir: str,
    split: str = "test",
    background_split: str = "train",
    background_clips: int = 1000,
    limit: int = 0,
    embedder_names: tuple[str, ...] = ("mulan", "musicnn", "musicnn_tags"),
    bundle: str = "tiny",
    name: str = "corpus",
) -> EvaluationSet:
    """Registers the task with seqio.

    Args:
      data_dir: folder of audio records, from `musiclm corpus`.
      split: split with the captions to generate from, and with KLD's reference renders.
      background_split: split with FAD's reference renders; differs from `split`, so that real renders give the floor.
      background_clips: number of FAD's reference clips, from the first; 0 takes all. The corpus cycles through its
        instruments.
      limit: number of clips, from the first; 0 takes all.
      embedder_names: embedders of the task's metrics, see `embedders.load`.
      bundle: bundle whose MuLan computes MCC.
      name: name in seqio's registry.

    Returns:
      The evaluation set for `evaluate.Judges`.

    Raises:
      ValueError: if the records are missing or the split does not exist.
    """
    if unknown := [given for given in (split, background_split) if given not in records.SPLITS]:
        raise ValueError(f"split is {unknown[0]!r}: expected {', '.join(records.SPLITS)}")
    source, build = streams.source(data_dir, records.parse_audio_example), state(data_dir)

    @functools.cache
    def evaluation_set() -> EvaluationSet:
        items = evaluation.items_of(name, split, limit)
        ids = {item.id for item in items}
        return EvaluationSet(
            name=name,
            items=items,
            references=lambda: (
                (clip, audio) for clip, audio in evaluation.reference_clips(source, split, "id") if clip in ids
            ),
            background=lambda: itertools.islice(
                evaluation.reference_clips(source, background_split, "id"), background_clips or None
            ),
            version=build and f"{build} {split} {limit} {background_split} {background_clips}",
            remarks=(f"FAD compares with renders of the {background_split} split",),
        )

    evaluation.register(name, source, [as_example], evaluation_set, embedder_names, bundle)
    return evaluation_set()


def state(data_dir: str | os.PathLike) -> str:
    """Identifies a build of the records by the names, sizes and modification times of its shards.

    "" in a bucket, which tells no exact times: nothing that is computed from the records is cached.
    """
    if files.is_url(data_dir):
        return ""
    shards = sorted(files.local_path(data_dir).glob("*.tfrecord"))
    return " ".join(f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in shards)
