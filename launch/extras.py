"""The libraries that some commands need in addition to those of `pip install .`."""

import importlib.util
from collections.abc import Sequence

NEED_TRAIN = frozenset({"corpus", "tokenize", "train", "plan", "export", "evaluate", "diagnose"})
TRAIN = ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "gin", "clu")


def missing(command: str, arguments: Sequence[str] = ()) -> str | None:
    """Returns one line if a command needs an extra that is not installed, before it does any work; else None.

    Args:
      command: name of the subcommand of `musiclm`.
      arguments: its arguments; `bootstrap` needs the extra only to make a pack.
    """
    packs = command == "bootstrap" and any(argument.split("=")[0] == "--pack" for argument in arguments)
    if command not in NEED_TRAIN and not packs:
        return None
    absent = [name for name in TRAIN if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"this command needs {', '.join(absent)}, not installed here: pip install 'musiclm_jax[train]'"


def providing(module: str) -> str | None:
    """Returns the extra that installs a top-level module, or None if it belongs to every installation."""
    return "train" if module in TRAIN else None
