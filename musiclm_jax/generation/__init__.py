"""From a request to audio: prompts, conditions over time, windows of the three stages, the codec.

Imports `bundles` and what lies below it; knows nothing of training.
"""

__all__ = [
    "conditions",
    "describe",
    "drift",
    "generate",
    "pipeline",
    "prompts",
    "request",
    "windows",
]
