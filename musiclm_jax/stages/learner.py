"""Training of a stage: one learner for the semantic, coarse and fine models."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from musiclm_jax.stages.layers import attention_kernel
from musiclm_jax.stages.layout import LMBatch, assemble
from musiclm_jax.stages.losses import TokenLosses, token_losses, weighted_mean
from musiclm_jax.stages.stage import Stage
from musiclm_jax.stages.transformer import Params, TransformerConfig, init_params, target_logits
from musiclm_jax.training.optimizers import OptimizerConfig

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class StageState:
    """Training state of a stage."""

    step: jax.Array  # int32 scalar, number of updates so far
    params: Params  # stacked, float32
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class StageLearner:
    """Learner (training/learner.py) of a stage; batches are raw streams of `stage.seconds`, see `layout.assemble`."""

    family: ClassVar[str] = "stage"

    stage: Stage  # conditioning and target
    config: TransformerConfig  # the model
    optimizer: OptimizerConfig  # optimiser and schedule
    z_loss: float = 1e-4  # weight of the squared log normalizer, as in T5X (not in the paper); 0 for none
    label_smoothing: float = 0.0  # share of the target spread over all codes, in training only (not in the paper)
    microbatches: int = 1  # parts of a batch whose gradients are averaged, which needs less memory for activations
    hidden_context: float = 0.0  # share of rows trained with hidden target frames, see `hide_frames` (not in the paper)

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          ValueError: if a value is not allowed; names the field, its value and what is expected.
        """
        if self.microbatches < 1:
            raise ValueError(f"StageLearner.microbatches is {self.microbatches}, expected 1 or more")
        if not 0 <= self.hidden_context <= 1:
            raise ValueError(f"StageLearner.hidden_context is {self.hidden_context}, expected 0 to 1")

    def init(self, key: jax.Array) -> StageState:
        """Returns the state at step 0; parameters and their moments are boxed with the names of their logical axes."""
        params = init_params(self.config, self.stage.vocabulary.rows, key)
        return StageState(jnp.zeros((), jnp.int32), params, self.optimizer.make().init(params))

    def start_from(self, state: StageState, variables: Mapping[str, Any]) -> StageState:
        """Returns the state with the weights of a bundle's part; the optimiser state is unchanged."""
        return dataclasses.replace(state, params=variables["params"])

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of the raw streams in a batch; real batches may have more levels, which are not read."""
        shapes = {}
        for part in (*self.stage.conditioning, self.stage.target):
            stream, frames = self.stage.stream(part.stream), self.stage.frames(part)
            per_frame = (stream.quantizers,) if stream.quantizers > 1 or not stream.frame_rate else ()
            shape = (batch_size, frames, *per_frame) if stream.frame_rate else (batch_size, *per_frame)
            shapes[stream.name] = jax.ShapeDtypeStruct(shape, jnp.int32)
        return shapes

    def execution(self) -> str:
        """Names the implementation of attention on the mesh in use."""
        return f"attention {attention_kernel(self.config.attention)!r}"

    @property
    def row_tokens(self) -> int:
        """Number of tokens per row, conditioning included."""
        return self.stage.condition_length() + self.stage.target_length()

    def model_flops(self, rows: int) -> float:
        """Returns the FLOPs of a step: 6 N D for layers and logits, and 6 l^2 d per layer for causal attention."""
        stage, config, length = self.stage, self.config, self.row_tokens
        d = config.d_model
        per_layer = 4 * d * d + 3 * d * config.d_ff
        codebook_size = stage.stream(stage.target.stream).codebook_size
        products = length * config.num_layers * per_layer + stage.target_length() * d * codebook_size
        return 6.0 * rows * (products + config.num_layers * length * length * d)

    def train_step(self, state: StageState, batch: Mapping[str, Any], key: jax.Array) -> tuple[StageState, Metrics]:
        """Takes one optimiser step.

        Args:
          state: unboxed state.
          batch: raw streams, int32; see layout.py.
          key: PRNG key for dropout, dropped conditioning and hidden frames.

        Returns:
          The next state, and float32 scalars: those of `eval_step` without "condition_bits", measured with dropout, and
          "z_loss" and "grad_norm".
        """

        grads, metrics = self._gradients(state.params, batch, key)
        updates, opt_state = self.optimizer.make().update(grads, state.opt_state, state.params)
        metrics["grad_norm"] = optax.global_norm(grads)
        params = optax.apply_updates(state.params, updates)
        return StageState(state.step + 1, params, opt_state), metrics

    def _gradients(self, params: Params, batch: Mapping[str, Any], key: jax.Array) -> tuple[Params, Metrics]:
        """Computes the gradients and metrics of a batch, one microbatch at a time."""

        def of_part(part: Mapping[str, Any], key: jax.Array) -> tuple[Params, Metrics]:
            return jax.grad(lambda p: self.loss(p, part, key), has_aux=True)(params)

        count = self.microbatches
        if count == 1:
            return of_part(batch, key)

        def cut(values: jax.Array) -> jax.Array:
            """Puts every count-th row into the same microbatch, so that each device keeps its own rows."""
            if values.shape[0] % count:
                raise ValueError(f"a batch of {values.shape[0]} does not divide into {count} microbatches")
            rows = jnp.swapaxes(values.reshape(-1, count, *values.shape[1:]), 0, 1)
            return nn.with_logical_constraint(rows, (None, "batch", *(None,) * (values.ndim - 1)))

        def add(total: Any, part_and_key: tuple) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, of_part(*part_and_key)), None

        parts, keys = jax.tree.map(cut, dict(batch)), jax.random.split(key, count)
        shapes = jax.eval_shape(of_part, jax.tree.map(lambda rows: rows[0], parts), keys[0])
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, (parts, keys))
        return jax.tree.map(lambda leaf: leaf / count, total)

    def eval_step(self, state: StageState, batch: Mapping[str, Any], key: jax.Array) -> Metrics:
        """Measures a batch without dropout.

        Args:
          state: unboxed state.
          batch: raw streams, int32; see layout.py.
          key: not used; all learners take one.

        Returns:
          float32 scalars: "loss" in nats per token, "bits" per token, "accuracy", "first_frame_bits" (per token of the
          first frame, which only the conditioning can predict), "loss/level_NN" for each level of the target (counted
          from 0 within the acoustic stream: the fine stage begins at level_04), and "condition_bits": how many more
          bits per token it takes with the conditioning of the batch's next row. Near 0, the model ignores the
          conditioning.
        """
        del key
        lm = assemble(self.stage, batch)
        metrics = self._loss(state.params, lm, None)[1]
        mixed = self._loss(state.params, with_next_condition(self.stage, lm), None)[1]
        return metrics | {"condition_bits": mixed["bits"] - metrics["bits"]}

    def variables(self, state: StageState) -> dict[str, Any]:
        """Returns the variables of the bundle's part: {"params"}."""
        return {"params": state.params}

    def loss(self, params: Params, batch: Mapping[str, Any], key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """Computes the training loss.

        Args:
          params: stacked parameters, unboxed.
          batch: raw streams, int32; see layout.py.
          key: PRNG key for dropout, dropped conditioning and hidden frames; None to evaluate without them.

        Returns:
          The loss including the z-loss, and the metrics of `train_step` or `eval_step` without "grad_norm" and
          "condition_bits".
        """
        drop_key, dropout_key = (None, None) if key is None else jax.random.split(key)
        lm = assemble(self.stage, batch, drop_key)
        if key is not None and self.hidden_context:
            lm = hide_frames(self.stage, lm, jax.random.fold_in(key, 2), self.hidden_context)
        return self._loss(params, lm, dropout_key)

    def token_losses(self, params: Params, lm: LMBatch, key: jax.Array | None) -> TokenLosses:
        """Computes the losses of each target position, float32 [b, t, q]; with a key, as in training."""
        dropout_key = key if self.config.dropout else None
        hidden_frame = self.stage.vocabulary.bos if self.hidden_context else None
        logits = target_logits(self.config, self.stage, params, lm, dropout_key, frequent_id=hidden_frame)
        return token_losses(logits, lm.target_codes, 0.0 if key is None else self.label_smoothing)

    def _loss(self, params: Params, lm: LMBatch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        losses = self.token_losses(params, lm, key)
        loss = weighted_mean(losses.cross_entropy, lm.loss_weights)
        z_loss = self.z_loss * weighted_mean(jnp.square(losses.log_normalizer), lm.loss_weights)
        metrics = {
            "loss": loss,
            "bits": loss / math.log(2),
            "accuracy": weighted_mean(losses.correct, lm.loss_weights),
            "first_frame_bits": weighted_mean(losses.cross_entropy[:, :1], lm.loss_weights[:, :1]) / math.log(2),
        }
        by_level = weighted_mean(losses.cross_entropy, lm.loss_weights, axis=(0, 1))
        for i, level_loss in enumerate(by_level):
            metrics[f"loss/level_{self.stage.target.first_level + i:02d}"] = level_loss
        if key is not None:
            metrics["z_loss"] = z_loss
        return loss + z_loss, metrics


def hide_frames(stage: Stage, lm: LMBatch, key: jax.Array, share: float) -> LMBatch:
    """Hides random target frames from later ones, so that the model has to read the conditioning.

    With the whole past in view, a model need not learn what the conditioning says about the sound, since the past shows
    it. Only the first frame of a piece has no past, and it is one of hundreds in training. But a generated piece
    continues as its first frame begins.

    Args:
      stage: the stage.
      lm: a batch.
      key: PRNG key.
      share: share of rows with hidden frames. Each of these rows has its own rate of hidden frames, uniform in 0..1.

    Returns:
      The batch with bos in place of the input tokens of hidden frames. The levels of a hidden frame after the first no
      longer see the levels before them and have no weight in the loss.
    """
    rows, frames, levels = lm.target_codes.shape
    row_key, rate_key, frame_key = jax.random.split(key, 3)
    rates = jax.random.bernoulli(row_key, share, (rows, 1)) * jax.random.uniform(rate_key, (rows, 1))
    hidden = jax.random.uniform(frame_key, (rows, frames)) < rates
    known = 1 + stage.condition_length()
    inputs = lm.decoder_input_tokens
    targets = jnp.where(jnp.repeat(hidden, levels, axis=1)[:, :-1], stage.vocabulary.bos, inputs[:, known:])
    counts = jnp.concatenate([jnp.ones((rows, frames, 1), bool), jnp.repeat(~hidden[..., None], levels - 1, 2)], axis=2)
    return dataclasses.replace(
        lm,
        decoder_input_tokens=jnp.concatenate([inputs[:, :known], targets], axis=1),
        loss_weights=lm.loss_weights * counts,
    )


def with_next_condition(stage: Stage, lm: LMBatch) -> LMBatch:
    """Returns the same targets, each with the conditioning of the batch's next row."""
    known = 1 + stage.condition_length()  # bos and the conditioning, whose last token predicts the first target

    def mix(values: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.roll(values[:, :known], -1, axis=0), values[:, known:]], axis=1)

    return dataclasses.replace(lm, decoder_input_tokens=mix(lm.decoder_input_tokens), valid=mix(lm.valid))
