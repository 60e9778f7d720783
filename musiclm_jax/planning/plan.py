"""Estimates the training cost of a stage on TPUs or GPUs you do not have: the step is compiled for them on this CPU.

Memory is the figure of XLA's compiler for that chip. FLOPs are counted in the matrix products of the step's jaxpr: a
scan's body counts as often as it runs, and sharded work is assumed to split evenly. HBM and interconnect traffic are
counted in the compiled program (hlo.py). The roofline is the longest of the three times at the chip's peak rates: no
step can be faster, and real steps are slower.
"""

import dataclasses
import math
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import Mesh

from musiclm_jax.planning import gpus, hlo
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.training import partitioning
from musiclm_jax.training.chips import CHIPS, TPU_KINDS, Chip

KNOBS = (
    "TransformerConfig.remat = 'full' keeps fewer activations, StageLearner.microbatches cuts them further, "
    "make_mesh.fsdp splits parameters and optimiser, a smaller BATCH_SIZE or more chips help as well"
)
# Matrix products over all scores in cuDNN's attention: two, and five in the backward pass, which recomputes one.
_CUDNN_PRODUCTS = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}


class DoesNotFitError(ValueError):
    """Raised if the step needs more memory than the chip has."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Cost of one train step; bytes, FLOPs and traffic are per chip."""

    chips: int
    chip: Chip
    parameter_count: int
    parameter_bytes: float
    optimizer_bytes: float
    activation_bytes: float  # kept for the backward pass by the scan over layers
    temporary_bytes: float  # everything else that the program allocates, including its own code
    flops: float  # executed, including rematerialization and masked scores
    model_flops: float  # 6 N D and causal attention
    traffic: hlo.Traffic
    tokens: int  # per step, over all chips
    slices: int = 1  # connected only by the data center's network

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Plan":
        """Builds a plan from the output of `dataclasses.asdict`."""
        return cls(**values | {"chip": Chip(**values["chip"]), "traffic": hlo.Traffic(**values["traffic"])})

    @property
    def hbm_bytes(self) -> float:
        """Peak HBM use in bytes."""
        return self.parameter_bytes + self.optimizer_bytes + self.activation_bytes + self.temporary_bytes

    @property
    def seconds(self) -> dict[str, float]:
        """Lower bounds of a step's time in seconds, by the resource that sets the bound."""
        found = {
            "compute": self.flops / self.chip.flops,
            "HBM": self.traffic.hbm / self.chip.hbm_rate,
            "interconnect": sum(self.traffic.collectives.values()) / self.chip.wire_rate,
        }
        if self.slices > 1:  # a ring all-reduce passes on the partial sums, then the result
            sent = 2 * (self.slices - 1) / self.slices * self.traffic.slices
            found["network between slices"] = sent / self.chip.network_rate
        return found

    @property
    def step_seconds(self) -> float:
        """The roofline: seconds of the fastest possible step."""
        return max(self.seconds.values())

    @property
    def mfu(self) -> float:
        """Upper bound of the model FLOPs utilisation."""
        return self.model_flops / (self.step_seconds * self.chip.flops)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all chips at the roofline."""
        return self.tokens / self.step_seconds


def topology_devices(name: str, slices: int = 1) -> tuple[list[Any], Chip]:
    """Returns the devices of a TPU topology such as "v4:4x4x4" or of a node of GPUs such as "h100:8", and their chip.

    Args:
      name: topology of a slice, or see `gpus.devices`.
      slices: number of such slices, connected by the data center's network.

    Raises:
      ValueError: if libtpu or JAX's CUDA plugin is missing, or the topology or the rate of its network between slices
        is unknown.
    """
    from jax.experimental import topologies

    family = name.split(":")[0]
    if family in gpus.DESCRIPTIONS:
        if slices > 1:
            raise ValueError(f"make_mesh.dcn_data is {slices}: only one node of {family} can be planned")
        return gpus.devices(name)
    if family not in CHIPS or not re.fullmatch(r"\w+:\d+(x\d+)*", name):
        raise ValueError(f"topology {name!r}: expected one like v4:4x4x4, for one of {', '.join(CHIPS)}")
    if slices > 1 and not CHIPS[family].network_rate:
        known = ", ".join(name for name, chip in CHIPS.items() if chip.network_rate)
        raise ValueError(
            f"make_mesh.dcn_data is {slices}, but Google publishes no network rate between slices of {family}: "
            f"plan one slice, or slices of {known}"
        )
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        devices: list[Any] = list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # libtpu's errors have many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"cannot describe topology {name!r} ({reason}): pip install '.[tpu]' in a checkout for libtpu, and choose "
            "a shape that exists"
        ) from error
    return devices, CHIPS[TPU_KINDS.get(devices[0].device_kind, family)]


def plan(learner: StageLearner, batch_size: int, mesh: Mesh, chip: Chip) -> Plan:
    """Compiles a stage's train step for a mesh and counts its cost.

    Args:
      learner: learner of a stage.
      batch_size: global batch size.
      mesh: mesh of devices, which need not exist on this machine.
      chip: chip of these devices; a topology may list one chip as two devices.

    Raises:
      DoesNotFitError: if the compiler finds that the step needs more memory than the chip has.
      ValueError: if the batch or the model does not divide over the mesh.
    """
    partitioning.check_batch_size(mesh, batch_size)
    devices = list(mesh.devices.flat)
    per_chip = _devices_of_a_chip(devices)
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(learner.init, key)
    sharding = partitioning.state_sharding(mesh, boxed)
    everywhere = partitioning.replicated(mesh)
    state = jax.tree.map(_placed, partitioning.unbox(boxed), sharding)
    batch = {n: _placed(s, partitioning.batch_sharding(mesh)) for n, s in learner.batch_shapes(batch_size).items()}
    with partitioning.activation_rules(mesh):
        step = jax.jit(learner.train_step, donate_argnums=0, out_shardings=(sharding, everywhere))
        traced = step.trace(state, batch, _placed(key, everywhere))
        compiled, text = _compile(traced.lower(), devices[0].platform)
    memory = compiled.memory_analysis()
    parameters = sum(map(_bytes_of_a_device, jax.tree.leaves(state.params)))
    whole_state = sum(map(_bytes_of_a_device, jax.tree.leaves(state)))
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    data_parts = mesh.shape["data"] * mesh.shape["fsdp"]
    kept = min(kept_bytes(traced.jaxpr.jaxpr, learner.config.num_layers) / data_parts, memory.temp_size_in_bytes)
    one = hlo.traffic(text)
    chips = len(devices) // per_chip
    return Plan(
        chips=chips,
        chip=chip,
        parameter_count=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        parameter_bytes=per_chip * parameters,
        optimizer_bytes=per_chip * (whole_state - parameters),
        activation_bytes=per_chip * kept,
        temporary_bytes=per_chip * (total - whole_state - kept),
        flops=matmul_flops(traced.jaxpr.jaxpr) / chips,
        model_flops=learner.model_flops(batch_size) / chips,
        traffic=dataclasses.replace(
            one,
            hbm=per_chip * one.hbm,
            collectives={kind: per_chip * sent for kind, sent in one.collectives.items()},
            slices=per_chip * one.slices,
        ),
        tokens=batch_size * (learner.stage.condition_length() + learner.stage.target_length()),
        slices=len({getattr(device, "slice_index", 0) for device in devices}),
    )


def _compile(lowered: Any, platform: str = "tpu") -> tuple[Any, str]:
    """Compiles a program; returns it and its text: for TPUs, what libtpu dumps, which jaxlib cannot read in full."""
    if platform == "gpu":
        compiled = lowered.compile(compiler_options=gpus.COMPILER_OPTIONS)
        return compiled, compiled.as_text()
    try:
        with tempfile.TemporaryDirectory() as folder:
            compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
            (path,) = pathlib.Path(folder).glob("*.after_codegen.txt")
            return compiled, path.read_text(encoding="utf-8")
    except jax.errors.JaxRuntimeError as error:
        if found := re.search(r"memory space vmem\. Used ([\d.]+[KMGT]) of ([\d.]+[KMGT])", str(error)):
            raise DoesNotFitError(
                f"a kernel does not fit into the memory on the chip: {found[1]} of {found[2]}. Set "
                "TransformerConfig.dtype to 'bfloat16', or choose a smaller TransformerConfig.attention_block_size"
            ) from error
        found = re.search(r"memory space hbm\. Used ([\d.]+[KMGT]) of ([\d.]+[KMGT])", str(error)) or re.search(
            r"\(?(?:required|Used)[^()]*\(?([\d.]+[KMGT])\)?[^()]*?(?:exceeds|of)[^()]*\(?([\d.]+[KMGT])", str(error)
        )
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        amount = f": {found.group(1)} of the {found.group(2)} that a device has" if found else ""
        raise DoesNotFitError(f"does not fit into HBM{amount}. {KNOBS}") from error


def _placed(leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _devices_of_a_chip(devices: list[jax.Device]) -> int:
    chips = {(getattr(device, "slice_index", 0), *getattr(device, "coords", (device.id,))) for device in devices}
    return len(devices) // len(chips)


def _bytes_of_a_device(leaf: jax.ShapeDtypeStruct) -> float:
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
    return math.prod(shape) * np.dtype(leaf.dtype).itemsize


def matmul_flops(jaxpr: Jaxpr) -> float:
    """Counts the FLOPs of a jaxpr's matrix products over all devices; a scan's body counts as often as it runs."""
    total = 0.0
    read = {id(value) for equation in jaxpr.eqns for value in equation.invars} | set(map(id, jaxpr.outvars))
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((left, _), _) = equation.params["dimension_numbers"]
            operand: Any = equation.invars[0].aval
            result: Any = equation.outvars[0].aval
            total += 2.0 * math.prod(operand.shape[axis] for axis in left) * math.prod(result.shape)
        if (products := _CUDNN_PRODUCTS.get(equation.primitive.name)) is not None:
            query: Any = equation.invars[0].aval  # [b, l, h, c]
            rows, length, heads, channels = query.shape
            total += products * rows * heads * length**2 * channels  # causal: half of the scores
            continue
        if equation.primitive.name == "pallas_call":
            # The lengths of its loops are unknown, so a kernel states its cost itself. jax.checkpoint leaves kernels in
            # the jaxpr whose results were saved, so that nothing reads them; XLA removes them.
            if any(id(result) in read for result in equation.outvars):
                total += equation.params["cost_estimate"].flops
            continue
        inner = [matmul_flops(own) for own in _jaxprs(equation.params)]
        if equation.primitive.name == "cond":
            total += max(inner)
        elif equation.primitive.name == "shard_map":  # its body is the work of one device
            total += sum(inner) * equation.params["mesh"].size
        else:
            total += sum(inner) * (equation.params["length"] if equation.primitive.name == "scan" else 1)
    return total


def kept_bytes(jaxpr: Jaxpr, layers: int) -> float:
    """Counts the bytes that scans over layers keep for the backward pass, over all devices; 0 for unrolled layers."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan" and equation.params["length"] == layers and not equation.params["reverse"]:
            stacked: list[Any] = [own.aval for own in equation.outvars[equation.params["num_carry"] :]]
            total += sum(float(math.prod(own.shape) * np.dtype(own.dtype).itemsize) for own in stacked)
        else:
            total += sum(kept_bytes(own, layers) for own in _jaxprs(equation.params))
    return total


def _jaxprs(params: Mapping[str, Any]) -> list[Jaxpr]:
    found = []
    for value in params.values():
        for own in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(own, ClosedJaxpr):
                found.append(own.jaxpr)
            elif isinstance(own, Jaxpr):
                found.append(own)
    return found
