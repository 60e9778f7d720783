"""Takes two steps on made-up data: shows whether a training fits into these devices, and how fast it is."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from musiclm_jax.planning import plan
from musiclm_jax.training import learner as learners
from musiclm_jax.training import partitioning
from musiclm_jax.training.learner import Learner
from musiclm_jax.training.progress import Rate, Work, peak_flops

GIB = 2**30


def report(
    learner: Learner, host_batch: dict[str, np.ndarray], mesh: Mesh, start_variables: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Takes two steps as `trainer.train` does; reads no data and writes no file.

    Args:
      learner: the learner to test.
      host_batch: this process's rows of a batch, such as `datasets.fake_batch`.
      mesh: from `partitioning.make_mesh`.
      start_variables: variables of a bundle's part to start from.

    Yields:
      Lines about the parameters, the first step, the rate and the memory, as soon as each is known.

    Raises:
      ValueError: if the model or the batch does not divide over the mesh, or a step does not fit into memory.
    """
    abstract = learners.abstract_state(learner, mesh)
    yield f"dry run of {learners.summary(learner, abstract, mesh)}"
    batch = partitioning.shard_batch(mesh, host_batch)
    work = Work.of_step(learner, batch)
    key = jax.random.key(0)
    try:
        state = learners.init_state(learner, abstract, key)
        if start_variables is not None:
            state = learners.started_from(learner, state, abstract, start_variables)
        with partitioning.activation_rules(mesh):
            begun = time.monotonic()
            if start_variables is None:
                state = learners.warm_started(learner, state, abstract, batch, key)
            train_step = learners.jit_train_step(learner, abstract, mesh).lower(state, batch, key).compile()
            state, _ = jax.block_until_ready(train_step(state, batch, key))
            yield f"first step: {time.monotonic() - begun:.1f} s with compilation"
            begun = time.monotonic()
            jax.block_until_ready(train_step(state, batch, key))
            seconds = time.monotonic() - begun
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(f"a step does not fit into the devices' memory: {plan.KNOBS}") from error
    yield f"second step: {seconds:.3g} s, {Rate(1 / seconds, work, peak_flops(mesh.devices.flat))}"
    yield f"memory of a device: {_memory(train_step, jax.local_devices()[0])}"


def _memory(train_step: Any, device: Any) -> str:
    """Describes the memory of a device: the compiler's estimate and the measured peak."""
    needed = train_step.memory_analysis()
    temporary = needed.temp_size_in_bytes
    held = needed.argument_size_in_bytes + needed.output_size_in_bytes - needed.alias_size_in_bytes
    text = f"{_gib(held + temporary)} by the compiler: state and batch {_gib(held)}, temporaries {_gib(temporary)}"
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        limit = f" of {_gib(stats['bytes_limit'])}" if "bytes_limit" in stats else ""
        return f"{text}; measured at the peak: {_gib(stats['peak_bytes_in_use'])}{limit}"
    # CPU devices share the memory of the process; Linux reports it in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{text}; the process at its peak: {_gib(peak)}"


def _gib(count: float) -> str:
    return f"{count / GIB:.3g} GiB"
