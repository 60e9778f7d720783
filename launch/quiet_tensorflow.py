"""Imports TensorFlow and seqio without their start-up lines, and keeps them off accelerators; import this module first.

TensorFlow logs from C++ before any of its own settings counts. Standard error is set aside while it is imported; what
Python raises meanwhile is raised as ever.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_STDERR = 2  # the file descriptor, which C++ writes to
_kept = os.dup(_STDERR)
_null = os.open(os.devnull, os.O_WRONLY)
os.dup2(_null, _STDERR)
try:
    import seqio  # noqa: F401
    import tensorflow as tf
finally:
    os.dup2(_kept, _STDERR)
    os.close(_kept)
    os.close(_null)

# JAX has the accelerators' memory and the cores; TensorFlow only reads records.
for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)
