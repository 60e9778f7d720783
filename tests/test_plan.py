"""Plans: FLOPs against closed forms here, the compiled step where libtpu is installed."""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from musiclm_jax import plan
from musiclm_jax.launch import main
from musiclm_jax.optimizers import OptimizerConfig
from musiclm_jax.stage_learner import StageLearner
from musiclm_jax.stages import coarse_stage, fine_stage, semantic_stage
from musiclm_jax.transformer import TransformerConfig


def test_products_in_loops_and_branches_count_as_often_as_they_run():
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
    state = plan.partitioning.unbox(state)
    jaxpr = jax.make_jaxpr(learner.train_step)(state, learner.batch_shapes(2), jax.random.key(0))
    counted, formula = plan.matmul_flops(jaxpr.jaxpr), plan.model_flops(learner, 2)
    assert counted == pytest.approx(formula, rel=0.03)  # blocks of queries see some keys in vain
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params)) - 25_728 * 1024
    tokens = 2 * (learner.stage.condition_length() + learner.stage.target_length())
    assert formula > 6 * parameters * tokens


def test_activations_kept_are_what_the_scan_stacks():
    small = {"num_layers": 3, "d_model": 32, "num_heads": 2, "d_ff": 64}
    learner = StageLearner(semantic_stage(seconds=1.0), TransformerConfig(**small), OptimizerConfig())
    state = plan.partitioning.unbox(jax.eval_shape(learner.init, jax.random.key(0)))

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
        (["--topology=h100:8"], "expected one like v4:4x4x4"),
        (["--topology=v4:4x4x4", "--gin_file=mulan.gin"], "knows the three stages"),
    ],
)
def test_bad_input_has_a_clear_error(arguments, message, capsys):
    files = [] if any("gin_file" in argument for argument in arguments) else ["--gin_file=coarse_tiny.gin"]
    required = ["--gin.TEXT_WEIGHTS='none'", "--gin.VOCAB='none'"] if "--gin_file=mulan.gin" in arguments else []
    code = main.main(["plan", *files, *arguments, *required])
    error = capsys.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("change, code, message", [([], 0, "fits: "), (["--gin.BATCH_SIZE=65536"], 1, "does not fit")])
def test_a_plan_of_the_tiny_stage(change, code, message):
    command = [sys.executable, "-P", "-m", "musiclm_jax.launch.main", "plan", "--gin_file=semantic_tiny.gin"]
    command += ["--topology=v5e:2x2", "--gin.TransformerConfig.scan_layers=True", *change]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=dict(os.environ, JAX_PLATFORMS="cpu")
    )
    assert done.returncode == code and message in done.stdout, done.stderr
    if code == 0:
        assert "6.5M on 4 chips" in done.stdout and "all-reduce" in done.stdout
