"""Settings of all tests."""

import importlib.util
import os
import pathlib
import sys
import time

import pytest
from installed_copy import problem

# PyTorch's builds for GPUs bring triton. Releases from 3.7 on crash the process if TensorFlow 2.21 is imported first.
if importlib.util.find_spec("triton"):
    import triton  # noqa: F401

ROOT = pathlib.Path(__file__).parent.parent
# benchmarks/ is not installed with the package. At the end of the path, so that `musiclm_jax` stays the installed one.
sys.path.append(str(ROOT))

# Compilation by XLA is most of the time that tests take. Programs are kept between runs, and shared by the workers of
# pytest-xdist and by the processes that tests start. The keys of JAX's cache tell versions, flags and devices apart; an
# entry that another process has not finished writing counts as absent.
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "musiclm_jax" / "tests"
CACHE_DAYS = 30  # after which a program that no run has read is deleted

# Before JAX is imported; inherited by the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("MUSICLM_CACHE", os.environ["JAX_COMPILATION_CACHE_DIR"])  # where the commands keep theirs
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")  # arrays of different rank need explicit axes

# Each worker has its own numba cache: librosa's functions crash if two processes have filled the same cache at once.
os.environ["NUMBA_CACHE_DIR"] = str(CACHE / "numba" / os.environ.get("PYTEST_XDIST_WORKER", "main"))


def pytest_configure(config: pytest.Config) -> None:
    """Refuses to test an installed copy that is not what this checkout installs."""
    if hasattr(config, "workerinput"):  # the process that starts the workers has looked
        return
    import musiclm_jax

    if found := problem(pathlib.Path(musiclm_jax.__file__).parent, ROOT):
        raise pytest.UsageError(found)
    forget_old_programs()


def forget_old_programs() -> None:
    """Deletes what has not been read for CACHE_DAYS: programs of code that has changed since."""
    oldest = time.time() - 86_400 * CACHE_DAYS
    for path in CACHE.glob("*-cache"):
        if path.stat().st_atime < oldest:
            path.unlink(missing_ok=True)
