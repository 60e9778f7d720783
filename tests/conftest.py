"""Settings of all tests."""

import os
import pathlib
import sys

import pytest
from installed_copy import problem

ROOT = pathlib.Path(__file__).parent.parent
# benchmarks/ is not installed with the package. At the end of the path, so that `musiclm_jax` stays the installed one.
sys.path.append(str(ROOT))

# XLA compiles most of the time that tests take. Its programs are kept between runs, and shared by the workers of
# pytest-xdist and by the processes that tests start: set before JAX is imported, and inherited by all of them.
# JAX's keys tell versions, devices and flags apart, and its files appear whole.
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "musiclm_jax" / "tests"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")


def pytest_configure(config: pytest.Config) -> None:
    """Refuses to test an installed copy that is not what this checkout installs."""
    if hasattr(config, "workerinput"):  # the process that starts the workers has looked
        return
    import musiclm_jax

    if found := problem(pathlib.Path(musiclm_jax.__file__).parent, ROOT):
        raise pytest.UsageError(found)
