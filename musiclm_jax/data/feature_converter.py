"""Converts seqio task features to model batches: pads to fixed lengths and restores raw codes.

seqio pads with 0, but 0 is a code, so tasks emit code + 1. The converter pads, then subtracts 1: padding becomes -1.
"""

from collections.abc import Mapping

import seqio
import tensorflow as tf


class StreamFeatureConverter(seqio.FeatureConverter):
    """Pads every feature to its length and turns code + 1 back into codes.

    Integer features are streams of code + 1 (rank 1 `[frames]` or rank 2 `[frames, quantizers]`) and become int32 codes
    with -1 in the padding; float features `[samples]` are padded with 0.0; strings of rank 0 pass through.
    """

    TASK_FEATURES: Mapping[str, seqio.FeatureConverter.FeatureSpec] = {}
    MODEL_FEATURES: Mapping[str, seqio.FeatureConverter.FeatureSpec] = {}
    PACKING_FEATURE_DTYPES: Mapping[str, tf.dtypes.DType] = {}

    def __init__(self, output_features: Mapping[str, seqio.Feature]):
        """Creates the converter of a task.

        Args:
          output_features: the task's output features by name.
        """
        specs = {n: seqio.FeatureConverter.FeatureSpec(f.dtype, f.rank) for n, f in output_features.items()}
        self.TASK_FEATURES = self.MODEL_FEATURES = specs
        super().__init__(pack=False)

    def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
        def convert(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            converted = {}
            for name, spec in self.TASK_FEATURES.items():
                value = example[name]
                if spec.rank > 0:
                    missing = task_feature_lengths[name] - tf.shape(value)[0]
                    padded = tf.pad(value, [[0, missing]] + [[0, 0]] * (spec.rank - 1))
                    value = tf.ensure_shape(padded, [task_feature_lengths[name], *value.shape[1:]])
                converted[name] = value - 1 if spec.dtype.is_integer else value
            return converted

        return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
        """Lengths do not change."""
        return task_feature_lengths
