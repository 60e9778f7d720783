"""Training of w2v-BERT: masks, losses and the learner (arXiv 2108.06209, and wav2vec 2.0, arXiv 2006.11477)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import optax

from musiclm_jax.tokenizers import quantization
from musiclm_jax.tokenizers.w2v_bert.model import (
    FRAME_SAMPLES,
    SUBSAMPLING,
    W2vBert,
    W2vBertConfig,
    mel_frames,
    whitening,
)
from musiclm_jax.training.optimizers import OptimizerConfig

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def span_mask(key: jax.Array, batch: int, frames: int, start_probability: float, length: int) -> jax.Array:
    """Draws random spans: each frame starts a span of `length` frames with `start_probability`; spans may overlap.

    Returns:
      bool `[batch, frames]`, True where masked.
    """
    starts = jax.random.bernoulli(key, start_probability, (batch, frames)).astype(jnp.int32)
    before = jnp.cumsum(starts, axis=1)
    expired = jnp.pad(before, ((0, 0), (length, 0)))[:, :frames]
    return before > expired


def draw_negatives(key: jax.Array, mask: jax.Array, num_negatives: int) -> jax.Array:
    """Draws distractors for each masked frame, uniformly and with replacement, from its clip's other masked frames.

    Args:
      key: PRNG key.
      mask: bool `[batch, t]`.
      num_negatives: draws per frame.

    Returns:
      float32 `[batch, t, t]`: [b, i, j] counts how often frame j was drawn for frame i. Rows of unmasked frames are
      zero, and so is the row of a frame that is the only masked one in its clip.
    """
    batch, frames = mask.shape
    # Masked frames come first, in order. A draw is a rank among the other masked frames, so it skips the frame's own.
    order = jnp.argsort(~mask, axis=1, stable=True)
    rank = jnp.cumsum(mask, axis=1) - 1
    others = jnp.sum(mask, axis=1)[:, None, None] - 1
    drawn = jnp.floor(jax.random.uniform(key, (batch, frames, num_negatives)) * others).astype(jnp.int32)
    drawn = jnp.minimum(drawn, others - 1)  # float rounding may reach `others`
    drawn = jnp.clip(drawn + (drawn >= rank[:, :, None]), 0, frames - 1)
    row = jnp.arange(batch)[:, None, None], jnp.arange(frames)[None, :, None]
    column = order[row[0], drawn]
    return jnp.zeros((batch, frames, frames)).at[*row, column].add(mask[:, :, None] & (others > 0))


def contrastive_loss(
    key: jax.Array, context: jax.Array, targets: jax.Array, mask: jax.Array, num_negatives: int, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Computes InfoNCE of each masked frame against other masked frames of its clip.

    Negatives with the same code as the positive stay in the softmax (wav2vec 2.0's code excludes them). Otherwise a
    quantizer that gives all frames the same code has no negatives and a loss of 0, and small models collapse to that.

    Args:
      key: PRNG key of the draws.
      context: outputs of the contrastive module, `[batch, t, dim]`.
      targets: quantized latents, `[batch, t, dim]`.
      mask: bool `[batch, t]`.
      num_negatives: draws per masked frame.
      temperature: divides the cosine similarities.

    Returns:
      The mean loss over masked frames in nats, and the share of masked frames whose positive is the most similar.
    """
    unit = [x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-8) for x in (context, targets)]
    similarity = jnp.einsum("btd,bsd->bts", *unit) / temperature
    draws = draw_negatives(key, mask, num_negatives)
    positive = jnp.diagonal(similarity, axis1=1, axis2=2)
    # Terms are weighted by the number of draws, since the gradient of gathering the draws would be slow.
    denominator = jax.nn.logsumexp(similarity, axis=-1, b=draws + jnp.eye(mask.shape[1])[None])
    hardest = jnp.max(jnp.where(draws > 0, similarity, -jnp.inf), axis=-1)
    count = jnp.maximum(jnp.sum(mask), 1)
    loss = jnp.sum(jnp.where(mask, denominator - positive, 0.0)) / count
    correct = jnp.sum(mask & (positive > hardest)) / count
    return loss, correct


def diversity_loss(probabilities: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes 1 - perplexity / size of the mean code distribution.

    It is 0 if all entries are used equally, and 1 - 1 / size if only one is used.

    Args:
      probabilities: `[..., codebook]`; the mean is over all other axes.

    Returns:
      The loss, and the perplexity in 1..codebook.
    """
    mean = probabilities.reshape(-1, probabilities.shape[-1]).mean(axis=0)
    perplexity = jnp.exp(-jnp.sum(mean * jnp.log(mean + 1e-7)))
    return 1 - perplexity / mean.shape[0], perplexity


def pretraining_losses(
    config: W2vBertConfig,
    params: dict[str, Any],
    audio: jax.Array,
    key: jax.Array,
    temperature: jax.Array | float,
    *,
    noise: bool,
) -> dict[str, jax.Array]:
    """Computes the losses and accuracies of one batch (w2v-BERT section 3.3).

    Args:
      config: model config.
      params: parameters of `W2vBert`.
      audio: float32 `[batch, samples]`, samples a multiple of 960.
      key: PRNG key of masks, negatives and Gumbel noise.
      temperature: temperature of the Gumbel softmax.
      noise: whether the quantizer adds Gumbel noise (training) or takes the best entry (evaluation).

    Returns:
      float32 scalars: "contrastive_loss", "mlm_loss", "unmasked_loss" (the prediction loss at unmasked frames),
      "diversity_loss", "contrastive_accuracy", "mlm_accuracy" (both on masked frames), "codebook_perplexity" (of the
      mean distribution), "code_usage_perplexity" (of the chosen codes).
    """
    mask_key, negative_key, gumbel_key = jax.random.split(key, 3)
    mel = mel_frames(config, audio)
    mask = span_mask(
        mask_key, mel.shape[0], mel.shape[1] // SUBSAMPLING, config.mask_start_probability, config.mask_length
    )
    out = W2vBert(config).apply({"params": params}, mel, mask, gumbel_key if noise else None, temperature)
    contrastive, contrastive_accuracy = contrastive_loss(
        negative_key, out["context"], out["vectors"], mask, config.num_negatives, config.contrastive_temperature
    )
    diversity, perplexity = diversity_loss(out["probabilities"])
    usage = diversity_loss(jax.nn.one_hot(out["codes"], config.codebook_size))[1]
    count = jnp.maximum(jnp.sum(mask), 1)
    log_likelihood = jnp.take_along_axis(jax.nn.log_softmax(out["mlm_logits"]), out["codes"][..., None], axis=-1)[
        ..., 0
    ]
    rest = jnp.maximum(mask.size - count, 1)
    return {
        "contrastive_loss": contrastive,
        "mlm_loss": -jnp.sum(jnp.where(mask, log_likelihood, 0.0)) / count,
        "unmasked_loss": -jnp.sum(jnp.where(mask, 0.0, log_likelihood)) / rest,
        "diversity_loss": diversity,
        "contrastive_accuracy": contrastive_accuracy,
        "mlm_accuracy": jnp.sum(mask & (jnp.argmax(out["mlm_logits"], -1) == out["codes"])) / count,
        "codebook_perplexity": perplexity,
        "code_usage_perplexity": usage,
    }


_ADAM = OptimizerConfig(name="adamw", learning_rate=2e-3, schedule="rsqrt", warmup_steps=25_000, b2=0.98)


class W2vBertState(flax.struct.PyTreeNode):
    """Training state."""

    step: jax.Array  # int32 scalar
    params: dict[str, Any]
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class W2vBertLearner:
    """Trains w2v-BERT on batches {"audio": float32 `[batch, samples]`}; the defaults are the paper's."""

    family: ClassVar[str] = "w2v_bert"

    config: W2vBertConfig
    optimizer: OptimizerConfig = _ADAM
    mlm_weight: float = 1.0  # of the masked-prediction loss; the contrastive loss has weight 1
    unmasked_weight: float = 0.0  # of the same prediction at unmasked frames (HuBERT, arXiv 2106.07447)
    diversity_weight: float = 0.1  # of the codebook's diversity loss
    gumbel_start: float = 2.0  # temperature of the Gumbel softmax at step 0 (wav2vec 2.0)
    gumbel_end: float = 0.5  # lowest temperature
    gumbel_decay: float = 0.999995  # factor of the temperature per step

    def init(self, key: jax.Array) -> W2vBertState:
        """Returns the state at step 0."""
        model = W2vBert(self.config)
        mel = jnp.zeros((1, 4 * SUBSAMPLING, self.config.num_mels))
        params = model.init(key, mel, jnp.zeros((1, 4), bool), None, 1.0)["params"]
        return W2vBertState(jnp.zeros((), jnp.int32), params, self.optimizer.make().init(params))

    def start_from(self, state: W2vBertState, variables: Mapping[str, Any]) -> W2vBertState:
        """Returns the state with the weights of a bundle's part; the optimiser state is unchanged."""
        return dataclasses.replace(state, params=variables["params"])

    def warm_start(self, state: W2vBertState, batch: Batch, key: jax.Array) -> W2vBertState:
        """Fits the whitening of the mel bins, if it is used, and initialises the codes as clusters of the latents.

        The quantizer's linear layer then computes the log posterior of a Gaussian mixture with the centroids as means.
        This is not in the paper: in a short training, most steps would pass before the codes describe the music.

        Raises:
          ValueError: if the batch has fewer latents than there are codes.
        """
        rows, frames = batch["audio"].shape[0], batch["audio"].shape[-1] // FRAME_SAMPLES
        if rows * frames < self.config.codebook_size:
            raise ValueError(
                f"a batch of {rows} crops with {frames} latent frames each is too small to start "
                f"W2vBertConfig.codebook_size = {self.config.codebook_size} codes from: raise BATCH_SIZE to "
                f"{-(-self.config.codebook_size // max(frames, 1))} or more, lengthen the crops (SECONDS), or lower "
                "codebook_size"
            )
        model = W2vBert(self.config)
        mel = mel_frames(self.config, batch["audio"])
        params = dict(state.params)
        if self.config.mel_axes:
            bins = mel.reshape(-1, self.config.num_mels)
            params["mel_mean"], params["mel_rotation"] = whitening(bins, self.config.mel_axes)
        latents = model.apply({"params": params}, mel, method=W2vBert.latents)
        x = latents.reshape(-1, self.config.d_model)
        centroids = quantization.kmeans(key, x, self.config.codebook_size, iterations=10)
        residual = x - centroids[quantization.kmeans_assign(centroids, x)]
        precision = 1 / (jnp.mean(residual**2) + 1e-3)
        layer = {"kernel": precision * centroids.T, "bias": -0.5 * precision * jnp.sum(centroids**2, axis=-1)}
        return state.replace(params=params | {"latent_quantizer": layer})

    def train_step(self, state: W2vBertState, batch: Batch, key: jax.Array) -> tuple[W2vBertState, Metrics]:
        """Takes one optimiser step; returns the new state and the batch's metrics before the step."""

        def total(params: dict[str, Any]) -> tuple[jax.Array, Metrics]:
            metrics = self._metrics(params, batch, key, state.step, noise=True)
            return metrics["loss"], metrics

        grads, metrics = jax.grad(total, has_aux=True)(state.params)
        updates, opt_state = self.optimizer.make().update(grads, state.opt_state, state.params)
        metrics["grad_norm"] = optax.global_norm(grads)
        new = W2vBertState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
        return new, metrics

    def eval_step(self, state: W2vBertState, batch: Batch, key: jax.Array) -> Metrics:
        """Computes metrics with masks drawn from `key` and a quantizer without noise."""
        return self._metrics(state.params, batch, key, state.step, noise=False)

    def variables(self, state: W2vBertState) -> dict[str, Any]:
        """Returns {"params"}; `fit_kmeans` adds the rest of the part."""
        return {"params": state.params}

    def _metrics(
        self, params: dict[str, Any], batch: Batch, key: jax.Array, step: jax.Array, *, noise: bool
    ) -> Metrics:
        audio = batch["audio"]
        if audio.shape[-1] % FRAME_SAMPLES:
            raise ValueError(
                f"crops of {audio.shape[-1]} samples: choose a multiple of {FRAME_SAMPLES} (one latent frame)"
            )
        temperature = jnp.maximum(self.gumbel_end, self.gumbel_start * self.gumbel_decay**step)
        losses = pretraining_losses(self.config, params, audio, key, temperature, noise=noise)
        loss = (
            losses["contrastive_loss"]
            + self.mlm_weight * losses["mlm_loss"]
            + self.unmasked_weight * losses["unmasked_loss"]
            + self.diversity_weight * losses["diversity_loss"]
        )
        return losses | {"loss": loss, "gumbel_temperature": temperature}
