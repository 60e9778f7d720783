"""The settings that the contents of a folder were made with, so that a resumed command does not mix two kinds."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

FILE = "settings.json"


def check_settings(folder: pathlib.Path, settings: Mapping[str, Any], advice: str) -> None:
    """Writes the settings into a folder that has none, or checks that they are those of the folder.

    Args:
      folder: created if missing.
      settings: values that JSON can hold; tuples equal lists.
      advice: what to do if they differ, for the message.

    Raises:
      ValueError: if the folder has other settings; names those that differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, asked = folder / FILE, json.loads(json.dumps(settings))
    if not path.exists():
        path.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if differing := [name for name in found | asked if found.get(name) != asked.get(name)]:
        raise ValueError(f"{folder} was made with other settings ({', '.join(differing)}): {advice}")
