"""MusicLM (text to music) in JAX and Flax.

import musiclm_jax
music = musiclm_jax.load("tiny").generate(["a cheerful Irish jig on the fiddle"], seconds=10, seed=0)
music[0].audio  # float32 [240000], 24 kHz
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musiclm_jax.bundles import Bundle


def load(bundle: "str | os.PathLike" = "tiny") -> "Bundle":
    """Opens a bundle of models: a folder, or the name of one shipped in the package.

    Raises:
      BundleError: if there is none or it is damaged.
    """
    from musiclm_jax import bundles  # here: `import musiclm_jax` alone stays instant

    return bundles.load(bundle)
