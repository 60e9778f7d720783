"""Trains a small coarse stage on data in the devices' memory; as a program, checks it in another process.

Usage: python resident_run.py compare TOKENS         (on several devices: equal to one device)
       python resident_run.py bare TOKENS MODEL_DIR  (where TensorFlow, seqio and gin cannot be imported)
"""

import sys

if sys.argv[1:2] == ["bare"]:
    for name in ("tensorflow", "seqio", "gin", "clu", "tensorflow_datasets", "librosa", "soundfile"):
        sys.modules[name] = None  # type: ignore[assignment]

import jax
import numpy as np

from musiclm_jax.data import resident
from musiclm_jax.stages.layout import coarse_stage
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training import partitioning, trainer
from musiclm_jax.training.optimizers import OptimizerConfig

STAGE = coarse_stage(seconds=0.4, full_vocabulary=False, coarse_quantizers=1)
LEARNER = StageLearner(
    STAGE,
    TransformerConfig(num_layers=1, num_heads=2, d_model=16, d_ff=16, dropout=0.1, attention_block_size=0),
    OptimizerConfig(name="adamw", learning_rate=1e-2, schedule="constant", warmup_steps=0, eps=1e-3),
)


def train(model_dir, data, total_steps, mesh=None, **settings):
    """Trains without evaluation."""
    run = trainer.RunConfig(total_steps=total_steps, **{"checkpoint_period": 2, "log_period": 2} | settings)
    return trainer.train(LEARNER, data, None, model_dir, run, mesh=mesh or partitioning.make_mesh())


def tokens(source, batch_size, mesh):
    """Reads the training split for LEARNER onto the devices of a mesh."""
    streams = ("mulan", "semantic", "acoustic")
    sharding = partitioning.batch_sharding(mesh)
    return resident.tokens(source, "train", batch_size, streams=streams, seconds=STAGE.seconds, sharding=sharding)


def compare(source: str) -> None:
    """Compares batches and a step on all devices with those on one."""
    many, one = partitioning.make_mesh(fsdp=2), partitioning.make_mesh(devices=jax.devices()[:1])
    batch_size = jax.device_count()
    states = []
    for mesh in (many, one):
        # The records have fewer clips than there are devices.
        data = tokens(source, 1, mesh)
        repeated = {name: np.concatenate([values] * 4) for name, values in jax.device_get(dict(data.arrays)).items()}
        arrays = resident.put(repeated, "clips", data.sharding)
        assert all(len(values.sharding.device_set) == mesh.size for values in arrays.values())
        data = resident.ResidentDataset(arrays, data.crop, batch_size, data.hours, sharding=data.sharding)
        batches = list(data.epoch(0))
        assert len(batches) == len(data.arrays["frames"]) // batch_size
        for batch in batches:
            assert {values.sharding for values in batch.values()} == {partitioning.batch_sharding(mesh)}
        abstract = trainer.learners.abstract_state(LEARNER, mesh)
        state = jax.device_put(
            partitioning.unbox(jax.jit(LEARNER.init)(jax.random.key(0))), trainer.learners.shardings(abstract)
        )
        step = trainer.learners.TrainSteps(LEARNER, abstract, mesh, jax.random.key(1))
        with partitioning.activation_rules(mesh):
            state, single = step(state, batches[:1], 0)
            state, several = step(state, batches[1:3], 1)
        losses = [float(single["loss"]), *several["loss"].tolist()]
        states.append((jax.device_get(batches), losses, jax.device_get(state.params)))
    (batches, losses, params), (expected, expected_losses, expected_params) = states
    jax.tree.map(np.testing.assert_array_equal, batches, expected)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), params, expected_params)
    print(f"{jax.device_count()} devices: equal")


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        compare(sys.argv[2])
    else:
        train(sys.argv[3], tokens(sys.argv[2], 2, partitioning.make_mesh()), 2)
