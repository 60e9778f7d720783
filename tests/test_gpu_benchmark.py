"""benchmarks/gpu.py: its table on literals, parts that fail or take too long, and PyTorch's bias."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from benchmarks import gpu
from musiclm_jax.kernels.block_attention import causal_bias
from musiclm_jax.stages.transformer import TransformerConfig

FOUND = {
    "peak": {"card": "a card", "jax_peak": 700e12, "torch_peak": 800e12},
    "cudnn": {"batch": 16, "seconds": 0.5, "tokens": 1000, "flops": 240e12},
    "pytorch": {"batch": 8, "seconds": 0.4, "tokens": 500, "flops": 120e12},
    "decode": {"rows_1": 0.001, "rows_64": 0.004},
    "musicgen": {"rows_1": 0.002},
    "decode_graphs": {"rows_1": 0.0005},
    "bundle": {"seconds": 8.0, "music": 640.0},
}


def test_the_table_follows_the_better_peak():
    by_name = {figure.name: figure for figure in gpu.figures(FOUND)}
    assert by_name["peak of a bfloat16 product, TFLOP/s"].value == 800
    share = by_name["training, cudnn: model FLOPs over the peak"]
    assert share.value == pytest.approx(0.6) and share.passed
    assert by_name["training, pytorch: model FLOPs over the peak"].passed is None, "it is not asked of PyTorch"
    ratio = by_name["training, cudnn over PyTorch"]
    assert ratio.value == pytest.approx(2000 / 1250) and ratio.passed
    assert by_name["decoding, batch 64: ms a step"].value == pytest.approx(4)
    assert by_name["decoding as a graph, batch 1: ms a step"].value == pytest.approx(0.5)
    ratio = by_name["decoding, batch 1: times as fast as MusicGen"]
    assert ratio.value == pytest.approx(2) and not ratio.passed
    assert "decoding, batch 64: times as fast as MusicGen" not in by_name
    assert by_name["tiny bundle, times real time"].value == 80 and by_name["tiny bundle, times real time"].passed


def test_without_a_part_its_lines_are_missing():
    assert gpu.figures({"peak": {"card": "a card"}, "cudnn": {}, "bundle": {}}) == []


@pytest.fixture
def parts(monkeypatch):
    """Runs a program in place of a part."""
    run = subprocess.run

    def started(program):
        start = [sys.executable, "-c", "import os, json, time\nfile = os.environ['MUSICLM_BENCHMARK']\n" + program]
        monkeypatch.setattr(gpu.subprocess, "run", lambda command, **options: run(start, **options))
        return gpu.run_part("peak", False, 3.0)

    return started


def test_a_part_that_fails_is_one_line_and_keeps_what_it_measured(parts):
    found, failure = parts(
        "open(file, 'w').write(json.dumps({'rows_1': 2.0}) + '\\n{\"rows')\nraise ValueError('no card')"
    )
    assert found == {"rows_1": 2.0} and failure == "peak failed: ValueError: no card"


def test_a_part_that_takes_too_long_is_one_line_and_keeps_what_it_measured(parts):
    found, failure = parts("open(file, 'w').write(json.dumps({'rows_1': 2.0}) + '\\n')\ntime.sleep(60)")
    assert found == {"rows_1": 2.0} and failure == "peak was stopped after 3 s"


def test_the_other_parts_go_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--parts", "peak", "bundle", "--output", str(tmp_path / "gpu.json")])
    answers = {"peak": ({}, "peak failed: no card"), "bundle": (FOUND["bundle"], "")}
    monkeypatch.setattr(gpu, "run_part", lambda name, rehearsal, seconds: answers[name])
    gpu.main()
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["details"]["failures"] == ["peak failed: no card"]
    assert [figure["name"] for figure in written["figures"]] == ["tiny bundle, times real time"]
    assert "peak failed: no card" in capsys.readouterr().out


def test_the_batch_is_halved_until_it_fits(monkeypatch, tmp_path):
    pytest.importorskip("flax")
    monkeypatch.setenv("MUSICLM_BENCHMARK", str(tmp_path / "found"))
    sizes, tried = gpu.Sizes(True), []
    sizes.batch = 8

    def make(learner, batch):
        tried.append(len(batch["acoustic"]))
        if tried[-1] > 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")
        return lambda: None

    gpu.measure_training(sizes, make, "blocks")
    found = json.loads((tmp_path / "found").read_text())
    assert tried == [8, 4, 2] and found["batch"] == 2 and found["tokens"] == 2 * 48

    def broken(learner, batch):
        raise RuntimeError("INTERNAL: something else")

    with pytest.raises(RuntimeError, match="something else"):
        gpu.measure_training(sizes, broken, "blocks")


def test_pytorchs_bias_is_ours():
    torch = pytest.importorskip("torch")
    from benchmarks.pytorch_stage import Model

    config = TransformerConfig(num_layers=1, num_heads=2, d_model=16, d_ff=24, relative_max_distance=20)
    model = types.SimpleNamespace(
        relative_bias=torch.randn(32, 2), buckets=torch.tensor(np.minimum(np.arange(13), 31)), config=config
    )
    bias = Model.bias(model, torch.float32)
    near = model.relative_bias[model.buckets].T.numpy()
    expected = np.asarray(causal_bias(near, 13, 0))
    past = np.tril(np.ones((13, 13), bool))
    np.testing.assert_array_equal(bias[0].numpy()[:, past], expected[:, past])
    assert np.isneginf(bias[0].numpy()[:, ~past]).all()
