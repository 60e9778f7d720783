"""Compares the input pipeline's tokens/s on one core with the most that a v4-8 host could consume, for each stage.

Synthetic records of 30 s clips pass through the tasks and datasets of a training run: read, parsed, cropped, shuffled,
padded and batched. The time of a one-batch epoch is subtracted, because start-up costs the same for any length. Rates
are per second of processor time over all threads, so other work on the machine does not count. By default the host
consumes tokens at its chips' peak; `--consumed` sets another rate, such as that of `musiclm plan --topology=v4:2x2x1`.

  python -m benchmarks.input_pipeline [--batch 64] [--clips 4096] [--rounds 3] [--consumed TOKENS_PER_SECOND]
"""

import argparse
import pathlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from benchmarks import report
from musiclm_jax.data import records
from musiclm_jax.data.datasets import TaskDataset, TaskSpec
from musiclm_jax.data.tokens import ACOUSTIC, MULAN, SEMANTIC
from musiclm_jax.stages import layout
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.tasks import coarse, fine, semantic
from musiclm_jax.training import chips
from musiclm_jax.training.optimizers import OptimizerConfig

CLIP_SECONDS = 30  # the paper's
SHARDS = 16
HOST_CHIPS = 4  # of a v4-8: 8 cores
TASKS = {
    "semantic": (semantic.semantic_task, layout.semantic_stage()),
    "coarse": (coarse.coarse_task, layout.coarse_stage()),
    "fine": (fine.fine_task, layout.fine_stage()),
}


class Rate(NamedTuple):
    """Tokens per second of a stage: produced by one core, consumed by the chips of a host."""

    stage: str
    produced: float
    consumed: float


def write_records(folder: pathlib.Path, batch: int, clips: int) -> None:
    """Writes a training split of `clips` and a validation split of one batch; shards of a split are copies."""
    rng = np.random.default_rng(0)
    for split, count in (("train", clips // SHARDS), ("validation", batch), ("test", 1)):
        shards = SHARDS if split == "train" else 1
        first = records.shard_path(folder, split, 0, shards)
        with tf.io.TFRecordWriter(str(first)) as writer:
            for number in range(count):
                writer.write(
                    records.token_example(
                        id=f"{split}-{number:05d}",
                        semantic=rng.integers(0, SEMANTIC.codebook_size, SEMANTIC.frames(CLIP_SECONDS)),
                        acoustic=rng.integers(
                            0, ACOUSTIC.codebook_size, (ACOUSTIC.frames(CLIP_SECONDS), ACOUSTIC.quantizers)
                        ),
                        mulan=rng.integers(0, MULAN.codebook_size, MULAN.quantizers),
                        caption=["a caption"],
                        instrument="flute",
                        composition=f"{number}",
                        held_out_pair=0,
                    )
                )
        for shard in range(1, shards):
            shutil.copy(first, records.shard_path(folder, split, shard, shards))


def epoch_cost(task: TaskSpec, split: str, batch: int) -> tuple[int, float]:
    """Runs an epoch and returns its number of examples and its processor seconds."""
    start = time.process_time()
    examples = sum(len(next(iter(arrays.values()))) for arrays in TaskDataset(task, split, batch).epoch(0))
    return examples, time.process_time() - start


def peak_consumption(stage: layout.Stage) -> float:
    """Returns the paper model's tokens/s at the peak FLOP/s of a v4-8 host's chips."""
    learner = StageLearner(stage, TransformerConfig(), OptimizerConfig())
    length = stage.condition_length() + stage.target_length()
    return HOST_CHIPS * chips.CHIPS["v4"].flops / (learner.model_flops(1) / length)


def produced(tokens: int, few: tuple[int, float], many: tuple[int, float]) -> float:
    """Computes tokens/s from the (examples, seconds) of a short and a long epoch, without their start-up time.

    Raises:
      ValueError: if the long epoch did not take longer.
    """
    if many[1] <= few[1]:
        raise ValueError(f"{many[0]} examples took {many[1]:.2f} s, {few[0]} took {few[1]:.2f} s: choose more --clips")
    return tokens * (many[0] - few[0]) / (many[1] - few[1])


def figures(rates: Sequence[Rate]) -> list[report.Figure]:
    """Returns three figures for each stage."""
    lines = []
    for rate in rates:
        ratio = rate.produced / rate.consumed
        lines.append(report.Figure(f"{rate.stage}: tokens/s of a core", rate.produced))
        lines.append(report.Figure(f"{rate.stage}: tokens/s that a v4-8 host consumes", rate.consumed))
        lines.append(report.Figure(f"{rate.stage}: one core over the host's need", ratio, ">= 3", ratio >= 3))
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--clips", type=int, default=4096, help=f"a multiple of {SHARDS}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--consumed", type=float, help="tokens/s that a v4-8 host consumes, for every stage")
    parser.add_argument("--output", default="", help="JSON file for the figures")
    args = parser.parse_args()
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        write_records(pathlib.Path(folder), args.batch, args.clips)
        for name, (make_task, stage) in TASKS.items():
            task, costs = make_task(folder), {}
            for split in ("validation", "train"):
                runs = [epoch_cost(task, split, args.batch) for _ in range(args.rounds + 1)][1:]
                costs[split] = min(runs, key=lambda run: run[1])
                print(f"{name}, {split}: {costs[split][0]} examples, {costs[split][1]:.2f} s", flush=True)
            tokens = stage.condition_length() + stage.target_length()
            made = produced(tokens, costs["validation"], costs["train"])
            rates.append(Rate(name, made, args.consumed or peak_consumption(stage)))
    report.publish("input_pipeline", figures(rates), args.output, {**vars(args), "chips": HOST_CHIPS})


if __name__ == "__main__":
    main()
