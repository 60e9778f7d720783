"""The models that turn audio and text into codes: SoundStream, w2v-BERT, MuLan and the melody model.

Imports `data`; only the learners import `training`.
"""

__all__ = [
    "melody",
    "mulan",
    "quantization",
    "soundstream",
    "w2v_bert",
]
