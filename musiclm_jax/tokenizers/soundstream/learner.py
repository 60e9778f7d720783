"""Training of SoundStream: a step of the generator, then one of the discriminators, in one pure function."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import optax

from musiclm_jax.tokenizers import quantization
from musiclm_jax.tokenizers.quantization import RVQState
from musiclm_jax.tokenizers.soundstream import discriminator, losses, model
from musiclm_jax.tokenizers.soundstream.model import SoundStreamConfig
from musiclm_jax.training.optimizers import OptimizerConfig

Metrics = dict[str, jax.Array]

ADAM = OptimizerConfig(
    name="adamw", learning_rate=1e-4, schedule="constant", warmup_steps=0, b1=0.5, b2=0.9, clip_norm=None
)  # not given in the paper


PAPER = SoundStreamConfig()


class SoundStreamState(flax.struct.PyTreeNode):
    """Training state."""

    step: jax.Array  # int32 scalar
    params: Any  # generator: {"encoder", "decoder"}
    ema_params: Any  # moving average of params, which is exported
    opt_state: Any
    rvq: RVQState
    discriminator_params: Any
    discriminator_opt_state: Any


@dataclasses.dataclass(frozen=True)
class SoundStreamLearner:
    """Learner (training/learner.py) of SoundStream; batches are {"audio": float32 `[b, samples]`} at 24 kHz."""

    config: SoundStreamConfig = PAPER  # the model
    optimizer: OptimizerConfig = ADAM  # of the generator
    discriminator_optimizer: OptimizerConfig = ADAM  # of the discriminators
    adversarial: bool = True  # False: the discriminators are neither run nor trained
    adversarial_weight: float = 1.0
    feature_weight: float = 100.0  # of feature matching
    mel_weight: float = 1.0  # of the reconstruction loss
    waveform_weight: float = 0.0  # of the mean absolute difference of samples (0 in the paper)
    stft_weight: float = 0.0  # of losses.stft_loss (not in the paper); 0: not computed
    commitment_weight: float = 1.0  # not given in the paper
    ema_decay: float = 0.999  # of ema_params
    kmeans_iterations: int = 10  # in warm_start
    train_encoder: bool = True  # False: encoder and codebooks are frozen, so that existing tokens stay valid

    family: ClassVar[str] = "soundstream"

    def init(self, key: jax.Array) -> SoundStreamState:
        """Returns the state at step 0, with random parameters and codebooks."""
        generator_key, discriminator_key, rvq_key = jax.random.split(key, 3)
        params = model.init_params(self.config, generator_key)
        discriminator_params = discriminator.init_params(self.config, discriminator_key)
        return SoundStreamState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            # A copy: the training loop donates the state, and a buffer can be donated only once.
            ema_params=jax.tree.map(jnp.copy, params),
            opt_state=self.optimizer.make().init(params),
            rvq=RVQState.init(rvq_key, self.config.rvq),
            discriminator_params=discriminator_params,
            discriminator_opt_state=self.discriminator_optimizer.make().init(discriminator_params),
        )

    def start_from(self, state: SoundStreamState, variables: Mapping[str, Any]) -> SoundStreamState:
        """Returns the state with the weights of a bundle's part; optimisers and discriminators stay."""
        params = variables["params"]
        rvq = RVQState.from_codebooks(variables["codebooks"], self.config.rvq)
        return state.replace(params=params, ema_params=jax.tree.map(jnp.copy, params), rvq=rvq)

    def warm_start(self, state: SoundStreamState, batch: Mapping[str, jax.Array], key: jax.Array) -> SoundStreamState:
        """Fits the codebooks to the embeddings of the first batch by residual k-means.

        If the batch has fewer than 4 vectors per code, fewer codes are fitted and then copied with jitter: with as many
        codes as vectors, no residual would be left for the later levels, and all their codes would coincide.
        """
        fit_key, jitter_key = jax.random.split(key)
        config = self.config.rvq
        x = model.embed(self.config, state.params, batch["audio"]).reshape(-1, config.dim)
        fitted = min(config.codebook_size, max(1, x.shape[0] // 4))
        few = dataclasses.replace(config, codebook_size=fitted)
        codebooks = quantization.fit_rvq(fit_key, x, few, self.kmeans_iterations)
        copies = jnp.tile(codebooks, (1, -(-config.codebook_size // fitted), 1))[:, : config.codebook_size]
        jitter = jax.random.normal(jitter_key, copies.shape) * jnp.std(codebooks, axis=(1, 2), keepdims=True)
        is_copy = (jnp.arange(config.codebook_size) >= fitted)[None, :, None]
        return state.replace(rvq=RVQState.from_codebooks(copies + 0.5 * jitter * is_copy, config))

    def train_step(
        self, state: SoundStreamState, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[SoundStreamState, Metrics]:
        """Takes a step of the generator and, if `adversarial`, one of the discriminators on the generator's output.

        The use of discriminators is fixed at compilation; a training with two phases is two runs in the same model_dir.
        Inside a conditional, XLA's CPU compiler does not use its fast convolutions, and the phase without
        discriminators would cost 15 times as much.
        """
        audio = batch["audio"]
        grad = jax.value_and_grad(self._generator_loss, has_aux=True)
        (loss, (metrics, decoded, rvq)), gradients = grad(state.params, state, audio, key)
        updates, opt_state = self.optimizer.make().update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A faster decay at the start, so that the average forgets the random initial parameters.
        decay = jnp.minimum(self.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        metrics |= {"loss": loss, "gradient_norm/generator": optax.global_norm(gradients)}
        state = state.replace(
            step=state.step + 1,
            params=params,
            ema_params=jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.ema_params, params),
            opt_state=opt_state,
            rvq=rvq,
        )
        if not self.adversarial:
            return state, metrics
        loss, gradients = jax.value_and_grad(self._discriminator_loss)(state.discriminator_params, audio, decoded)
        updates, opt_state = self.discriminator_optimizer.make().update(
            gradients, state.discriminator_opt_state, state.discriminator_params
        )
        metrics |= {"adversarial/discriminator": loss}
        discriminator_params = optax.apply_updates(state.discriminator_params, updates)
        return state.replace(discriminator_params=discriminator_params, discriminator_opt_state=opt_state), metrics

    def _generator_loss(
        self, params: Any, state: SoundStreamState, audio: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, jax.Array, RVQState]]:
        encoder = params if self.train_encoder else jax.lax.stop_gradient(params)
        embeddings = model.embed(self.config, encoder, audio)
        quantized, _, vq, rvq = quantization.quantize_train(self.config.rvq, state.rvq, embeddings, key)
        if not self.train_encoder:
            quantized, rvq = jax.lax.stop_gradient(quantized), state.rvq
        decoded = model.synthesize(self.config, params, quantized)
        metrics = {f"vq/{name}": value for name, value in vq.items()}
        metrics["reconstruction/mel"] = losses.mel_loss(audio, decoded, self.config.sample_rate)
        metrics["reconstruction/waveform"] = jnp.mean(jnp.abs(audio - decoded))
        loss = (
            self.mel_weight * metrics["reconstruction/mel"]
            + self.waveform_weight * metrics["reconstruction/waveform"]
            + self.commitment_weight * metrics["vq/commitment_loss"]
        )
        if self.stft_weight:
            metrics["reconstruction/stft"] = losses.stft_loss(audio, decoded)
            loss += self.stft_weight * metrics["reconstruction/stft"]
        if self.adversarial:
            _, real_features = discriminator.discriminate(self.config, state.discriminator_params, audio)
            logits, features = discriminator.discriminate(self.config, state.discriminator_params, decoded)
            metrics["adversarial/generator"] = losses.generator_hinge(logits)
            metrics["adversarial/feature_matching"] = losses.feature_matching(real_features, features)
            loss += self.adversarial_weight * metrics["adversarial/generator"]
            loss += self.feature_weight * metrics["adversarial/feature_matching"]
        return loss, (metrics, decoded, rvq)

    def _discriminator_loss(self, params: Any, audio: jax.Array, decoded: jax.Array) -> jax.Array:
        # Real and decoded audio in one pass: a batch of twice the size costs less than two passes.
        logits, _ = discriminator.discriminate(self.config, params, jnp.concatenate([audio, decoded]))
        real, fake = zip(*[jnp.split(x, 2) for x in logits], strict=True)
        return losses.discriminator_hinge(real, fake)

    def eval_step(self, state: SoundStreamState, batch: Mapping[str, jax.Array], key: jax.Array) -> Metrics:
        """Measures the quality of the exported model with all levels; "loss" is the mel loss."""
        audio = batch["audio"]
        variables = self.variables(state)
        codes = model.encode(self.config, variables, audio)
        decoded = model.decode(self.config, variables, codes)
        loss = losses.mel_loss(audio, decoded, self.config.sample_rate)
        return {
            "loss": loss,
            "reconstruction/log_mel_distance": losses.natural_log_mel_distance(audio, decoded, self.config.sample_rate),
            "reconstruction/si_sdr": jnp.mean(losses.batch_si_sdr(audio, decoded)),
        }

    def variables(self, state: SoundStreamState) -> dict[str, Any]:
        """Returns the variables for `model.encode` and `model.decode`: averaged "params", and "codebooks"."""
        return {"params": state.ema_params, "codebooks": state.rvq.codebooks}
