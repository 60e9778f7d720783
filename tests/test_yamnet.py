"""YAMNet: its converter against a narrow original with random weights, run by Keras."""

import h5py
import numpy as np
import pytest

from musiclm_jax.evaluation import embedders
from musiclm_jax.evaluation.embedders import embed, yamnet

WIDTHS = (4, 6, 8, 8, 12, 12, 16, 16, 16, 16, 16, 16, 20, 20)
CLASSES = 7


def narrow_original():
    """Returns a narrow version of the AudioSet models' network in Keras (Keras 3 allows no "/" in names)."""
    keras = pytest.importorskip("keras")
    layers = keras.layers
    normalization = {"scale": False, "epsilon": 1e-4}
    x = inputs = keras.Input((96, 64, 1))
    for index, (width, stride) in enumerate(zip(WIDTHS, yamnet.STRIDES, strict=True), start=1):
        if index == 1:
            x = layers.Conv2D(width, 3, stride, padding="same", use_bias=False, name="layer1.conv")(x)
            x = layers.ReLU()(layers.BatchNormalization(name="layer1.conv.bn", **normalization)(x))
            continue
        name = f"layer{index}.depthwise_conv"
        x = layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False, name=name)(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"{name}.bn", **normalization)(x))
        name = f"layer{index}.pointwise_conv"
        x = layers.Conv2D(width, 1, padding="same", use_bias=False, name=name)(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"{name}.bn", **normalization)(x))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(CLASSES, activation="sigmoid", name="logits")(x))
    rng = np.random.default_rng(0)
    for weight in model.weights:  # positive random values for variances, so that every part of the folding matters
        spread = rng.gamma(2.0, 0.5, weight.shape) if "variance" in weight.path else rng.normal(0, 0.5, weight.shape)
        weight.assign(spread)
    return model


def write_keras_2_file(model, path):
    """Writes the layout of yamnet.h5: a group for each layer, which lists its weights by name."""
    with h5py.File(path, "w") as file:
        names = []
        for layer in model.layers:
            name = layer.name.replace(".", "/")
            names.append(name.encode())
            group = file.create_group(name)
            weights = {f"{name}/{w.name}:0": w.numpy() for w in layer.weights}
            if "depthwise_conv/kernel:0" in "".join(weights):
                weights = {f"{name}/depthwise_kernel:0": value for value in weights.values()}
            group.attrs["weight_names"] = [n.encode() for n in weights]
            for weight, value in weights.items():
                group[weight] = value
        file.attrs["layer_names"] = names


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    model = narrow_original()
    path = tmp_path_factory.mktemp("yamnet") / "yamnet.h5"
    write_keras_2_file(model, path)
    return model, path


def test_keras_weights_give_the_originals_probabilities(original, monkeypatch):
    model, path = original
    monkeypatch.setenv("MUSICLM_YAMNET", str(path))
    classifier = embedders.load("yamnet")
    mel = np.random.default_rng(1).normal(0, 2, (3, 96, 64)).astype(np.float32)
    expected = model(mel[..., None]).numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(yamnet.forward(classifier.params, mel), expected, atol=1e-4)
    assert classifier.kind == embedders.PROBABILITIES


def test_a_clip_becomes_patches_every_48_hops_and_its_end_is_padded(original):
    classifier = yamnet.classifier(yamnet.from_keras(embedders.weights.read_keras(original[1])), "random")
    audio = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    found, filled = embed(classifier, [audio, np.pad(audio, (0, 15_600 + 2 * 7_680 - 24_000))])
    assert found.shape == (3, CLASSES)
    np.testing.assert_allclose(found, filled, atol=1e-6)
    assert classifier.min_seconds < 0.01


def test_weights_of_another_network_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no weight 'layer1/conv/kernel:0': expected yamnet\.h5"):
        yamnet.from_keras({})
