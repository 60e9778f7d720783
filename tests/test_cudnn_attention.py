"""cuDNN's attention: the same function as the blocks, by XLA here; that it lowers for CUDA, without a GPU."""

import functools
import os
import re
import subprocess
import sys
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from musiclm_jax.kernels.block_attention import block_attention
from musiclm_jax.kernels.cudnn_attention import cudnn_attention
from musiclm_jax.stages import layers
from musiclm_jax.training.partitioning import AXES, RULES

ROWS, HEADS, LENGTH, CHANNELS = 2, 2, 50, 16  # 50 is padded to 64
VALID = np.ones((ROWS, LENGTH), bool)
VALID[1, 5:20] = False


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


GPU = AbstractDevice(device_kind="some chip", num_cores=1, platform="gpu")


def mesh_of(device, sizes=(1, 1, 1)):
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)


QKV, TABLE, WEIGHT = random(0, 3, ROWS, HEADS, LENGTH, CHANNELS), random(1, 8, HEADS), random(2, ROWS, HEADS, LENGTH, 1)


def loss(attention, qkv, table, *more):
    by_distance = layers.distance_bias(table, layers.saturation_distance(8, 20) + 1, 20)
    attended = attention(*qkv, by_distance, VALID, *more)
    return jnp.sum(WEIGHT * attended), attended


def test_it_is_the_function_of_the_blocks():
    gradient = jax.jit(jax.grad(loss, argnums=(1, 2), has_aux=True), static_argnums=(0, 3))
    ours, attended = gradient(cudnn_attention, QKV, TABLE, "xla")
    theirs, expected = gradient(block_attention, QKV, TABLE, 16)
    np.testing.assert_allclose(attended, expected, rtol=1e-4, atol=1e-5)
    for own, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4)


def test_keys_that_are_not_valid_are_not_seen():
    changed = QKV.copy()
    changed[1:, 1, :, 5:20] = 100.0
    other = loss(cudnn_attention, changed, TABLE, "xla")[1]
    np.testing.assert_array_equal(other[1, :, 20:], loss(cudnn_attention, QKV, TABLE, "xla")[1][1, :, 20:])


def lowered_for_cuda(monkeypatch, mesh):
    """Returns the program of a gradient."""
    from jax._src.cudnn import fused_attention_stablehlo

    # Lowering asks the installed cuDNN for its version, and a machine without a GPU has none.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91500)
    monkeypatch.setattr(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda _: False)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True, raising=False)

    def of(qkv, table):
        return jnp.sum(loss(cudnn_attention, qkv, table)[1].astype(jnp.float32))

    calls = ("__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward")
    checks = [jax.export.DisabledSafetyCheck.custom_call(call) for call in calls]
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(RULES):
        gradient = jax.export.export(jax.jit(jax.grad(of, argnums=(0, 1))), platforms=["cuda"], disabled_checks=checks)
        return gradient(jnp.asarray(QKV, jnp.bfloat16), TABLE).mlir_module()


def test_it_lowers_for_cuda_with_its_gradient(monkeypatch):
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward" in lowered_for_cuda(monkeypatch, mesh_of(GPU))


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 1, 2)])
def test_on_a_mesh_each_gpu_has_its_rows_and_heads_and_sums_its_bias(monkeypatch, sizes):
    program = lowered_for_cuda(monkeypatch, mesh_of(GPU, sizes))
    rows, heads = ROWS // (sizes[0] * sizes[1]), HEADS // sizes[2]
    (backward,) = re.findall(r"@__cudnn\$fmhaScaleBiasSoftmaxBackward.* -> \((.*)\)", program)
    query, bias = f"tensor<{rows}x{heads}x64x24xbf16>", f"tensor<1x{heads}x64x64xbf16>"
    assert backward.split(", ")[:4] == [query] * 3 + [bias]
    # What the devices sum is the gradient of the bias by distance, 21 of them at most, not that of the dense bias.
    sums = re.findall(r'"stablehlo.all_reduce"(?s:.*?)-> tensor<(\w+)xf32>', program)
    assert not sums or all(int(np.prod([int(n) for n in own.split("x")])) <= heads * 21 for own in sums), sums
    assert "all_gather" not in program


@pytest.mark.slow
def test_on_a_mesh_it_computes_the_same():
    program = """
import sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
import test_cudnn_attention as own
from musiclm_jax.training import partitioning
gradient = jax.jit(jax.grad(own.loss, argnums=(1, 2), has_aux=True), static_argnums=(0, 3))
expected = gradient(own.cudnn_attention, own.QKV, own.TABLE, "xla")
with partitioning.activation_rules(partitioning.make_mesh(data=2, tensor=2)):
    split = gradient(own.cudnn_attention, own.QKV, own.TABLE, "xla")
for one, other in zip(jax.tree.leaves(split), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
"""
    environment = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=4")
    command = [sys.executable, "-c", program, os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_float32_is_refused_with_what_to_set():
    with (
        jax.sharding.use_abstract_mesh(mesh_of(GPU)),
        pytest.raises(ValueError, match=r"activations are float32: set TransformerConfig.dtype to 'bfloat16'"),
    ):
        jax.eval_shape(lambda: loss(cudnn_attention, QKV, TABLE))


def test_without_a_gpu_the_error_says_what_to_set():
    with pytest.raises(ValueError, match="needs NVIDIA GPUs, but the devices are cpus: set it to 'auto'"):
        loss(cudnn_attention, QKV, TABLE)


def test_the_layer_computes_the_same_with_it_as_with_the_blocks(monkeypatch):
    by_xla = mock.Mock(side_effect=functools.partial(cudnn_attention, implementation="xla"))
    monkeypatch.setattr(layers, "cudnn_attention", by_xla)
    x = random(3, ROWS, LENGTH, 32)
    by_distance = layers.distance_bias(TABLE, layers.saturation_distance(8, 20) + 1, 20)
    blocks, cudnn = layers.Attention(HEADS, 16), layers.Attention(HEADS, 16, kernel="cudnn")
    params = blocks.init(jax.random.key(0), x, by_distance, VALID)
    expected = blocks.apply(params, x, by_distance, VALID)
    for own, other in zip(cudnn.apply(params, x, by_distance, VALID), expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), own, other)
    by_xla.assert_called_once()


def test_auto_follows_the_devices_of_the_mesh():
    assert layers.attention_kernel("auto") == "blocks"
    assert layers.attention_kernel("cudnn") == "cudnn"
    for platform, kernel in (("tpu", "flash"), ("gpu", "blocks")):
        device = AbstractDevice(device_kind="some chip", num_cores=1, platform=platform)
        with jax.sharding.use_abstract_mesh(mesh_of(device)):
            assert layers.attention_kernel("auto") == kernel
