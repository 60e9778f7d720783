"""The settings of a folder: kept from the first call, compared by later ones."""

import json

import pytest

from musiclm_jax.data.settings import check_settings


def test_settings_of_the_first_call_are_kept_and_compared(tmp_path):
    folder = tmp_path / "new" / "folder"
    settings = {"seed": 1, "guidance": (1.0, 2.0)}
    check_settings(folder, settings, "choose another")
    check_settings(folder, settings, "choose another")
    assert json.loads((folder / "settings.json").read_text()) == {"seed": 1, "guidance": [1.0, 2.0]}
    for changed, name in [({"seed": 2}, "seed"), ({"guidance": (1.0, 3.0)}, "guidance"), ({"top_p": 1.0}, "top_p")]:
        with pytest.raises(ValueError, match=rf"folder was made with other settings \({name}\): choose another"):
            check_settings(folder, settings | changed, "choose another")
    with pytest.raises(ValueError, match=r"\(guidance\)"):  # a setting that is gone
        check_settings(folder, {"seed": 1}, "choose another")
    assert json.loads((folder / "settings.json").read_text())["seed"] == 1


def test_entries_of_a_setting_that_differ_are_named(tmp_path):
    check_settings(tmp_path, {"files": dict.fromkeys("abcdef", 1)}, "x")
    with pytest.raises(ValueError, match=r"\(files: b, c, d and 2 more\)"):
        check_settings(tmp_path, {"files": {"a": 1, "b": 2}}, "x")


def test_damaged_settings_are_named(tmp_path):
    (tmp_path / "settings.json").touch()
    with pytest.raises(ValueError, match=r"settings\.json is damaged .*the settings of the folder are lost, choose"):
        check_settings(tmp_path, {"seed": 1}, "choose another folder")
