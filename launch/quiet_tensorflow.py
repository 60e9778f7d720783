"""Imports TensorFlow and seqio without their start-up messages and keeps them off accelerators. Import this first.

TensorFlow logs from C++ before its own log settings take effect, so standard error is redirected during the import.
Python exceptions still propagate.
"""

import logging
import os
import sys

if sys.flags.optimize > 1:
    raise ValueError("python -OO (PYTHONOPTIMIZE=2) removes docstrings that TensorFlow needs: start Python without -OO")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS and seqio report their own deprecations as warnings
_STDERR = 2  # the file descriptor, which C++ writes to
_kept = os.dup(_STDERR)
_null = os.open(os.devnull, os.O_WRONLY)
os.dup2(_null, _STDERR)
try:
    import seqio  # noqa: F401
    import tensorflow as tf

    # JAX owns the accelerators; TensorFlow only reads records. It looks for them here, and says what it misses.
    for _kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], _kind)
finally:
    os.dup2(_kept, _STDERR)
    os.close(_kept)
    os.close(_null)
