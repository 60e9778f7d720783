"""musicnn (Pons and Serra, arXiv 1909.06654) in JAX: music tags and an embedding, with the weights from its package.

    pip install --no-deps musicnn

`--no-deps` since the package requires an old TensorFlow that is not needed here. Two upstream bugs are fixed: the
float16 mel spectrogram overflows on loud audio, and the "penultimate" output repeats the first patch.
"""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.data.spectrogram import magnitude, mel_filterbank
from musiclm_jax.evaluation.embedders import EMBEDDINGS, PROBABILITIES, Embedder
from musiclm_jax.evaluation.embedders.weights import package_folder, read_tensorflow_checkpoint

SAMPLE_RATE = 16_000  # Hz
FFT_SIZE = 512  # samples
HOP = 256  # samples between frames
FRAMES = 187  # per patch: 3 s
NUM_MELS = 96
MTT, MSD = "MTT_musicnn", "MSD_musicnn"  # trained on MagnaTagATune and on the Million Song Dataset
MTT_TAGS = tuple(
    (
        "guitar classical slow techno strings drums electronic rock fast piano ambient beat violin vocal synth "
        "female indian opera male singing vocals no_vocals harpsichord loud quiet flute woman male_vocal no_vocal "
        "pop soft sitar solo man classic choir voice new_age dance male_voice female_vocal beats harp cello "
        "no_voice weird country metal female_voice choral"
    ).split()
)
MSD_TAGS = tuple(
    (
        "rock pop alternative indie electronic female_vocalists dance 00s alternative_rock jazz beautiful metal "
        "chillout male_vocalists classic_rock soul indie_rock mellow electronica 80s folk 90s chill instrumental "
        "punk oldies blues hard_rock ambient acoustic experimental female_vocalist guitar hip_hop 70s party "
        "country easy_listening sexy catchy funk electro heavy_metal progressive_rock 60s rnb indie_pop sad house "
        "happy"
    ).split()
)


@functools.cache
def weights(model: str) -> dict[str, np.ndarray]:
    """Loads the weights of `MTT` or `MSD` under their TensorFlow names, without the optimizer state.

    Raises:
      WeightsError: if the package is not installed.
    """
    # The checkpoint's file names have nothing before the dot, so the prefix is the folder with a trailing slash.
    found = read_tensorflow_checkpoint(f"{package_folder('musicnn') / model}/")
    optimiser = {name for name in found if "Adam" in name or name.startswith("beta")}
    return {name: value for name, value in found.items() if name not in optimiser}


def log_mel(audio: jax.Array) -> jax.Array:
    """Computes musicnn's input in float32: log10(1 + 10000 power) in librosa's default mel bands.

    Args:
      audio: float32 `[batch, samples]` at 16 kHz. It is not padded here (the package pads it by half a frame).

    Returns:
      float32 `[batch, frames, 96]`.
    """
    power = magnitude(audio, window=FFT_SIZE, hop=HOP) ** 2
    return jnp.log10(10_000 * power @ mel_filterbank(SAMPLE_RATE, FFT_SIZE, NUM_MELS, 0.0, SAMPLE_RATE / 2) + 1)


def _normalize(weights: dict, index: int, x: jax.Array) -> jax.Array:
    name = "batch_normalization" + (f"_{index}" if index else "")
    scale = weights[f"{name}/gamma"] / jnp.sqrt(weights[f"{name}/moving_variance"] + 1e-3)
    shift = weights[f"{name}/beta"] - weights[f"{name}/moving_mean"] * scale
    return x * jnp.broadcast_to(scale, x.shape) + jnp.broadcast_to(shift, x.shape)


def _conv(weights: dict, index: int, x: jax.Array, padding: str) -> jax.Array:
    name = "conv2d" + (f"_{index}" if index else "")
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, weights[f"{name}/kernel"], (1, 1), padding, dimension_numbers=dims)
    return jax.nn.relu(y + weights[f"{name}/bias"][None, None, None, :])


def forward(weights: dict, mel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Applies the network: musically motivated filters, densely connected layers, global pooling.

    Args:
      weights: from the function `weights`.
      mel: float32 `[patches, 187, 96]`.

    Returns:
      Tag probabilities, float32 `[patches, 50]`, and the penultimate layer's embedding, float32 `[patches, 200]`.
    """
    x = _normalize(weights, 0, mel[..., None])
    in_time = jnp.pad(x, ((0, 0), (3, 3), (0, 0), (0, 0)))
    front = [jnp.max(_normalize(weights, i + 1, _conv(weights, i, in_time, "VALID")), axis=2) for i in (0, 1)]
    front += [jnp.max(_normalize(weights, i + 1, _conv(weights, i, x, "SAME")), axis=2) for i in (2, 3, 4)]
    features = [jnp.concatenate(front, axis=-1)]  # [patches, frames, 561]
    hidden = features[0]
    for i in (5, 6, 7):
        padded = jnp.pad(hidden, ((0, 0), (3, 3), (0, 0)))[..., None]
        y = _normalize(weights, i + 1, _conv(weights, i, padded, "VALID"))[:, :, 0]  # the filter spans all channels
        hidden = y if i == 5 else y + hidden
        features.append(hidden)
    joined = jnp.concatenate(features, axis=-1)  # [patches, frames, 753]
    # TensorFlow flattens [channels, pool] in row-major order: max and mean of a channel are adjacent.
    pooled = jnp.stack([jnp.max(joined, axis=1), jnp.mean(joined, axis=1)], axis=-1).reshape(len(mel), -1)
    dense = jax.nn.relu(_normalize(weights, 9, pooled) @ weights["dense/kernel"] + weights["dense/bias"][None, :])
    embedding = _normalize(weights, 10, dense)
    return jax.nn.sigmoid(embedding @ weights["dense_1/kernel"] + weights["dense_1/bias"][None, :]), embedding


@jax.jit
def _tags(weights: dict, windows: jax.Array) -> jax.Array:
    return forward(weights, log_mel(windows))[0]


@jax.jit
def _embedding(weights: dict, windows: jax.Array) -> jax.Array:
    return forward(weights, log_mel(windows))[1]


def _load(name: str, model: str, kind: str, apply) -> Embedder:
    return Embedder(
        name=name,
        version=f"musicnn {importlib.metadata.version('musicnn')} {model}",
        kind=kind,
        sample_rate=SAMPLE_RATE,
        window=(FRAMES - 1) * HOP + FFT_SIZE,
        hop=FRAMES * HOP,
        apply=apply,
        params=weights(model),
        margin=FFT_SIZE // 2,
    )


def load_embedder(model: str = MTT) -> Embedder:
    """Loads the embedder, the layer before the tags: 200 dimensions for each patch of 3 s.

    Raises:
      WeightsError: if the package is not installed.
    """
    package_folder("musicnn")
    return _load("musicnn", model, EMBEDDINGS, _embedding)


def load_classifier(model: str = MTT) -> Embedder:
    """Loads the classifier: probabilities of 50 tags (multi-label) for each patch of 3 s.

    Raises:
      WeightsError: if the package is not installed.
    """
    package_folder("musicnn")
    return _load("musicnn_tags", model, PROBABILITIES, _tags)
