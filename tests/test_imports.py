"""The import rules of ARCHITECTURE.md, read from the sources."""

import ast
import graphlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "musiclm_jax"
# The rooms, lowest first, and the rooms that each may import.
ROOMS = {
    "data": set(),
    "kernels": set(),
    "training": {"data"},
    "corpus": {"data"},
    "tokenizers": {"data", "training"},
    "stages": {"data", "kernels", "training"},
    "bundles": {"data", "kernels", "tokenizers", "stages"},
    "planning": {"data", "stages", "training"},
    "generation": {"data", "kernels", "tokenizers", "stages", "bundles"},
    "evaluation": {"data", "tokenizers", "stages", "bundles", "generation"},
    "bootstrap": {"data", "training", "corpus", "tokenizers", "stages", "bundles"},
}
TENSORFLOW = {"tensorflow", "seqio", "tensorflow_datasets", "clu"}
# weights.py and trill.py read TensorFlow models of other authors; they import TensorFlow only if such a model is used.
TENSORFLOW_MODULES = {
    "data/records.py",
    "data/datasets.py",
    "data/feature_converter.py",
    "evaluation/embedders/weights.py",
    "evaluation/embedders/trill.py",
}


def imported(path: pathlib.Path) -> set[str]:
    """Returns the names that a module imports anywhere, including those in lazy tables ("module:function")."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"musiclm_jax(\.\w+)+:\w+", str(node.value)):
            names.add(str(node.value).split(":")[0])
    return names


def roots(path: pathlib.Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def rooms(path: pathlib.Path) -> set[str]:
    return {parts[1] for name in imported(path) if (parts := name.split("."))[0] == "musiclm_jax" and len(parts) > 1}


def inside(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


MODULES = sorted(PACKAGE.rglob("*.py"))
IN_ROOMS = [path for path in MODULES if path.parent != PACKAGE]


def test_every_room_has_rules():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)
    assert [path.name for path in MODULES if path.parent == PACKAGE] == ["__init__.py"]


@pytest.mark.parametrize("path", IN_ROOMS, ids=inside)
def test_rooms_import_only_rooms_below(path):
    room = inside(path).split("/")[0]
    above = (rooms(path) & (set(ROOMS) | {"launch", "tasks"})) - ROOMS[room] - {room}
    assert not above, f"{room}/ may import {sorted(ROOMS[room])}, not {sorted(above)}"


@pytest.mark.parametrize("path", [p for p in IN_ROOMS if inside(p).startswith(("stages", "tokenizers"))], ids=inside)
def test_models_know_nothing_of_training(path):
    if path.name not in {"learner.py", "__init__.py"}:
        assert "training" not in rooms(path), "of a model's modules only learner.py imports training/"


def test_rules_have_no_cycles():
    """The rules themselves have no cycle, and name only rooms."""
    order = list(graphlib.TopologicalSorter(ROOMS).static_order())
    assert set(order) == set(ROOMS)


def test_imports_have_no_cycles():
    modules = {".".join(("musiclm_jax", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in IN_ROOMS}
    graph = {}
    for name, path in modules.items():
        if path.name != "__init__.py":
            graph[name] = {other for other in imported(path) if other in modules} - {name}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py" and p.parent != PACKAGE], ids=inside)
def test_a_rooms_face_has_no_code(path):
    docstring, *rest = ast.parse(path.read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    for node in rest:
        exported = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        assert exported or isinstance(node, ast.ImportFrom), ast.unparse(node)
    if path.parent.parent == PACKAGE:
        assert "Imports " in docstring.value.value, "the face of a room says what the room may import"


@pytest.mark.parametrize("path", MODULES, ids=inside)
def test_libraries_stay_in_their_modules(path):
    found = roots(path)
    assert not found & {"gin", "absl"}, "only launch/ imports gin and absl"
    if inside(path) not in TENSORFLOW_MODULES and "corpus" not in path.parts:
        assert not found & TENSORFLOW
    if path.name != "audio.py":
        assert not found & {"librosa", "soundfile"}, "only data/audio.py imports librosa and soundfile"


@pytest.mark.parametrize("path", sorted((ROOT / "tasks").glob("*.py")), ids=lambda p: p.name)
def test_tasks_do_not_import_launch_or_gin(path):
    assert not roots(path) & {"gin", "absl"}
    assert "launch" not in rooms(path)
