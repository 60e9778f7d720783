"""Inference with the melody model: embeddings and tokens of recordings.

`variables` holds "params", the encoder's parameters; `fit_quantizer` adds "codebooks", float32 `[levels, codebook_size,
embedding_dim]`, and, with `chroma_parts`, "chroma_codebook", float32 `[codebook_size, 12]`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.tokenizers import quantization
from musiclm_jax.tokenizers.melody.config import MelodyConfig
from musiclm_jax.tokenizers.melody.encoder import MelodyEncoder, features
from musiclm_jax.tokenizers.melody.spectrum import pitch_classes

Variables = dict[str, Any]


@functools.partial(jax.jit, static_argnums=0)
def _embed(config: MelodyConfig, params: Variables, windows: jax.Array) -> jax.Array:
    return MelodyEncoder(config).apply({"params": params}, features(config, windows))


@functools.partial(jax.jit, static_argnums=0)
def _pitch_classes(config: MelodyConfig, windows: jax.Array) -> jax.Array:
    levels = config.mel_scale * features(config, windows) + config.mel_mean
    return pitch_classes(levels, config.lowest_pitch, config.chroma_parts)


def windows_of(config: MelodyConfig, audio: jax.typing.ArrayLike) -> jax.Array:
    """Cuts recordings into windows.

    Args:
      config: the model's configuration.
      audio: float32 `[batch, samples]`, 24 kHz mono; padded with silence to at least one window. Samples after the last
        whole window are left out.

    Returns:
      float32 `[batch, windows, window_samples]`.

    Raises:
      ValueError: if `audio` is not `[batch, samples]` with at least one sample.
    """
    audio = jnp.asarray(audio, jnp.float32)
    if audio.ndim != 2 or not audio.shape[1]:
        raise ValueError(f"audio is {audio.shape}, expected [batch, samples] with at least one sample")
    window, hop = config.window_samples, config.hop_samples
    audio = jnp.pad(audio, ((0, 0), (0, max(0, window - audio.shape[1]))))
    starts = range(0, audio.shape[1] - window + 1, hop)
    return jnp.stack([audio[:, start : start + window] for start in starts], axis=1)


def embed(config: MelodyConfig, variables: Variables, audio: jax.typing.ArrayLike) -> jax.Array:
    """Embeds the windows of recordings.

    Args:
      config: the model's configuration.
      variables: see the module's docstring.
      audio: as in `windows_of`, which raises the same errors.

    Returns:
      float32 `[batch, windows, embedding_dim]`, unit vectors.
    """
    windows = windows_of(config, audio)
    embedded = _embed(config, variables["params"], windows.reshape(-1, config.window_samples))
    return embedded.reshape(*windows.shape[:2], -1)


def chroma(config: MelodyConfig, audio: jax.typing.ArrayLike) -> jax.Array:
    """Computes the pitch classes in each part of each window of recordings; see `spectrum.pitch_classes`.

    Args:
      config: the model's configuration, with `chroma_parts`.
      audio: as in `windows_of`, which raises the same errors.

    Returns:
      float32 `[batch, windows, chroma_parts, 12]`.
    """
    windows = windows_of(config, audio)
    heard = _pitch_classes(config, windows.reshape(-1, config.window_samples))
    return heard.reshape(*windows.shape[:2], -1, 12)


def fit_quantizer(
    config: MelodyConfig,
    variables: Variables,
    embeddings: jax.typing.ArrayLike,
    classes: jax.typing.ArrayLike | None,
    key: jax.Array,
    iterations: int = 30,
) -> Variables:
    """Fits the codebooks to windows of the training split.

    Args:
      config: the model's configuration.
      variables: variables of the trained model.
      embeddings: float32 `[n, embedding_dim]`, n at least `codebook_size`.
      classes: pitch classes from `chroma`, float32 `[n, 12]`; None without `chroma_parts`.
      key: PRNG key for k-means.
      iterations: iterations of k-means per level.

    Returns:
      `variables` with the codebooks added.

    Raises:
      ValueError: if there are fewer windows than a codebook has entries, or pitch classes are missing.
    """
    points = jnp.asarray(embeddings, jnp.float32)
    if points.ndim != 2:
        raise ValueError(f"embeddings are {points.shape}, expected [n, {config.embedding_dim}]")
    if len(points) < config.codebook_size:
        raise ValueError(
            f"{len(points)} windows of renditions for codebooks of {config.codebook_size} entries: give more "
            "renditions, or train with a smaller MelodyConfig.codebook_size"
        )
    levels = config.num_quantizers - config.chroma_parts
    rvq = quantization.RVQConfig(levels, config.codebook_size, config.embedding_dim)
    fitted = {"codebooks": quantization.fit_rvq(key, points, rvq, iterations)}
    if config.chroma_parts:
        if classes is None or len(np.asarray(classes)) < config.codebook_size:
            raise ValueError(f"chroma_parts is {config.chroma_parts}: give the pitch classes of the windows, too")
        of_part = quantization.RVQConfig(1, config.codebook_size, 12)
        fitted["chroma_codebook"] = quantization.fit_rvq(key, jnp.asarray(classes), of_part, iterations)[0]
    return variables | fitted


def entries(config: MelodyConfig, variables: Variables) -> np.ndarray:
    """Returns the codebook entries of each level: float32 `[num_quantizers, codebook_size, embedding_dim + 12]`.

    Embeddings use the first `embedding_dim` dimensions and pitch classes the last 12.
    """
    rvq = np.pad(np.asarray(variables["codebooks"]), ((0, 0), (0, 0), (0, 12)))
    if not config.chroma_parts:
        return rvq
    heard = np.pad(np.asarray(variables["chroma_codebook"]), ((0, 0), (config.embedding_dim, 0)))
    return np.concatenate([np.broadcast_to(heard, (config.chroma_parts, *heard.shape)), rvq])


def tokens(config: MelodyConfig, variables: Variables, audio: jax.typing.ArrayLike) -> jax.Array:
    """Encodes the first clip of each recording as tokens, level by level: the first 3 k are levels 0..k-1 of 3 windows.

    With this order, which the paper does not specify, a stage can be conditioned on only the coarsest levels, the first
    tokens. With `chroma_parts`, the first levels are the pitch classes of each part, and the embedding's RVQ follows.

    Args:
      config: the model's configuration.
      variables: variables with the codebooks.
      audio: float32 `[batch, samples]`, 24 kHz mono; padded with silence to at least one clip.

    Returns:
      int32 `[batch, 72]`, in the order of the stream `tokens.MELODY`: token `3 level + window`.

    Raises:
      ValueError: if `audio` is not `[batch, samples]`.
    """
    audio = jnp.asarray(audio, jnp.float32)
    if audio.ndim != 2:
        raise ValueError(f"audio is {audio.shape}, expected [batch, samples]")
    audio = audio[:, : config.clip_samples]
    audio = jnp.pad(audio, ((0, 0), (0, config.clip_samples - audio.shape[1])))
    codes = quantization.encode(variables["codebooks"], embed(config, variables, audio))  # [batch, windows, levels]
    if config.chroma_parts:
        heard = quantization.encode(variables["chroma_codebook"][None], chroma(config, audio))[..., 0]
        codes = jnp.concatenate([heard, codes], axis=-1)
    return codes.swapaxes(1, 2).reshape(len(audio), -1)
