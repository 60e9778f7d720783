"""w2v-BERT, whose clustered activations are the semantic tokens (arXiv 2108.06209)."""

from musiclm_jax.tokenizers.w2v_bert.learner import W2vBertLearner
from musiclm_jax.tokenizers.w2v_bert.model import (
    FRAME_SAMPLES,
    SUBSAMPLING,
    W2vBert,
    W2vBertConfig,
    features,
    fit_kmeans,
    inference_params,
    mel_frames,
    semantic_tokens,
    whitening,
)

__all__ = [
    "FRAME_SAMPLES",
    "SUBSAMPLING",
    "W2vBert",
    "W2vBertConfig",
    "W2vBertLearner",
    "features",
    "fit_kmeans",
    "inference_params",
    "mel_frames",
    "semantic_tokens",
    "whitening",
]
