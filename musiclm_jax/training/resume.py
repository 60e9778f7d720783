"""Compares a resumed run with the run so far: what differs is said, what would be wrong is refused."""

import json
from collections.abc import Mapping

from etils import epath

from musiclm_jax.data import files
from musiclm_jax.training.checkpoints import Position

CONFIG = "config.gin"  # all settings of a run, one `NAME = VALUE` a line
MODEL = "config.json"
DATA = "data.json"  # shards and bytes of the training data


def check(
    model_dir: epath.Path, config_files: Mapping[str, str], step: int, total_steps: int, position: Position
) -> list[str]:
    """Compares the settings of a resumed run with those in its folder.

    Args:
      model_dir: folder of the run.
      config_files: settings files that the resumed run will write there.
      step: step of the checkpoint.
      total_steps: step at which the resumed run ends.
      position: position in the data.

    Returns:
      The settings that differ, as "NAME BEFORE -> NOW".

    Raises:
      ValueError: if the run is beyond total_steps already, trained another family, or would read the rest of an epoch
        in another order.
    """
    if step > total_steps:
        raise ValueError(
            f"{model_dir} is at step {step:,} already, total_steps is {total_steps:,}: give more steps to continue, or "
            "another model_dir"
        )
    before = {name: _read(model_dir / name) for name in (CONFIG, MODEL, DATA)}
    families = [_family(found.get(MODEL, "")) for found in (before, config_files)]
    if None not in families and families[0] != families[1]:
        raise ValueError(f"{model_dir} trained {families[0]}, not {families[1]}: give another model_dir")
    if not before[CONFIG] or CONFIG not in config_files:
        return []
    old, new = (settings(found[CONFIG]) | _data(found.get(DATA, "")) for found in (before, config_files))
    seeds = [_value(lines, "train.data_seed", "0") for lines in (old, new)]
    if seeds[0] != seeds[1] and position.examples:
        raise ValueError(
            f"{model_dir} read {position.examples:,} examples of epoch {position.epoch} in the order of data_seed "
            f"{seeds[0]}: with data_seed {seeds[1]} it would read some of them again and skip others; keep the seed, "
            "or give another model_dir"
        )
    return [
        f"{name} {old.get(name, 'not set')} -> {new.get(name, 'not set')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def settings(config: str) -> dict[str, str]:
    """Returns the values in a gin configuration by their names; a backslash continues a line."""
    lines = config.replace("\\\n", " ").splitlines()
    pairs = [line.split(" = ", 1) for line in lines if " = " in line and not line.startswith("#")]
    return {name.strip(): " ".join(value.split()) for name, value in pairs}


def _value(lines: Mapping[str, str], name: str, default: str) -> str:
    """Returns a setting, or the macro that it names."""
    value = lines.get(name, default)
    return lines.get(value[1:], value) if value.startswith("%") else value


def _family(content: str) -> str | None:
    """Returns the family in a config.json; None without one, since its loss harms only `musiclm export`."""
    try:
        return json.loads(content)["family"]
    except (ValueError, KeyError, TypeError):
        return None


def _data(content: str) -> dict[str, str]:
    """Returns the amounts in a data.json, as settings."""
    try:
        return {f"training data in {name}": f"{amount:,}" for name, amount in json.loads(content).items()}
    except (ValueError, AttributeError, TypeError):
        return {}


def _read(path: epath.Path) -> str:
    with files.naming(path):
        return path.read_text() if path.exists() else ""
