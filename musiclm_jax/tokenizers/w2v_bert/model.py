"""w2v-BERT: semantic tokens of music from a self-supervised Conformer (arXiv 2108.06209).

Two strided convolutions reduce log-mel frames at 100 Hz to *latents* at 25 Hz. Spans of latents are masked. The
contrastive module (Conformer layers) must distinguish the quantized latent of a masked frame from those of other masked
frames of the same clip. The masked-prediction (MLM) module (Conformer layers on top) must predict its index in the
quantizer's codebook. After training, the output of one MLM layer, normalised per dimension, is clustered by k-means:
the cluster is the token. Training is in `learner`.

Choices made here, where the papers give no detail:
* relative position: rotary embedding of queries and keys, which needs no parameters and has no maximum length;
* LayerNorm instead of the Conformer's BatchNorm, so that a forward pass is a pure function of parameters and input;
* the two subsampling convolutions are one-dimensional over frames, with the mel bins as channels;
* masked latents are replaced by a learned vector (wav2vec 2.0); the quantizer sees the unmasked latents;
* the log-mel input is normalised per clip with one mean and one standard deviation over all frames and bins, so that
  tokens do not depend on the recording's gain (up to the floor of the logarithm);
* the mel frames come from an FFT: at windows near 2048 it is several times faster than the product in `spectrogram`.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.data.spectrogram import frame, mel_filterbank
from musiclm_jax.data.tokens import SAMPLE_RATE, SEMANTIC
from musiclm_jax.tokenizers import quantization

Variables = dict[str, Any]
SUBSAMPLING = 4  # two convolutions of stride 2
_HOP = SAMPLE_RATE // (SUBSAMPLING * SEMANTIC.frame_rate)  # 240 samples
FRAME_SAMPLES = SUBSAMPLING * _HOP  # 960 samples of audio per token
_NORMALISATIONS = ("dimension", "pca")


@dataclasses.dataclass(frozen=True)
class W2vBertConfig:
    """Sizes of the model and its tokens; the defaults are w2v-BERT XL (0.6B) as MusicLM uses it."""

    mel_window: int = 600  # samples of the Hann window (25 ms)
    mel_fft_size: int = 1024  # points of the transform
    num_mels: int = 80
    mel_min_hz: float = 60.0
    mel_max_hz: float = 11_000.0
    mel_floor: float = 1e-5  # added to the mel magnitudes before the logarithm
    mel_axes: int = 0  # number of whitened principal axes of the mel bins as input; 0: the bins themselves
    d_model: int = 1024
    contrastive_layers: int = 12
    mlm_layers: int = 12
    num_heads: int = 8
    ffn_multiplier: int = 4  # width of the feed-forward layers / d_model
    conv_kernel: int = 5  # frames of the depthwise convolution; odd
    codebook_size: int = 1024  # entries of the training target's codebook
    codebook_dim: int = 1024  # dimensions of an entry
    mask_start_probability: float = 0.065  # probability that a masked span starts at a latent frame
    mask_length: int = 10  # latent frames of a span (0.4 s)
    num_negatives: int = 100  # distractors per masked frame, drawn with replacement (wav2vec 2.0)
    contrastive_temperature: float = 0.1  # of the cosine similarities (wav2vec 2.0)
    target_gradient: float = 1.0  # scale of the contrastive loss's gradient with respect to the quantizer's logits
    feature_layer: int = 7  # MLM layer whose output is clustered, from 1; 0 = the contrastive module's output
    feature_normalisation: str = (
        "dimension"  # "dimension": mean and standard deviation per dimension; "pca": whitened principal axes
    )
    feature_dims: int = 0  # principal axes kept by "pca"; 0 keeps all
    num_clusters: int = 1024  # semantic tokens
    kmeans_iterations: int = 30
    kmeans_frames: int = 500_000  # maximum number of feature frames to fit the clusters, spread evenly over the corpus

    def __post_init__(self) -> None:
        """Raises ValueError if sizes do not fit together."""
        if self.d_model % (2 * self.num_heads):
            raise ValueError(
                f"d_model {self.d_model} is not a multiple of 2 x {self.num_heads} heads: rotary heads are even"
            )
        if not 0 <= self.feature_layer <= self.mlm_layers:
            raise ValueError(f"feature_layer {self.feature_layer} is not within 0..{self.mlm_layers} (mlm_layers)")
        if not 0 <= self.mel_axes <= self.num_mels:
            raise ValueError(f"mel_axes {self.mel_axes} is not within 0..{self.num_mels} (num_mels)")
        if self.feature_normalisation not in _NORMALISATIONS:
            raise ValueError(f"feature_normalisation {self.feature_normalisation!r} is not one of {_NORMALISATIONS}")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel {self.conv_kernel} is even: choose an odd one, which keeps frames centred")


def mel_frames(config: W2vBertConfig, audio: jax.Array) -> jax.Array:
    """Computes the log-mel input, normalised per clip.

    Args:
      config: window, bins and floor.
      audio: float32 `[batch, samples]`, 24 kHz.

    Returns:
      float32 `[batch, samples // 240, num_mels]`, with mean 0 and variance 1 per clip; frame i is centred on hop i.
    """
    window = config.mel_window
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)
    filters = mel_filterbank(SAMPLE_RATE, config.mel_fft_size, config.num_mels, config.mel_min_hz, config.mel_max_hz)
    excess = window - _HOP
    padded = jnp.pad(audio, ((0, 0), (excess // 2, excess - excess // 2)))
    magnitude = jnp.abs(jnp.fft.rfft(frame(padded, window, _HOP) * hann[None, None, :], config.mel_fft_size))
    mel = jnp.log(magnitude @ filters + config.mel_floor)
    mean = mel.mean(axis=(1, 2), keepdims=True)
    deviation = mel.std(axis=(1, 2), keepdims=True)
    return (mel - mean) / (deviation + 1e-3)


def rotate(x: jax.Array) -> jax.Array:
    """Applies rotary position embedding to `[batch, frames, heads, dim]` (arXiv 2104.09864), pairing the two halves."""
    frames, half = x.shape[1], x.shape[-1] // 2
    frequency = 10_000.0 ** (-np.arange(half) / half)
    angle = np.arange(frames)[:, None] * frequency[None]
    cos, sin = (fn(angle).astype(np.float32)[None, :, None, :] for fn in (np.cos, np.sin))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes a centred depthwise convolution with zero padding.

    It is a sum of shifted products: XLA's grouped convolution is much slower on CPUs for these kernel sizes.

    Args:
      x: `[batch, frames, channels]`.
      kernel: `[taps, channels]`, taps odd; tap j multiplies frame t + j - taps // 2.

    Returns:
      `[batch, frames, channels]`.
    """
    taps, frames = kernel.shape[0], x.shape[1]
    padded = jnp.pad(x, ((0, 0), (taps // 2, taps // 2), (0, 0)))
    return sum(
        (padded[:, j : j + frames] * kernel[None, None, j] for j in range(1, taps)),
        padded[:, :frames] * kernel[None, None, 0],
    )


class FeedForward(nn.Module):
    """LayerNorm, expansion, swish, projection."""

    config: W2vBertConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, frames, d]` to the same shape."""
        hidden = nn.Dense(self.config.d_model * self.config.ffn_multiplier)(nn.LayerNorm()(x))
        return nn.Dense(self.config.d_model)(nn.swish(hidden))


class SelfAttention(nn.Module):
    """LayerNorm and multi-head attention over the whole clip, with rotary positions."""

    config: W2vBertConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, frames, d]` to the same shape."""
        config = self.config
        shape = (config.num_heads, config.d_model // config.num_heads)
        x = nn.LayerNorm()(x)
        query, key, value = (nn.DenseGeneral(shape, name=name)(x) for name in ("query", "key", "value"))
        scores = jnp.einsum("bthd,bshd->bhts", rotate(query), rotate(key)) / np.sqrt(shape[1])
        context = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), value)
        return nn.DenseGeneral(config.d_model, axis=(-2, -1), name="out")(context)


class ConvModule(nn.Module):
    """LayerNorm, gated pointwise, depthwise, LayerNorm (BatchNorm in the paper), swish, pointwise convolution."""

    config: W2vBertConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, frames, d]` to the same shape."""
        d_model = self.config.d_model
        x = nn.glu(nn.Dense(2 * d_model)(nn.LayerNorm()(x)))
        scale = nn.initializers.normal(self.config.conv_kernel**-0.5)
        x = depthwise_conv(x, self.param("depthwise", scale, (self.config.conv_kernel, d_model)))
        return nn.Dense(d_model)(nn.swish(nn.LayerNorm()(x)))


class ConformerLayer(nn.Module):
    """Half a feed-forward step, attention, convolution, half a feed-forward step, LayerNorm (arXiv 2005.08100)."""

    config: W2vBertConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, frames, d]` to the same shape."""
        x = x + 0.5 * FeedForward(self.config, name="ffn_in")(x)
        x = x + SelfAttention(self.config, name="attention")(x)
        x = x + ConvModule(self.config, name="conv")(x)
        x = x + 0.5 * FeedForward(self.config, name="ffn_out")(x)
        return nn.LayerNorm()(x)


def _first_axes(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jnp.eye(*shape)


class W2vBert(nn.Module):
    """Subsampling, contrastive module, MLM module, quantizer and prediction heads."""

    config: W2vBertConfig

    def setup(self) -> None:  # noqa: D102
        config = self.config
        self.subsample = [
            nn.Conv(config.d_model, (3,), strides=(2,), padding="SAME", name=f"subsample_{i}") for i in range(2)
        ]
        if config.mel_axes:
            # Fitted by W2vBertLearner.warm_start and then fixed.
            self.mel_mean = self.param("mel_mean", nn.initializers.zeros, (config.num_mels,))
            self.mel_rotation = self.param("mel_rotation", _first_axes, (config.num_mels, config.mel_axes))
        self.input_projection = nn.Dense(config.d_model)
        self.mask_vector = self.param("mask_vector", nn.initializers.normal(0.1), (config.d_model,))
        self.contrastive = [ConformerLayer(config, name=f"contrastive_{i}") for i in range(config.contrastive_layers)]
        self.mlm = [ConformerLayer(config, name=f"mlm_{i}") for i in range(config.mlm_layers)]
        self.latent_norm = nn.LayerNorm()
        # Large logits (wav2vec 2.0), so that the codes depend more on the latents than on the Gumbel noise from the
        # start. W2vBertLearner.warm_start replaces this layer by clusters of the first batch's latents.
        self.latent_quantizer = nn.Dense(config.codebook_size, kernel_init=nn.initializers.normal(1.0))
        self.codebook = nn.Dense(config.codebook_dim, use_bias=False, kernel_init=nn.initializers.normal(1.0))
        self.context_projection = nn.Dense(config.codebook_dim)
        self.mlm_head = nn.Dense(config.codebook_size)

    def latents(self, mel: jax.Array) -> jax.Array:
        """Subsamples log-mel `[batch, 4 t, mels]` to latents `[batch, t, d]`."""
        if self.config.mel_axes:
            mel = (mel - jax.lax.stop_gradient(self.mel_mean)[None, None, :]) @ jax.lax.stop_gradient(self.mel_rotation)
        first, second = self.subsample
        return self.latent_norm(second(nn.relu(first(mel))))

    def layers(self, latents: jax.Array, mask: jax.Array | None = None) -> list[jax.Array]:
        """Returns the outputs `[batch, t, d]` of the contrastive and the MLM layers; `mask` is bool `[batch, t]`."""
        if mask is not None:
            latents = jnp.where(mask[..., None], self.mask_vector, latents)
        x, outputs = self.input_projection(latents), []
        for layer in (*self.contrastive, *self.mlm):
            x = layer(x)
            outputs.append(x)
        return outputs

    def quantize(self, latents: jax.Array, key: jax.Array | None, temperature: jax.Array | float) -> Variables:
        """Quantizes unmasked latents by a straight-through Gumbel softmax (wav2vec 2.0).

        Args:
          latents: `[batch, t, d]`.
          key: PRNG key of the Gumbel noise; None takes the best entry without noise.
          temperature: temperature of the Gumbel softmax.

        Returns:
          {"codes": int32 `[batch, t]`, "vectors": `[batch, t, codebook_dim]`, "probabilities": `[batch, t, codebook]`}.
          The codes (targets of masked prediction) and the probabilities (for the diversity loss) are computed without
          noise and temperature.
        """
        logits = self.latent_quantizer(latents)
        fixed, share = jax.lax.stop_gradient(logits), self.config.target_gradient
        noisy = fixed + share * (logits - fixed)
        if key is not None:
            noisy = noisy + jax.random.gumbel(key, logits.shape)
        soft = jax.nn.softmax(noisy / temperature)
        hard = jax.nn.one_hot(jnp.argmax(noisy, axis=-1), self.config.codebook_size)
        selection = soft + jax.lax.stop_gradient(hard - soft)
        codes = jnp.argmax(logits, axis=-1)
        return {"codes": codes, "vectors": self.codebook(selection), "probabilities": jax.nn.softmax(logits)}

    def __call__(
        self, mel: jax.Array, mask: jax.Array, key: jax.Array | None, temperature: jax.Array | float
    ) -> Variables:
        """Runs the forward pass of training on log-mel `[batch, 4 t, mels]` with `mask` bool `[batch, t]`.

        Returns:
          The dict of `quantize`, with "context" `[batch, t, codebook_dim]` and "mlm_logits" `[batch, t, codebook]`.
        """
        latents = self.latents(mel)
        outputs = self.layers(latents, mask)
        context = self.context_projection(outputs[self.config.contrastive_layers - 1])
        return self.quantize(latents, key, temperature) | {"context": context, "mlm_logits": self.mlm_head(outputs[-1])}


def features(config: W2vBertConfig, variables: Variables, audio: jax.Array) -> jax.Array:
    """Computes the output of MLM layer `feature_layer`, unnormalised.

    Args:
      config: model config.
      variables: {"params": ...}; other entries are ignored.
      audio: float32 `[batch, samples]`; padded with zeros to a multiple of 960 samples.

    Returns:
      float32 `[batch, ceil(samples / 960), d_model]`.

    Raises:
      ValueError: if `audio` is not a non-empty `[batch, samples]`.
    """
    if audio.ndim != 2 or audio.shape[1] == 0:
        raise ValueError(f"audio has shape {audio.shape}: give a non-empty [batch, samples] of 24 kHz audio")
    mel = mel_frames(config, jnp.pad(audio, ((0, 0), (0, -audio.shape[1] % FRAME_SAMPLES))))
    # Parameters that only training needs may be missing: fit_kmeans removes them.
    shallow = dataclasses.replace(config, mlm_layers=config.feature_layer)

    def forward(module: W2vBert) -> jax.Array:
        return module.layers(module.latents(mel))[-1]

    return nn.apply(forward, W2vBert(shallow))({"params": variables["params"]})


def semantic_tokens(config: W2vBertConfig, variables: Variables, audio: jax.Array) -> jax.Array:
    """Encodes audio as semantic tokens at 25 Hz.

    Args:
      config: model config.
      variables: {"params", "feature_mean" [d], "feature_std" [d], "centroids" [k, n]} and, for "pca",
        "feature_projection" [d, n], from `fit_kmeans`.
      audio: float32 `[batch, samples]`, 24 kHz; padded with zeros to a multiple of 960 samples.

    Returns:
      int32 `[batch, ceil(samples / 960)]` in 0..num_clusters-1.
    """
    x = normalise_features(variables, features(config, variables, audio))
    return quantization.kmeans_assign(variables["centroids"], x)


def normalise_features(variables: Variables, x: jax.Array) -> jax.Array:
    """Normalises features `[..., d]` for k-means: per dimension, then projected to whitened axes if there are any."""
    mean, std = (jnp.broadcast_to(variables[name], x.shape) for name in ("feature_mean", "feature_std"))
    x = (x - mean) / std
    return x @ variables["feature_projection"] if "feature_projection" in variables else x


def whitening(x: jax.Array, axes: int) -> tuple[jax.Array, jax.Array]:
    """Computes the mean of `[n, d]` and the principal axes of its correlation matrix, largest first, of variance 1.

    Returns:
      (mean `[d]`, rotation `[d, axes]`); the covariance of (x - mean) @ rotation is the identity.
    """
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
    normal = (x - mean[None, :]) / std[None, :]
    variances, vectors = jnp.linalg.eigh(normal.T @ normal / len(x))
    rotation = vectors / jnp.sqrt(jnp.maximum(variances, 0) + 1e-4)[None, :] / std[:, None]
    return mean, rotation[:, ::-1][:, :axes]


def inference_params(config: W2vBertConfig, params: Variables) -> Variables:
    """Returns the parameters that `features` needs: without training heads and MLM layers above the feature layer."""
    above = {f"mlm_{i}" for i in range(config.feature_layer, config.mlm_layers)}
    training = {"latent_quantizer", "codebook", "context_projection", "mlm_head"}
    return {name: value for name, value in params.items() if name not in above | training}


def fit_kmeans(config: W2vBertConfig, variables: Variables, batches: Iterable[jax.Array], key: jax.Array) -> Variables:
    """Fits the normalisation and the clusters to a corpus.

    Args:
      config: `num_clusters`, `kmeans_*` and `feature_*` fields.
      variables: variables with "params".
      batches: outputs of `features` for the whole corpus, each `[..., d]`.
      key: PRNG key.

    Returns:
      {"params" (from `inference_params`), "feature_mean", "feature_std", "centroids"} and, for "pca",
      "feature_projection".

    Raises:
      ValueError: if there are fewer frames than clusters.
    """
    x = np.concatenate([np.asarray(batch, np.float32).reshape(-1, batch.shape[-1]) for batch in batches])
    if len(x) < config.num_clusters:
        raise ValueError(
            f"{len(x)} feature frames for {config.num_clusters} clusters: give more clips, or "
            "train with a smaller W2vBertConfig.num_clusters"
        )
    x = x[:: -(-len(x) // config.kmeans_frames)]
    mean, std = x.mean(0), x.std(0) + 1e-5
    fitted = {
        "params": inference_params(config, variables["params"]),
        "feature_mean": jnp.asarray(mean),
        "feature_std": jnp.asarray(std),
    }
    x = (x - mean) / std
    if config.feature_normalisation == "pca":
        _, fitted["feature_projection"] = whitening(jnp.asarray(x), config.feature_dims or x.shape[-1])
        x = x @ np.asarray(fitted["feature_projection"])
    centroids = quantization.kmeans(key, jnp.asarray(x), config.num_clusters, config.kmeans_iterations)
    return fitted | {"centroids": centroids}
