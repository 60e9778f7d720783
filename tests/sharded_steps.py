"""Trains a small coarse stage for five steps on meshes of eight devices; as a program, compares them with one device.

Usage: python sharded_steps.py data,fsdp,tensor ...

test_sharded_training.py runs it in a separate process, since the number of devices is fixed when JAX starts. It prints
a line of JSON per mesh: the mesh, the largest errors, and parameters that are replicated despite their logical axes.
"""

import json
import sys

import jax
import numpy as np

from musiclm_jax.stages.layout import coarse_stage
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training import partitioning
from musiclm_jax.training.optimizers import OptimizerConfig

STAGE = coarse_stage(
    seconds=0.16, mulan_codebook_size=16, semantic_codebook_size=16, acoustic_codebook_size=32, full_vocabulary=False
)
# An eps well above rounding errors: where the gradient is 0, the update would otherwise be normalized noise. This
# happens for buckets of the relative bias that get no gradient.
OPTIMIZER = OptimizerConfig(name="adamw", learning_rate=0.01, schedule="constant", warmup_steps=0, eps=1e-3)
LEARNER = StageLearner(
    STAGE,
    TransformerConfig(
        num_layers=2, num_heads=8, d_model=32, d_ff=64, dropout=0.0, attention_block_size=0, remat="full"
    ),
    OPTIMIZER,
)
STEPS = 5
MESHES = [(d, f, 8 // (d * f)) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if 8 % (d * f) == 0]


def batches() -> list[dict[str, np.ndarray]]:
    """Returns batches of random codes, 8 rows per step."""
    rng = np.random.default_rng(0)
    sizes = {"mulan": (16, (8, 12)), "semantic": (16, (8, 4)), "acoustic": (32, (8, 8, 12))}
    return [{n: rng.integers(0, k, shape).astype(np.int32) for n, (k, shape) in sizes.items()} for _ in range(STEPS)]


def run(mesh: jax.sharding.Mesh) -> tuple[list[float], dict, dict]:
    """Returns the losses of all steps, the first gradient and the final parameters."""
    key = jax.random.key(0)
    boxed = jax.eval_shape(LEARNER.init, key)
    sharding = partitioning.state_sharding(mesh, boxed)
    start = jax.jit(lambda k: partitioning.unbox(LEARNER.init(k)))(key)  # the same on any mesh
    state = jax.device_put(start, sharding)

    def step_and_gradient(state, batch, key):
        """Computes both in one program, to compile only once."""
        return LEARNER.train_step(state, batch, key), LEARNER._gradients(state.params, batch, key)[0]

    step = jax.jit(
        step_and_gradient, out_shardings=((sharding, partitioning.replicated(mesh)), partitioning.replicated(mesh))
    )
    losses, gradients = [], []
    with partitioning.activation_rules(mesh):
        for number, batch in enumerate(batches()):
            key_of_step = jax.random.fold_in(key, number)
            (state, metrics), gradient = step(state, partitioning.shard_batch(mesh, batch), key_of_step)
            losses.append(float(metrics["loss"]))
            gradients.append(jax.device_get(gradient))
    return losses, gradients[0], jax.device_get(state.params)


def largest_error(found: dict, expected: dict) -> float:
    """Returns the largest difference in any leaf, relative to the largest value of that leaf."""
    errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / (np.abs(b).max() + 1e-6)), found, expected)
    return max(jax.tree.leaves(errors))


def main() -> None:
    """Compares the given meshes with one device."""
    alone = run(partitioning.make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    for sizes in (tuple(map(int, argument.split(","))) for argument in sys.argv[1:]):
        mesh = partitioning.make_mesh(*sizes)
        losses, gradient, params = run(mesh)
        report = {
            "mesh": sizes,
            "loss": float(np.abs(np.subtract(losses, alone[0])).max()),
            "gradient": largest_error(gradient, alone[1]),
            "params": largest_error(params, alone[2]),
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
