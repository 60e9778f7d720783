"""Interfaces of the training loop: learners and datasets, and the creation of a learner's sharded state."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from musiclm_jax.training import partitioning

Batch = Mapping[str, Any]
Metrics = Mapping[str, jax.Array]


class Learner(Protocol):
    """A model with its loss and optimiser: a frozen dataclass of their configuration.

    The functions are pure and can be jitted. Optional members:

    - `warm_start(state, batch, key) -> state` initialises from the first batch, before the first step, what depends on
      data (the k-means of a codebook).
    - `start_from(state, variables) -> state` puts the weights of a bundle's part into the state.
    - `row_tokens` and `model_flops(rows)` count the work of a step in tokens and FLOPs.
    - `execution()` says how steps run on the mesh in use, for the first line of a run.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]  # tells type checkers that this is a dataclass
    family: str  # "soundstream", "w2v_bert", "mulan", "melody" or "stage"

    def init(self, key: jax.Array) -> Any:
        """Returns the state: a flax.struct.PyTreeNode with an int32 scalar field `step`."""

    def train_step(self, state: Any, batch: Batch, key: jax.Array) -> tuple[Any, Metrics]:
        """Returns the next state and float32 scalars named by paths like "vq/commitment_loss"."""

    def eval_step(self, state: Any, batch: Batch, key: jax.Array) -> Metrics:
        """Returns float32 scalars; the main one is called "loss"."""

    def variables(self, state: Any) -> Mapping[str, Any]:
        """Returns the variables of the bundle's part, without what is fitted to a corpus after the training."""


class Dataset(Protocol):
    """Batches in a fixed order for each epoch."""

    @property
    def batch_size(self) -> int:
        """Examples of a batch, over all hosts."""

    def epoch(self, epoch: int, skip: int) -> Iterator[Mapping[str, np.ndarray | jax.Array]]:
        """Yields the batches of an epoch without its first `skip` examples, which count over all hosts.

        Batches are this host's rows in NumPy arrays, or global JAX arrays.
        """


def abstract_state(learner: Learner, mesh: Mesh) -> Any:
    """Returns the shapes, dtypes and shardings of a learner's state, without the boxes that name logical axes.

    Raises:
      ValueError: if an axis does not divide over the mesh.
    """
    boxed = jax.eval_shape(learner.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        partitioning.unbox(boxed),
        partitioning.state_sharding(mesh, boxed),
    )


def shardings(abstract: Any) -> Any:
    """Returns the sharding of each leaf of an abstract state."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def init_state(learner: Learner, abstract: Any, key: jax.Array) -> Any:
    """Creates a new state directly with its sharding."""
    return jax.jit(lambda k: partitioning.unbox(learner.init(k)), out_shardings=shardings(abstract))(key)


def jit_train_step(learner: Learner, abstract: Any, mesh: Mesh) -> Any:
    """Returns the jitted `train_step`, which donates its state; call it within `partitioning.activation_rules`."""
    where = shardings(abstract), partitioning.replicated(mesh)
    return jax.jit(learner.train_step, donate_argnums=0, out_shardings=where)


class TrainSteps:
    """Takes one training step or several in one call; step s has the key folded from the run's key and s."""

    def __init__(self, learner: Learner, abstract: Any, mesh: Mesh, key: jax.Array) -> None:
        self._step = jit_train_step(learner, abstract, mesh)
        self._steps = _jit_train_steps(learner, abstract, mesh)
        self._key = key
        # The keys of the steps are on the mesh, like the state.
        where = partitioning.replicated(mesh)
        self._key_of = jax.jit(jax.random.fold_in, out_shardings=where)
        self._keys_of = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)), out_shardings=where)

    def __call__(self, state: Any, batches: Sequence[Batch], step: int) -> tuple[Any, Metrics]:
        """Takes a step for each batch; call it within `partitioning.activation_rules`.

        Args:
          state: state after `step` steps; donated.
          batches: global arrays on the mesh.
          step: number of steps so far.

        Returns:
          The state after the steps, and their metrics: scalars for one step, `[steps]` for several.
        """
        program: Any = self._step
        arguments: tuple[Any, ...] = (batches[0], self._key_of(self._key, step))
        if len(batches) > 1:
            program, arguments = self._steps, (batches, self._keys_of(self._key, np.arange(step, step + len(batches))))
        # All arguments are already on the step's devices: an implicit transfer would be repeated at every step.
        with jax.transfer_guard("disallow"):
            return program(state, *arguments)


def _jit_train_steps(learner: Learner, abstract: Any, mesh: Mesh) -> Any:
    """Returns a jitted function of the state, batches and the keys of their steps; it donates the state."""
    rows = NamedSharding(mesh, PartitionSpec(None, partitioning.BATCH_AXES))

    def train_steps(state: Any, batches: Sequence[Batch], keys: jax.Array) -> tuple[Any, Metrics]:
        stacked = jax.tree.map(lambda *values: jnp.stack(values), *batches)
        stacked = jax.lax.with_sharding_constraint(stacked, rows)
        return jax.lax.scan(lambda state, inputs: learner.train_step(state, *inputs), state, (stacked, keys))

    where = shardings(abstract), partitioning.replicated(mesh)
    return jax.jit(train_steps, donate_argnums=0, out_shardings=where)


def warm_started(learner: Any, state: Any, abstract: Any, batch: Batch, key: jax.Array) -> Any:
    """Initialises from the first batch what the learner's `warm_start` does; other learners' states are unchanged."""
    if not hasattr(learner, "warm_start"):
        return state
    return jax.jit(learner.warm_start, donate_argnums=0, out_shardings=shardings(abstract))(state, batch, key)


def started_from(learner: Any, state: Any, abstract: Any, variables: Mapping[str, Any]) -> Any:
    """Returns the state with the weights of a bundle's part.

    Raises:
      ValueError: if the family cannot start from a bundle, or the bundle's model does not fit.
    """
    if not hasattr(learner, "start_from"):
        raise ValueError(f"a {learner.family} model cannot start from a bundle: train it from random weights")
    started = learner.start_from(state, variables)
    check_fits("the bundle's model", started, state)
    return jax.device_put(started, shardings(abstract))


def check_fits(where: str, found: Any, expected: Any, otherwise: str = "") -> None:
    """Checks that a state or its metadata has the names and shapes that the learner expects.

    Args:
      where: where the state comes from, for the message.
      found: tree of arrays or of their shapes.
      expected: the same of the learner.
      otherwise: ends the advice of the message.

    Raises:
      ValueError: if they differ; names the first difference.
    """

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}

    there, here = shapes(found), shapes(expected)
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise ValueError(
                f"{where} does not fit this configuration: {name} is {there.get(name, 'absent')} there and "
                f"{here.get(name, 'absent')} here; use the configuration it was trained with{otherwise}"
            )


def state_bytes(abstract: Any) -> int:
    """Returns the bytes of a state on one device."""
    leaves = jax.tree.leaves(abstract)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def parameter_count(abstract: Any) -> int:
    """Returns the number of trained parameters of a state."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(getattr(abstract, "params", abstract)))


def summary(learner: Learner, abstract: Any, mesh: Mesh) -> str:
    """Returns one phrase on what is trained and how: family, parameters, mesh and what the learner adds."""
    with partitioning.activation_rules(mesh):
        execution = f", {learner.execution()}" if hasattr(learner, "execution") else ""
    return f"{learner.family}: {parameter_count(abstract):,} parameters, mesh {dict(mesh.shape)}{execution}"
