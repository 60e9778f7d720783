"""VGGish (Hershey et al., arXiv 1609.09430) in JAX: the embedder for FAD_VGG.

Weights: `vggish_model.ckpt` from the AudioSet models (tensorflow/models, research/audioset/vggish), or
`vggish-10086976.pth` from torchvggish, which frechet-audio-distance loads. The embedding is taken before the last
activation and without the AudioSet release's PCA, as frechet-audio-distance does by default.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.evaluation.embedders import EMBEDDINGS, Embedder, winograd
from musiclm_jax.evaluation.embedders.audioset import HOP, PATCH_FRAMES, PATCH_SAMPLES, SAMPLE_RATE, log_mel
from musiclm_jax.evaluation.embedders.weights import (
    WeightsError,
    fingerprint,
    path_from_environment,
    read_tensorflow_checkpoint,
    read_torch,
)

VARIABLE = "MUSICLM_VGGISH"
LOG_OFFSET = 0.01
PATCHES_IN_CACHE = 8  # patches whose activations fit into a CPU's cache
# Per batch: a large one, since the dense layers' 270 MB of weights are read for each batch.
PATCHES = 256
# Layers in order; 2 x 2 max pooling follows each group of convolutions.
CONVOLUTIONS = (("conv1",), ("conv2",), ("conv3/conv3_1", "conv3/conv3_2"), ("conv4/conv4_1", "conv4/conv4_2"))
DENSE = ("fc1/fc1_1", "fc1/fc1_2", "fc2")
# Layer names in torchvggish.
TORCH_NAMES = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3/conv3_1": "features.6",
    "conv3/conv3_2": "features.8",
    "conv4/conv4_1": "features.11",
    "conv4/conv4_2": "features.13",
    "fc1/fc1_1": "embeddings.0",
    "fc1/fc1_2": "embeddings.2",
    "fc2": "embeddings.4",
}

Params = dict[str, dict[str, Any]]


def from_tensorflow(variables: dict[str, np.ndarray]) -> Params:
    """Converts the variables of `vggish_model.ckpt` to parameters: {layer: {"kernel", "bias"}}.

    Raises:
      WeightsError: if a variable is missing.
    """
    try:
        return {
            name: {"kernel": variables[f"vggish/{name}/weights"], "bias": variables[f"vggish/{name}/biases"]}
            for name in TORCH_NAMES
        }
    except KeyError as error:
        raise WeightsError(f"the checkpoint has no variable {error}: expected a VGGish checkpoint") from error


def from_torch(state: dict[str, np.ndarray]) -> Params:
    """Converts torchvggish's state_dict to parameters; torchvggish flattens patches in TensorFlow's order.

    Raises:
      WeightsError: if a tensor is missing.
    """
    params = {}
    for name, source in TORCH_NAMES.items():
        try:
            kernel, bias = state[f"{source}.weight"], state[f"{source}.bias"]
        except KeyError as error:
            raise WeightsError(f"the state_dict has no tensor {error}: expected torchvggish's") from error
        params[name] = {"kernel": kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T, "bias": bias}
    return params


def forward(params: Params, mel: jax.Array) -> jax.Array:
    """Computes the embeddings of log-mel patches; layer widths follow from the parameters.

    Args:
      params: from `from_tensorflow` or `from_torch`.
      mel: float32 `[patches, 96, 64]`.

    Returns:
      float32 `[patches, 128]`.
    """
    x = jax.lax.platform_dependent(params, mel, cpu=_features_on_cpu, default=_features)
    for name in DENSE:
        x = x @ params[name]["kernel"] + params[name]["bias"][None, :]
        x = x if name == DENSE[-1] else jax.nn.relu(x)
    return x


def _features(params: Params, mel: jax.Array) -> jax.Array:
    """Applies the convolutional layers: `[patches, 12288]`."""
    x = mel[..., None]
    for group in CONVOLUTIONS:
        for name in group:
            dims = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, params[name]["kernel"], (1, 1), "SAME", dimension_numbers=dims)
            x = jax.nn.relu(x + params[name]["bias"][None, None, None, :])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.reshape(len(x), -1)


def _features_on_cpu(params: Params, mel: jax.Array) -> jax.Array:
    """Computes `_features` with fewer multiplications, a few patches at a time, so that they stay in the cache."""
    first, *later = [name for group in CONVOLUTIONS for name in group]
    kernels = {name: winograd.transformed(params[name]["kernel"]) for name in later}
    last = {group[-1] for group in CONVOLUTIONS}

    def of_few(mel: jax.Array) -> jax.Array:
        # Max pooling comes before bias and ReLU: both are monotonic, and only a quarter of the values is left for them.
        pooled = winograd.maximum(winograd.tiles_of_one_channel(mel, params[first]["kernel"]))
        x = jax.nn.relu(pooled + params[first]["bias"][None, None, None, :])
        for name in later:
            outputs = winograd.tiles(x, kernels[name])
            joined = winograd.maximum(outputs) if name in last else winograd.image(outputs)
            x = jax.nn.relu(joined + params[name]["bias"][None, None, None, :])
        return x.reshape(len(x), -1)

    few = math.gcd(len(mel), PATCHES_IN_CACHE)
    return jax.lax.map(of_few, mel.reshape(-1, few, *mel.shape[1:])).reshape(len(mel), -1)


@jax.jit
def _embedding(params: Params, windows: jax.Array) -> jax.Array:
    return forward(params, log_mel(windows, LOG_OFFSET))


def embedder(params: Params, version: str) -> Embedder:
    """Returns VGGish with the given parameters: a vector for each 0.96 s, without overlap; a remainder is dropped."""
    return Embedder(
        name="vggish",
        version=version,
        kind=EMBEDDINGS,
        sample_rate=SAMPLE_RATE,
        window=PATCH_SAMPLES,
        hop=PATCH_FRAMES * HOP,
        apply=_embedding,
        params=params,
        at_once=PATCHES,
    )


def load() -> Embedder:
    """Loads VGGish with the weights at $MUSICLM_VGGISH.

    Raises:
      WeightsError: if the weights are missing or are not VGGish's.
    """
    path = path_from_environment(VARIABLE, "VGGish's weights, vggish_model.ckpt or vggish-10086976.pth")
    if path.suffix in (".pth", ".pt"):
        return embedder(from_torch(read_torch(path)), fingerprint(path))
    return embedder(from_tensorflow(read_tensorflow_checkpoint(path)), fingerprint(path))
