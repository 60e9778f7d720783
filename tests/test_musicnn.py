"""musicnn matches its published graph, and its package's mel spectrogram and tags."""

import importlib.util

import numpy as np
import pytest

from musiclm_jax.evaluation.embedders import embed, musicnn
from musiclm_jax.evaluation.embedders.weights import package_folder

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("musicnn"), reason="musicnn is not installed: pip install --no-deps musicnn"
)


def published_graph(model, mel):
    """Computes tag probabilities `[patches, 50]` with TensorFlow, from the graph saved with the weights."""
    tf = pytest.importorskip("tensorflow").compat.v1
    saved = tf.MetaGraphDef()
    saved.ParseFromString((package_folder("musicnn") / model / ".meta").read_bytes())
    graph_def = tf.graph_util.extract_sub_graph(saved.graph_def, ["model/dense_1/BiasAdd"])
    for node in graph_def.node:  # written by an old release: today's refuses its shape notes
        node.attr.pop("_output_shapes", None)
        node.device = ""
    weights = musicnn.weights(model)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        feed = {}
        for operation in graph.get_operations():
            if operation.type == "VariableV2":
                feed[operation.outputs[0]] = weights[operation.name.removeprefix("model/")]
            elif operation.type == "Placeholder":
                is_training = operation.outputs[0].dtype.name == "bool"
                feed[operation.outputs[0]] = False if is_training else mel
        with tf.Session() as session:
            return 1 / (1 + np.exp(-session.run("model/dense_1/BiasAdd:0", feed)))


@pytest.mark.parametrize("model", ["MTT_musicnn", "MSD_musicnn"])
def test_musicnn_equals_the_published_graph(model):
    weights = musicnn.weights(model)
    assert sum(value.size for value in weights.values()) == 792_079
    mel = np.random.default_rng(0).gamma(1.0, 1.0, (2, musicnn.FRAMES, musicnn.NUM_MELS)).astype(np.float32)
    expected = published_graph(model, mel)
    assert expected.max() > 0.1
    np.testing.assert_allclose(musicnn.forward(weights, mel)[0], expected, atol=1e-5)


def test_musicnn_mel_is_librosas():
    librosa = pytest.importorskip("librosa")
    audio = np.random.default_rng(0).normal(0, 0.3, 16_000).astype(np.float32)
    power = librosa.feature.melspectrogram(
        y=audio, sr=16_000, n_fft=512, hop_length=256, n_mels=96, center=True, pad_mode="constant"
    )
    expected = np.log10(10_000 * power.T + 1)
    found = musicnn.log_mel(np.pad(audio, musicnn.FFT_SIZE // 2)[None])[0]
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_tag_names_are_the_packages():
    source = (package_folder("musicnn") / "configuration.py").read_text()
    names: dict = {}
    exec(source, names)
    for tags, published in ((musicnn.MTT_TAGS, names["MTT_LABELS"]), (musicnn.MSD_TAGS, names["MSD_LABELS"])):
        assert [tag.replace("_", " ") for tag in tags] == [tag.lower().replace("-", " ") for tag in published]


def test_patches_of_a_clip_match_the_whole_clips_mel():
    audio = np.random.default_rng(0).normal(0, 0.1, 7 * musicnn.SAMPLE_RATE).astype(np.float32)
    mel = np.asarray(musicnn.log_mel(np.pad(audio, musicnn.FFT_SIZE // 2)[None]))[0]
    patches = mel[: 2 * musicnn.FRAMES].reshape(2, musicnn.FRAMES, musicnn.NUM_MELS)
    tags, embedding = musicnn.forward(musicnn.weights(musicnn.MTT), patches)
    (found,) = embed(musicnn.load_classifier(), [audio])
    np.testing.assert_allclose(found, tags, atol=1e-5)
    (found,) = embed(musicnn.load_embedder(), [audio])
    np.testing.assert_allclose(found, embedding, atol=1e-4)
    assert musicnn.load_embedder().min_seconds == pytest.approx(2.976)
