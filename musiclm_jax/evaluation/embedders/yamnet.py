"""YAMNet in JAX: an AudioSet classifier for KLD (MobileNet v1, Howard et al., arXiv 1704.04861).

Weights: `yamnet.h5` from the AudioSet models (tensorflow/models, research/audioset/yamnet).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.evaluation.embedders import PROBABILITIES, Embedder
from musiclm_jax.evaluation.embedders.audioset import HOP, PATCH_FRAMES, PATCH_SAMPLES, SAMPLE_RATE, log_mel
from musiclm_jax.evaluation.embedders.weights import WeightsError, fingerprint, path_from_environment, read_keras

VARIABLE = "MUSICLM_YAMNET"
LOG_OFFSET = 0.001
BATCH_NORM_EPSILON = 1e-4
STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)  # of layer1 to layer14; all but the first are separable
DIMS = ("NHWC", "HWIO", "NHWC")

Params = dict[str, dict[str, Any]]


def from_keras(weights: dict[str, np.ndarray]) -> Params:
    """Converts the weights of `yamnet.h5` to parameters; batch normalization is folded into the convolutions.

    Args:
      weights: "layer1/conv/kernel:0", "layer1/conv/bn/beta:0", ..., and kernel and bias of the dense layer.

    Returns:
      {"layer1/conv", "layer2/depthwise_conv", "layer2/pointwise_conv", ..., "classifier"}: {"kernel", "bias"}.

    Raises:
      WeightsError: if a weight is missing.
    """
    params = {}
    names = ["layer1/conv"]
    names += [f"layer{i}/{part}_conv" for i in range(2, len(STRIDES) + 1) for part in ("depthwise", "pointwise")]
    classifier = {name.rsplit("/", 1)[-1]: value for name, value in weights.items() if not name.startswith("layer")}
    try:
        for name in names:
            depthwise = "depthwise" in name
            kernel = weights[f"{name}/depthwise_kernel:0"] if depthwise else weights[f"{name}/kernel:0"]
            beta, mean, variance = (
                weights[f"{name}/bn/{part}:0"] for part in ("beta", "moving_mean", "moving_variance")
            )
            scale = 1 / np.sqrt(variance + BATCH_NORM_EPSILON)
            # Keras stores a depthwise kernel as [height, width, channels, 1]; XLA expects [height, width, 1, channels].
            kernel = kernel.transpose(0, 1, 3, 2) if depthwise else kernel
            params[name] = {"kernel": kernel * scale, "bias": beta - mean * scale}
        params["classifier"] = {"kernel": classifier["kernel:0"], "bias": classifier["bias:0"]}
    except KeyError as error:
        raise WeightsError(f"the file has no weight {error}: expected yamnet.h5") from error
    return params


def forward(params: Params, mel: jax.Array) -> jax.Array:
    """Computes multi-label class probabilities `[patches, classes]` of log-mel patches, float32 `[patches, 96, 64]`."""
    x = mel[..., None]
    for index, stride in enumerate(STRIDES, start=1):
        parts = ("depthwise_conv", "pointwise_conv") if index > 1 else ("conv",)
        for part in parts:
            layer = params[f"layer{index}/{part}"]
            step = 1 if part == "pointwise_conv" else stride
            groups = x.shape[-1] if part == "depthwise_conv" else 1
            x = jax.lax.conv_general_dilated(
                x, layer["kernel"], (step, step), "SAME", dimension_numbers=DIMS, feature_group_count=groups
            )
            x = jax.nn.relu(x + layer["bias"][None, None, None, :])
    pooled = jnp.mean(x, axis=(1, 2))
    return jax.nn.sigmoid(pooled @ params["classifier"]["kernel"] + params["classifier"]["bias"][None, :])


@jax.jit
def _probabilities(params: Params, windows: jax.Array) -> jax.Array:
    return forward(params, log_mel(windows, LOG_OFFSET))


def classifier(params: Params, version: str) -> Embedder:
    """Returns YAMNet with the given parameters: a patch of 0.96 s every 0.48 s; the last one is padded with zeros."""
    return Embedder(
        name="yamnet",
        version=version,
        kind=PROBABILITIES,
        sample_rate=SAMPLE_RATE,
        window=PATCH_SAMPLES,
        hop=PATCH_FRAMES * HOP // 2,
        apply=_probabilities,
        params=params,
        ending="pad",
    )


def load() -> Embedder:
    """Loads YAMNet with the weights at $MUSICLM_YAMNET.

    Raises:
      WeightsError: if the weights are missing or are not YAMNet's.
    """
    path = path_from_environment(VARIABLE, "YAMNet's weights, yamnet.h5")
    return classifier(from_keras(read_keras(path)), fingerprint(path))
