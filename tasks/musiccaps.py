"""MusicCaps, the evaluation of the MusicLM paper: captions, and the user's clips as references."""

import collections
import functools
import hashlib
import os
import sys
from collections.abc import Sequence

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from musiclm_jax.data.files import local_path
from musiclm_jax.evaluation.evaluate import EvaluationSet
from musiclm_jax.tasks import evaluation
from musiclm_jax.tasks.musiccaps_builder import CLIPS_FOLDER, CSV_NAME, MISSING, MusicCaps, clip_files, read_captions

SPLITS = ("train", "test", "all")  # the dataset's splits, and all captions as in the paper's table


@seqio.map_over_dataset
def as_example(example):
    """Maps a record of the builder to "inputs" (caption), "targets" (id) and "tags"."""
    return {"inputs": [example["caption"]], "targets": [example["ytid"]], "tags": example["aspects"]}


def balanced_subset(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Keeps the 1,000 genre-balanced captions."""
    return dataset.filter(lambda example: example["is_balanced_subset"])


def prepare(data_dir: str | os.PathLike) -> tuple[tfds.core.DatasetBuilder, list[str]]:
    """Builds the dataset, again whenever the user's folder changes.

    Args:
      data_dir: folder with musiccaps-public.csv and the folder clips.

    Returns:
      The builder, prepared in data_dir/prepared, and remarks on the CSV file.

    Raises:
      ValueError: if there is no usable CSV file, or it has no usable row.
    """
    folder = local_path(data_dir)
    if not (folder / CSV_NAME).is_file():
        raise ValueError(f"{folder} has no {CSV_NAME}: put the public captions of MusicCaps there")
    rows, remarks = read_captions(folder / CSV_NAME)
    if not rows:
        raise ValueError(f"{folder / CSV_NAME} has no captions{': ' * bool(remarks)}{'; '.join(remarks)}")
    files = [(path.name, path.stat().mtime, path.stat().length) for path in clip_files(folder).values()]
    state = hashlib.sha256((folder / CSV_NAME).read_bytes() + repr(sorted(files)).encode()).hexdigest()[:16]
    builder = MusicCaps(data_dir=str(folder / "prepared" / state))
    config = tfds.download.DownloadConfig(manual_dir=str(folder), verify_ssl=False)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    builder.download_and_prepare(download_config=config)
    return builder, remarks


def musiccaps_task(
    data_dir: str,
    split: str = "all",
    balanced: bool = False,
    limit: int = 0,
    embedder_names: tuple[str, ...] = ("mulan", "musicnn", "musicnn_tags"),
    bundle: str = "tiny",
    name: str = "musiccaps",
) -> EvaluationSet:
    """Registers the task with seqio.

    Args:
      data_dir: folder with musiccaps-public.csv and the clips that the user has, as clips/<ytid>.wav.
      split: "train", "test" (AudioSet's evaluation segments) or "all".
      balanced: keep only the 1,000 genre-balanced captions.
      limit: number of captions, from the first, those with a clip before those without; 0 takes all.
      embedder_names: embedders of the task's metrics, see `embedders.load`.
      bundle: bundle whose MuLan computes MCC.
      name: name in seqio's registry.

    Returns:
      The evaluation set for `evaluate.Judges`. KLD compares clips by id, FAD with all clips of the split.

    Raises:
      ValueError: if the folder, the CSV file or the split is invalid.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: expected {', '.join(SPLITS)}")
    builder, remarks = prepare(data_dir)
    splits = splits_of(builder)
    if split not in splits:
        raise ValueError(f"{data_dir}: split {split!r} of {CSV_NAME} has no captions: use {' or '.join(splits)}")
    source = seqio.TfdsDataSource(
        f"{builder.name}:{builder.version}", tfds_data_dir=str(builder.data_path.parent.parent), splits=splits
    )

    @functools.cache
    def evaluation_set() -> EvaluationSet:
        states = clip_states(builder, split)
        items = evaluation.items_of(name, split)
        if limit:  # without clips there is no KLD, and the user may have few
            items = tuple(sorted(items, key=lambda item: states[item.id] != "")[:limit])
        if not items:
            raise ValueError(f"{data_dir}: split {split!r} of {CSV_NAME} has no captions")
        return EvaluationSet(
            name=name,
            items=items,
            references=lambda: evaluation.reference_clips(source, split, "ytid"),
            version=f"{builder.data_path} {split} {balanced}",
            remarks=(*remarks, *coverage([states[item.id] for item in items])),
        )

    preprocessors = [balanced_subset, as_example] if balanced else [as_example]
    evaluation.register(name, source, preprocessors, evaluation_set, embedder_names, bundle)
    return evaluation_set()


def splits_of(builder: tfds.core.DatasetBuilder) -> dict[str, str]:
    """Returns TFDS's names of the splits that have captions, and of all together."""
    present = [name for name in ("train", "test") if name in builder.info.splits]
    return {name: name for name in present} | {"all": "+".join(present)}


def clip_states(builder: tfds.core.DatasetBuilder, split: str) -> dict[str, str]:
    """Returns by id what is known of the clip: "" if it is there, `MISSING`, or why it cannot be read."""
    kept = tfds.decode.PartialDecoding({"ytid": True, "clip": True})
    rows = builder.as_dataset(split=splits_of(builder)[split], decoders=kept).as_numpy_iterator()
    return {row["ytid"].decode(): row["clip"].decode() for row in rows}


def coverage(states: Sequence[str]) -> list[str]:
    """Returns remarks on how many of some captions have a reference clip, and on unreadable clips."""
    found = collections.Counter(states)
    remarks = [f"references: {found['']} of {len(states)} captions have a clip in {CLIPS_FOLDER}"]
    broken = sorted(set(found) - {"", MISSING})
    if broken:
        remarks.append(f"{len(broken)} reference clips cannot be read: {', '.join(broken[:3])}")
    return remarks
