"""Training of MuLan: two towers with a contrastive loss."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from musiclm_jax.data.wordpiece import read_vocab
from musiclm_jax.tokenizers.mulan.audio_tower import AudioTower, features
from musiclm_jax.tokenizers.mulan.config import MulanConfig
from musiclm_jax.tokenizers.mulan.contrastive import Metrics, contrastive_loss, same_text
from musiclm_jax.tokenizers.mulan.text_tower import BertEncoder, Params, Projection, load_bert, pool
from musiclm_jax.training.optimizers import OptimizerConfig

Batch = dict[str, Any]


class MulanState(flax.struct.PyTreeNode):
    """Training state.

    Attributes:
      step: int32 scalar.
      params: {"audio", "projection", "log_scale"} and, if the text encoder is tuned, "text".
      frozen: {"text"} if the text encoder is not tuned, else {}.
      opt_state: optimiser state of `params`.
    """

    step: jax.Array
    params: Params
    frozen: Params
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class MulanLearner:
    """Learner (training/learner.py) of MuLan.

    Batches hold "audio", float32 `[batch, samples]` (`config.window_seconds` or less: the tower pools over time), and
    "text_ids" and "text_mask", int32 `[batch, length]`, from `wordpiece.tokenize_texts`. If the text encoder is not
    tuned, its precomputed "text_vectors", float32 `[batch, text_width]`, may replace "text_mask".
    """

    family: ClassVar[str] = "mulan"

    config: MulanConfig = dataclasses.field(default_factory=MulanConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    text_weights: str | None = None  # safetensors of the BERT encoder, a path or package:path; None: random
    vocab: str | None = None  # its vocab.txt, a path or package:path; without it the model cannot be exported
    initial_scale: float = 1 / 0.07  # initial 1 / temperature
    max_scale: float = 100.0  # upper limit of the learned scale
    gain_db: float = 6.0  # each clip gets a random gain, uniform between minus and plus this
    shift: bool = True  # rotate a clip's frames by a random time
    mask_mels: int = 8  # maximum width of a random band of mels that is set to the mean
    mask_frames: int = 20  # maximum length of two random spans of frames that are set to the mean
    drop_words: float = 0.1  # probability of dropping a piece of text; [CLS] and [SEP] are kept
    text_noise: float = 0.0  # norm of Gaussian noise added to the pooled text, relative to the norm of the text

    def init(self, key: jax.Array) -> MulanState:
        """Returns the state at step 0: random towers, and the text encoder from `text_weights`."""
        audio_key, text_key, projection_key = jax.random.split(key, 3)
        c = self.config
        mel = jnp.zeros((1, c.window_samples // c.mel_hop, c.num_mels))
        params: Params = {
            "audio": AudioTower(c).init(audio_key, mel)["params"],
            "projection": Projection(c).init(projection_key, jnp.zeros((1, c.text_width)))["params"],
            "log_scale": jnp.float32(math.log(self.initial_scale)),
        }
        if self.text_weights is None:
            ids = jnp.zeros((1, 2), jnp.int32)
            text = BertEncoder(c).init(text_key, ids, ids)["params"]
        else:
            text = jax.tree.map(jnp.asarray, load_bert(self.text_weights, c))
        frozen = {} if c.tune_text_encoder else {"text": text}
        if c.tune_text_encoder:
            params["text"] = text
        return MulanState(jnp.zeros((), jnp.int32), params, frozen, self.optimizer.make().init(params))

    def start_from(self, state: MulanState, variables: Params) -> MulanState:
        """Returns the state with the towers of a bundle's MuLan; optimiser state and temperature are unchanged.

        Args:
          state: state at step 0.
          variables: variables from `Bundle.mulan`.
        """
        params = state.params | {name: variables[name] for name in ("audio", "projection")}
        if state.frozen:
            return state.replace(params=params, frozen={"text": variables["text"]})
        return state.replace(params=params | {"text": variables["text"]})

    def embed(self, params: Params, frozen: Params, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Computes both towers' unit vectors `[batch, dim]`; a `key` enables augmentation."""
        audio = batch["audio"]
        audio_key, text_key, noise_key = (None,) * 3 if key is None else jax.random.split(key, 3)
        if audio_key is not None:
            mel = self._augment(audio, audio_key)
        else:
            mel = features(audio, self.config)
        # Nothing before the tower is trained, so the spectrogram needs no gradient.
        audio_embedding = AudioTower(self.config).apply({"params": params["audio"]}, jax.lax.stop_gradient(mel))
        pooled = self._sentences(params, frozen, batch, text_key)
        if noise_key is not None and self.text_noise:
            size = self.text_noise * jnp.linalg.norm(pooled, axis=-1, keepdims=True) / pooled.shape[-1] ** 0.5
            pooled += size * jax.random.normal(noise_key, pooled.shape)
        return audio_embedding, Projection(self.config).apply({"params": params["projection"]}, pooled)

    def _sentences(self, params: Params, frozen: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
        """Returns sentence vectors `[batch, text_width]` from the batch or, if it has none, from the encoder."""
        if "text_vectors" in batch and frozen:
            return jax.lax.stop_gradient(batch["text_vectors"])
        mask = batch["text_mask"] if key is None else drop_words(key, batch["text_mask"], self.drop_words)
        encoder = frozen["text"] if frozen else params["text"]
        pooled = pool(BertEncoder(self.config).apply({"params": encoder}, batch["text_ids"], mask), mask)
        return jax.lax.stop_gradient(pooled) if frozen else pooled

    def train_step(self, state: MulanState, batch: Batch, key: jax.Array) -> tuple[MulanState, Metrics]:
        """Takes one optimiser step."""

        def loss_fn(params: Params) -> tuple[jax.Array, Metrics]:
            audio, text = self.embed(params, state.frozen, batch, key)
            return contrastive_loss(audio, text, self._scale(params), same_text(batch["text_ids"]))

        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = self.optimizer.make().update(grads, state.opt_state, state.params)
        metrics |= {"loss": loss, "gradient_norm": optax.global_norm(grads)}
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    def eval_step(self, state: MulanState, batch: Batch, key: jax.Array) -> Metrics:
        """Measures loss and retrieval within the batch, without augmentation."""
        del key
        audio, text = self.embed(state.params, state.frozen, batch, None)
        loss, metrics = contrastive_loss(audio, text, self._scale(state.params), same_text(batch["text_ids"]))
        return metrics | {"loss": loss}

    def variables(self, state: MulanState) -> Params:
        """Returns the variables for inference; `quantize.fit_quantizer` adds the quantizer.

        Returns:
          {"audio", "projection", "text": parameters, "vocab": uint8 `[bytes]`, the content of vocab.txt}.

        Raises:
          ValueError: if the learner has no `vocab`.
        """
        if self.vocab is None:
            raise ValueError("MulanLearner.vocab is None: give the vocab.txt that the text encoder was trained with")
        towers = {name: state.params[name] for name in ("audio", "projection")}
        text = state.frozen["text"] if state.frozen else state.params["text"]
        return {**towers, "text": text, "vocab": np.frombuffer(read_vocab(self.vocab), np.uint8)}

    def _scale(self, params: Params) -> jax.Array:
        return jnp.exp(jnp.minimum(params["log_scale"], math.log(self.max_scale)))

    def _augment(self, audio: jax.Array, key: jax.Array) -> jax.Array:
        """Computes features `[batch, frames, mels]` of audio with a random gain, rotated and masked."""
        keys = jax.random.split(key, 5)
        batch = audio.shape[0]
        gain = jax.random.uniform(keys[0], (batch, 1), minval=-self.gain_db, maxval=self.gain_db)
        mel = features(audio * 10 ** (gain / 20), self.config)
        frames, mels = mel.shape[1:]
        if self.shift:
            starts = jax.random.randint(keys[1], (batch,), 0, frames)
            twice = jnp.concatenate([mel, mel], axis=1)
            mel = jax.vmap(lambda m, s: jax.lax.dynamic_slice(m, (s, 0), (frames, mels)))(twice, starts)
        keep = ~_random_stretch(keys[2], batch, mels, self.mask_mels)[:, None, :]
        for stretch_key in keys[3:]:
            keep &= ~_random_stretch(stretch_key, batch, frames, self.mask_frames)[:, :, None]
        return jnp.where(keep, mel, 0.0)


def _random_stretch(key: jax.Array, batch: int, size: int, longest: int) -> jax.Array:
    """Returns bool `[batch, size]` with one random span of 0..longest True entries per row."""
    length_key, start_key = jax.random.split(key)
    length = jax.random.randint(length_key, (batch, 1), 0, longest + 1)
    start = jax.random.randint(start_key, (batch, 1), 0, size)
    place = jnp.arange(size)[None]
    return (place >= start) & (place < start + length)


def drop_words(key: jax.Array, mask: jax.Array, probability: float) -> jax.Array:
    """Drops random pieces from `mask` `[batch, length]`; the first and the last piece of each row are kept."""
    last = jnp.sum(mask > 0, axis=1, keepdims=True) - 1
    place = jnp.arange(mask.shape[1])[None]
    inner = (place > 0) & (place < last)
    return jnp.where(inner & jax.random.bernoulli(key, probability, mask.shape), 0, mask)
