"""The converter: code 0 survives, padding becomes -1, lengths are fixed."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from musiclm_jax.data.feature_converter import StreamFeatureConverter

VOCABULARY = seqio.PassThroughVocabulary(1025)
FEATURES = {
    "semantic": seqio.Feature(VOCABULARY, add_eos=False, dtype=tf.int32, rank=1),
    "acoustic": seqio.Feature(VOCABULARY, add_eos=False, dtype=tf.int32, rank=2),
    "audio": seqio.ContinuousFeature(dtype=tf.float32, rank=1),
    "caption": seqio.Feature(VOCABULARY, add_eos=False, dtype=tf.string, rank=0),
}


def convert(lengths, **values):
    features = {name: FEATURES[name] for name in values}
    spec = {
        name: tf.TensorSpec([None] * (np.ndim(value) and 1) + list(np.shape(value)[1:]), features[name].dtype)
        for name, value in values.items()
    }
    dataset = tf.data.Dataset.from_generator(lambda: [values], output_signature=spec)
    (example,) = StreamFeatureConverter(features)(dataset, lengths).as_numpy_iterator()
    return example


def test_padding_becomes_minus_one_and_code_zero_stays():
    example = convert({"semantic": 4, "acoustic": 3}, semantic=[1, 1025], acoustic=[[1, 2], [3, 1]])
    np.testing.assert_array_equal(example["semantic"], [0, 1024, -1, -1])
    np.testing.assert_array_equal(example["acoustic"], [[0, 1], [2, 0], [-1, -1]])
    assert example["semantic"].dtype == example["acoustic"].dtype == np.int32


def test_audio_is_padded_with_silence_and_captions_pass():
    example = convert({"audio": 3, "caption": 1}, audio=np.float32([0.5, -1.0]), caption="a jig")
    np.testing.assert_array_equal(example["audio"], np.float32([0.5, -1.0, 0.0]))
    assert example["caption"] == b"a jig"


def test_too_long_a_feature_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="semantic"):
        convert({"semantic": 1}, semantic=[1, 2])


def test_a_length_is_needed_for_every_feature():
    with pytest.raises(ValueError, match="acoustic"):
        convert({"semantic": 2}, semantic=[1, 2], acoustic=[[1, 2]])
