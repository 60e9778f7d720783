"""Model inputs: audio, spectrograms, records on disk, token streams and batches.

Imports nothing else from the package. `records`, `datasets` and `feature_converter` import TensorFlow, and only `audio`
imports librosa and soundfile.
"""

__all__ = [
    "audio",
    "datasets",
    "feature_converter",
    "records",
    "samples",
    "settings",
    "spectrogram",
    "tokens",
    "wordpiece",
]
