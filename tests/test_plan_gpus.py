"""Plans of GPUs: figures by hand; the compiled step if JAX's CUDA plugin is installed, which needs no card."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from musiclm_jax.launch import plan as command
from musiclm_jax.planning import gpus, hlo, plan
from musiclm_jax.stages.layout import semantic_stage
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training import partitioning
from musiclm_jax.training.chips import CHIPS
from musiclm_jax.training.optimizers import OptimizerConfig

PLUGIN = importlib.util.find_spec("jax_cuda12_plugin") or importlib.util.find_spec("jax_cuda13_plugin")
with_plugin = pytest.mark.skipif(PLUGIN is None, reason="JAX's CUDA plugin is not installed")
STAGE = semantic_stage(seconds=1.0, mulan_codebook_size=16, semantic_codebook_size=32, full_vocabulary=False)
SMALL = {"num_layers": 3, "d_model": 64, "num_heads": 2, "d_ff": 128, "dtype": "bfloat16", "remat": "full"}
ROWS = 16


def learner(**changes):
    optimizer = OptimizerConfig(name="adamw", learning_rate=1e-3, schedule="constant", warmup_steps=0)
    return StageLearner(STAGE, TransformerConfig(**SMALL | changes), optimizer)


def made(**changes):
    traffic = hlo.Traffic(hbm=335e9, collectives={"all-gather": 40e9, "reduce-scatter": 5e9}, collective_counts={})
    values = {"chips": 8, "chip": CHIPS["h100"], "parameter_count": 1, "parameter_bytes": 1e9, "optimizer_bytes": 1e9}
    values |= {"activation_bytes": 1e9, "temporary_bytes": 1e9, "flops": 98.94e12, "model_flops": 49.47e12}
    return plan.Plan(**values | {"traffic": traffic, "tokens": 1000} | changes)


def test_the_roofline_of_an_h100():
    found = made()
    assert found.seconds == pytest.approx({"compute": 0.1, "HBM": 0.1, "interconnect": 0.1}), "450 GB/s each way"
    assert found.mfu == pytest.approx(0.5) and found.tokens_per_second == pytest.approx(10_000)
    assert CHIPS["h200"].hbm_rate == 4.8e12 and CHIPS["h200"].flops == CHIPS["h100"].flops


@pytest.mark.parametrize(
    "temporary, verdict",
    [(1e9, "fits: 5% of HBM"), (67e9, "MEM_FRACTION says more, such as 0.95"), (97e9, "does not fit: 118% of HBM. ")],
)
def test_the_verdict_names_the_knob(temporary, verdict):
    line = command.report(made(temporary_bytes=temporary), 1e9)[-1]
    assert verdict in line
    assert ("remat = 'full'" in line) == ("does not fit" in line)
    v4 = command.report(made(temporary_bytes=0.9 * CHIPS["v4"].hbm_bytes - 3e9, chip=CHIPS["v4"]), 1e9)[-1]
    assert v4 == "fits: 90% of HBM", "TPUs have no share to set"


def test_cudnns_attention_counts_half_of_the_scores(monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91500)
    monkeypatch.setattr(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda _: False)
    q, bias = jnp.zeros((2, 64, 3, 8), jnp.bfloat16), jnp.zeros((1, 3, 64, 64), jnp.bfloat16)

    def attended(q, bias):
        return jax.nn.dot_product_attention(q, q, q, bias, is_causal=True, implementation="cudnn").sum()

    one_product = 2 * 2 * 3 * (64 * 64 / 2) * 8
    assert plan.matmul_flops(jax.make_jaxpr(attended)(q, bias).jaxpr) == 2 * one_product
    both = jax.make_jaxpr(jax.grad(attended, (0, 1)))(q, bias)
    assert plan.matmul_flops(both.jaxpr) == (2 + 5) * one_product


@pytest.mark.slow
@with_plugin
def test_memory_and_collectives_of_a_compiled_step():
    devices, chip = gpus.devices("h100:8")
    assert len(devices) == 8 and devices[0].platform == "gpu"
    found = plan.plan(learner(), ROWS, partitioning.make_mesh(devices=devices), chip)
    parameters = found.parameter_count
    by_hand = (STAGE.vocabulary.rows + 1) * 64 + 32 * 2 + 3 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64)
    assert parameters == by_hand
    assert found.parameter_bytes == 4 * parameters, "float32, on every GPU"
    # Adam's two moments; its and the learner's counters.
    assert 0 <= found.optimizer_bytes - 2 * 4 * parameters <= 64
    # Remat 'full': the scan keeps the input of each of 3 layers, bfloat16, for 2 rows a GPU.
    length = STAGE.condition_length() + STAGE.target_length()
    assert found.activation_bytes == 3 * (ROWS / 8) * length * 64 * 2
    # The gradients are summed over 8 GPUs: a ring sends 7/8 twice. Products in bfloat16 have gradients in bfloat16.
    sent = found.traffic.collectives["all-reduce"]
    assert 2 * 7 / 8 * 2 * parameters <= sent <= 2 * 7 / 8 * 4 * parameters * 1.1
    assert found.hbm_bytes < 2**30


@pytest.mark.slow
@with_plugin
def test_fsdp_splits_parameters_and_optimiser():
    devices, chip = gpus.devices("h100:8")
    alone = plan.plan(learner(), ROWS, partitioning.make_mesh(devices=devices), chip)
    split = plan.plan(learner(), ROWS, partitioning.make_mesh(fsdp=8, devices=devices), chip)
    # The bias by distance and Adam's counters stay on every GPU.
    assert split.parameter_bytes == pytest.approx(alone.parameter_bytes / 8, rel=0.02)
    assert split.optimizer_bytes == pytest.approx(alone.optimizer_bytes / 8, rel=0.02)
    assert split.traffic.collectives["all-gather"] > 0 and math.isclose(split.flops, alone.flops)
