"""MusicLM (text to music) in JAX and Flax.

import musiclm_jax
music = musiclm_jax.load("tiny").generate(["a cheerful Irish jig on the fiddle"], seconds=10, seed=0)
music[0].audio  # float32 [240000], 24 kHz
"""

import os
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# In a clone, launch/, tasks/ and gin_configs/ are next to this folder; installed, they are inside it. Python started in
# the clone's root (`python -m benchmarks.decode`) imports this folder even if the package is installed elsewhere.
_folder = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_folder, "launch")):
    __path__.append(os.path.dirname(_folder))

if TYPE_CHECKING:
    from musiclm_jax.generation.musiclm import MusicLM


def load(bundle: "str | os.PathLike" = "tiny") -> "MusicLM":
    """Opens a bundle of models, ready to generate music.

    Args:
      bundle: a folder, the name of a bundle shipped in the package, or hf://OWNER/NAME on the Hugging Face Hub.

    Raises:
      BundleError: if there is no such bundle, or it is damaged.
    """
    from musiclm_jax import bundles  # here, so that `import musiclm_jax` alone stays instant
    from musiclm_jax.generation.musiclm import MusicLM

    return MusicLM(bundles.load(bundle))
