"""Commands print what concerns the user: no start-up lines of TensorFlow or libtpu, no deprecations of libraries."""

import os
import pathlib
import subprocess
import sys

import miniature
import musiccaps_folder
import pytest
import record_folders

from musiclm_jax.launch import jax_environment

ROOT = pathlib.Path(__file__).parent.parent
NOISE = (
    "oneDNN",
    "cuda",
    "cpu_feature_guard",
    "InitializeLog",
    "WARNING",
    "Warning",
    "E0000",
    "I0000",
    "deprecat",
    "examples/s",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    (base / "songs").mkdir()
    (base / "songs" / "a.wav").write_text("no sound")
    musiccaps = musiccaps_folder.write(base / "musiccaps")
    return {"musiccaps": musiccaps} | {
        "records": record_folders.audio_folder(base / "records"),
        "songs": base / "songs",
        "out": base / "out",
    }


@pytest.mark.parametrize(
    "words",
    [
        "tokenize --bundle {bundle} --corpus {songs} --output {out}/tokens",
        "diagnose --bundle {bundle} --corpus {records} --split train --clips 2 --tokens {songs}",
        "evaluate --gin_file=evaluate_musiccaps.gin --generated {songs} --output {out}/e --gin.DATA_DIR='{musiccaps}' "
        "--gin.BUNDLE='{bundle}' --gin.EMBEDDERS=('mulan',)",
        "export --family w2v_bert --model_dir {songs} --bundle {out}/b --corpus {records}",
    ],
)
def test_tensorflow_starts_without_a_word(folders, words):
    """In a process of its own: the commands end before their work, after TensorFlow was imported."""
    command = words.format(bundle=miniature.path(), **folders).split()
    done = subprocess.run(
        [sys.executable, "-m", "musiclm_jax.launch.main", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert not [line for line in done.stderr.splitlines() if any(noise in line for noise in NOISE)], done.stderr


def test_libtpu_is_told_that_there_is_no_tpu(monkeypatch):
    from jax._src import hardware_utils

    for chips, expected in [(4, None), (0, "localhost")]:
        monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
        monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5e-8")
        monkeypatch.setattr(hardware_utils, "num_available_tpu_chips_and_device_id", lambda count=chips: (count, None))
        jax_environment.quiet_libtpu()
        assert os.environ.get("TPU_WORKER_HOSTNAMES") == expected
        assert os.environ["TPU_ACCELERATOR_TYPE"] == "v5e-8", "what the user has set stays"
