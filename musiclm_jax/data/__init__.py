"""Model inputs: audio, spectrograms, records on disk, token streams and batches; files and paths of the user.

Imports nothing else from the package. `records`, `datasets` and `feature_converter` import TensorFlow, and only `audio`
imports librosa and soundfile.
"""

__all__ = [
    "audio",
    "clip_arrays",
    "datasets",
    "feature_converter",
    "files",
    "records",
    "resident",
    "samples",
    "settings",
    "spectrogram",
    "tfrecord",
    "tokens",
    "wordpiece",
]
