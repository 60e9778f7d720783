"""Trains a bundle from scores on one accelerator in minutes, without TensorFlow, seqio, gin or network access.

`sizes` says how much, `learners` reads the pack's configurations, `corpus` renders, `programs` compiles ahead, `chain`
trains part after part.

Imports all rooms below but `generation`, `evaluation` and `planning`.
"""

from musiclm_jax.bootstrap.chain import LEARNERS_FILE, SEED_BUNDLE, Bootstrap
from musiclm_jax.bootstrap.corpus import CORPUS_FOLDER, HUMAN_FILE, MUSIC_FILE
from musiclm_jax.bootstrap.sizes import CLIP_SAMPLES, TRAININGS, Sizes, cpu, rehearsal

__all__ = [
    "CLIP_SAMPLES",
    "CORPUS_FOLDER",
    "HUMAN_FILE",
    "LEARNERS_FILE",
    "MUSIC_FILE",
    "SEED_BUNDLE",
    "TRAININGS",
    "Bootstrap",
    "Sizes",
    "cpu",
    "rehearsal",
]
