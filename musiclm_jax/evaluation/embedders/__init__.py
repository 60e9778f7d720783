"""Models that score clips: embedders for FAD and MCC, classifiers for KLD, behind one interface (`embedder`)."""

from musiclm_jax.evaluation.embedders.embedder import (
    CLASSIFIERS,
    EMBEDDERS,
    EMBEDDINGS,
    PROBABILITIES,
    Embedder,
    embed,
    load,
)

__all__ = ["CLASSIFIERS", "EMBEDDERS", "EMBEDDINGS", "PROBABILITIES", "Embedder", "embed", "load"]
