"""Plans: FLOPs against closed forms; the compiled step if libtpu is installed."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from benchmarks import plan_table
from musiclm_jax.kernels.flash_attention import flash_attention
from musiclm_jax.launch import main
from musiclm_jax.planning import plan
from musiclm_jax.stages.layout import coarse_stage, fine_stage, semantic_stage
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training import partitioning
from musiclm_jax.training.optimizers import OptimizerConfig


def test_products_in_loops_and_branches_count_as_often_as_executed():
    def function(x, w):
        def layer(x, kernel):
            return jnp.einsum("bld,df->blf", x, kernel), None

        x, _ = jax.lax.scan(layer, x, w)  # 5 x 2 * 3 * 4 * 8 * 8
        x = jax.lax.cond(x[0, 0, 0] > 0, lambda y: y @ w[0], lambda y: y, x)
        return jax.jit(lambda y: jnp.einsum("bld,bmd->blm", y, y))(x)  # 2 * 3 * 4 * 4 * 8

    jaxpr = jax.make_jaxpr(function)(jnp.zeros((3, 4, 8)), jnp.zeros((5, 8, 8)))
    assert plan.matmul_flops(jaxpr.jaxpr) == 6 * (2 * 3 * 4 * 8 * 8) + 2 * 3 * 4 * 4 * 8


@pytest.mark.parametrize("make", [semantic_stage, coarse_stage, fine_stage])
def test_flops_of_the_papers_step_are_6nd_and_attention(make):
    learner = StageLearner(make(), TransformerConfig(), OptimizerConfig())
    state = jax.eval_shape(learner.init, jax.random.key(0))
    state = partitioning.unbox(state)
    jaxpr = jax.make_jaxpr(learner.train_step)(state, learner.batch_shapes(2), jax.random.key(0))
    counted, formula = plan.matmul_flops(jaxpr.jaxpr), learner.model_flops(2)
    assert counted == pytest.approx(formula, rel=0.03)  # query blocks compute some masked scores
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params)) - 25_728 * 1024
    tokens = 2 * (learner.stage.condition_length() + learner.stage.target_length())
    assert formula > 6 * parameters * tokens


def test_a_kernels_cost_estimate_counts_on_each_device_of_a_mesh():
    """Traced for absent TPUs: flash attention for half of a batch of 4 on each of 2 devices."""
    device = AbstractDevice(device_kind="TPU v4", num_cores=1, platform="tpu")
    mesh = AbstractMesh((2, 1, 1), partitioning.AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)
    shapes = [jax.ShapeDtypeStruct(s, d) for s, d in (((4, 2, 3, 8, 300), "f4"), ((2, 5), "f4"), ((4, 300), "?"))]
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(partitioning.RULES):
        jaxpr = jax.make_jaxpr(lambda *arrays: flash_attention(*arrays, 128))(*shapes)
    scores = 4 * 2 * (3 * 4 // 2) * 128**2  # rows, heads, pairs of blocks up to the diagonal
    assert plan.matmul_flops(jaxpr.jaxpr) == 2 * 2 * scores * 8


def test_kept_bytes_are_exactly_the_outputs_that_a_scan_stacks():
    def layer(carry, kernel):
        return carry * kernel, (carry[0], jnp.bfloat16(kernel))  # the carry, float32 [4, 8], is not stacked

    def function(x, kernels):
        x, _ = jax.lax.scan(layer, x, kernels)
        x, _ = jax.lax.scan(layer, x, kernels, reverse=True)  # the backward pass stores nothing
        return jax.lax.scan(layer, x, kernels[:2])[0]  # of another length: not over layers

    jaxpr = jax.make_jaxpr(function)(jnp.zeros((4, 8)), jnp.zeros(3))
    assert plan.kept_bytes(jaxpr.jaxpr, 3) == 3 * (8 * 4 + 2)
    assert plan.kept_bytes(jaxpr.jaxpr, 2) == 2 * (8 * 4 + 2)
    nested = jax.make_jaxpr(jax.jit(function))(jnp.zeros((4, 8)), jnp.zeros(3))
    assert plan.kept_bytes(nested.jaxpr, 3) == 3 * (8 * 4 + 2)


def test_kept_activations_are_what_the_scan_stacks():
    small = {"num_layers": 3, "d_model": 32, "num_heads": 2, "d_ff": 64}
    learner = StageLearner(semantic_stage(seconds=1.0), TransformerConfig(**small), OptimizerConfig())
    state = partitioning.unbox(jax.eval_shape(learner.init, jax.random.key(0)))

    def kept(remat):
        changed = StageLearner(learner.stage, TransformerConfig(**small, remat=remat), learner.optimizer)
        jaxpr = jax.make_jaxpr(changed.train_step)(state, changed.batch_shapes(2), jax.random.key(0))
        return plan.kept_bytes(jaxpr.jaxpr, 3)

    length = learner.stage.condition_length() + learner.stage.target_length()
    inputs = 3 * 2 * length * 32 * 4  # a layer's input, float32
    assert inputs <= kept("full") < 2 * inputs
    assert kept("none") > 4 * inputs


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology=v4:4x4y4"], "expected one like v4:4x4x4"),
        (["--topology=x100:8"], "expected one like v4:4x4x4"),
        (["--topology=h100:16"], "expected one node of 1 to 8 GPUs, like h100:8"),
        (["--topology=h100"], "expected one node of 1 to 8 GPUs, like h100:8"),
        (["--topology=h200:8", "--gin.make_mesh.dcn_data=2"], "only one node of h200 can be planned"),
        (["--topology=v4:4x4x4", "--gin_file=mulan.gin"], "supports the three stages"),
    ],
)
def test_bad_input_has_a_clear_error(arguments, message, capsys):
    files = [] if any("gin_file" in argument for argument in arguments) else ["--gin_file=coarse_tiny.gin"]
    required = ["--gin.TEXT_WEIGHTS='none'", "--gin.VOCAB='none'"] if "--gin_file=mulan.gin" in arguments else []
    code = main.main(["plan", *files, *arguments, *required])
    error = capsys.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error


def test_a_plan_of_slices_adds_their_network():
    traffic = plan.hlo.Traffic(hbm=1e9, collectives={"all-reduce": 1e9}, collective_counts={}, slices=1e9)
    chip = plan.Chip(flops=1e12, hbm_bytes=1e9, hbm_rate=1e12, wire_rate=1e11, network_rate=1e10)
    made = plan.Plan(2, chip, 1, 1.0, 1.0, 1.0, 1.0, 1e12, 1e12, traffic, 1, slices=4)
    assert made.seconds["network between slices"] == 2 * 3 / 4 * 1e9 / 1e10
    assert plan.Plan.from_json(json.loads(json.dumps(dataclasses.asdict(made)))) == made
    with pytest.raises(ValueError, match="publishes no network rate between slices of v4"):
        plan.topology_devices("v4:2x2x1", slices=2)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("change, code, message", [([], 0, "fits: "), (["--gin.BATCH_SIZE=65536"], 1, "does not fit")])
def test_a_plan_of_the_tiny_stage(change, code, message):
    """For v5p, whose programs jaxlib cannot print, with the attention kernel."""
    command = [sys.executable, "-P", "-m", "musiclm_jax.launch.main", "plan", "--gin_file=semantic_tiny.gin"]
    command += ["--topology=v5p:2x2x1", "--gin.TransformerConfig.scan_layers=True", *change]
    command += ["--gin.TransformerConfig.attention='flash'", "--gin.TransformerConfig.attention_block_size=128"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=dict(os.environ, JAX_PLATFORMS="cpu")
    )
    assert done.returncode == code and message in done.stdout, done.stderr
    if code == 0:
        assert "6.5M on 4 chips" in done.stdout and "all-reduce" in done.stdout


@pytest.mark.parametrize(
    "said, message",
    [
        ("vmem. Used 16.12M of 16.00M vmem. Exceeded", "on the chip: 16.12M of 16.00M. Set TransformerConfig.dtype"),
        ("hbm. Used 16.41G of 15.25G hbm. Exceeded hbm (1.1G of 2G)", "HBM: 16.41G of the 15.25G that a device has"),
    ],
)
def test_an_error_names_the_memory_that_is_full(said, message):
    class Lowered:
        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: Ran out of memory in memory space {said}")

    with pytest.raises(plan.DoesNotFitError, match=message):
        plan._compile(Lowered())


def test_the_table_shows_plans_and_names_missing_ones(tmp_path):
    traffic = plan.hlo.Traffic(hbm=1e9, collectives={}, collective_counts={})
    chip = plan.Chip(flops=1e12, hbm_bytes=2**32, hbm_rate=1e12, wire_rate=1e11)
    made = plan.Plan(2, chip, 1, 2**30, 0.0, 2**29, 2**29, 2e9, 1e9, traffic, 2000)
    (tmp_path / "made.json").write_text(json.dumps(dataclasses.asdict(made)))
    (tmp_path / "large.json").write_text(json.dumps({"does_not_fit": "does not fit: 3G of 2G. Knobs"}))
    rows = [plan_table.Row(name, name, "coarse", "v4:4x4x4") for name in ("made", "large", "missing")]
    lines = plan_table.table(rows, tmp_path).splitlines()[2:]
    assert lines[0] == (
        "| made | 2.0 of 4, 50% | 1.0, 0.0, 0.5, 0.5 | 4.00e+09 / 2.00e+09 | 2, 1, 0 | 2 | 50% | 1.00M | 1.16 |"
    )
    assert lines[1].startswith("| large | does not fit: 3G of 2G |") and lines[2].startswith("| missing | not made |")
    assert {line.count("|") for line in lines} == {10}
    page = plan_table.put("a\n<!-- table: t -->\nold\n<!-- end of table: t -->\nb", "t", "new")
    assert page == "a\n<!-- table: t -->\nnew\n<!-- end of table: t -->\nb"
