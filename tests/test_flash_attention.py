"""The kernel, interpreted, against `block_attention`; test_plan.py compiles it for TPUs."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from musiclm_jax.kernels import block_attention, flash_attention
from musiclm_jax.planning import plan
from musiclm_jax.stages import layers
from musiclm_jax.stages.transformer import TransformerConfig, hidden_states, init_params
from musiclm_jax.training.partitioning import AXES, unbox


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Blocks of 16 for 50 positions: the last one is padded. Biases span 20 distances, so they reach two blocks back.
QKV, TABLE, WEIGHT = random(0, 2, 2, 3, 4, 50), random(1, 8, 2), random(2, 2, 2, 4, 50)
VALID = np.ones((2, 50), bool)
VALID[1, 30:40] = False


def by_distance(table):
    return layers.distance_bias(table, layers.saturation_distance(8, 20) + 1, 20)


def of_kernel(qkv, table):
    attended = flash_attention.flash_attention(qkv, by_distance(table), VALID, 16, interpret=True)
    return jnp.sum(WEIGHT * attended), attended


def of_blocks(qkv, table):
    q, k, v = (qkv[:, :, i].swapaxes(2, 3) for i in range(3))
    attended = block_attention.block_attention(q / 2, k, v, by_distance(table), VALID, 16).swapaxes(2, 3)
    return jnp.sum(WEIGHT * attended), attended


def test_values_and_all_gradients_match_blockwise_attention():
    gradients, attended = jax.jit(jax.grad(of_kernel, argnums=(0, 1), has_aux=True))(QKV, TABLE)
    expected_gradients, expected = jax.jit(jax.grad(of_blocks, argnums=(0, 1), has_aux=True))(QKV, TABLE)
    np.testing.assert_allclose(attended, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):  # of qkv, of T5's table
        assert np.abs(theirs).max() > 1
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_its_cost_is_half_of_all_products():
    """Two products for each pair of blocks up to the diagonal, and five in the backward pass."""
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda q: of_kernel(q, TABLE)[0]))(QKV))
    scores = 2 * 2 * (4 * 5 // 2) * 16**2  # batch, heads, pairs of blocks
    for products in (2, 5):
        assert f"flops={products * 2 * scores * 4}" in jaxpr.replace(" ", "")


def test_without_a_tpu_the_error_says_what_to_set():
    with pytest.raises(ValueError, match="a kernel for TPUs, but the devices are cpus: set it to 'blocks'"):
        flash_attention.flash_attention(QKV, by_distance(TABLE), VALID, 128)


def test_the_layer_gives_the_same_result_with_kernel_and_blocks(monkeypatch):
    interpreted = functools.partial(flash_attention.flash_attention, interpret=True)
    monkeypatch.setattr(layers, "flash_attention", interpreted)
    x = random(3, 2, 50, 8)
    blocks = layers.Attention(2, 16)
    kernel = layers.Attention(2, 32, kernel="flash")  # 32: the bias reaches one block back
    params = blocks.init(jax.random.key(0), x, by_distance(TABLE), VALID)
    expected = blocks.apply(params, x, by_distance(TABLE), VALID)
    ours = jax.jit(lambda *args: kernel.apply(params, *args))(x, by_distance(TABLE), VALID)
    for own, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):  # output, keys, values
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)


def test_policies_that_save_products_save_the_kernels():
    """Traced for a TPU: only 'full' recomputes the products and the kernel."""
    device = AbstractDevice(device_kind="TPU v4", num_cores=1, platform="tpu")
    mesh = AbstractMesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)
    tokens, valid = jnp.zeros((2, 21), int), jnp.ones((2, 21), bool)
    flops = {}
    for remat in ("none", "dots_with_no_batch_dims_saveable", "full"):
        config = TransformerConfig(2, 2, 16, 24, 0.0, attention="flash", attention_block_size=128, remat=remat)
        params = unbox(jax.eval_shape(lambda key, config=config: init_params(config, 32, key), jax.random.key(0)))
        objective = lambda p, config=config: jnp.sum(hidden_states(config, p, tokens, np.arange(21), (), valid))  # noqa: E731
        with jax.sharding.use_abstract_mesh(mesh):
            flops[remat] = plan.matmul_flops(jax.make_jaxpr(jax.grad(objective))(params).jaxpr)
    assert flops["dots_with_no_batch_dims_saveable"] == flops["none"]
    forward_kernels = 2 * 2 * 2 * (2 * 2 * 128**2) * 8  # layers, products, two flops; rows, heads, scores; channels
    assert flops["full"] > flops["none"] + forward_kernels


@pytest.mark.slow
def test_on_a_mesh_each_device_has_its_rows_and_heads():
    program = """
import jax, numpy as np, sys
sys.path.insert(0, sys.argv[1])
import test_flash_attention as own
from musiclm_jax.training import partitioning
step = jax.jit(jax.grad(own.of_kernel, argnums=(0, 1), has_aux=True))
gradients, attended = step(own.QKV, own.TABLE)
with partitioning.activation_rules(partitioning.make_mesh(data=2, tensor=2)):
    split, split_attended = jax.jit(jax.grad(own.of_kernel, argnums=(0, 1), has_aux=True))(own.QKV, own.TABLE)
assert not split_attended.sharding.is_fully_replicated
np.testing.assert_allclose(split_attended, attended, rtol=1e-6, atol=1e-6)
for one, other in zip(split, gradients):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
"""
    environment = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=4")
    command = [sys.executable, "-c", program, os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
