"""`pip install .` is enough for some commands; the others say what they need before they do anything."""

import ast
import importlib.metadata
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

from musiclm_jax.launch import extras, main

ROOT = pathlib.Path(__file__).parent.parent
BLOCKED = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {extras.TRAIN}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
from musiclm_jax.launch import main
"""


@pytest.fixture
def without(monkeypatch):
    """Makes libraries look as if they were not installed."""
    find = importlib.util.find_spec

    def hide(*names):
        monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None if name in names else find(name))

    return hide


def test_the_extra_holds_the_libraries():
    tree = ast.parse((ROOT / "setup.py").read_text())
    [listed] = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "TRAIN"
    )
    distributions = {re.split(r"[><=\[]", requirement)[0] for requirement in listed}
    of = importlib.metadata.packages_distributions()
    assert {name.lower() for module in extras.TRAIN for name in of[module][:1]} <= distributions
    assert not distributions & {re.split(r"[><=\[]", name)[0] for name in base_requirements()}


def base_requirements() -> list[str]:
    return [name for name in importlib.metadata.requires("musiclm_jax") if "extra ==" not in name]


def test_commands_are_named_as_they_are():
    assert set(main.COMMANDS) > extras.NEED_TRAIN


@pytest.mark.parametrize("arguments", [["train", "--gin_file=coarse_tiny.gin"], ["bootstrap", "--pack=x"], ["corpus"]])
def test_a_command_without_its_extra_says_what_to_install(without, capsys, monkeypatch, arguments):
    without("seqio", "gin")
    monkeypatch.setattr(main.importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert main.main(arguments) == 2
    expected = "this command needs seqio, gin, not installed here: pip install 'musiclm_jax[train]'"
    assert capsys.readouterr().err == f"musiclm {arguments[0]}: {expected}\n"


@pytest.mark.parametrize("arguments", [["generate", "piano"], ["describe", "x"], ["bootstrap", "--from", "x"]])
def test_other_commands_do_without(without, arguments):
    without(*extras.TRAIN)
    assert extras.missing(arguments[0], arguments[1:]) is None


def test_nothing_is_missing_here():
    assert extras.missing("train") is None


@pytest.mark.parametrize(
    "arguments", [["generate", "piano", "--seconds=0"], ["describe", "/nowhere/x.wav"], ["listen", "/nowhere"]]
)
def test_commands_run_without_the_libraries_of_training(arguments):
    program = f"{BLOCKED}\nsys.exit(main.main({arguments}))"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "library" not in done.stderr and "install" not in done.stderr


def test_a_library_that_is_found_missing_later_names_its_extra():
    program = f"{BLOCKED}\nmain.extras.missing = lambda *_: None\nsys.exit(main.main(['plan', '--help']))"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(r"No module named '(gin|seqio)': install 'musiclm_jax\[train\]'\n$", done.stderr), done.stderr
