"""The code blocks of README.md, docs/ and the other pages: their programs, flags, gin files and imports exist.

Commands are parsed by their own parsers and stop where their work would begin.
"""

import argparse
import ast
import importlib
import importlib.metadata
import pathlib
import re
import shlex
import subprocess
import sys

import gin
import pytest

from musiclm_jax.launch import main, train

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("musiclm_jax/bundles/*/*.md")])
# Programs of other projects: what they are given is not checked here.
OTHERS = {
    "cd",
    "cp",
    "ffmpeg",
    "gcloud",
    "git",
    "kubectl",
    "mypy",
    "pre-commit",
    "printf",
    "ruff",
    "source",
    "tensorboard",
}
OTHERS |= {"wait"}  # of the shell
CHECKED = {"musiclm", "python", "pip", "pytest", ".ci/run", ".ci/nightly"}
WITHOUT_COMMANDS = {"safety"}  # pages of docs/
GIN_COMMANDS = {"train", "plan", "evaluate"}


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of each fenced code block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def is_shell(block: str) -> bool:
    """Whether a block without a language holds commands: others show what a program printed, or a diagram."""
    word = re.match(r"\S*", block)[0]
    return word in CHECKED | OTHERS | {"taskset"} or word.startswith("launch/") or bool(re.match(r"\w+(=|\(\))", word))


def commands(block: str) -> list[list[str]]:
    """The commands of a block of shell, each as words; without comments, assignments and redirections."""
    functions = {"}", *re.findall(r"^(\w+)\(\)", block, re.MULTILINE)}
    found: list[list[str]] = []
    for line in re.sub(r"\\\n", " ", block).replace("$1", "1").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split = True
        found.append([])
        for word in (words := iter(lexer)):
            if set(word) <= set("<>"):
                next(words)
            elif set(word) <= set(";&|"):
                found.append([])
            elif found[-1] or not re.fullmatch(r"\w+\(\)|\{|[A-Z_]+=.*", word):
                found[-1].append(word)
    found = [words[3:] if words[:2] == ["taskset", "-c"] else words for words in found]
    return [words for words in found if words and words[0] not in functions]


class Parsed(BaseException):
    """Raised instead of the work that a command would begin: its arguments and those that its parser does not know."""


@pytest.fixture(autouse=True)
def parse_only(monkeypatch):
    parse = argparse.ArgumentParser.parse_known_args

    def parse_known_args(parser, *arguments):
        raise Parsed(*parse(parser, *arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    yield
    gin.clear_config()


def parsed(run, *arguments) -> argparse.Namespace:
    """The arguments of a program, as its parser reads them.

    Raises:
      ValueError: if the parser refuses them.
    """
    try:
        run(*arguments)
    except SystemExit as end:
        raise ValueError("its parser refuses the arguments, see the captured standard error") from end
    except Parsed as found:
        args, rest = found.args
        args.gin = [argument.removeprefix("--gin.") for argument in rest]
        if unknown := [argument for argument in rest if not argument.startswith("--gin.")]:
            raise ValueError(f"it has no argument {unknown[0]}") from None
        return args
    raise ValueError("it parses no arguments")


def check_musiclm(name: str, *arguments: str) -> None:
    if name == "--help" or name == "--version":
        return
    if name not in main.COMMANDS:
        raise ValueError(f"musiclm has no command {name}")
    if "--help" in arguments:
        return
    args = parsed(importlib.import_module(main.COMMANDS[name][0]).main, list(arguments))
    if name in GIN_COMMANDS:
        no_data = ["DATA_DIR = None"] if name == "plan" or "--dry_run" in arguments else []
        train.parse_gin(args.gin_file or ["evaluate.gin"], no_data + args.gin)
    elif args.gin:
        raise ValueError(f"it has no argument --gin.{args.gin[0]}")


def check_module(monkeypatch, option: str, name: str, *arguments: str) -> None:
    """`python -m name arguments`, or `python -c name`."""
    if option == "-c":
        return check_imports(name)
    if option != "-m":
        raise ValueError(f"python {option}: expected -m or -c")
    if name.split(".")[0] == "t5x":  # Orbax refuses relative paths
        relative = [
            given
            for given in arguments
            if re.match(r"--gin\.(MODEL_DIR|CHECKPOINT_PATH|\w+_OUTPUT_DIR)='(?!\$PWD/)", given)
        ]
        assert not relative, f"{relative}: give an absolute path"
        return None
    if name in {"pytest", "venv"}:
        return None
    assert (ROOT / f"{name.replace('.', '/')}.py").is_file(), f"no module {name} in the clone"
    module = importlib.import_module(name.replace("launch.", "musiclm_jax.launch."))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    parsed(module.main)
    return None


def check_pip(*arguments: str) -> None:
    extras = set(importlib.metadata.metadata("musiclm_jax").get_all("Provides-Extra"))
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if option in ("-r", "-c") and not (ROOT / value).is_file():
            raise ValueError(f"no file {value}")
        if (found := re.fullmatch(r"\.\[(.*)\]", option)) and not set(found[1].split(",")) <= extras:
            raise ValueError(f"no extra {found[1]}: setup.py has {', '.join(sorted(extras))}")


def check_script(script: str, *arguments: str) -> None:
    """A script in launch/: its help lists every option."""
    listed = subprocess.run([ROOT / script, "--help"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    options = [argument.split("=")[0] for argument in arguments if argument.startswith("--")]
    for option in {re.sub(r"^--gin\..*", "--gin.NAME", option) for option in options}:
        if not re.search(rf"^  {re.escape(option)} ", listed, re.MULTILINE):
            raise ValueError(f"--help of the script does not list {option}")
    if files := [argument.split("=")[1] for argument in arguments if argument.startswith("--gin_file=")]:
        train.parse_gin(files, [argument.removeprefix("--gin.") for argument in arguments if "--gin." in argument])


def check_paths(*arguments: str) -> None:
    """The test files of a call of pytest."""
    for argument in arguments:
        if argument.endswith(".py") and not (ROOT / argument).is_file():
            raise ValueError(f"no file {argument}")


def check_imports(code: str) -> None:
    """Imports of this repository's modules and names."""
    for node in ast.walk(ast.parse(code)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [str(node.module)]
        for module in modules:
            if module.split(".")[0] in ("musiclm_jax", "benchmarks"):
                importlib.import_module(module)
                for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                    if not hasattr(sys.modules[module], alias.name):
                        importlib.import_module(f"{module}.{alias.name}")


def check(monkeypatch, program: str, *arguments: str) -> None:
    """Raises if a command cannot be run as it is written."""
    if program == "musiclm":
        check_musiclm(*arguments)
    elif program == "python":
        check_module(monkeypatch, *arguments)
    elif program == "pip":
        check_pip(*arguments)
    elif program == "pytest":
        check_paths(*arguments)
    elif program.endswith(".sh"):
        check_script(program, *arguments)
    elif program in CHECKED:
        if not (ROOT / program).is_file():
            raise ValueError(f"no file {program}")
    elif program not in OTHERS:
        raise ValueError("a program that this test does not know: add it to OTHERS, or check it")


def faults(monkeypatch, text: str) -> tuple[list[str], int]:
    """What is wrong with the code blocks of a page, and the number of commands that were checked."""
    found, count = [], 0
    for language, block in blocks(text):
        if language == "python":
            try:
                check_imports(block)
            except (ImportError, SyntaxError) as error:
                found.append(f"{error}, in:\n{block}")
        elif language in ("bash", "sh") or (not language and is_shell(block)):
            # What a substitution holds is a command, too.
            for words in commands(block) + [["python", "-c", code] for code in re.findall(r"python -c '(.*?)'", block)]:
                try:
                    check(monkeypatch, *words)
                except (ImportError, TypeError, ValueError, AssertionError) as error:
                    found.append(f"{shlex.join(words)}: {error}")
                count += 1
    return found, count


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_page(page, monkeypatch):
    found, count = faults(monkeypatch, page.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)
    expected = page.parent.name == "docs" and page.stem not in WITHOUT_COMMANDS
    assert count or not expected, "every page of docs/ has commands: are they recognised?"


@pytest.mark.parametrize(
    "command, message",
    [
        ("musiclm generate piano --second 4", "no argument --second"),
        ("musiclm sing", "no command sing"),
        ("musiclm train --gin_file=semantic_tiny.gin --dry_run --gin.BATCH_SIZ=4", "no macro 'BATCH_SIZ'"),
        ("musiclm train --gin_file=semantic_small.gin", "no gin file"),
        ("musiclm export --family drums --model_dir x --bundle y", "refuses"),
        ("taskset -c 0 python -m benchmarks.decode --party stage", "no argument"),
        ("python -m benchmarks.decoding", "no module"),
        ("python -m t5x.train --gin.DATA_DIR=\"'tokens'\" --gin.MODEL_DIR=\"'run'\"", "give an absolute path"),
        ("FOO=1 launch/local.sh --gin_file=semantic_tiny.gin --restart=3", "does not list --restart"),
        ("pip install '.[tests]' && pytest", "no extra tests"),
        ("pytest tests/test_nothing.py  # one file", "no file tests/test_nothing.py"),
        ("cp -r x y; sing", "does not know"),
        ("python -c 'from musiclm_jax.training import trainers'", "trainers"),
    ],
)
def test_a_wrong_command_is_found(command, message, monkeypatch, capsys):
    page = f"Text.\n\n```\nmusiclm --help\n{command}\n```\n"
    found, _ = faults(monkeypatch, page)
    assert found and message in found[0]
