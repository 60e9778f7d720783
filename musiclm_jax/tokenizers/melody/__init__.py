"""The melody embedding: close for renditions of the same melody by any performer (MusicLM, arXiv 2301.11325, 3.3)."""

from musiclm_jax.tokenizers.melody.config import MelodyConfig
from musiclm_jax.tokenizers.melody.embed import chroma, embed, entries, fit_quantizer, tokens
from musiclm_jax.tokenizers.melody.encoder import MelodyEncoder
from musiclm_jax.tokenizers.melody.learner import MelodyLearner
from musiclm_jax.tokenizers.melody.triplet import semi_hard_triplet_loss

__all__ = [
    "MelodyConfig",
    "MelodyEncoder",
    "MelodyLearner",
    "chroma",
    "embed",
    "entries",
    "fit_quantizer",
    "semi_hard_triplet_loss",
    "tokens",
]
