"""The arithmetic of the speed benchmarks, on literals."""

import jax
import pytest

from benchmarks import train_step
from benchmarks.train_step import MATMULS, OURS, PYTORCH, T5X, Seconds
from musiclm_jax.stages.layout import coarse_stage
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training.optimizers import OptimizerConfig


def test_ratios_follow_the_clock():
    matmul = 2.0 * train_step.MATMUL_SIDE**3 / 100e9  # seconds at 100 GFLOP/s
    times = {MATMULS[0]: Seconds(matmul, matmul / 2), MATMULS[1]: Seconds(2 * matmul, matmul)}
    times |= {OURS: Seconds(4.0, 2.0), PYTORCH: Seconds(5.0, 4.0), T5X: Seconds(6.0, 1.9)}
    wall = train_step.figures(times, 1000, 250e9, "wall", 2)
    by_name = {figure.name: figure for figure in wall}
    assert by_name["float32 matmul peak, GFLOP/s"].value == pytest.approx(100)
    assert by_name["our tokens/s"].value == pytest.approx(250)
    assert by_name["our MFU"].value == pytest.approx(0.625) and by_name["our MFU"].passed
    assert by_name["ours over PyTorch"].value == pytest.approx(1.25) and not by_name["ours over PyTorch"].passed
    assert by_name["ours over T5X"].value == pytest.approx(1.5) and by_name["ours over T5X"].passed

    del times[PYTORCH]
    by_name = {figure.name: figure for figure in train_step.figures(times, 1000, 250e9, "processor", 2)}
    assert by_name["float32 matmul peak, GFLOP/s"].value == pytest.approx(400), "half the time on each of two threads"
    assert by_name["our tokens/s"].value == pytest.approx(1000)
    assert by_name["ours over T5X"].value == pytest.approx(0.95) and not by_name["ours over T5X"].passed
    assert "ours over PyTorch" not in by_name


def test_steps_run_in_turn_and_the_first_round_does_not_count(monkeypatch):
    order, clock = [], iter(range(1000))
    monkeypatch.setattr(train_step, "MATMUL_RUNS", 2)
    monkeypatch.setattr(train_step, "matmul_steps", lambda: {"matmul": lambda: order.append("m")})
    monkeypatch.setattr(train_step.time, "process_time", lambda: float(next(clock)) ** 2)

    def make(name):
        order.append(name.upper())
        return lambda: order.append(name)

    times = train_step.least_seconds({"a": lambda: make("a"), "b": lambda: make("b")}, 1)
    assert order == list("AmmammaBmmbmmb")
    # A run takes from n^2 to (n + 1)^2, n = 0, 2, 4, ...: a's second begins at 10, b's at 22, the first matmul at 0.
    assert [times[name].processor for name in ("a", "b", "matmul")] == [21, 45, 1]


def test_pytorchs_stack_has_our_parameters():
    pytest.importorskip("transformers")
    config = TransformerConfig(num_layers=2, num_heads=2, d_model=16, d_ff=24)
    learner = StageLearner(coarse_stage(), config, OptimizerConfig())
    ours = jax.eval_shape(lambda: learner.init(jax.random.key(0)).params)
    theirs = train_step.t5_stack(learner).parameters()
    assert sum(leaf.numel() for leaf in theirs) == sum(leaf.size for leaf in jax.tree.leaves(ours))


def test_the_input_pipelines_rate_excludes_the_start():
    pytest.importorskip("tensorflow")
    from benchmarks import input_pipeline

    assert input_pipeline.produced(10, (64, 0.5), (1064, 2.5)) == pytest.approx(5000)
    with pytest.raises(ValueError, match="choose more --clips"):
        input_pipeline.produced(10, (64, 0.5), (1064, 0.4))
    made, consumed, ratio = input_pipeline.figures([input_pipeline.Rate("fine", 500.0, 200.0)])
    assert (made.value, consumed.value, ratio.value, ratio.passed) == (500, 200, 2.5, False)
    # 24 layers of 4 d^2 + 3 d d_ff, 6 FLOPs each, and attention and logits: 2.75e9 FLOPs a token on 4 x 275e12.
    assert input_pipeline.peak_consumption(coarse_stage()) == pytest.approx(4 * 275e12 / 2.755e9, rel=0.01)
