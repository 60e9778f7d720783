"""The import rules of ARCHITECTURE.md, read from the sources."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "musiclm_jax"
# weights.py and trill.py read what others released for TensorFlow, only when such an embedder is asked for.
TENSORFLOW_MODULES = {"records.py", "datasets.py", "feature_converter.py", "weights.py", "trill.py"}


def imported(path: pathlib.Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def roots(path: pathlib.Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_package_modules_import_only_what_they_may(path):
    found = roots(path)
    assert not found & {"gin", "absl"}, "only launch/ imports gin and absl"
    if path.name not in TENSORFLOW_MODULES and "corpus" not in path.parts:
        assert not found & {"tensorflow", "seqio", "tensorflow_datasets", "clu"} or path.name == "summaries.py"
    if path.name != "audio.py":
        assert not found & {"librosa", "soundfile"}, "only audio.py imports librosa and soundfile"
    upward = {name for name in imported(path) if name.startswith(("musiclm_jax.launch", "musiclm_jax.tasks"))}
    assert not upward, f"imports point down only: {upward}"


@pytest.mark.parametrize("path", sorted((ROOT / "tasks").glob("*.py")), ids=lambda p: p.name)
def test_tasks_do_not_import_launch_or_gin(path):
    assert not roots(path) & {"gin", "absl"}
    assert not {name for name in imported(path) if name.startswith("musiclm_jax.launch")}
