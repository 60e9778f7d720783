"""Fitting the RVQ that audio and text share."""

import jax
import jax.numpy as jnp

from musiclm_jax import quantization
from musiclm_jax.mulan.config import MulanConfig
from musiclm_jax.mulan.embed import Variables


def fit_quantizer(
    config: MulanConfig,
    variables: Variables,
    audio_embeddings: jax.Array,
    text_embeddings: jax.Array,
    key: jax.Array,
    iterations: int = 30,
) -> Variables:
    """placeholder"""
    audio_mean, text_mean = audio_embeddings.mean(0), text_embeddings.mean(0)
    eye = jnp.eye(config.embedding_dim)
    rvq = quantization.RVQConfig(config.num_quantizers, config.codebook_size, config.embedding_dim)
    codebooks = quantization.fit_rvq(key, audio_embeddings - audio_mean, rvq, iterations)
    return {
        **variables,
        "audio_mean": audio_mean,
        "text_mean": text_mean,
        "audio_map": eye,
        "text_map": eye,
        "codebooks": codebooks,
    }


def token_agreement(audio_tokens: jax.Array, text_tokens: jax.Array) -> jax.Array:
    """Share"""
    return (audio_tokens == text_tokens).mean(0)
