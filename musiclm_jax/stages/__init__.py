"""The three language models: token layout, Transformer, loss, and decoding of one window.

Imports `data` and `kernels`; only `learner` imports `training`.
"""

__all__ = [
    "config",
    "decoding",
    "layers",
    "layout",
    "learner",
    "losses",
    "sampling",
    "stage",
    "transformer",
    "vocabulary",
    "weights",
]
