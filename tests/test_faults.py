"""Every write and every read of a command fails once: one line, finished work stays, and the same command completes it.

The suite tries some of the operations, the nightly tests all of them. The models are replaced; what is read and written
is real.
"""

import dataclasses
import errno
import hashlib
import pathlib
import shutil
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import faults
import jax
import miniature
import numpy as np
import pytest
import test_tokenize_export
import toy_run

from musiclm_jax import bundles
from musiclm_jax.data import audio
from musiclm_jax.evaluation import clips
from musiclm_jax.generation import generate
from musiclm_jax.generation.generate import GeneratedMusic, Request
from musiclm_jax.launch import main, tokenize
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.training import checkpoints, trainer
from musiclm_jax.training.optimizers import OptimizerConfig


def files_of(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the bytes of the files of a finished command, by name; hidden ones are no results."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def states_of(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the arrays of a run's checkpoints by step, and its settings; other bytes hold times."""
    found = {path.name: path.read_bytes() for path in folder.glob("config.*")}
    steps = (folder / checkpoints.FOLDER).glob("[0-9]*")
    for step in sorted(int(path.name) for path in steps if path.name.isdigit()):
        found[f"step {step}"] = [leaf.tolist() for leaf in jax.tree.leaves(checkpoints.load(folder, step)[1])]
    return found


@dataclasses.dataclass
class Job:
    """A command: how its inputs are made, its arguments, and its results.

    Attributes:
      prepare: writes the inputs into a folder.
      arguments: of `musiclm`, for that folder.
      results: what is in the folder "out", by name.
    """

    prepare: Callable[[pathlib.Path], Any]
    arguments: Callable[[pathlib.Path], list[str]]
    results: Callable[[pathlib.Path], dict[str, Any]] = files_of


def write_songs(folder):
    shutil.copytree(miniature.path(), folder / "bundle")
    (folder / "songs").mkdir()
    for number in range(4):
        audio.write(folder / "songs" / f"{number}.wav", 0.1 * np.sin((1 + number) * np.arange(24_000) / 20))
    (folder / "songs" / "0.txt").write_text("a jig\n")


def codes(tokenizers, batch, *unused):
    """Codes that depend on the sound."""
    first = np.array([int(1e4 * abs(clip["audio"][:100]).sum()) % 16 for clip in batch])
    shapes = {"semantic": (25,), "acoustic": (50, 12), "mulan": (12,)}
    return {name: np.broadcast_to(first.reshape(-1, *[1] * len(s)), (len(batch), *s)) for name, s in shapes.items()}


def pieces(bundle, prompts, request, progress=None):
    """Music that depends on the prompt."""
    for prompt in prompts:
        for sample in range(request.num_samples):
            seed = int.from_bytes(hashlib.sha256(f"{prompt}{sample}".encode()).digest()[:4])
            sound = np.random.default_rng(seed).uniform(-0.5, 0.5, 2_400).astype(np.float32)
            yield GeneratedMusic(sound, {}, 0.5, str(prompt), 0, sample)


def train(arguments):
    """Four steps, a checkpoint after every second."""
    config = {"config.json": '{"family": "toy"}\n', "config.gin": "train.total_steps = 4\n"}
    run = trainer.RunConfig(total_steps=4, checkpoint_period=2, eval_period=2, eval_steps=2, log_period=1)
    data = toy_run.ToyData()
    trainer.train(toy_run.ToyLearner(), data, data, arguments[0], run, config_files=config)


def clip_folder(arguments):
    """The clips of an evaluation."""
    captions = {"1": "a jig", "2": "a slow piano", "3": "an organ"}
    clips.generate_clips(bundles.load(arguments[1]), captions, arguments[0], Request(seconds=1.0))


def write_run(folder):
    learner = StageLearner(miniature.STAGES["fine"], miniature.TRANSFORMER, OptimizerConfig())
    test_tokenize_export.training_run(folder / "run", learner)


def copy_bundle(folder):
    shutil.copytree(miniature.path(), folder / "bundle")


JOBS = {
    "tokenize": Job(
        write_songs,
        lambda f: (
            f"tokenize --bundle {f}/bundle --corpus {f}/songs --output {f}/out --shards 2 --clip_seconds 1".split()
        ),
    ),
    "generate": Job(
        copy_bundle,
        lambda f: f"generate jig piano --bundle {f}/bundle --seconds 1 --force --output {f}/out/piece.wav".split(),
    ),
    "pictures": Job(
        copy_bundle,
        lambda f: (
            f"generate jig --bundle {f}/bundle --seconds 1 --force --output {f}/out/piece.flac "
            f"--spectrogram {f}/out/piece.png".split()
        ),
    ),
    "train": Job(lambda f: None, lambda f: ["toy_train", f"{f}/out"], states_of),
    "export": Job(write_run, lambda f: f"export --family fine --model_dir {f}/run --bundle {f}/out".split()),
    "clips": Job(copy_bundle, lambda f: ["toy_clips", f"{f}/out", f"{f}/bundle"]),
}


@pytest.fixture(autouse=True)
def replaced(monkeypatch):
    """Puts the replaced models and the commands of this file in place."""
    monkeypatch.setattr(tokenize, "tokenize_batch", codes)
    monkeypatch.setattr(generate, "pieces", pieces)
    monkeypatch.setattr(clips, "pieces", pieces)
    for name, function in (("toy_train", train), ("toy_clips", clip_folder)):
        module = types.ModuleType(name)
        module.main = function
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(main.COMMANDS, name, (name, ""))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Folders with the inputs of each job, made once."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            JOBS[name].prepare(made[name])
        return made[name]

    return of


class Trial:
    """A job in a folder of its own, which fails and is run again."""

    def __init__(self, name, inputs, folder, capsys):
        self.name, self.job, self.inputs, self.base, self.capsys = name, JOBS[name], inputs(name), folder, capsys
        self.number = 0
        self.whole, self.operations = {}, {}

    def fresh(self):
        """Returns a new folder with the inputs and an empty folder "out"."""
        self.number += 1
        folder = self.base / f"{self.name}-{self.number}"
        shutil.copytree(self.inputs, folder)
        (folder / "out").mkdir()
        return folder

    def run(self, folder, disk):
        with faults.injected(disk):
            code = main.main(self.job.arguments(folder))
        return code, self.capsys.readouterr().err

    def results(self, folder):
        return {name.replace(str(folder), ""): own for name, own in self.job.results(folder / "out").items()}

    def count(self, writes):
        """Returns the operations of a run without faults."""
        folder = self.fresh()
        disk = faults.Disk(folder, writes)
        code, err = self.run(folder, disk)
        assert code == 0, err
        self.whole = self.results(folder)
        shutil.rmtree(folder)
        assert self.whole
        return disk.seen

    def fail(self, writes, index, number, lasting=False):
        """Makes an operation fail, and checks what is left and that the same command completes it."""
        folder = self.fresh()
        disk = faults.Disk(folder, writes, index, number, lasting)
        code, err = self.run(folder, disk)
        what = f"{disk.failed}, {errno.errorcode[number]}{' lasting' * lasting}, {code}: {err}"
        assert disk.failed, what
        lines = err.strip().splitlines()
        assert "Traceback" not in err and "a bug: please report" not in err, what
        if code:
            command = self.job.arguments(folder)[0]
            assert code in (1, 2) and lines[-1].startswith(f"musiclm {command}: "), what
            assert str(folder) in lines[-1], f"the line names no file: {what}"
        left = self.results(folder)
        for name, content in left.items():
            assert content == self.whole.get(name, content), f"{name} is not whole: {what}"
        assert code or left.keys() == self.whole.keys(), what
        assert lasting or disk.failed[0] == "unlink" or not list(folder.rglob("*.partial")), what

        settle(folder)
        code, err = self.run(folder, faults.Disk(folder))
        assert code == 0, f"again: {err} after {what}"
        assert self.results(folder) == self.whole, f"again: {what}"
        shutil.rmtree(folder)


def settle(folder):
    """Waits until nothing changes: in a process that has ended, the threads of a checkpoint would not go on."""
    before = None
    while before != (now := sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))):
        before = now
        time.sleep(0.05)


@pytest.fixture
def trial(inputs, tmp_path, capsys):
    return lambda name: Trial(name, inputs, tmp_path, capsys)


def some(operations, count):
    """Returns the indices of some operations, spread over a run."""
    return [round((index + 0.5) * (len(operations) - 1) / count) for index in range(count)]


# Operations that the suite tries, by job.
SHARES = {"tokenize": 3, "generate": 3, "export": 2, "clips": 3, "train": 1}


@pytest.mark.parametrize("name", SHARES)
def test_writes_that_fail(trial, name):
    job = trial(name)
    for turn, index in enumerate(some(job.count(True), SHARES[name])):
        job.fail(True, index, errno.ENOSPC, lasting=turn % 2 == 1)


@pytest.mark.parametrize("name", ["tokenize", "export"])
def test_reads_that_fail(trial, name):
    job = trial(name)
    for index in some(job.count(False), 2):
        job.fail(False, index, errno.EIO)


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("name", JOBS)
def test_every_write_fails(trial, name, number, lasting):
    job = trial(name)
    for index in range(len(job.count(True))):
        job.fail(True, index, number, lasting)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_every_read_fails(trial, name):
    job = trial(name)
    for index in range(len(job.count(False))):
        job.fail(False, index, errno.EIO)
