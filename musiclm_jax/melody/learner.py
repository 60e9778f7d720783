"""Training of the melody model on pairs of renditions."""

import dataclasses
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import optax

from musiclm_jax.melody.config import MelodyConfig
from musiclm_jax.melody.encoder import MelodyEncoder, features
from musiclm_jax.melody.triplet import Metrics, semi_hard_triplet_loss
from musiclm_jax.optimizers import OptimizerConfig

Batch = dict[str, Any]


class MelodyState(flax.struct.PyTreeNode):
    """State of the training.

    Attributes:
      step: int32 scalar.
      params: of the encoder.
      opt_state: of the optimiser.
    """

    step: jax.Array
    params: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class MelodyLearner:
    """What the training loop trains: see `learner.py` for the contract.

    Batches hold "audio" float32 `[batch, window_samples]` and "melody" int32 `[batch]`, equal for renditions of one
    passage; a melody that comes once only serves as a negative.
    """

    family: ClassVar[str] = "melody"

    config: MelodyConfig = dataclasses.field(default_factory=MelodyConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    margin: float = 0.2  # of the triplet loss, FaceNet's (open in the paper)
    noise_db: float = -30.0  # level of white noise that is added, against the audio's own; a recording is never clean

    def init(self, key: jax.Array) -> MelodyState:
        """A fresh encoder."""
        c = self.config
        mel = jnp.zeros((1, c.patches * c.patch_frames, c.num_mels))
        params = MelodyEncoder(c).init(key, mel)["params"]
        return MelodyState(jnp.zeros((), jnp.int32), params, self.optimizer.make().init(params))

    def train_step(self, state: MelodyState, batch: Batch, key: jax.Array) -> tuple[MelodyState, Metrics]:
        """One update; pure."""
        audio = batch["audio"]
        level = jnp.sqrt(jnp.mean(jnp.square(audio), axis=1, keepdims=True))
        audio = audio + 10 ** (self.noise_db / 20) * level * jax.random.normal(key, audio.shape)
        (loss, metrics), grads = jax.value_and_grad(self._loss, has_aux=True)(state.params, audio, batch["melody"])
        updates, opt_state = self.optimizer.make().update(grads, state.opt_state, state.params)
        metrics |= {"loss": loss, "gradient_norm": optax.global_norm(grads)}
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    def eval_step(self, state: MelodyState, batch: Batch, key: jax.Array) -> Metrics:
        """Loss and retrieval within the batch, without noise; pure."""
        del key
        loss, metrics = self._loss(state.params, batch["audio"], batch["melody"])
        return metrics | {"loss": loss}

    def variables(self, state: MelodyState) -> dict[str, Any]:
        """What `embed.embed` needs: {"params"}."""
        return {"params": state.params}

    def _loss(self, params: Any, audio: jax.Array, melodies: jax.Array) -> tuple[jax.Array, Metrics]:
        embeddings = MelodyEncoder(self.config).apply({"params": params}, features(self.config, audio))
        return semi_hard_triplet_loss(embeddings, melodies, self.margin)
