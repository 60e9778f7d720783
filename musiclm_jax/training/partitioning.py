"""Sharding: a mesh with the axes data, fsdp and tensor, and the rules that map logical axes to them.

Modules name the axes of their parameters ("embed", "mlp", "heads", ...) with `flax.linen.with_logical_partitioning`.
RULES maps each name to a mesh axis. Parameters without names are replicated; small models need no names.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.core import meta
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # FSDP is data parallelism with sharded parameters

# In order of precedence: a mesh axis is used once per array.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", BATCH_AXES),
    ("vocab", "tensor"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("embed", "fsdp"),
    ("kv", None),
    ("length", None),
    ("layers", None),
)


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, dcn_data: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Returns the mesh of all devices.

    Args:
      data: replicas of the model per slice, each with its own part of the batch; -1 for all remaining devices.
      fsdp: number of shards of the parameters, each with its own part of the batch.
      tensor: number of shards of each matrix product.
      dcn_data: slices (or groups of machines) connected only by the data center's network. Each has its own replicas,
        so only the sum of gradients crosses that network. The mesh's data axis is dcn_data x data.
      devices: the devices to use; by default all of the run.

    Raises:
      ValueError: if the product of the sizes is not the number of devices, or there are not that many equal slices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    for name, size in (("fsdp", fsdp), ("tensor", tensor), ("dcn_data", dcn_data), ("data", data)):
        if size < 1 and not (name == "data" and size == -1):
            raise ValueError(f"mesh axis {name} is {size}, expected 1 or more (or -1 for data)")
    others = {"dcn_data": dcn_data, "fsdp": fsdp, "tensor": tensor}
    rest = dcn_data * fsdp * tensor
    if data == -1 and count % rest == 0:
        data = count // rest
    if data * rest != count:
        wanted = others if data == -1 else {"data": data, **others}
        wanted = {name: size for name, size in wanted.items() if name != "dcn_data" or size > 1}
        raise ValueError(
            f"mesh {' x '.join(map(str, wanted.values()))} ({' x '.join(wanted)}) does not match {count} device(s): "
            f"choose sizes that multiply to {count}"
        )
    if len({tuple(getattr(device, "coords", (device.id,))) for device in devices}) < count and dcn_data == 1:
        # The devices are cores, two per chip; mesh_utils expects one device per chip.
        placed = np.array(devices).reshape(data, fsdp, tensor)
    elif dcn_data == 1:
        placed = mesh_utils.create_device_mesh((data, fsdp, tensor), devices)
    else:
        # TPU devices know the index of their slice; other devices are grouped by process.
        by_process = getattr(devices[0], "slice_index", None) is None
        try:
            placed = mesh_utils.create_hybrid_device_mesh(
                (data, fsdp, tensor), (dcn_data, 1, 1), devices, process_is_granule=by_process
            )
        except ValueError as error:
            raise ValueError(
                f"mesh axis dcn_data is {dcn_data}, but the {count} devices are not in that many equal "
                f"{'processes' if by_process else 'slices'} ({error})"
            ) from error
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


@contextlib.contextmanager
def activation_rules(mesh: Mesh) -> Iterator[None]:
    """Enters a context in which traced functions shard their activations by their logical axes."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its leading axis is split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that are replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """Checks that a global batch divides evenly over the mesh.

    Raises:
      ValueError: if it does not.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        raise ValueError(
            f"batch size {batch_size} does not divide over {parts} parts of the mesh (data {mesh.shape['data']} x fsdp "
            f"{mesh.shape['fsdp']}): choose a multiple of {parts}"
        )


def shard_batch(mesh: Mesh, batch: Mapping[str, np.ndarray | jax.Array]) -> dict[str, jax.Array]:
    """Puts a batch on the mesh.

    Args:
      mesh: from `make_mesh`.
      batch: this host's part `[batch / hosts, ...]` in NumPy arrays, or global JAX arrays `[batch, ...]`, which stay
        where they are if they have the sharding of batches.

    Returns:
      Global arrays `[batch, ...]`.
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.device_put(value, sharding)
        if isinstance(value, jax.Array)
        else jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def unbox(tree: Any) -> Any:
    """Removes the boxes that hold the names of logical axes, without adding sharding constraints."""
    return jax.tree.map(
        lambda leaf: leaf.unbox(apply_constraint=False) if isinstance(leaf, nn.Partitioned) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata),
    )


def state_sharding(mesh: Mesh, abstract_state: Any) -> Any:
    """Returns the sharding of each leaf of a training state.

    Args:
      mesh: from `make_mesh`.
      abstract_state: `jax.eval_shape(learner.init, key)`, still boxed with the names of logical axes.

    Returns:
      A tree of NamedSharding with the structure of `unbox(abstract_state)`. Leaves without names are replicated, and so
      are leaves with more or fewer names than axes (Adafactor's factored moments keep the box of their parameter).

    Raises:
      ValueError: if an axis does not divide evenly over the mesh; names the axis and the parameter's path.
    """

    def leaf_sharding(path: Any, leaf: Any) -> Any:
        if isinstance(leaf, nn.Partitioned) and not jax.tree.leaves(leaf.value):
            return leaf.value  # optax's MaskedNode: another part of the optimiser updates this parameter
        # A single number is Adafactor's placeholder for moments that it stores in another form.
        if not isinstance(leaf, nn.Partitioned) or len(leaf.names) != leaf.value.ndim or leaf.value.size == 1:
            return replicated(mesh)
        spec = nn.logical_to_mesh_axes(leaf.names, RULES)
        for axis, name, size in zip(spec, leaf.names, leaf.value.shape, strict=True):
            parts = (
                1
                if axis is None
                else int(np.prod([mesh.shape[a] for a in (axis if isinstance(axis, tuple) else (axis,))]))
            )
            if size % parts:
                raise ValueError(
                    f"{jax.tree_util.keystr(path)}: axis {name!r} of size {size} does not divide into the {parts} "
                    f"parts of mesh axis {axis!r}: change the model's size or the mesh"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(
        leaf_sharding, abstract_state, is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata)
    )
