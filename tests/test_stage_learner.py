import dataclasses
import math

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.stages.layout import assemble, coarse_stage, fine_stage
from musiclm_jax.stages.learner import StageLearner, hide_frames
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training import learner as learners
from musiclm_jax.training.optimizers import OptimizerConfig
from musiclm_jax.training.partitioning import make_mesh, state_sharding, unbox

SIZES = {"mulan_codebook_size": 8, "semantic_codebook_size": 8, "acoustic_codebook_size": 16, "full_vocabulary": False}
LEARNER = StageLearner(
    coarse_stage(seconds=0.08, **SIZES),
    TransformerConfig(num_layers=1, num_heads=2, d_model=32, d_ff=48, dropout=0.1),
    OptimizerConfig(name="adamw", learning_rate=1e-2, schedule="constant", warmup_steps=0),
)


@pytest.fixture(scope="module")
def state():
    return unbox(jax.jit(LEARNER.init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    sizes = {"mulan": (8, (4, 12)), "semantic": (8, (4, 2)), "acoustic": (16, (4, 4, 12))}
    return {name: rng.integers(0, size, shape).astype(np.int32) for name, (size, shape) in sizes.items()}


@pytest.fixture(scope="module")
def evaluate():
    return jax.jit(LEARNER.eval_step)


def test_starts_near_chance_and_overfits_a_batch(state, batch, evaluate):
    key = jax.random.key(1)
    before = evaluate(state, batch, key)
    assert before["loss"] == pytest.approx(math.log(16), rel=0.35)
    step = jax.jit(LEARNER.train_step)
    for i in range(100):
        state, metrics = step(state, batch, jax.random.fold_in(key, i))
    assert state.step == 100
    after = evaluate(state, batch, key)
    assert after["loss"] < 0.4 and after["accuracy"] > 0.95
    assert set(metrics) | {"condition_bits"} == set(after) | {"z_loss", "grad_norm"}


def test_metrics(state, batch, evaluate):
    metrics = evaluate(state, batch, jax.random.key(0))
    levels = [f"loss/level_{i:02d}" for i in range(4)]
    assert set(metrics) == {"loss", "bits", "accuracy", "first_frame_bits", "condition_bits", *levels}
    assert metrics["bits"] == pytest.approx(metrics["loss"] / math.log(2))
    assert metrics["loss"] == pytest.approx(np.mean([metrics[level] for level in levels]), rel=1e-5)
    fine = dataclasses.replace(LEARNER, stage=fine_stage(seconds=0.08, **SIZES))
    names = set(jax.eval_shape(lambda key: fine.eval_step(unbox(fine.init(key)), batch, key), jax.random.key(0)))
    assert {"loss/level_04", "loss/level_11"} <= names and "loss/level_03" not in names


def test_first_frame_bits_depend_only_on_the_conditioning(state, batch, evaluate):
    first = batch["acoustic"][:, :1]
    later_changed = batch | {"acoustic": np.concatenate([first, 15 - batch["acoustic"][:, 1:]], axis=1)}
    one, other = evaluate(state, batch, jax.random.key(0)), evaluate(state, later_changed, jax.random.key(0))
    assert one["bits"] != other["bits"]
    assert one["first_frame_bits"] == pytest.approx(float(other["first_frame_bits"]), rel=1e-6)


def test_hidden_frames_are_hidden_from_those_after_them():
    stage = coarse_stage(seconds=0.8, **SIZES)
    rng = np.random.default_rng(0)
    codes = {"mulan": (64, 12), "semantic": (64, 20), "acoustic": (64, 40, 12)}
    lm = assemble(stage, {name: rng.integers(0, 8, shape) for name, shape in codes.items()})
    hidden = jax.jit(hide_frames, static_argnums=(0, 3))(stage, lm, jax.random.key(0), 0.5)
    known, bos = 1 + stage.condition_length(), stage.vocabulary.bos
    inputs = np.asarray(hidden.decoder_input_tokens)
    np.testing.assert_array_equal(inputs[:, :known], lm.decoder_input_tokens[:, :known])
    # Whole frames are hidden, and their later levels do not count (the very last token is not an input).
    gone = np.append(inputs[:, known:] == bos, inputs[:, -1:] == bos, axis=1).reshape(64, 40, 4)
    assert (gone == gone[:, :, :1]).all()
    np.testing.assert_array_equal(hidden.loss_weights == 0, gone & (np.arange(4) > 0))
    kept = np.asarray(lm.decoder_input_tokens)[:, known:][~gone.reshape(64, -1)[:, :-1]]
    np.testing.assert_array_equal(inputs[:, known:][~gone.reshape(64, -1)[:, :-1]], kept)
    np.testing.assert_array_equal(hidden.target_codes, lm.target_codes)
    # Half of the rows are unchanged; in the others, the hidden share ranges from few frames to nearly all.
    shares = gone[:, :, 0].mean(axis=1)
    assert 20 <= (shares == 0).sum() <= 44 and shares.max() > 0.85 and np.median(shares[shares > 0]) < 0.75


def test_hidden_context_is_only_used_in_training(state, batch):
    hiding = dataclasses.replace(LEARNER, hidden_context=1.0, config=dataclasses.replace(LEARNER.config, dropout=0.0))
    plain = dataclasses.replace(hiding, hidden_context=0.0)
    loss_of = lambda learner, key: float(jax.jit(learner.loss)(state.params, batch, key)[0])  # noqa: E731
    assert loss_of(hiding, None) == loss_of(plain, None)
    assert loss_of(hiding, jax.random.key(0)) != loss_of(plain, jax.random.key(0))


def test_z_loss_is_the_weighted_square_of_the_log_normalizer(state, batch):
    nothing = jax.tree.map(jnp.zeros_like, state.params)  # all logits are 0, their log normalizer is log 16
    for weight in (0.0, 0.5):
        learner = dataclasses.replace(LEARNER, z_loss=weight)
        objective, metrics = jax.jit(learner.loss)(nothing, batch, jax.random.key(0))
        assert metrics["z_loss"] == pytest.approx(weight * math.log(16) ** 2, rel=1e-5)
        assert objective == pytest.approx(math.log(16) + weight * math.log(16) ** 2, rel=1e-5)


def test_condition_bits_use_the_next_rows_condition(state, batch, evaluate):
    key = jax.random.key(0)
    measured = evaluate(state, batch, key)
    mixed = batch | {name: np.roll(batch[name], -1, axis=0) for name in ("mulan", "semantic")}
    difference = evaluate(state, mixed, key)["bits"] - measured["bits"]
    assert measured["condition_bits"] == pytest.approx(float(difference), rel=1e-3, abs=1e-5)
    assert abs(measured["condition_bits"]) > 1e-4
    # Conditioning and target of the fine stage are levels of one stream.
    fine = StageLearner(fine_stage(seconds=0.08, **SIZES), LEARNER.config, LEARNER.optimizer)
    fine_state = unbox(jax.jit(fine.init)(key))
    mixed = batch["acoustic"].copy()
    mixed[:, :, :4] = np.roll(mixed[:, :, :4], -1, axis=0)
    measure = jax.jit(fine.eval_step)
    measured = measure(fine_state, {"acoustic": batch["acoustic"]}, key)
    difference = measure(fine_state, {"acoustic": mixed}, key)["bits"] - measured["bits"]
    assert measured["condition_bits"] == pytest.approx(float(difference), rel=1e-3, abs=1e-5)


def test_microbatches_have_the_gradient_of_the_batch(state, batch):
    plain = dataclasses.replace(LEARNER, config=dataclasses.replace(LEARNER.config, dropout=0.0))
    parts = dataclasses.replace(plain, microbatches=2)
    key = jax.random.key(0)
    (expected, metrics), (found, of_parts) = (
        jax.jit(one._gradients)(state.params, batch, key) for one in (plain, parts)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
    assert of_parts["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-5)
    with pytest.raises(ValueError, match="a batch of 4 does not divide into 3 microbatches"):
        dataclasses.replace(plain, microbatches=3)._gradients(state.params, batch, key)
    with pytest.raises(ValueError, match="microbatches is 0"):
        dataclasses.replace(plain, microbatches=0)


def test_padding_changes_nothing(state, batch, evaluate):
    padded = batch["acoustic"].copy()
    padded[2:, 3] = -1
    masked = dict(batch, acoustic=batch["acoustic"], acoustic_mask=np.array([[1, 1, 1, i < 2] for i in range(4)]))
    expected = evaluate(state, dict(batch, acoustic=padded), jax.random.key(0))
    measured = jax.jit(LEARNER.eval_step)(state, masked, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), measured, expected)
    assert expected["loss"] != evaluate(state, batch, jax.random.key(0))["loss"]


def test_dropout_is_only_used_in_training(state, batch, evaluate):
    step = jax.jit(LEARNER.train_step)
    losses = [float(step(state, batch, jax.random.key(i))[1]["loss"]) for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert evaluate(state, batch, jax.random.key(0)) == evaluate(state, batch, jax.random.key(1))
    still = dataclasses.replace(LEARNER, config=dataclasses.replace(LEARNER.config, dropout=0.0))
    loss = jax.jit(still.train_step)(state, batch, jax.random.key(0))[1]["loss"]
    np.testing.assert_allclose(loss, evaluate(state, batch, jax.random.key(0))["loss"], rtol=1e-5)


def test_the_first_line_of_a_run_names_the_attention():
    config = dataclasses.replace(LEARNER.config, attention="auto")
    learner, mesh = dataclasses.replace(LEARNER, config=config), make_mesh(devices=jax.devices()[:1])
    line = learners.summary(learner, learners.abstract_state(learner, mesh), mesh)
    assert line.startswith("stage: ") and line.endswith(", attention 'blocks'")


def test_state_carries_the_names_of_logical_axes():
    abstract = jax.eval_shape(LEARNER.init, jax.random.key(0))
    assert abstract.params["layers"]["mlp"]["gate"].names == ("layers", "embed", "mlp")
    assert abstract.step.dtype == jnp.int32


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw", "muon"])
def test_every_optimizers_state_is_sharded_like_its_parameters(optimizer):
    learner = dataclasses.replace(LEARNER, optimizer=dataclasses.replace(LEARNER.optimizer, name=optimizer))
    boxed = jax.eval_shape(learner.init, jax.random.key(0))
    sharding = state_sharding(make_mesh(), boxed)
    assert jax.tree.structure(sharding) == jax.tree.structure(unbox(boxed))
    if optimizer != "adafactor":  # its factored moments are replicated
        by_path = dict(jax.tree_util.tree_leaves_with_path(sharding.opt_state))
        moments = [x.spec for path, x in by_path.items() if "gate" in jax.tree_util.keystr(path)]
        assert moments and set(moments) == {sharding.params["layers"]["mlp"]["gate"].spec}


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_nothing_large_of_the_papers_state_is_replicated(optimizer):
    learner = StageLearner(coarse_stage(), TransformerConfig(), OptimizerConfig(name=optimizer))
    boxed = jax.eval_shape(learner.init, jax.random.key(0))
    mesh = jax.sharding.AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"))
    shardings = jax.tree.leaves(state_sharding(mesh, boxed))
    leaves = jax.tree_util.tree_leaves_with_path(unbox(boxed))
    large = [
        jax.tree_util.keystr(path)
        for (path, leaf), sharding in zip(leaves, shardings, strict=True)
        if leaf.size * leaf.dtype.itemsize > 2**20 and not any(sharding.spec)
    ]
    assert not large
    assert sum(any(sharding.spec) for sharding in shardings) > 10


def dot_operands(jaxpr) -> list[tuple[str, ...]]:
    """Returns the operands' dtypes of all matrix products, those of nested programs included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(tuple(str(operand.aval.dtype) for operand in equation.invars))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += dot_operands(inner)
    return found


def test_round_products_rounds_all_products_of_the_model(state, batch):
    rounding = dataclasses.replace(LEARNER, config=dataclasses.replace(LEARNER.config, round_products=True))
    key = jax.random.key(0)
    exact, near = (dot_operands(jax.make_jaxpr(one.train_step)(state, batch, key).jaxpr) for one in (LEARNER, rounding))
    assert not any("bfloat16" in pair for pair in exact)
    # 5 products of a layer, 2 of attention, the logits; each with 2 gradients. The rest is the bias by distance.
    assert near.count(("bfloat16", "bfloat16")) == 3 * (5 + 2 + 1)
    assert len(near) == len(exact) and near.count(("float32", "float32")) == len(near) - 24 <= 4
    one, other = (float(jax.jit(x.train_step)(state, batch, key)[1]["loss"]) for x in (LEARNER, rounding))
    assert one != other and one == pytest.approx(other, rel=1e-2)
