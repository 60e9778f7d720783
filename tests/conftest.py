"""Settings of all tests."""

import pathlib
import sys

# benchmarks/ is not installed with the package. At the end of the path, so that `musiclm_jax` stays the installed one.
sys.path.append(str(pathlib.Path(__file__).parent.parent))
