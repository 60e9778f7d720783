"""Inference with the melody model: embeddings of recordings and their tokens.

`variables` is {"params": of the encoder, and from `fit_quantizer` "codebooks" `[quantizers, codebook_size, dim]`}.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax import quantization
from musiclm_jax.melody.config import MelodyConfig
from musiclm_jax.melody.encoder import MelodyEncoder, features

Variables = dict[str, Any]


@functools.partial(jax.jit, static_argnums=0)
def _embed(config: MelodyConfig, params: Variables, windows: jax.Array) -> jax.Array:
    return MelodyEncoder(config).apply({"params": params}, features(config, windows))


def embed(config: MelodyConfig, variables: Variables, audio: jax.typing.ArrayLike) -> jax.Array:
    """Embeds the windows of a recording.

    Args:
      config: the model's.
      variables: see the module.
      audio: float32 `[batch, samples]`, 24 kHz mono; shorter than a window, it is filled up with silence. A last part
        shorter than the hop is left out.

    Returns:
      float32 `[batch, windows, embedding_dim]`, of length 1 each.

    Raises:
      ValueError: if `audio` is not `[batch, samples]` with at least one sample.
    """
    audio = jnp.asarray(audio, jnp.float32)
    if audio.ndim != 2 or not audio.shape[1]:
        raise ValueError(f"audio is {audio.shape}, expected [batch, samples] with at least one sample")
    window, hop = config.window_samples, config.hop_samples
    audio = jnp.pad(audio, ((0, 0), (0, max(0, window - audio.shape[1]))))
    starts = range(0, audio.shape[1] - window + 1, hop)
    windows = jnp.stack([audio[:, start : start + window] for start in starts], axis=1)
    embedded = _embed(config, variables["params"], windows.reshape(-1, window))
    return embedded.reshape(*windows.shape[:2], -1)


def fit_quantizer(
    config: MelodyConfig, variables: Variables, embeddings: jax.typing.ArrayLike, key: jax.Array, iterations: int = 30
) -> Variables:
    """Fits the RVQ to embeddings of the training split.

    Args:
      config: the model's.
      variables: of the trained model.
      embeddings: float32 `[n, embedding_dim]`, n at least `codebook_size`.
      key: for k-means.
      iterations: of k-means a level.

    Returns:
      `variables` with "codebooks".

    Raises:
      ValueError: if there are fewer embeddings than the codebook has entries.
    """
    points = jnp.asarray(embeddings, jnp.float32)
    if points.ndim != 2 or len(points) < config.codebook_size:
        raise ValueError(
            f"embeddings are {points.shape}, expected [n, {config.embedding_dim}] with n of at least codebook_size = "
            f"{config.codebook_size}"
        )
    rvq = quantization.RVQConfig(config.num_quantizers, config.codebook_size, config.embedding_dim)
    return variables | {"codebooks": quantization.fit_rvq(key, points, rvq, iterations)}


def tokens(config: MelodyConfig, variables: Variables, audio: jax.typing.ArrayLike) -> jax.Array:
    """Tokens of the first clip of a recording, level by level: the first 3 k are the first k levels of its 3 windows.

    The paper leaves their order open. So a stage can be conditioned on the coarsest levels alone, the first tokens.

    Args:
      config: the model's.
      variables: with "codebooks".
      audio: float32 `[batch, samples]`, 24 kHz mono; shorter than a clip, it is filled up with silence.

    Returns:
      int32 `[batch, 72]`, as the stream `tokens.MELODY` has them: token `3 level + window`.

    Raises:
      ValueError: if `audio` is not `[batch, samples]`.
    """
    audio = jnp.asarray(audio, jnp.float32)
    if audio.ndim != 2:
        raise ValueError(f"audio is {audio.shape}, expected [batch, samples]")
    audio = audio[:, : config.clip_samples]
    audio = jnp.pad(audio, ((0, 0), (0, config.clip_samples - audio.shape[1])))
    codes = quantization.encode(variables["codebooks"], embed(config, variables, audio))  # [batch, windows, levels]
    return codes.swapaxes(1, 2).reshape(len(audio), -1)
