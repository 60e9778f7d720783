"""Model inputs: audio, spectrograms, records on disk, token streams and batches; files and paths of the user.

Imports nothing else from the package. `records`, `datasets` and `feature_converter` import TensorFlow, and only `audio`
imports librosa and soundfile.
"""

__all__ = [
    "audio",
    "datasets",
    "feature_converter",
    "files",
    "records",
    "samples",
    "settings",
    "spectrogram",
    "tokens",
    "wordpiece",
]
