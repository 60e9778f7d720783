"""TRILL (Shor et al., arXiv 2002.12764): the embedder of FAD_Trill, run by TensorFlow from the released SavedModel.

Weights: the folder of `nonsemantic-speech-benchmark/trill` (saved_model.pb and variables/), which takes audio and its
sample rate and gives the 512-dimensional "embedding" and the larger "layer19".
"""

import numpy as np

from musiclm_jax.evaluation.embedders import EMBEDDINGS, Embedder
from musiclm_jax.evaluation.embedders.audioset import PATCH_SAMPLES, SAMPLE_RATE
from musiclm_jax.evaluation.embedders.weights import WeightsError, fingerprint, path_from_environment

VARIABLE = "MUSICLM_TRILL"
OUTPUT = "embedding"
HOP = 2_667  # samples: a vector every sixth of a second, as TRILL's own framing has it


def load() -> Embedder:
    """TRILL with the SavedModel at $MUSICLM_TRILL: 512 dimensions for every 0.975 s, every sixth of a second.

    Raises:
      WeightsError: if there is none or it is another.
    """
    path = path_from_environment(VARIABLE, "the folder of TRILL's SavedModel (saved_model.pb, variables/)")
    import tensorflow as tf  # here: TRILL is released as a TensorFlow graph only

    try:
        module = tf.saved_model.load(str(path))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise WeightsError(f"{path} is not a SavedModel ({str(error).splitlines()[0]})") from error
    if not callable(module):
        raise WeightsError(f"{path} is a SavedModel that cannot be called: expected that of TRILL")

    def apply(_, windows) -> np.ndarray:
        outputs = module(samples=tf.constant(np.asarray(windows)), sample_rate=tf.constant(SAMPLE_RATE))
        if not isinstance(outputs, dict) or OUTPUT not in outputs:
            raise WeightsError(f"{path} gives no {OUTPUT!r}: expected the SavedModel of TRILL")
        found = outputs[OUTPUT].numpy()
        # A window is as long as one of TRILL's own; more than one vector for it would be of its padding.
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
