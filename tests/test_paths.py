"""Paths that users give: home folders, empty ones, URLs, patterns, names of other encodings, and the current folder."""

import argparse
import json
import os

import jax
import numpy as np
import pytest
import record_folders
from etils import epath

from musiclm_jax import bundles
from musiclm_jax.bundles import BundleError
from musiclm_jax.data import audio, files, records
from musiclm_jax.data.datasets import TaskDataset
from musiclm_jax.evaluation import clips
from musiclm_jax.evaluation.listening_test import answers
from musiclm_jax.launch import command, main, train
from musiclm_jax.tasks import coarse
from musiclm_jax.tasks import corpus as corpus_task
from musiclm_jax.training import checkpoints

# Options that take text that is no path.
TEXTS = {
    *("prompts", "--at", "--mix", "--system", "--gin_bindings", "--topology", "--split", "--parts", "--listener"),
    "--coordinator_address",
}
ODD_NAMES = ["a[x]", "a*", "a?b", "a\\b", "été", "a b"]


def options(name, monkeypatch):
    """Returns the arguments of a command that are not numbers, choices or switches."""
    seen = []

    def parse(self, *unused):
        seen.append(self)
        raise SystemExit(0)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
        main.main([name])
    return [
        action
        for action in seen[0]._actions
        if action.nargs != 0 and not action.choices and action.type not in (int, float)
    ]


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_path_of_a_command_is_checked(name, monkeypatch):
    found = 0
    for action in options(name, monkeypatch):
        label = (action.option_strings or [action.dest])[0]
        if label in TEXTS:
            continue
        assert action.type is not None, f"{label} of {name} has no type of launch/command.py"
        assert action.type("~/x") == os.path.expanduser("~/x")
        with pytest.raises(argparse.ArgumentTypeError, match="the path is empty"):
            action.type("")
        if action.type is not command.path_or_bucket:
            with pytest.raises(argparse.ArgumentTypeError, match="is a URL: give a path on this machine"):
                action.type("gs://bucket/x")
        found += 1
    assert found


def test_a_url_leaves_no_folder_of_that_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main.main(["corpus", "--output=gs://bucket/corpus", "--hours=0.1"])
    err = capsys.readouterr().err
    assert end.value.code == 2 and "argument --output: 'gs://bucket/corpus' is a URL" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["s3://bucket/x", "hdfs://host/x", "gs://bucket/x"])
def test_a_bucket_that_cannot_be_read_says_why_in_one_line(url, monkeypatch):
    def glob(self, pattern):
        raise RuntimeError(f"Could not resolve host: {self}\n\twhen reading")

    if url.startswith("gs"):
        monkeypatch.setattr(type(epath.Path(url)), "glob", glob)
    for read in (lambda: records.shard_paths(url, "train"), lambda: checkpoints.load(url)):
        with pytest.raises(ValueError, match=rf"^{url}\S* cannot be read \(.+\): check the name") as raised:
            read()
        assert "\n" not in str(raised.value) and "None" not in str(raised.value)
    with pytest.raises(ValueError, match=r"cannot be read \(.+\): check"), checkpoints.open_manager(url):
        pass


def test_a_home_folder_is_found_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    bundles.save_generation("~/b", bundles.GenerationConfig())
    assert bundles.load("~/b").path == tmp_path / "b"
    audio.write("~/x.wav", np.full(2400, 0.1, np.float32))
    assert len(audio.load("~/x.wav")) == 2400
    record_folders.token_folder(tmp_path / "tokens")
    assert records.shard_paths("~/tokens", "train")[0].startswith(str(tmp_path))
    assert str(checkpoints.run_folder("~/run")) == str(tmp_path / "run")
    before = jax.config.jax_compilation_cache_dir
    try:
        for variable, expected in (("MUSICLM_CACHE", "c"), ("XDG_CACHE_HOME", "c/musiclm_jax")):
            monkeypatch.delenv("MUSICLM_CACHE", raising=False)
            monkeypatch.setenv(variable, "~/c")
            command.enable_compilation_cache()
            assert jax.config.jax_compilation_cache_dir == str(tmp_path / expected)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_records_are_found_in_folders_of_any_name(tmp_path, name):
    record_folders.token_folder(tmp_path / name)
    task = coarse.coarse_task(str(tmp_path / name), crop_seconds=0.4)
    plain = coarse.coarse_task(str(record_folders.token_folder(tmp_path / "plain")), crop_seconds=0.4, name="plain")
    counts = [sum(1 for _ in TaskDataset(own, "train", 1).epoch(0)) for own in (task, plain)]
    assert counts[0] == counts[1] > 0


def test_the_current_folder_does_not_hide_what_is_shipped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bundles.save_generation(tmp_path / "tiny", bundles.GenerationConfig())
    assert bundles.load("tiny").path == bundles.bundle.SHIPPED / "tiny"
    assert bundles.load("./tiny").path.resolve() == tmp_path / "tiny"
    assert command.bundle("tiny") == "tiny" and "the folder here is ./tiny" in capsys.readouterr().err
    (tmp_path / "coarse.gin").write_text("nonsense")
    train.parse_gin(["coarse.gin"], ["DATA_DIR = None"])
    assert "the one here is ./coarse.gin" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"Couldn't parse statement"):
        train.parse_gin(["./coarse.gin"], [])
    with pytest.raises(ValueError, match=r"there is no gin file 'elsewhere/coarse\.gin'"):
        train.parse_gin(["elsewhere/coarse.gin"], [])


def test_a_part_is_not_exported_into_the_package_or_beside_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = main.main(["export", "--family=coarse", "--model_dir=run", "--bundle=tiny"])
    assert code == 2 and "is a bundle of the package: a folder of that name is ./tiny" in capsys.readouterr().err
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize("given", ["", "gs://bucket/b"])
def test_a_bundle_in_a_bucket_or_nowhere_is_refused(given):
    with pytest.raises(BundleError, match=r"the path is empty|is a URL"):
        bundles.load(given)


def test_texts_about_files_of_other_encodings_are_written(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    files.write(tmp_path / "report.json", json.dumps({"broken": name}, ensure_ascii=False))
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == {"broken": name}
    answers.append(tmp_path / "answers.jsonl", answers.Answer(name, "x", "y", 1))
    assert answers.read(tmp_path / "answers.jsonl")[0].id == name


@pytest.mark.parametrize("name", ["x" * 252, "é" * 126, "a/b"])
def test_ids_that_are_no_file_names_are_refused_before_the_music_is_made(tmp_path, name):
    with pytest.raises(ValueError, match="is not a valid file name: rename it"):
        clips.generate_clips(None, {name: "a jig"}, tmp_path / "clips", None)


def test_a_build_in_a_bucket_has_no_cache():
    assert corpus_task.state("gs://bucket/corpus") == ""
