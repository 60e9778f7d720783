"""The models that turn audio and text into codes: SoundStream, w2v-BERT, MuLan, the melody model.

Imports `data` and, in the learners alone, `training`.
"""

__all__ = [
    "melody",
    "mulan",
    "quantization",
    "soundstream",
    "w2v_bert",
]
