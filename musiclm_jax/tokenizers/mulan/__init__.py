"""MuLan: a joint embedding of music and text, and the tokens that condition the stages (arXiv 2208.12415)."""

from musiclm_jax.data.wordpiece import tokenize_texts
from musiclm_jax.tokenizers.mulan.config import MulanConfig
from musiclm_jax.tokenizers.mulan.embed import embed_audio, embed_text, tokens
from musiclm_jax.tokenizers.mulan.learner import MulanLearner
from musiclm_jax.tokenizers.mulan.quantize import fit_quantizer, relabelled, token_agreement
from musiclm_jax.tokenizers.mulan.text_tower import training_text

__all__ = [
    "MulanConfig",
    "MulanLearner",
    "embed_audio",
    "embed_text",
    "fit_quantizer",
    "relabelled",
    "token_agreement",
    "tokenize_texts",
    "tokens",
    "training_text",
]
