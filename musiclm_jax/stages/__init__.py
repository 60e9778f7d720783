"""The three language models: token layout, Transformer, loss, decoding of one window.

Imports `data`, `kernels` and, in `learner` alone, `training`.
"""

__all__ = [
    "config",
    "decoding",
    "layers",
    "layout",
    "learner",
    "losses",
    "transformer",
    "vocabulary",
    "weights",
]
