"""Inference with MuLan: embeddings of text and of audio of any length, and their tokens.

`variables` is a nested dict of arrays: "audio", "text", "projection" (parameters) and "vocab" uint8 `[bytes]` (the
content of vocab.txt). `quantize.fit_quantizer` adds "audio_mean", "text_mean" `[dim]`, "audio_map", "text_map"
`[dim, dim]` and "codebooks" `[quantizers, codebook_size, dim]`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.data.wordpiece import tokenize_texts
from musiclm_jax.tokenizers import quantization
from musiclm_jax.tokenizers.mulan.audio_tower import AudioTower, features, unit
from musiclm_jax.tokenizers.mulan.config import MulanConfig
from musiclm_jax.tokenizers.mulan.text_tower import BertEncoder, Projection, pool

Variables = dict[str, Any]
MODALITIES = ("audio", "text")
_TEXTS_AT_ONCE = 16  # rows per compiled call; texts are padded to a multiple, so that one program serves any number


@functools.partial(jax.jit, static_argnums=0)
def _embed_windows(config: MulanConfig, params: Variables, audio: jax.Array) -> jax.Array:
    window, stride = config.window_samples, config.stride_samples
    starts = jnp.arange(0, audio.shape[1] - window + 1, stride)

    def one(start: jax.Array) -> jax.Array:
        crop = jax.lax.dynamic_slice_in_dim(audio, start, window, axis=1)
        return AudioTower(config).apply({"params": params}, features(crop, config))

    return unit(jnp.mean(jax.lax.map(one, starts), axis=0))


def embed_audio(config: MulanConfig, variables: Variables, audio: jax.typing.ArrayLike) -> jax.Array:
    """Embeds audio as the mean of the unit vectors of its windows (10 s, every second), scaled to length 1.

    Args:
      config: the model's configuration.
      variables: see the module's docstring.
      audio: float32 `[batch, samples]`, 24 kHz mono; audio shorter than a window is repeated to fill one. Samples after
        the last whole window are left out.

    Returns:
      float32 `[batch, embedding_dim]`, unit vectors.

    Raises:
      ValueError: if `audio` is not `[batch, samples]` with at least one sample.
    """
    audio = jnp.asarray(audio, jnp.float32)
    if audio.ndim != 2 or not audio.shape[1]:
        raise ValueError(f"audio is {audio.shape}, expected [batch, samples] with at least one sample")
    if audio.shape[1] < config.window_samples:
        audio = jnp.tile(audio, (1, -(-config.window_samples // audio.shape[1])))[:, : config.window_samples]
    return _embed_windows(config, variables["audio"], audio)


@functools.partial(jax.jit, static_argnums=0)
def _embed_ids(
    config: MulanConfig, text: Variables, projection: Variables, ids: jax.Array, mask: jax.Array
) -> jax.Array:
    pooled = pool(BertEncoder(config).apply({"params": text}, ids, mask), mask)
    return Projection(config).apply({"params": projection}, pooled)


def embed_text(config: MulanConfig, variables: Variables, texts: Sequence[str]) -> jax.Array:
    """Embeds texts, truncated to `config.max_text_tokens` pieces.

    Args:
      config: the model's configuration.
      variables: see the module's docstring.
      texts: sequence of strings.

    Returns:
      float32 `[texts, embedding_dim]`, unit vectors.

    Raises:
      ValueError: if there is no text, or a text is empty or has no known word.
    """
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts is {texts!r}, expected a sequence of at least one string")
    ids, mask = tokenize_texts(np.asarray(variables["vocab"]).tobytes(), texts, config.max_text_tokens)
    rows = -(-len(texts) // _TEXTS_AT_ONCE) * _TEXTS_AT_ONCE
    ids, mask = (np.pad(x, ((0, rows - len(texts)), (0, 0))) for x in (ids, mask))
    parts = [
        _embed_ids(
            config,
            variables["text"],
            variables["projection"],
            ids[i : i + _TEXTS_AT_ONCE],
            mask[i : i + _TEXTS_AT_ONCE],
        )
        for i in range(0, rows, _TEXTS_AT_ONCE)
    ]
    return jnp.concatenate(parts)[: len(texts)]


def to_shared_space(variables: Variables, embeddings: jax.Array, modality: str) -> jax.Array:
    """Maps embeddings `[batch, dim]` of one modality to the space that the RVQ quantizes: `[batch, dim]`."""
    return (embeddings - variables[f"{modality}_mean"][None, :]) @ variables[f"{modality}_map"]


def tokens(config: MulanConfig, variables: Variables, embeddings: jax.typing.ArrayLike, modality: str) -> jax.Array:
    """Quantizes embeddings with the RVQ that both modalities share.

    Args:
      config: the model's configuration.
      variables: variables from `fit_quantizer`.
      embeddings: float32 `[batch, dim]` from `embed_audio` or `embed_text`.
      modality: "audio" or "text".

    Returns:
      int32 `[batch, quantizers]`.

    Raises:
      ValueError: if the modality is unknown, no quantizer was fitted, or its number of levels differs from the config.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality is {modality!r}, expected one of {MODALITIES}")
    if "codebooks" not in variables:
        raise ValueError("these MuLan variables hold no codebooks: call fit_quantizer (musiclm export does)")
    codebooks = variables["codebooks"]
    if codebooks.shape[0] != config.num_quantizers:
        raise ValueError(
            f"{codebooks.shape[0]} codebooks, but the configuration has {config.num_quantizers} quantizers"
        )
    return quantization.encode(codebooks, to_shared_space(variables, jnp.asarray(embeddings, jnp.float32), modality))
