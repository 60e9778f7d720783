"""The T5X adapter: T5X minimizes our loss on our batches, knows every axis, and its three programs run."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import record_folders

pytest.importorskip("t5x", reason="t5x is not installed: docs/t5x.md says how to install it from git")

# isort: split
import gin
from t5x import adafactor, optimizers, partitioning, utils

from musiclm_jax import gin_configs
from musiclm_jax.data.datasets import TaskDataset
from musiclm_jax.data.tokens import STAGES
from musiclm_jax.launch.t5x_adapter import StageModel, feature_lengths
from musiclm_jax.stages import decoding
from musiclm_jax.stages.layout import assemble, coarse_stage
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.tasks import coarse

CONFIG = TransformerConfig(num_layers=2, num_heads=2, d_model=32, d_ff=48, dropout=0.1, time_embedding=True)
FILES = [f"t5x_{stage}.gin" for stage in STAGES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(record_folders.token_folder(tmp_path_factory.mktemp("records") / "tokens"))


@pytest.fixture(scope="module")
def task(folder):
    return coarse.coarse_task(folder, crop_seconds=0.4)


@pytest.fixture(scope="module")
def model(task):
    stage = coarse_stage(seconds=0.4, full_vocabulary=False)
    rules = adafactor.standard_logical_factor_rules()
    optimizer = adafactor.Adafactor(logical_factor_rules=rules)
    return StageModel(stage, CONFIG, task, optimizer, decoding.Sampling(temperature=0.0))


@pytest.fixture(scope="module")
def variables(model):
    return model.get_initial_variables(jax.random.PRNGKey(0), {})


@pytest.fixture(scope="module")
def batch(task):
    return next(TaskDataset(task, "train", 4).epoch(0))


@pytest.fixture(autouse=True)
def forget_gin():
    yield
    gin.clear_config()


def test_the_loss_is_our_trainers(model, variables, batch):
    params, key = variables["params"], jax.random.key(3)
    (objective, metrics), grads = jax.value_and_grad(model.loss_fn, has_aux=True)(params, batch, key)
    expected_grads, expected = model.learner._gradients(params, batch, key)
    for name, value in expected.items():
        assert float(metrics[name].compute()) == pytest.approx(float(value), abs=1e-5), name
    assert float(objective) == pytest.approx(float(expected["loss"] + expected["z_loss"]), abs=1e-5)
    jax.tree.map(lambda own, other: np.testing.assert_allclose(own, other, atol=1e-5), grads, expected_grads)

    objective, metrics = model.eval_fn(params, batch)
    state = model.learner.init(jax.random.key(0))
    held_out = model.learner.eval_step(state.replace(params=params), batch, key)
    assert float(metrics["loss"].compute()) == pytest.approx(float(held_out["loss"]), abs=1e-5)
    assert float(-jnp.mean(model.score_batch(params, batch))) == pytest.approx(float(held_out["loss"]), abs=1e-5)


def test_a_score_excludes_padding(model, variables, batch):
    short = {**batch, "acoustic": batch["acoustic"].copy()}
    short["acoustic"][1, 10:] = -1
    scores = model.score_batch(variables["params"], short)
    losses = model.learner.token_losses(variables["params"], assemble(model.learner.stage, batch), None).cross_entropy
    assert float(scores[1]) == pytest.approx(-float(losses[1, :10].mean()), abs=1e-5)
    assert float(scores[0]) == pytest.approx(-float(losses[0].mean()), abs=1e-5)


def test_t5x_knows_every_axis(model):
    """Axes without a rule would be replicated silently; Adafactor refuses them."""
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    initializer = utils.TrainStateInitializer(model.optimizer_def, model.get_initial_variables, {}, partitioner)
    layers = initializer.train_state_axes.params["layers"]
    assert tuple(layers["attention"]["qkv"]) == (None, None, "model", None, None)
    assert tuple(layers["mlp"]["down"]) == (None, "model", None)
    assert tuple(initializer.train_state_axes.params["embedding"]) == ("model", None)
    factors = model.optimizer_def.hyper_params.factor_map
    factored = adafactor.FactorDim
    expected = (factored.BATCH, factored.ROW, factored.COLUMN, factored.BATCH, factored.COLUMN)
    assert factors["layers/attention/qkv"] == expected
    assert set(factors["relative_bias"]) == {factored.NONE}


def test_batches_are_the_tasks_and_packing_is_refused(model, task, batch):
    config = utils.DatasetConfig(task.name, feature_lengths(task), "train", 4, shuffle=True, seed=0)
    (first, *_) = utils.get_dataset(config, 0, 1, model.FEATURE_CONVERTER_CLS, num_epochs=1).as_numpy_iterator()
    for name, values in batch.items():
        np.testing.assert_array_equal(first[name], values)
    utils.verify_matching_vocabs(config, model)
    with pytest.raises(ValueError, match="are not packed: set DatasetConfig"):
        model.FEATURE_CONVERTER_CLS(pack=True)


def test_predictions_are_samples_of_the_stage(model, variables, batch):
    codes = jax.jit(model.predict_batch)(variables["params"], batch, jax.random.PRNGKey(0))
    stage, keys = model.learner.stage, jax.random.split(jax.random.key(5), 4)
    expected = decoding.sample(
        CONFIG, stage, variables["params"], batch, None, stage.frames(stage.target), keys, model.sampling
    )
    assert codes.shape == (4, 20, 4)
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize("name", FILES)
def test_gin_files_build_the_papers_stages(name, folder):
    text = (pathlib.Path(gin_configs.__path__[0]) / name).read_text()
    header = re.match(r"(#.*\n)+", text).group(0)
    assert f"--gin_file=musiclm_jax/gin_configs/{name}" in header and "Cost" in header
    gin.parse_config_files_and_bindings([f"musiclm_jax/gin_configs/{name}"], [f"DATA_DIR = '{folder}'"])
    model = gin.query_parameter("%MODEL").scoped_configurable_fn()
    assert isinstance(model.optimizer_def, optimizers.OptimizerDef)
    shapes = jax.eval_shape(model.get_initial_variables, jax.random.key(0), {})["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == pytest.approx(430e6, rel=0.01)
    stage, lengths = model.learner.stage, gin.query_parameter("%TASK_FEATURE_LENGTHS").scoped_configurable_fn()
    assert lengths[stage.target.stream] == stage.frames(stage.target)
    assert f"target_field_name = '{stage.target.stream}'" in text and name == f"t5x_{stage.name}.gin"


def run(program, run_file, folder, tmp_path, *bindings):
    command = [sys.executable, "-m", f"t5x.{program}", f"--gin_file=t5x/configs/runs/{run_file}.gin"]
    command += ["--gin_file=musiclm_jax/gin_configs/t5x_coarse.gin", f"--gin.DATA_DIR='{folder}'", "--gin.SECONDS=0.4"]
    sizes = {"num_layers": 1, "num_heads": 4, "d_model": 16, "d_ff": 16, "dtype": "'float32'"}
    command += [f"--gin.TransformerConfig.{name}={value}" for name, value in sizes.items()]
    command += ["--gin.BATCH_SIZE=4", "--gin.PjitPartitioner.num_partitions=4", *bindings]
    devices = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=4")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=devices)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_t5x_trains_evaluates_and_infers_on_its_mesh(folder, tmp_path):
    run("train", "pretrain", folder, tmp_path, f"--gin.MODEL_DIR='{tmp_path}/model'", "--gin.TRAIN_STEPS=2")
    trained = f"--gin.CHECKPOINT_PATH='{tmp_path}/model/checkpoint_2'"
    run("eval", "eval", folder, tmp_path, trained, f"--gin.EVAL_OUTPUT_DIR='{tmp_path}/eval'")
    (line,) = (tmp_path / "eval" / "inference_eval" / "coarse-metrics.jsonl").read_text().splitlines()
    assert 5 < json.loads(line)["bits"] < 15
    feature = "--gin.infer.output_vocab_feature_name='acoustic'"
    run("infer", "infer", folder, tmp_path, trained, f"--gin.INFER_OUTPUT_DIR='{tmp_path}/infer'", feature)
    lines = (tmp_path / "infer" / "coarse-predict.jsonl-00000-of-00001").read_text().splitlines()
    codes = np.array([json.loads(line)["prediction"] for line in lines])
    assert codes.shape == (record_folders.CLIPS, 20, 4) and 0 <= codes.min() <= codes.max() < 1024
