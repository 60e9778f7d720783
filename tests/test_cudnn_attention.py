"""cuDNN's attention: the same function as the blocks, by XLA here; that it lowers for CUDA, without a GPU."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from musiclm_jax.kernels.block_attention import block_attention
from musiclm_jax.kernels.cudnn_attention import cudnn_attention
from musiclm_jax.stages import layers
from musiclm_jax.training.partitioning import AXES

ROWS, HEADS, LENGTH, CHANNELS = 2, 2, 50, 16  # 50 is padded to 64
VALID = np.ones((ROWS, LENGTH), bool)
VALID[1, 5:20] = False


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


GPU = AbstractDevice(device_kind="some chip", num_cores=1, platform="gpu")


def mesh_of(device):
    return AbstractMesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)


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


def test_it_lowers_for_cuda_with_its_gradient(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo

    # Lowering asks the installed cuDNN for its version, and a machine without a GPU has none.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91500)
    monkeypatch.setattr(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda _: False)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True, raising=False)

    def of(qkv):
        return jnp.sum(loss(cudnn_attention, qkv, TABLE)[1].astype(jnp.float32))

    calls = ("__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward")
    checks = [jax.export.DisabledSafetyCheck.custom_call(call) for call in calls]
    with jax.sharding.use_abstract_mesh(mesh_of(GPU)):
        gradient = jax.export.export(jax.jit(jax.grad(of)), platforms=["cuda"], disabled_checks=checks)
        exported = gradient(jnp.asarray(QKV, jnp.bfloat16))
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward" in exported.mlir_module()


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
