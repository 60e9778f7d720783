"""Meshes and shardings: trivial on one device, by rule on eight (in a separate process)."""

import os
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from musiclm_jax.training import partitioning


def boxed(names, shape):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def test_one_device_mesh_and_batch():
    mesh = partitioning.make_mesh()
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1, "tensor": 1}
    batch = partitioning.shard_batch(mesh, {"x": np.arange(6, dtype=np.int32).reshape(2, 3)})
    np.testing.assert_array_equal(batch["x"], [[0, 1, 2], [3, 4, 5]])
    assert batch["x"].sharding.spec == PartitionSpec(("data", "fsdp"))


@pytest.mark.parametrize(
    "sizes, message",
    [((3, 5, 7), "3 x 5 x 7 .* choose sizes"), ((-1, 3, 5), "3 x 5 .fsdp x tensor"), ((1, 0, 1), "fsdp is 0")],
)
def test_a_mesh_that_does_not_fit_is_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        partitioning.make_mesh(*sizes)


def test_rules_shard_named_axes_and_replicate_unnamed_ones():
    mesh = partitioning.make_mesh()
    tree = {
        "kernel": boxed(("embed", "mlp"), (8, 4)),
        "table": boxed(("vocab", "embed"), (8, 4)),
        "layers": boxed(("layers", "embed", "heads", "kv"), (2, 8, 4, 4)),
        "factored": boxed(("embed", "mlp"), (8,)),  # Adafactor's row statistics keep their parameter's box
        "plain": jax.ShapeDtypeStruct((3,), jnp.float32),
    }
    shardings = partitioning.state_sharding(mesh, tree)
    assert jax.tree.structure(shardings) == jax.tree.structure(partitioning.unbox(tree))
    assert {name: sharding.spec for name, sharding in shardings.items()} == {
        "kernel": PartitionSpec("fsdp", "tensor"),
        "table": PartitionSpec("tensor", "fsdp"),
        "layers": PartitionSpec(None, "fsdp", "tensor", None),
        "factored": PartitionSpec(),
        "plain": PartitionSpec(),
    }


def test_unbox_removes_boxes_and_keeps_values():
    tree = {"a": nn.LogicallyPartitioned(jnp.arange(3), ("embed",)), "b": jnp.ones(2)}
    unboxed = partitioning.unbox(tree)
    np.testing.assert_array_equal(unboxed["a"], [0, 1, 2])
    assert unboxed["b"] is tree["b"]


EIGHT_DEVICES = """
    import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
    from musiclm_jax.training import partitioning

    mesh = partitioning.make_mesh(fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    x = np.arange(32, dtype=np.float32).reshape(8, 4)
    batch = partitioning.shard_batch(mesh, {"x": x})["x"]
    assert {s.data.shape for s in batch.addressable_shards} == {(2, 4)}
    kernel = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((4, 6), jnp.float32), ("embed", "mlp"))
    sharding = partitioning.state_sharding(mesh, {"kernel": kernel})["kernel"]
    odd = kernel.replace(value=jax.ShapeDtypeStruct((4, 7), jnp.float32))
    w = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    placed = jax.device_put(w, sharding)
    assert {s.data.shape for s in placed.addressable_shards} == {(2, 3)}
    np.testing.assert_allclose(jax.jit(jnp.matmul)(batch, placed), x @ w, rtol=1e-5)
    for action, words in (
        (lambda: partitioning.check_batch_size(mesh, 6), "choose a multiple of 4"),
        (lambda: partitioning.state_sharding(mesh, {"k": odd}),
         "axis 'mlp' of size 7 does not divide into the 2 parts"),
        (lambda: partitioning.make_mesh(2, 2, 4), "does not match 8 device(s)"),
    ):
        try:
            action()
        except ValueError as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)
    print("as expected")
"""


def test_eight_devices():
    environment = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=8", JAX_PLATFORMS="cpu")
    command = [sys.executable, "-P", "-c", textwrap.dedent(EIGHT_DEVICES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "as expected", done.stderr
