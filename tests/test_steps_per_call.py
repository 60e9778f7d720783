"""Several steps in one call: the same steps, periods and signals, at the boundaries that they have."""

import re
import signal

import numpy as np
import pytest
from toy_run import ToyData, ToyLearner, run

from musiclm_jax.training import checkpoints, trainer
from musiclm_jax.training.divergence import DivergedError


def assert_close(one, other):
    np.testing.assert_allclose(one.params["w"], other.params["w"], rtol=1e-5)
    assert int(one.step) == int(other.step)


def test_calls_end_where_a_period_ends():
    settings = {"checkpoint_period": 20, "eval_period": 15, "log_period": 10, "steps_per_call": 4}
    config = trainer.RunConfig(total_steps=23, **settings, profile_steps=(5, 6))
    starts = [0]
    while starts[-1] < 23:
        starts.append(starts[-1] + config.next_call(starts[-1]))
    assert starts == [0, 4, 5, 6, 10, 14, 15, 19, 20, 21, 22, 23]
    with pytest.raises(ValueError, match="steps_per_call is 0, expected a whole number"):
        trainer.RunConfig(total_steps=1, steps_per_call=0)


def test_steps_in_one_call_equal_single_steps(tmp_path, capsys):
    expected = run(tmp_path / "single", 19, log_period=1)
    single = re.findall(r"step (\d+)/19 \| loss (\S+) ", capsys.readouterr().out)
    data = ToyData()
    periods = {"log_period": 10, "checkpoint_period": 12, "eval_period": 6}
    state = run(tmp_path / "calls", 19, data, steps_per_call=3, **periods)
    assert_close(state, expected)
    assert data.served == [(step // 7, step % 7) for step in range(19)]
    out = capsys.readouterr().out
    assert re.findall(r"held out after (\d+) steps", out) == ["6", "12", "18", "19"]
    lines = dict(re.findall(r"step (\d+)/19 \| loss (\S+) ", out))
    assert list(lines) == ["3", "6", "10", "12", "18", "19"]
    of_step = {int(step): float(loss) for step, loss in single}
    for first, last in ((0, 3), (3, 6), (6, 10), (12, 18)):
        mean = np.mean([of_step[step] for step in range(first + 1, last + 1)])
        assert float(lines[str(last)]) == pytest.approx(mean, rel=2e-3), "the mean of the steps since the last line"
    assert checkpoints.load(tmp_path / "calls", 12)[0] == 12


def test_a_stopped_run_resumes_bit_for_bit(tmp_path):
    periods = {"log_period": 10, "checkpoint_period": 8, "eval_period": 6, "steps_per_call": 3}
    expected = run(tmp_path / "whole", 19, **periods)

    class Stopping(ToyData):
        def epoch(self, epoch, skip):
            for index, batch in enumerate(super().epoch(epoch, skip)):
                if (epoch, index + skip // self.batch_size) == (1, 3):  # within the call of steps 10 to 12
                    signal.raise_signal(signal.SIGTERM)
                yield batch

    state = run(tmp_path / "parts", 19, Stopping(), **periods)
    assert 10 < int(state.step) < 14
    resumed = run(tmp_path / "parts", 19, **periods)
    np.testing.assert_array_equal(resumed.params["w"], expected.params["w"])


def test_divergence_within_a_call_names_its_step(tmp_path):
    with pytest.raises(
        DivergedError, match=r"at step 13 \(epoch 1, batch 5\).*after step 15 .*sound checkpoint is step 10"
    ):
        run(tmp_path, 30, learner=ToyLearner(nan_at=12), steps_per_call=5, log_period=5)
    assert {path.name for path in (tmp_path / "diverged").glob("*.npz")} == {
        "batch_12-process_0.npz",
        "batch_13-process_0.npz",
    }
