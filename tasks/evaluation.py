"""Shared parts of the evaluation tasks: a seqio task of captions with the metrics FAD, KLD and MCC.

A task's examples have "inputs" (one caption), "targets" (the clip's id) and "tags". Predictions are paths of audio
files, because all clips of an evaluation may not fit into memory:

    evaluator = seqio.Evaluator(task, evaluation.CaptionConverter(), split, async_compute_metrics=False)
    evaluator.evaluate(compute_metrics=True, predict_fn=evaluation.predict_fn(bundle, folder, request))

Reference clips do not go through the Evaluator either: they are read by id from the task's source.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import seqio
import tensorflow as tf

from musiclm_jax import bundles
from musiclm_jax.data import records
from musiclm_jax.evaluation import clips, embedders, evaluate
from musiclm_jax.evaluation.evaluate import EvaluationSet, Item
from musiclm_jax.generation.generate import Request

NO_CLIP = ""  # prediction for an item without a clip
OUTPUT_FEATURES = {
    name: seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=1)
    for name in ("inputs", "targets")
}


class CaptionConverter(seqio.PassThroughFeatureConverter):
    """Passes examples through unchanged; seqio's Evaluator queries a converter's features before use."""

    TASK_FEATURES: ClassVar = {
        name: seqio.FeatureConverter.FeatureSpec(feature.dtype, feature.rank)
        for name, feature in OUTPUT_FEATURES.items()
    }
    pack = False


def register(
    name: str,
    source: seqio.DataSource,
    preprocessors: Sequence[Callable],
    evaluation_set: Callable[[], EvaluationSet],
    embedder_names: Sequence[str],
    bundle: str,
) -> None:
    """Adds an evaluation task to seqio's registry, replacing one of the same name.

    Args:
      name: name in the registry.
      source: source of the examples.
      preprocessors: preprocessors that produce `OUTPUT_FEATURES` and "tags".
      evaluation_set: returns the references of the metrics; called when metrics are first computed.
      embedder_names: names for `embedders.load`.
      bundle: bundle whose MuLan computes MCC: a folder, or the name of a bundle in the package.
    """
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=list(preprocessors),
        output_features=OUTPUT_FEATURES,
        postprocess_fn=postprocess,
        metric_fns=[metric_fn(evaluation_set, embedder_names, bundle)],
    )


def postprocess(value, example=None, is_target: bool = False):
    """Converts targets to the clip's id; keeps predictions as paths."""
    return value[0].decode() if is_target else str(value)


def metric_fn(evaluation_set: Callable[[], EvaluationSet], embedder_names: Sequence[str], bundle: str) -> Callable:
    """Builds a metric function for seqio's PREDICT mode that computes FAD, KLD and MCC together.

    Returns:
      (targets: ids, predictions: paths of audio files) -> {"fad_musicnn": value, "fad_musicnn_low": ..., "_high",
      "_clips", "fad_musicnn_infinity", "kld_musicnn_tags": ..., "mcc_mulan": ...}. For a figure that cannot be
      computed, only its clip count is present.
    """

    @functools.cache
    def judges() -> evaluate.Judges:
        opened = bundles.load(bundle)
        listeners = [embedders.load(name, opened) for name in embedder_names]
        return evaluate.Judges(evaluation_set(), listeners, opened)

    def figures(targets, predictions):
        paths = {name: pathlib.Path(path) for name, path in zip(targets, predictions, strict=True) if path != NO_CLIP}
        found: dict[str, float] = {}
        heard = judges().hear(clips.Clips(paths).read)
        for figure in judges().score("predictions", heard).figures:
            key = f"{figure.metric.lower()}_{figure.embedder}"
            found[f"{key}_clips"] = figure.clips
            if figure.estimate is not None:
                found |= {key: figure.estimate.value}
                found |= {f"{key}_low": figure.estimate.low, f"{key}_high": figure.estimate.high}
            if figure.infinity is not None:
                found[f"{key}_infinity"] = figure.infinity
        return found

    return figures


def predict_fn(bundle: bundles.Bundle, folder: str | pathlib.Path, request: Request) -> Callable:
    """Wraps our generator for seqio's Evaluator: a dataset of enumerated examples -> [(index, path)].

    Args:
      bundle: the models.
      folder: folder for the clips; existing clips are reused.
      request: generation settings.
    """

    def predict(dataset: tf.data.Dataset) -> list[tuple[int, str]]:
        asked = [
            (int(index), example["targets"][0].decode(), example["inputs"][0].decode())
            for index, example in dataset.as_numpy_iterator()
        ]
        paths = clips.generate_clips(bundle, {name: caption for _, name, caption in asked}, folder, request)
        return [(index, str(paths[name])) for index, name, _ in asked]

    return predict


def items_of(task: str, split: str, limit: int = 0) -> tuple[Item, ...]:
    """Returns the items of a registered task, in order.

    Args:
      task: name in seqio's registry.
      split: split of the task.
      limit: number of items, from the first; 0 takes all.
    """
    dataset = seqio.get_mixture_or_task(task).get_dataset(None, split, shuffle=False)
    if limit:
        dataset = dataset.take(limit)
    return tuple(
        Item(
            id=example["targets"][0].decode(),
            caption=example["inputs"][0].decode(),
            tags=tuple(tag.decode() for tag in example["tags"]),
        )
        for example in dataset.as_numpy_iterator()
    )


def reference_clips(source: seqio.DataSource, split: str, id_field: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (id, float32 `[samples]` at 24 kHz) for the examples of a source that have audio, int16 or float32."""
    for example in source.get_dataset(split, shuffle=False).as_numpy_iterator():
        samples = example["audio"]
        if len(samples):
            pcm = samples.dtype == np.int16
            yield example[id_field].decode(), records.audio_from_pcm(samples.tobytes()) if pcm else samples
