"""Times a train step of the tiny coarse stage with different execution options.

Variants alternate, so other work on the machine affects all of them alike. Both processor time and wall time are
reported; under load only processor time shows the cost of a step.

  python -m benchmarks.stage_step [--stage coarse] [--seconds 4] [--batch 4] [--rounds 5]
"""

import argparse
import dataclasses
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.data.tokens import STAGES
from musiclm_jax.stages import layers, layout
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training import partitioning
from musiclm_jax.training.optimizers import OptimizerConfig

TINY = TransformerConfig(
    num_layers=4, num_heads=2, d_model=256, d_ff=1024, dropout=0.0, scan_layers=False, time_embedding=True
)
OWN_GRADIENTS = "JAX's own gradients of products"
VARIANTS = {
    "tiny: 2 heads, blocks of 240, unrolled": {"attention_block_size": 240},
    "one block of all queries": {"attention_block_size": 0},
    "blocks of 128": {"attention_block_size": 128},
    "4 heads": {"attention_block_size": 240, "num_heads": 4},
    "scan over layers": {"attention_block_size": 240, "scan_layers": True},
    "dropout 0.1": {"attention_block_size": 240, "dropout": 0.1},
    "products rounded to bfloat16": {"attention_block_size": 240, "round_products": True},
    OWN_GRADIENTS: {"attention_block_size": 240},
}


def fake_batch(stage: layout.Stage, batch_size: int) -> dict[str, np.ndarray]:
    """Makes a batch of random codes for a stage."""
    rng = np.random.default_rng(0)
    batch = {}
    for stream in stage.streams:
        frames = stream.frames(stage.seconds)
        shape = (batch_size, frames, stream.quantizers) if stream.frame_rate else (batch_size, stream.quantizers)
        batch[stream.name] = rng.integers(0, stream.codebook_size, shape).astype(np.int32)
    return batch


def main() -> None:
    """Prints a line per variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", default="coarse", choices=STAGES)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    stage = getattr(layout, f"{args.stage}_stage")(seconds=args.seconds, full_vocabulary=False)
    batch, key = fake_batch(stage, args.batch), jax.random.key(0)
    tokens = args.batch * (stage.condition_length() + stage.target_length())
    optimizer = OptimizerConfig(name="adamw", learning_rate=1e-3, schedule="constant", warmup_steps=0)
    steps, states, times = {}, {}, {name: [] for name in VARIANTS}
    for name, change in VARIANTS.items():
        learner = StageLearner(stage, dataclasses.replace(TINY, **change), optimizer)
        states[name] = partitioning.unbox(jax.jit(learner.init)(key))
        product = jnp.matmul if name == OWN_GRADIENTS else layers.product
        with mock.patch.object(layers, "product", product):
            steps[name] = jax.jit(learner.train_step, donate_argnums=0).lower(states[name], batch, key).compile()
    for _ in range(args.rounds + 1):
        for name, step in steps.items():
            wall, processor = time.perf_counter(), time.process_time()
            states[name], metrics = step(states[name], batch, key)
            jax.block_until_ready((states[name], metrics))
            times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    print(f"{'tokens/s':>10} {'tokens/core s':>14} {'x first':>8}")
    best = {name: np.min(np.array(pairs[1:]), axis=0) for name, pairs in times.items()}
    first = next(iter(best.values()))
    for name, (wall, processor) in best.items():
        print(f"{tokens / wall:10.0f} {tokens / processor:14.0f} {first[1] / processor:8.2f}  {name}")


if __name__ == "__main__":
    main()
