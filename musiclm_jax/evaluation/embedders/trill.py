"""TRILL (Shor et al., arXiv 2002.12764): the embedder for FAD_Trill; TensorFlow runs the released SavedModel.

Weights: the folder `nonsemantic-speech-benchmark/trill` (saved_model.pb and variables/). The model takes audio and its
sample rate, and returns the 512-dimensional "embedding" and the larger "layer19".
"""

import numpy as np

from musiclm_jax.evaluation.embedders import EMBEDDINGS, Embedder
from musiclm_jax.evaluation.embedders.audioset import PATCH_SAMPLES, SAMPLE_RATE
from musiclm_jax.evaluation.embedders.weights import WeightsError, fingerprint, path_from_environment

VARIABLE = "MUSICLM_TRILL"
OUTPUT = "embedding"
HOP = 2_667  # samples: six vectors per second, as in TRILL's own framing


def load() -> Embedder:
    """Loads TRILL from the SavedModel at $MUSICLM_TRILL: 512 dimensions for windows of 0.975 s, six per second.

    Raises:
      WeightsError: if the SavedModel is missing or is not TRILL.
    """
    path = path_from_environment(VARIABLE, "the folder of TRILL's SavedModel (saved_model.pb, variables/)")
    import tensorflow as tf  # here: TRILL is released as a TensorFlow graph only

    try:
        module = tf.saved_model.load(str(path))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise WeightsError(f"{path} is not a SavedModel ({str(error).splitlines()[0]})") from error
    if not callable(module):
        raise WeightsError(f"{path} is a SavedModel that is not callable: expected TRILL's")

    def apply(_, windows) -> np.ndarray:
        outputs = module(samples=tf.constant(np.asarray(windows)), sample_rate=tf.constant(SAMPLE_RATE))
        if not isinstance(outputs, dict) or OUTPUT not in outputs:
            raise WeightsError(f"{path} returns no {OUTPUT!r}: expected the SavedModel of TRILL")
        found = outputs[OUTPUT].numpy()
        # A window has the length of TRILL's own windows: any further vectors come from padding.
        return found[:, 0] if found.ndim == 3 else found

    return Embedder(
        name="trill",
        version=fingerprint(path),
        kind=EMBEDDINGS,
        sample_rate=SAMPLE_RATE,
        window=PATCH_SAMPLES,
        hop=HOP,
        apply=apply,
    )
