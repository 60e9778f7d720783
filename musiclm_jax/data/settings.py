"""The settings that the contents of a folder were made with, so that a resumed command does not mix two kinds."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from musiclm_jax.data import files

FILE = "settings.json"
SHOWN = 3  # entries of a setting that an error names


def check_settings(folder: pathlib.Path, settings: Mapping[str, Any], advice: str) -> None:
    """Writes the settings into a folder that has none, or checks that they are those of the folder.

    Args:
      folder: created if missing.
      settings: values that JSON can hold; tuples equal lists.
      advice: what to do if they differ, for the message.

    Raises:
      ValueError: if the folder has other settings, or they are damaged; names those that differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, asked = folder / FILE, json.loads(json.dumps(settings))
    if not path.exists():
        files.write(path, json.dumps(asked, indent=1) + "\n")
        return
    found = files.read_json(path, f"the settings of the folder are lost, {advice}")
    if differing := _differing(found, asked):
        named = [f"{name}: {_some(found.get(name), asked.get(name))}".removesuffix(": ") for name in differing]
        raise ValueError(f"{folder} was made with other settings ({', '.join(named)}): {advice}")


def _differing(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    return [name for name in {**found, **asked} if found.get(name) != asked.get(name)]


def _some(found: Any, asked: Any) -> str:
    """Names the first entries in which two tables differ; "" for other values."""
    if not isinstance(found, dict) or not isinstance(asked, dict):
        return ""
    names = _differing(found, asked)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
