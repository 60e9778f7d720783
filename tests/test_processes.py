"""Runs of several processes: equal to one process, separate shards, checkpoints for any number of processes, stops."""

import os
import re
import signal
import socket
import subprocess
import sys

import gin
import jax
import numpy as np
import pytest
import tensorflow as tf
from test_gin_configs import SMALL
from test_trainer import read_until

from musiclm_jax.data import records
from musiclm_jax.data.datasets import TaskDataset
from musiclm_jax.launch import main, train
from musiclm_jax.training import checkpoints, partitioning, trainer

STEPS = 5
BATCH = 8


class Joined:
    """The data of two hosts, joined to one batch; an epoch ends with the shorter one of the two hosts."""

    batch_size = BATCH

    def __init__(self, task, split, shuffle):
        self.parts = [TaskDataset(task, split, BATCH, shuffle=shuffle, host=host, hosts=2) for host in range(2)]

    def epoch(self, epoch, skip=0):
        """Yields joined batches while both hosts have some."""
        for pair in zip(*(part.epoch(epoch, skip) for part in self.parts), strict=False):
            yield {name: np.concatenate([one[name] for one in pair]) for name in pair[0]}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Token records in 4 shards; the second host's shards are longer, so that the two hosts' epochs differ."""
    folder = tmp_path_factory.mktemp("tokens")
    rng = np.random.default_rng(0)
    for split in records.SPLITS:
        for shard in range(4):
            with tf.io.TFRecordWriter(str(records.shard_path(folder, split, shard, 4))) as writer:
                for number in range(10 + 5 * (shard % 2)):
                    codes = {
                        "semantic": rng.integers(0, 1024, 4),
                        "acoustic": rng.integers(0, 1024, (8, 12)),
                        "mulan": rng.integers(0, 1024, 12),
                    }
                    name = f"{split}{shard}-{number}"
                    facts = {"caption": ["x"], "instrument": "flute", "composition": name, "held_out_pair": 0}
                    writer.write(records.token_example(id=name, **facts, **codes))
    return folder


@pytest.fixture
def arguments(tokens, tmp_path):
    """Arguments of the train command except model_dir; the embedding's rows are divisible by 4 and 2."""
    (tmp_path / "small.gin").write_text(SMALL)
    bindings = {
        "DATA_DIR": f"'{tokens}'",
        "TRAIN_STEPS": STEPS,
        "BATCH_SIZE": BATCH,
        "train.eval_steps": 9,
        "OptimizerConfig.learning_rate": 0.01,
        "OptimizerConfig.warmup_steps": 0,
        "OptimizerConfig.eps": 1e-3,  # updates from rounding errors should stay small
        "make_mesh.fsdp": 2,
        "make_mesh.tensor": 2,
        "train.mesh": "@make_mesh()",
    }
    return [f"--gin_file={tmp_path / 'small.gin'}", *(f"--gin.{name}={value}" for name, value in bindings.items())]


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(arguments, processes, devices):
    """Starts the command in several processes with several devices each."""
    port = free_port()
    environment = dict(
        os.environ,
        TF_CPP_MIN_LOG_LEVEL="3",
        JAX_PLATFORMS="cpu",
        XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
    )
    command = [sys.executable, "-P", "-m", "musiclm_jax.launch.main", "train", *arguments]
    command += [f"--coordinator_address=localhost:{port}", f"--process_count={processes}"]
    return [
        subprocess.Popen(
            [*command, f"--process_index={index}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for index in range(processes)
    ]


def finish(processes):
    """Returns the output of the processes; all must succeed."""
    try:
        out = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(out)
    return out


def loss_of(line):
    return float(re.search(r"held out after \d+ steps: .*? loss ([\d.]+)", line).group(1))


def train_alone(arguments, folder):
    """Takes the same steps in this process, with the data of two hosts; returns the final state."""
    train.parse_gin([arguments[0].split("=")[1]], [a.removeprefix("--gin.") for a in arguments[1:-3]])
    bound = gin.get_bindings("train")
    gin.clear_config()
    data = [Joined(bound["task"], split, shuffle) for split, shuffle in (("train", True), ("validation", False))]
    run = trainer.RunConfig(total_steps=STEPS, eval_steps=9, log_period=1)
    return trainer.train(bound["learner"], *data, folder, run, mesh=partitioning.make_mesh(1))


def test_two_processes_take_the_steps_of_one(arguments, tmp_path, capsys):
    out = finish(start([*arguments, f"--model_dir={tmp_path / 'two'}"], 2, 4))
    assert "mesh {'data': 2, 'fsdp': 2, 'tensor': 2}" in out[0] and "step" not in out[1], "only process 0 reports"
    step, found = checkpoints.load(tmp_path / "two")
    assert step == STEPS
    expected = train_alone(arguments, tmp_path / "one")
    for one, other in zip(jax.tree.leaves(expected.params), jax.tree.leaves(found["params"]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    assert loss_of(out[0]) == pytest.approx(loss_of(capsys.readouterr().out), rel=1e-3)


@pytest.mark.slow
def test_two_processes_resume_a_run_of_one_and_a_signal_to_one_stops_both(arguments, tmp_path, capsys):
    train_alone(arguments, tmp_path / "one")
    longer = [a.replace(f"TRAIN_STEPS={STEPS}", "TRAIN_STEPS=100000") for a in arguments]
    processes = start([*longer, f"--model_dir={tmp_path / 'one'}"], 2, 2)
    read_until(processes[0], f"resuming from step 5 (epoch 0, example {5 * BATCH})")
    read_until(processes[0], "step 20/")
    processes[1].send_signal(signal.SIGTERM)
    out = finish(processes)
    stopped = int(re.search(r"stopped by a signal, saved at step ([\d,]+)", out[0]).group(1).replace(",", ""))
    assert 20 <= stopped < 100_000
    assert checkpoints.load(tmp_path / "one")[0] == stopped

    # 20 and 30 examples in batches of 4 give epochs of 5 and 7 batches, so the processes were in different epochs.
    folder = f"--model_dir={tmp_path / 'one'}"
    assert main.main(["train", *arguments[:-3], f"--gin.TRAIN_STEPS={stopped + 1}", folder]) == 0
    epoch, batch = min(((stopped - 1) // length, (stopped - 1) % length + 1) for length in (5, 7))
    resumed = f"resuming from step {stopped} (epoch {epoch}, example {BATCH * batch})"
    assert resumed in capsys.readouterr().out, "at the earlier position of the two processes"
    assert checkpoints.load(tmp_path / "one")[0] == stopped + 1


@pytest.mark.parametrize(
    "given, message",
    [
        (["--process_count=2"], "belong together"),
        (["--coordinator_address=localhost:1", "--process_count=2", "--process_index=2"], "expected 0 to 1"),
    ],
)
def test_incomplete_addresses_have_a_clear_error(arguments, tmp_path, capsys, given, message):
    assert main.main(["train", *arguments, *given, f"--model_dir={tmp_path}"]) == 2
    assert message in capsys.readouterr().err
