"""Decodes with a small coarse stage on meshes of eight devices and, run as a program, compares them with one device.

Usage: python sharded_decoding.py data,fsdp,tensor ...

test_sharded_decoding.py runs it in a separate process, since the number of devices is fixed when JAX starts. It prints
a line of JSON per mesh: the mesh, the share of codes that differ (greedy and sampled), and the devices that hold the
embedding table's shards.
"""

import json
import sys

import jax
import numpy as np
import sharded_steps

from musiclm_jax.kernels.transposed import transposed_kernels
from musiclm_jax.stages import decoding, transformer
from musiclm_jax.stages.sampling import Sampling
from musiclm_jax.training import partitioning

ROWS, FRAMES = 8, 8


def codes(mesh: jax.sharding.Mesh, boxed: dict, params: dict) -> tuple[list[np.ndarray], int]:
    """Returns greedy and sampled codes, and the number of distinct shards of the embedding table."""
    stage, config = sharded_steps.STAGE, sharded_steps.LEARNER.config
    sharded = jax.device_put(params, partitioning.state_sharding(mesh, boxed))
    # As for the paper's sizes: by itself, decoding does not transpose such small kernels.
    sharded = jax.jit(lambda params: transposed_kernels(transformer.unstack_layers(params)))(sharded)
    parts = len({str(shard.index) for shard in sharded["embedding"].addressable_shards})
    rng = np.random.default_rng(0)
    conditioning = {"mulan": rng.integers(0, 16, (ROWS, 12)), "semantic": rng.integers(0, 16, (ROWS, 4))}
    prefix = rng.integers(0, 32, (ROWS, 2, 4)).astype(np.int32)
    keys = jax.random.split(jax.random.key(0), ROWS)
    with partitioning.activation_rules(mesh):
        conditioning = partitioning.shard_batch(mesh, conditioning)
        keys = jax.device_put(keys, partitioning.batch_sharding(mesh))
        drawn = [
            decoding.sample(config, stage, sharded, conditioning, prefix, FRAMES, keys, Sampling(temperature))
            for temperature in (0.0, 1.0)
        ]
    return [np.asarray(jax.device_get(c)) for c in drawn], parts


def main() -> None:
    """Compares the given meshes with one device."""
    stage, config = sharded_steps.STAGE, sharded_steps.LEARNER.config

    def init(key):
        return transformer.init_params(config, stage.vocabulary.rows, key)

    boxed = jax.eval_shape(init, jax.random.key(0))
    params = jax.jit(lambda key: partitioning.unbox(init(key)))(jax.random.key(0))
    alone, _ = codes(partitioning.make_mesh(1, 1, 1, devices=jax.devices()[:1]), boxed, params)
    for sizes in (tuple(map(int, argument.split(","))) for argument in sys.argv[1:]):
        found, parts = codes(partitioning.make_mesh(*sizes), boxed, params)
        differing = [float((a != b).mean()) for a, b in zip(found, alone, strict=True)]
        report = {"mesh": sizes, "differing": differing, "parts": parts, "distinct": [len(np.unique(c)) for c in found]}
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
