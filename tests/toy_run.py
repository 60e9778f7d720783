"""A learner and data small enough to train in tests; run as a program, trains in a process that can be killed.

Usage: python toy_run.py MODEL_DIR TOTAL_STEPS SECONDS_PER_STEP
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from musiclm_jax.training import trainer
from musiclm_jax.training.optimizers import OptimizerConfig

ADAM = OptimizerConfig("adamw", learning_rate=0.05, schedule="constant", warmup_steps=3)


class ToyState(flax.struct.PyTreeNode):
    """A vector and its optimizer state."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class ToyLearner:
    """Fits a vector to noisy data; every step depends on the batch, the key and the optimizer state."""

    optimizer: OptimizerConfig = ADAM
    nan_at: int = -1  # step whose loss is not finite
    family: ClassVar[str] = "toy"

    def init(self, key: jax.Array) -> ToyState:
        """A random vector."""
        params = {"w": jax.random.normal(key, (8,))}
        return ToyState(jnp.int32(0), params, self.optimizer.make().init(params))

    def train_step(self, state: ToyState, batch: Any, key: jax.Array) -> tuple[ToyState, dict[str, jax.Array]]:
        """One update."""

        def loss_fn(params: dict) -> jax.Array:
            noisy = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
            return jnp.mean((params["w"][None, :] - noisy) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        loss = jnp.where(state.step == self.nan_at, jnp.nan, loss)
        updates, opt_state = self.optimizer.make().update(grads, state.opt_state, state.params)
        return ToyState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), {"loss": loss}

    def eval_step(self, state: ToyState, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        """The loss without noise."""
        return {"loss": jnp.mean((state.params["w"][None, :] - batch["x"]) ** 2)}


@dataclasses.dataclass(frozen=True)
class WarmLearner(ToyLearner):
    """Starts at the first batch's mean."""

    def warm_start(self, state: ToyState, batch: Any, key: jax.Array) -> ToyState:
        """Sets the vector to the batch's mean."""
        return state.replace(params={"w": batch["x"].mean(0)})


@dataclasses.dataclass
class ToyData:
    """28 examples per epoch, seven batches of the default size, different in each epoch."""

    seconds: float = 0.0  # time that a batch takes
    served: list = dataclasses.field(default_factory=list)  # (epoch, index) in order
    batch_size: int = 4

    def epoch(self, epoch: int, skip: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches from example `skip` on."""
        values = np.random.default_rng(epoch).normal(1.0, 0.3, size=(28, 8)).astype(np.float32)
        for first in range(skip, 29 - self.batch_size, self.batch_size):
            time.sleep(self.seconds)
            self.served.append((epoch, first // self.batch_size))
            yield {"x": values[first : first + self.batch_size]}


def run(model_dir, total_steps, data=None, learner=None, **overrides) -> ToyState:
    """Trains with short intervals between evaluations and checkpoints."""
    arguments = {"checkpoint_period": 5, "eval_period": 4, "eval_steps": 2, "log_period": 3, "checkpoint_minutes": 0.0}
    arguments |= overrides
    return trainer.train(
        learner or ToyLearner(),
        data or ToyData(),
        ToyData(),
        model_dir,
        trainer.RunConfig(total_steps=total_steps, **arguments),
    )


def start(model_dir, total_steps, seconds, before=(), stderr=subprocess.STDOUT) -> subprocess.Popen:
    """Starts `run` in another process, with batches that take some seconds; `before` is put in front of the command."""
    return subprocess.Popen(
        [*before, sys.executable, __file__, model_dir, str(total_steps), str(seconds)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3", JAX_PLATFORMS="cpu"),
    )


def read_until(process: subprocess.Popen, text: str) -> str:
    """Returns the first line of the run that contains `text`."""
    for line in process.stdout or ():
        if text in line:
            return line
    raise AssertionError(f"the run ended without {text!r}")


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), ToyData(float(sys.argv[3])), log_period=1)
