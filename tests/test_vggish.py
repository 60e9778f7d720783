"""VGGish: its converters against narrow originals with random weights, its mel against the AudioSet definition."""

import numpy as np
import pytest
import torch

from musiclm_jax.evaluation import embedders
from musiclm_jax.evaluation.embedders import audioset, embed, vggish


def narrow_original(seed=0):
    """Returns torchvggish's network at an eighth of the width."""
    torch.manual_seed(seed)
    layers, channels = [], 1
    for width in (8, 0, 16, 0, 32, 32, 0, 64, 64, 0):
        layers += (
            [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()] if width else [torch.nn.MaxPool2d(2, 2)]
        )
        channels = width or channels
    dense = torch.nn.Sequential(
        torch.nn.Linear(64 * 6 * 4, 48),
        torch.nn.ReLU(),
        torch.nn.Linear(48, 48),
        torch.nn.ReLU(),
        torch.nn.Linear(48, 128),
        torch.nn.ReLU(),
    )
    return torch.nn.ModuleDict({"features": torch.nn.Sequential(*layers), "embeddings": dense})


def run_original(original, mel):
    with torch.no_grad():
        x = original["features"](torch.tensor(mel)[:, None])
        x = x.permute(0, 2, 3, 1).reshape(len(mel), -1)  # TensorFlow's order: time, frequency, channels
        return original["embeddings"][:-1](x).numpy()  # before the activation


def as_checkpoint(original):
    """Returns the original's weights under the names of vggish_model.ckpt."""
    state = original.state_dict()
    variables = {}
    for name, source in vggish.TORCH_NAMES.items():
        kernel = state[f"{source}.weight"].numpy()
        kernel = np.moveaxis(kernel, (0, 1), (3, 2)) if kernel.ndim == 4 else kernel.T
        variables[f"vggish/{name}/weights"] = kernel
        variables[f"vggish/{name}/biases"] = state[f"{source}.bias"].numpy()
    return variables


@pytest.fixture(scope="module")
def mel():
    return np.random.default_rng(0).normal(0, 2, (3, 96, 64)).astype(np.float32)


def test_torchs_weights_give_the_originals_embeddings(mel, tmp_path, monkeypatch):
    original = narrow_original()
    torch.save(original.state_dict(), tmp_path / "vggish.pth")
    monkeypatch.setenv("MUSICLM_VGGISH", str(tmp_path / "vggish.pth"))
    embedder = embedders.load("vggish")
    expected = run_original(original, mel)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(vggish.forward(embedder.params, mel), expected, atol=1e-4)


def test_tensorflows_checkpoint_gives_the_same(mel, tmp_path, monkeypatch):
    tf = pytest.importorskip("tensorflow").compat.v1
    original = narrow_original(seed=1)
    with tf.Graph().as_default(), tf.Session() as session:
        saved = [tf.get_variable(name, initializer=value) for name, value in as_checkpoint(original).items()]
        session.run(tf.global_variables_initializer())
        # The release uses the first version of the format, a single file.
        tf.train.Saver(saved, write_version=1).save(session, str(tmp_path / "vggish_model.ckpt"))
    monkeypatch.setenv("MUSICLM_VGGISH", str(tmp_path / "vggish_model.ckpt"))
    params = embedders.load("vggish").params
    np.testing.assert_allclose(vggish.forward(params, mel), run_original(original, mel), atol=1e-4)


def test_log_mel_is_tensorflows():
    tf = pytest.importorskip("tensorflow")
    filters = tf.signal.linear_to_mel_weight_matrix(64, 257, 16_000, 125.0, 7500.0).numpy()
    np.testing.assert_allclose(audioset.mel_filters(), filters, atol=1e-5)
    audio = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    spectrum = np.abs(tf.signal.stft(audio, 400, 160, 512).numpy())
    expected = np.log(spectrum @ filters + 0.01)
    np.testing.assert_allclose(audioset.log_mel(audio[None], 0.01)[0], expected, atol=1e-4)


def test_a_clip_becomes_patches_of_96_frames():
    params = vggish.from_torch({name: t.numpy() for name, t in narrow_original().state_dict().items()})
    audio = np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32)
    (found,) = embed(vggish.embedder(params, "random"), [audio])
    mel = np.asarray(audioset.log_mel(audio[None], vggish.LOG_OFFSET))[0]
    expected = vggish.forward(params, mel[: 2 * 96].reshape(2, 96, 64))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"no tensor 'features.0.weight': expected torchvggish's"):
        vggish.from_torch({})
    with pytest.raises(ValueError, match=r"no variable 'vggish/conv1/weights'"):
        vggish.from_tensorflow({})
