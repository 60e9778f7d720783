"""The training loop: interrupted and uninterrupted runs are bit-identical; signals, divergence, progress."""

import dataclasses
import gzip
import re
import signal
import time

import jax
import numpy as np
import pytest
import tensorflow as tf
import toy_run
from tensorboard.backend.event_processing import event_accumulator
from toy_run import ToyData, ToyLearner, WarmLearner, read_until, run

from musiclm_jax.training import checkpoints, partitioning, trainer
from musiclm_jax.training.divergence import DivergedError
from musiclm_jax.training.optimizers import OptimizerConfig


def assert_equal_states(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_learns_and_reports(tmp_path, capsys):
    state = run(tmp_path, 60, eval_period=30)
    assert int(state.step) == 60
    out = capsys.readouterr().out
    lines = re.findall(r"^step (\d+)/60 \| loss (\S+) \| (.*)$", out, re.M)
    assert lines[0][0] == "1" and "first step" in lines[0][2]
    assert re.fullmatch(r"\S+ steps/s, \S+ examples/s, \d+ s left", lines[5][2])
    held_out = [float(x) for x in re.findall(r"held out after \d+ steps: loss (\S+)", out)]
    assert len(held_out) == 2 and held_out[1] < 0.5 * held_out[0]
    assert out.rstrip().endswith("done: step 60 of 60")

    events = event_accumulator.EventAccumulator(str(tmp_path), size_guidance={event_accumulator.TENSORS: 0})
    events.Reload()
    assert {"train/loss", "eval/loss", "steps_per_second", "examples_per_second"} <= set(events.Tags()["tensors"])
    assert [event.step for event in events.Tensors("eval/loss")] == [30, 60]


@pytest.mark.parametrize("first", [3, 10, 14])
def test_resumed_in_process_equals_uninterrupted(tmp_path, first):
    """Stops within an epoch, at a checkpoint, and at the end of an epoch (7 batches)."""
    whole, parts = ToyData(), ToyData()
    expected = run(tmp_path / "whole", 19, whole)
    run(tmp_path / "parts", first, parts)
    state = run(tmp_path / "parts", 19, parts)
    assert_equal_states(state, expected)
    assert parts.served == whole.served == [(step // 7, step % 7) for step in range(19)]


def test_a_finished_run_does_nothing_more(tmp_path):
    expected = run(tmp_path, 5)
    data = ToyData()
    assert_equal_states(run(tmp_path, 5, data), expected)
    assert data.served == []


def start(tmp_path, seconds, total_steps=30):
    return toy_run.start(tmp_path / "run", total_steps, seconds)


def losses(folder):
    """Reads the loss of each step from all event files of a run; repeated steps must agree."""
    found = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        events = event_accumulator.EventAccumulator(str(file), size_guidance={event_accumulator.TENSORS: 0})
        events.Reload()
        for event in events.Tensors("train/loss") if "train/loss" in events.Tags()["tensors"] else ():
            value = tf.make_ndarray(event.tensor_proto).item()
            assert found.setdefault(event.step, value) == value
    return found


def test_killed_and_terminated_equals_uninterrupted(tmp_path):
    expected = run(tmp_path / "whole", 30, log_period=1)

    process = start(tmp_path, seconds=0.2)  # slow enough to be hit in mid-epoch
    read_until(process, "step 13/30")
    process.send_signal(signal.SIGKILL)
    process.wait()

    process = start(tmp_path, seconds=0.2)
    resumed = int(re.search(r"from step (\d+) ", read_until(process, "resuming")).group(1))
    assert resumed in (5, 10), "the last complete checkpoint; that of step 10 may be incomplete"
    read_until(process, "step 16/30")
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=900)[0]
    assert process.returncode == 0 and "stopped by a signal, saved at step" in rest
    stopped = int(re.search(r"saved at step (\d+)", rest).group(1))
    assert 16 <= stopped < 30

    data = ToyData()
    assert_equal_states(run(tmp_path / "run", 30, data, log_period=1), expected)
    assert data.served[0] == (stopped // 7, stopped % 7)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole") and len(losses(tmp_path / "run")) == 30


@pytest.mark.slow
def test_killed_at_ten_random_moments_equals_uninterrupted(tmp_path):
    """Three kills while the run starts, the others some steps later: during steps, evaluations and checkpoints."""
    rng = np.random.default_rng(0)
    for number in range(10):
        process = start(tmp_path, seconds=0.05, total_steps=150)
        if number % 3 == 1:
            time.sleep(rng.uniform(2, 5))
        else:
            for _ in range(rng.integers(1, 13)):
                read_until(process, "| loss")
            time.sleep(rng.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert 20 < max(losses(tmp_path / "run")) < 150, "the step of the last kill"

    expected = run(tmp_path / "whole", 150, log_period=1)
    assert_equal_states(run(tmp_path / "run", 150, log_period=1), expected)
    found = losses(tmp_path / "run")
    assert found == losses(tmp_path / "whole") and len(found) == 150


def test_divergence_stops_the_run_and_keeps_good_checkpoints_and_the_batch(tmp_path):
    message = r"loss not finite at step 13 \(epoch 1, batch 5\).*after step 15 .*last sound checkpoint is step 10"
    with pytest.raises(DivergedError, match=message):
        run(tmp_path, 30, learner=ToyLearner(nan_at=12))
    with pytest.raises(DivergedError, match="at step 13"):  # again, overwriting the first one's files
        run(tmp_path, 30, learner=ToyLearner(nan_at=12))
    assert checkpoints.load(tmp_path)[0] == 10
    assert checkpoints.load(tmp_path / "diverged")[0] == 15
    assert {path.name for path in (tmp_path / "diverged").glob("*.npz")} == {
        "batch_12-process_0.npz",
        "batch_13-process_0.npz",
    }
    for step in (12, 13):
        expected = list(ToyData().epoch(1, 0))[step - 8]
        np.testing.assert_array_equal(
            np.load(tmp_path / "diverged" / f"batch_{step}-process_0.npz")["x"], expected["x"]
        )


class Planted(ToyData):
    """NaN in batch 2 of epoch 0."""

    def epoch(self, epoch, skip):
        for index, batch in enumerate(super().epoch(epoch, skip), skip // self.batch_size):
            yield {"x": np.full_like(batch["x"], np.nan)} if (epoch, index) == (0, 2) else batch


def test_a_nan_in_the_data_is_located(tmp_path):
    with pytest.raises(DivergedError, match=r"at step 3 \(epoch 0, batch 2\).*last sound checkpoint is none"):
        run(tmp_path, 30, Planted(), log_period=4)
    assert np.isnan(np.load(tmp_path / "diverged" / "batch_3-process_0.npz")["x"]).all()


def test_divergence_just_before_a_checkpoint_is_not_saved(tmp_path):
    with pytest.raises(DivergedError):
        run(tmp_path, 30, learner=ToyLearner(nan_at=9), log_period=100)
    assert checkpoints.load(tmp_path)[0] == 5


def test_warm_start_sees_the_first_batch_once(tmp_path):
    frozen = WarmLearner(optimizer=OptimizerConfig("adamw", learning_rate=1e-30, warmup_steps=0))
    state = run(tmp_path, 1, learner=frozen)
    (batch, *_) = ToyData().epoch(0, 0)
    np.testing.assert_allclose(state.params["w"], batch["x"].mean(0), rtol=1e-6)
    resumed = run(tmp_path, 9, learner=frozen)
    np.testing.assert_allclose(resumed.params["w"], batch["x"].mean(0), rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class KeyLearner(ToyLearner):
    """Its loss is drawn with the step's key, like dropout."""

    def train_step(self, state, batch, key):
        state, _ = super().train_step(state, batch, key)
        return state, {"loss": jax.random.uniform(key)}


def test_every_step_has_a_key_of_its_own_and_can_be_traced(tmp_path):
    run(tmp_path, 6, learner=KeyLearner(), log_period=1, seed=3, profile_steps=(2, 3))
    base = jax.random.fold_in(jax.random.key(3), 1)
    expected = {step + 1: float(jax.random.uniform(jax.random.fold_in(base, step))) for step in range(6)}
    assert losses(tmp_path) == expected and len(set(expected.values())) == 6
    (trace,) = (tmp_path / "plugins" / "profile").glob("*/perfetto_trace.json.gz")
    text = gzip.decompress(trace.read_bytes()).decode()
    assert set(re.findall(r'"step_num": ?"(\d+)"', text)) == {"2", "3"}
    assert list(trace.parent.glob("*.xplane.pb")), "files that TensorBoard reads"
    with pytest.raises(ValueError, match=r"profile_steps is \(5, 2\), expected the first and the last step"):
        run(tmp_path, 6, profile_steps=(5, 2))


def test_a_step_copies_nothing_implicitly(tmp_path, monkeypatch):
    monkeypatch.setattr(partitioning, "shard_batch", lambda mesh, batch: batch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        run(tmp_path, 3)


def test_seeds_determine_the_run(tmp_path):
    states = [run(tmp_path / str(number), 3, seed=seed) for number, seed in enumerate((0, 0, 1))]
    assert_equal_states(states[0], states[1])
    assert not np.array_equal(states[0].params["w"], states[2].params["w"])


def test_time_alone_can_trigger_a_checkpoint(tmp_path):
    run(tmp_path, 3, ToyData(0.05), checkpoint_period=1000, checkpoint_minutes=0.001 / 60)
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert steps == [1, 2, 3]


class Empty(ToyData):
    """Has no batches."""

    def epoch(self, epoch, skip):
        return iter(())


def test_bad_input_has_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="total_steps is 0, expected a whole number, 1 or more"):
        run(tmp_path, 0)
    with pytest.raises(ValueError, match="training data holds no batch"):
        run(tmp_path, 3, Empty())
    with pytest.raises(ValueError, match="evaluation data holds no batch"):  # before the first step
        trainer.train(ToyLearner(nan_at=0), ToyData(), Empty(), tmp_path, trainer.RunConfig(total_steps=3))
