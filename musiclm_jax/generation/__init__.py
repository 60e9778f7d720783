"""Generates audio from a request: prompts, time-varying conditions, the three stages in windows, the codec.

Imports `bundles` and the rooms below it; knows nothing of training.
"""

__all__ = [
    "conditions",
    "describe",
    "drift",
    "generate",
    "musiclm",
    "pipeline",
    "prompts",
    "request",
    "windows",
]
