"""Inference with MuLan: embeddings of audio of any length and of text, and their tokens.

`variables` is a nested dict of arrays: "audio", "text", "projection" (parameters), "vocab" uint8 `[bytes]` (the content
of vocab.txt) and what `quantize.fit_quantizer` adds: "audio_mean", "text_mean" `[dim]`, "audio_map", "text_map"
`[dim, dim]`, "codebooks" `[quantizers, codebook_size, dim]`.
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
_TEXTS_AT_ONCE = 16  # rows of a compiled call; fewer texts are padded, so that one prompt or ten compile once


@functools.partial(jax.jit, static_argnums=0)
def _embed_windows(config: MulanConfig, params: Variables, audio: jax.Array) -> jax.Array:
    window, stride = config.window_samples, config.stride_samples
    starts = jnp.arange(0, audio.shape[1] - window + 1, stride)

    def one(start: jax.Array) -> jax.Array:
        crop = jax.lax.dynamic_slice_in_dim(audio, start, window, axis=1)
        return AudioTower(config).apply({"params": params}, features(crop, config))

    return unit(jnp.mean(jax.lax.map(one, starts), axis=0))


def embed_audio(config: MulanConfig, variables: Variables, audio: jax.typing.ArrayLike) -> jax.Array:
    """Embeds audio: windows of 10 s every second, the mean of their unit vectors, scaled to length 1.

    Args:
      config: the model's.
      variables: see the module.
      audio: float32 `[batch, samples]`, 24 kHz mono; shorter than a window, it is repeated to fill one. A last part
        shorter than the stride is left out.

    Returns:
      float32 `[batch, embedding_dim]`.

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
    """Embeds texts; what exceeds `config.max_text_tokens` pieces is cut.

    Args:
      config: the model's.
      variables: see the module.
      texts: one string each.

    Returns:
      float32 `[texts, embedding_dim]` of length 1.

    Raises:
      ValueError: if there is no text, or one is empty or has no known word.
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
    """Takes embeddings `[batch, dim]` of one modality to the space that the RVQ codes: `[batch, dim]`."""
    return (embeddings - variables[f"{modality}_mean"]) @ variables[f"{modality}_map"]


def tokens(config: MulanConfig, variables: Variables, embeddings: jax.typing.ArrayLike, modality: str) -> jax.Array:
    """Quantizes embeddings with the RVQ that both modalities share.

    Args:
      config: the model's.
      variables: with what `fit_quantizer` adds.
      embeddings: float32 `[batch, dim]` from `embed_audio` or `embed_text`.
      modality: which of the two, "audio" or "text".

    Returns:
      int32 `[batch, quantizers]`.

    Raises:
      ValueError: if the modality is unknown, no quantizer was fitted or it has another number of levels.
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
