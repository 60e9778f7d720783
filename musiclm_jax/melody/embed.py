"""Inference with the melody model: embeddings of recordings and their tokens.

`variables` is {"params": of the encoder, and from `fit_quantizer` "codebooks", float32 `[quantizers, codebook_size,
token_dim]`}.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax import quantization
from musiclm_jax.melody.config import MelodyConfig
from musiclm_jax.melody.encoder import MelodyEncoder, features
from musiclm_jax.melody.spectrum import pitch_classes

Variables = dict[str, Any]


@functools.partial(jax.jit, static_argnums=0)
def _described(config: MelodyConfig, params: Variables, windows: jax.Array) -> jax.Array:
    """Of windows `[n, window_samples]`: embeddings and, with `chroma_parts`, pitch classes, `[n, token_dim]`."""
    spectrum = features(config, windows)
    embedded = MelodyEncoder(config).apply({"params": params}, spectrum)
    if not config.chroma_parts:
        return embedded
    levels = config.mel_scale * spectrum + config.mel_mean
    heard = config.chroma_weight * pitch_classes(levels, config.lowest_pitch, config.chroma_parts)
    return jnp.concatenate([embedded, heard], axis=1)


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
    return describe(config, variables, audio)[..., : config.embedding_dim]


def describe(config: MelodyConfig, variables: Variables, audio: jax.typing.ArrayLike) -> jax.Array:
    """What the tokens stand for: the embeddings of `embed`, then pitch classes if `chroma_parts` asks for them.

    Args:
      config: the model's.
      variables: see the module.
      audio: as in `embed`.

    Returns:
      float32 `[batch, windows, token_dim]`.

    Raises:
      ValueError: as `embed`.
    """
    audio = jnp.asarray(audio, jnp.float32)
    if audio.ndim != 2 or not audio.shape[1]:
        raise ValueError(f"audio is {audio.shape}, expected [batch, samples] with at least one sample")
    window, hop = config.window_samples, config.hop_samples
    audio = jnp.pad(audio, ((0, 0), (0, max(0, window - audio.shape[1]))))
    starts = range(0, audio.shape[1] - window + 1, hop)
    windows = jnp.stack([audio[:, start : start + window] for start in starts], axis=1)
    return _described(config, variables["params"], windows.reshape(-1, window)).reshape(*windows.shape[:2], -1)


def fit_quantizer(
    config: MelodyConfig, variables: Variables, described: jax.typing.ArrayLike, key: jax.Array, iterations: int = 30
) -> Variables:
    """Fits the RVQ to windows of the training split.

    Args:
      config: the model's.
      variables: of the trained model.
      described: float32 `[n, token_dim]` from `describe`, n at least `codebook_size`.
      key: for k-means.
      iterations: of k-means a level.

    Returns:
      `variables` with "codebooks".

    Raises:
      ValueError: if there are fewer windows than the codebook has entries.
    """
    points = jnp.asarray(described, jnp.float32)
    if points.ndim != 2 or points.shape[1] != config.token_dim or len(points) < config.codebook_size:
        raise ValueError(
            f"described is {points.shape}, expected [n, {config.token_dim}] with n of at least codebook_size = "
            f"{config.codebook_size}"
        )
    rvq = quantization.RVQConfig(config.num_quantizers, config.codebook_size, config.token_dim)
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
    codes = quantization.encode(variables["codebooks"], describe(config, variables, audio))  # [batch, windows, levels]
    return codes.swapaxes(1, 2).reshape(len(audio), -1)
