"""Progress of a training: work per step, MFU against known figures, log lines."""

import dataclasses
import types

import numpy as np
import pytest
from toy_run import ToyLearner

from musiclm_jax.stages.layout import coarse_stage
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training import chips, progress
from musiclm_jax.training.optimizers import OptimizerConfig
from musiclm_jax.training.progress import Rate, StepProgress, Work, peak_flops


def test_work_is_counted_in_tokens_or_seconds_of_audio():
    stage = StageLearner(coarse_stage(), TransformerConfig(), OptimizerConfig())
    work = Work.of_step(stage, {"mulan": np.zeros((3, 12)), "acoustic": np.zeros((3, 500, 12))})
    assert (work.unit, work.amount) == ("tokens", 3 * (12 + 250 + 2000))  # 10 s: 25 and 4 x 50 codes a second
    assert work.flops == stage.model_flops(3)
    assert Work.of_step(ToyLearner(), {"audio": np.zeros((4, 36_000))}) == Work("s of audio", 6.0)
    assert Work.of_step(ToyLearner(), {"x": np.zeros((5, 2))}) == Work("examples", 5)


def device(kind, *coords, slice_index=0):
    return types.SimpleNamespace(device_kind=kind, coords=coords, slice_index=slice_index)


def test_peak_is_the_sum_over_chips():
    v4 = chips.CHIPS["v4"].flops
    assert peak_flops([device("TPU v4", 0, 0, 0), device("TPU v4", 0, 0, 0), device("TPU v4", 1, 0, 0)]) == 2 * v4
    assert peak_flops([device("TPU v4", 0, 0, 0), device("TPU v4", 0, 0, 0, slice_index=1)]) == 2 * v4
    assert peak_flops([device("TPU v5 lite", 0, 0, 0)]) == chips.CHIPS["v5e"].flops
    assert peak_flops([types.SimpleNamespace(device_kind="cpu")]) is None
    # Every process of a node calls its GPU's coordinates (0,).
    node = [types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", id=i, coords=(0,)) for i in range(8)]
    assert peak_flops(node) == 8 * 989.4e12


def test_mfu_is_reported_if_both_figures_are_known():
    work = Work("tokens", 1000.0, flops=3e12)
    rate = Rate(2.0, work, peak=1e13)
    assert rate.mfu == pytest.approx(0.6)
    assert str(rate) == "2 steps/s, 2,000 tokens/s, MFU 60.0%"
    assert rate.scalars() == {"steps_per_second": 2.0, "tokens_per_second": 2000.0, "mfu": rate.mfu}
    assert dataclasses.replace(rate, peak=None).mfu is None
    audio = Rate(0.5, Work("s of audio", 6.0), peak=1e13)
    assert str(audio) == "0.5 steps/s, 3 s of audio/s"
    assert audio.scalars() == {"steps_per_second": 0.5, "audio_seconds_per_second": 3.0}


def test_rates_exclude_compilation_and_pauses(monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    shown = StepProgress(step=10, total_steps=130)
    shown.work = Work("tokens", 50.0)
    clock.now = 30.0
    assert shown.line(11, {"loss": 2.5}) == "step 11/130 | loss 2.5 | first step 30.0 s with compilation"
    clock.now = 32.0
    assert shown.line(21, {"loss": 2.0}).endswith("| 5 steps/s, 250 tokens/s, 22 s left")
    clock.now = 100.0  # an evaluation and a checkpoint
    shown.restart(21)
    clock.now = 102.0
    assert shown.line(25, {"loss": 2.0}).endswith("| 2 steps/s, 100 tokens/s, 52 s left")
    assert shown.rate() == Rate(2.0, shown.work)


@pytest.mark.parametrize("seconds, text", [(12.4, "12 s"), (300, "5 min"), (9000, "2.5 h")])
def test_durations(seconds, text):
    assert progress.format_seconds(seconds) == text
