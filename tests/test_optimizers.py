"""Optimizers: schedules on literals, updates against hand-computed ones, clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax.training.optimizers import OptimizerConfig


def rates(config, steps):
    schedule = config.make_schedule()
    return [float(schedule(step)) for step in steps]


def test_schedules_reach_the_peak_when_the_warmup_ends():
    shared = {"learning_rate": 2.0, "warmup_steps": 4, "total_steps": 14}
    np.testing.assert_allclose(rates(OptimizerConfig(schedule="constant", **shared), range(6)), [0.5, 1, 1.5, 2, 2, 2])
    # peak * sqrt(warmup / step) after the warm-up: half the peak at step 4 * 4.
    np.testing.assert_allclose(rates(OptimizerConfig(schedule="rsqrt", **shared), [3, 4, 16]), [2, 2, 1], rtol=1e-6)
    cosine = OptimizerConfig(schedule="cosine", final_fraction=0.1, **shared)
    np.testing.assert_allclose(rates(cosine, [4, 9, 14, 99]), [2, 1.1, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(rates(OptimizerConfig(schedule="constant", warmup_steps=0), [0, 9]), [0.01, 0.01])


def test_default_is_t5x_adafactor():
    # T5X: rate 1 / sqrt(max(step, 10,000)).
    np.testing.assert_allclose(rates(OptimizerConfig(), [10_000, 40_000, 1_000_000]), [0.01, 0.005, 0.001], rtol=1e-5)
    optimizer = OptimizerConfig(warmup_steps=0, schedule="constant", learning_rate=0.1, clip_norm=None).make()
    params = {"w": jnp.full((4, 4), 2.0)}
    grads = {"w": jnp.full((4, 4), 5.0)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    # The first update is the sign of the gradient times the parameter's RMS (2) and the learning rate.
    np.testing.assert_allclose(updates["w"], jnp.full((4, 4), -0.2), rtol=1e-5)


def test_adafactor_factors_only_large_matrices():
    optimizer = OptimizerConfig().make()
    state = optimizer.init({"large": jnp.zeros((128, 256)), "small": jnp.zeros((64, 256))})
    sizes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert (128, 256) not in sizes and {(128,), (256,), (64, 256)} <= sizes


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_weight_decay_pulls_matrices_towards_zero_but_not_biases(name):
    config = OptimizerConfig(name, learning_rate=0.1, schedule="constant", warmup_steps=0, weight_decay=0.5)
    params = {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.full((2,), 4.0)}
    optimizer = config.make()
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], jnp.full((2, 2), -0.1 * 0.5 * 4), rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], jnp.zeros((2,)))


def test_adamw_is_optax_adamw_on_the_clipped_gradient():
    config = OptimizerConfig(
        "adamw", learning_rate=0.1, schedule="constant", warmup_steps=0, clip_norm=1.0, b1=0.5, b2=0.9, eps=0.1
    )
    params, grads = jnp.zeros(2), jnp.array([3.0, 4.0])
    updates, _ = config.make().update(grads, config.make().init(params), params)
    reference = optax.adamw(0.1, b1=0.5, b2=0.9, eps=0.1, weight_decay=0.0)
    expected, _ = reference.update(grads / 5, reference.init(params), params)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)
    unclipped, _ = reference.update(grads, reference.init(params), params)
    assert not np.allclose(updates, unclipped)


def layers_of(key):
    keys = iter(jax.random.split(key, 6))
    shapes = {
        "qkv": (2, 6, 2, 3, 3),
        "out": (2, 2, 3, 6),
        "gate": (2, 6, 12),
        "up": (2, 6, 12),
        "down": (2, 12, 6),
    }
    kernels = {name: jax.random.normal(next(keys), shape) for name, shape in shapes.items()}
    return {"embedding": jnp.ones((5, 6)), "layers": kernels | {"norm": {"scale": jnp.ones((2, 6))}}}


def test_muon_makes_each_matrix_update_nearly_orthogonal():
    config = OptimizerConfig("muon", learning_rate=0.1, schedule="constant", warmup_steps=0)
    params, grads = layers_of(jax.random.key(0)), layers_of(jax.random.key(1))
    updates, _ = jax.jit(config.make().update)(grads, config.make().init(params), params)
    layers = updates["layers"]
    matrices = [layers["qkv"][1, :, :, i].reshape(6, 6) for i in range(3)]
    matrices += [layers["out"][0].reshape(6, 6), layers["gate"][1], layers["up"][0], layers["down"][1]]
    for matrix in matrices:
        values = np.linalg.svd(np.asarray(matrix), compute_uv=False)
        # Five Newton-Schulz steps move singular values close to 1; learning rate and 0.2 sqrt(longer side) scale them.
        values /= 0.1 * 0.2 * np.sqrt(max(matrix.shape))
        assert np.all(values > 0.3) and np.all(values < 1.4), values
    # The singular values of a random gradient are not like that.
    raw = np.linalg.svd(np.asarray(grads["layers"]["qkv"][1, :, :, 0].reshape(6, 6)), compute_uv=False)
    assert raw.max() / raw.min() > 5


def test_muon_leaves_the_embedding_and_norms_to_nadam():
    muon = OptimizerConfig("muon", 0.1, "constant", warmup_steps=0, weight_decay=0.5, b2=0.98, clip_norm=None).make()
    nadam = optax.nadam(0.1, b2=0.98)
    params, grads = layers_of(jax.random.key(0)), layers_of(jax.random.key(1))
    (_, ours_state), (_, theirs_state) = (o.update(grads, o.init(params), params) for o in (muon, nadam))
    # The variance decay only has an effect from the second update on.
    other = layers_of(jax.random.key(2)) | {"embedding": jnp.full((5, 6), 3.0)}
    ours, _ = muon.update(other, ours_state, params)
    theirs, _ = nadam.update(other, theirs_state, params)
    np.testing.assert_allclose(ours["layers"]["norm"]["scale"], theirs["layers"]["norm"]["scale"], rtol=1e-4)
    np.testing.assert_allclose(ours["embedding"], theirs["embedding"], rtol=1e-4)
    assert not np.allclose(ours["layers"]["gate"], theirs["layers"]["gate"], atol=1e-3)
    with pytest.raises(ValueError, match="is 'muon', which only the stages' Transformer supports"):
        muon.init({"kernel": jnp.ones((2, 2))})


def test_norm_scales_do_not_decay_when_layers_are_stacked():
    config = OptimizerConfig("adamw", learning_rate=0.1, schedule="constant", warmup_steps=0, weight_decay=0.5)
    params = layers_of(jax.random.key(0))
    optimizer = config.make()
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_array_equal(updates["layers"]["norm"]["scale"], jnp.zeros((2, 6)))
    np.testing.assert_allclose(updates["layers"]["gate"], -0.05 * params["layers"]["gate"], rtol=1e-5)


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_minimizes_a_quadratic(name):
    config = OptimizerConfig(name, learning_rate=0.1, schedule="cosine", warmup_steps=5, total_steps=200)
    optimizer = config.make()
    target = jnp.array([[1.0, -2.0], [0.5, 3.0]])

    @jax.jit
    def step(carry):
        params, state = carry
        updates, state = optimizer.update(2 * (params - target), state, params)
        return optax.apply_updates(params, updates), state

    carry = (jnp.ones((2, 2)), optimizer.init(jnp.ones((2, 2))))
    for _ in range(200):
        carry = step(carry)
    np.testing.assert_allclose(carry[0], target, atol=0.02)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"name": "sgd"}, r"name is 'sgd', expected one of .*adafactor"),
        ({"schedule": "linear"}, r"schedule is 'linear', expected one of"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, expected more than 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"schedule": "cosine", "warmup_steps": 10, "total_steps": 10}, "total_steps is 10, expected more than warmup"),
        ({"schedule": "cosine", "warmup_steps": 100, "total_steps": 20}, r"give --gin.OptimizerConfig.warmup_steps=2$"),
    ],
)
def test_bad_values_have_a_clear_error(fields, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)
