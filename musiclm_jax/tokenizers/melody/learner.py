"""Training of the melody model on pairs of renditions."""

import dataclasses
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import optax

from musiclm_jax.tokenizers.melody.config import MelodyConfig
from musiclm_jax.tokenizers.melody.encoder import MelodyEncoder, features
from musiclm_jax.tokenizers.melody.triplet import Metrics, contrastive_loss, semi_hard_triplet_loss
from musiclm_jax.training.optimizers import OptimizerConfig

Batch = dict[str, Any]


class MelodyState(flax.struct.PyTreeNode):
    """Training state.

    Attributes:
      step: int32 scalar.
      params: parameters of the encoder.
      opt_state: state of the optimiser.
    """

    step: jax.Array
    params: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class MelodyLearner:
    """Learner (training/learner.py) of the melody model.

    Batches hold "audio", float32 `[batch, renditions * window_samples]`, the concatenated renditions of a passage, and
    "melody", int32 `[batch, 1]`, which is equal for passages of the same composition.
    """

    family: ClassVar[str] = "melody"

    config: MelodyConfig = dataclasses.field(default_factory=MelodyConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    margin: float = 0.2  # of the triplet loss, as in FaceNet (not given in the paper)
    noise_db: float = -30.0  # level of added white noise relative to the audio, since real recordings are never clean
    contrastive_steps: int = 0  # number of first steps that use the softmax loss instead
    temperature: float = 0.1  # of the softmax loss

    def init(self, key: jax.Array) -> MelodyState:
        """Returns the state at step 0."""
        c = self.config
        mel = jnp.zeros((1, c.frames, c.num_mels))
        params = MelodyEncoder(c).init(key, mel)["params"]
        return MelodyState(jnp.zeros((), jnp.int32), params, self.optimizer.make().init(params))

    def train_step(self, state: MelodyState, batch: Batch, key: jax.Array) -> tuple[MelodyState, Metrics]:
        """Takes one optimiser step."""
        audio = self._windows(batch)
        level = jnp.sqrt(jnp.mean(jnp.square(audio), axis=1, keepdims=True))
        # The same noise for all windows: with a small model, drawing it for each would take a third of the step.
        noise = jax.random.normal(key, audio.shape[1:])
        audio = audio + 10 ** (self.noise_db / 20) * level * noise[None]
        gradient = jax.value_and_grad(self._loss, has_aux=True)
        (loss, metrics), grads = gradient(state.params, audio, batch["melody"], state.step)
        updates, opt_state = self.optimizer.make().update(grads, state.opt_state, state.params)
        metrics |= {"loss": loss, "gradient_norm": optax.global_norm(grads)}
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    def eval_step(self, state: MelodyState, batch: Batch, key: jax.Array) -> Metrics:
        """Measures loss and retrieval within the batch, without noise."""
        del key
        last = jnp.asarray(self.contrastive_steps)
        loss, metrics = self._loss(state.params, self._windows(batch), batch["melody"], last)
        return metrics | {"loss": loss}

    def variables(self, state: MelodyState) -> dict[str, Any]:
        """Returns the variables for `embed.embed`: {"params"}."""
        return {"params": state.params}

    def _windows(self, batch: Batch) -> jax.Array:
        """Returns one row per rendition: `[batch * renditions, window_samples]`."""
        return batch["audio"].reshape(-1, self.config.window_samples)

    def _loss(
        self, params: Any, audio: jax.Array, compositions: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        embeddings = MelodyEncoder(self.config).apply({"params": params}, features(self.config, audio))
        renditions = len(embeddings) // len(compositions)
        passages = jnp.repeat(jnp.arange(len(compositions)), renditions)
        compositions = jnp.repeat(compositions[:, 0], renditions)
        loss, metrics = semi_hard_triplet_loss(embeddings, passages, compositions, self.margin)
        if self.contrastive_steps:
            contrastive = contrastive_loss(embeddings, passages, compositions, self.temperature)
            loss = jnp.where(step < self.contrastive_steps, contrastive, loss)
        return loss, metrics
