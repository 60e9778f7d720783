"""MuLan's text tower: a BERT encoder that loads published safetensors, mean pooling, and a projection.

The encoder is BERT's (arXiv 1810.04805): learned positions, post-norm, exact GELU. Published weights with the usual
names load unchanged: BERT-base, or the MiniLM-L6 of sentence-transformers, whose sentence vector is the mean over the
tokens.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from musiclm_jax.data.wordpiece import resolve
from musiclm_jax.tokenizers.mulan.audio_tower import unit
from musiclm_jax.tokenizers.mulan.config import MulanConfig

Params = dict[str, Any]
_LAYER = {  # our name of a module in a layer -> its published name
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


class BertLayer(nn.Module):
    """A post-norm Transformer layer: self-attention and feed-forward."""

    heads: int
    mlp: int

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """Maps `x` `[batch, length, width]` to the same shape; adds `bias` `[batch, 1, 1, length]` to the logits."""
        width = x.shape[-1]
        split = (*x.shape[:-1], self.heads, width // self.heads)
        q, k, v = (nn.Dense(width, name=name)(x).reshape(split) for name in ("query", "key", "value"))
        logits = jnp.einsum("blhd,bmhd->bhlm", q, k) * split[-1] ** -0.5 + bias
        y = jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(logits), v).reshape(x.shape)
        x = nn.LayerNorm(1e-12, name="attention_norm")(x + nn.Dense(width, name="attention_output")(y))
        y = nn.Dense(width, name="mlp_out")(jax.nn.gelu(nn.Dense(self.mlp, name="mlp_in")(x), approximate=False))
        return nn.LayerNorm(1e-12, name="mlp_norm")(x + y)


class BertEncoder(nn.Module):
    """BERT without its pooler: maps ids to one vector per token. All tokens have segment type 0."""

    config: MulanConfig

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Encodes texts.

        Args:
          ids: int32 `[batch, length]`.
          mask: `[batch, length]`, nonzero for tokens, 0 for padding.

        Returns:
          float32 `[batch, length, text_width]`.
        """
        c = self.config
        if ids.shape[-1] > c.text_positions:
            raise ValueError(f"{ids.shape[-1]} tokens exceed the {c.text_positions} learned positions: shorten it")
        words = nn.Embed(c.vocab_size, c.text_width, name="words")(ids)
        positions = nn.Embed(c.text_positions, c.text_width, name="positions")(jnp.arange(ids.shape[-1]))
        types = nn.Embed(2, c.text_width, name="types")(jnp.zeros((), jnp.int32))
        x = nn.LayerNorm(1e-12, name="norm")(words + positions[None] + types[None, None])
        bias = jnp.where(mask[:, None, None, :] > 0, 0.0, -1e9).astype(jnp.float32)
        for layer in range(c.text_layers):
            x = BertLayer(c.text_heads, c.text_mlp, name=f"layer_{layer}")(x, bias)
        return x


class Projection(nn.Module):
    """Projects sentence vectors to the joint space."""

    config: MulanConfig

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        """Maps `[batch, text_width]` to unit vectors, float32 `[batch, embedding_dim]`."""
        x = unit(pooled) * self.config.text_width**0.5
        if self.config.projection_hidden:
            x = jax.nn.gelu(nn.Dense(self.config.projection_hidden, name="hidden")(x))
        return unit(nn.Dense(self.config.embedding_dim, name="output")(x))


def pool(encoded: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes the mean of `encoded` `[batch, length, width]` over tokens with a nonzero `mask`: `[batch, width]`."""
    weights = (mask > 0).astype(encoded.dtype)[..., None]
    return jnp.where(weights > 0, encoded, 0.0).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1.0)


def bert_params(tensors: dict[str, np.ndarray], config: MulanConfig) -> Params:
    """Converts published BERT tensors to parameters of `BertEncoder`.

    Args:
      tensors: arrays by name, with or without the prefix `bert.`; the pooler and other heads are ignored.
      config: the sizes that the tensors must have.

    Raises:
      ValueError: if a tensor is missing or has the wrong shape.
    """
    tensors = {name.removeprefix("bert."): value for name, value in tensors.items()}

    def get(name: str, *shape: int) -> np.ndarray:
        # Early exports of BERT call the scale and shift of a LayerNorm gamma and beta.
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        value = tensors.get(name, tensors.get(old))
        if value is None:
            raise ValueError(f"the BERT weights lack {name!r}: expected safetensors of a BertModel")
        if value.shape != shape:
            raise ValueError(f"BERT weight {name!r} is {value.shape}, the configuration expects {shape}")
        return np.asarray(value, np.float32)

    def dense(name: str, n_in: int, n_out: int) -> Params:
        return {"kernel": get(f"{name}.weight", n_out, n_in).T, "bias": get(f"{name}.bias", n_out)}

    def norm(name: str) -> Params:
        return {"scale": get(f"{name}.weight", width), "bias": get(f"{name}.bias", width)}

    width, mlp = config.text_width, config.text_mlp
    sizes = {"mlp_in": (width, mlp), "mlp_out": (mlp, width)}
    params: Params = {
        "words": {"embedding": get("embeddings.word_embeddings.weight", config.vocab_size, width)},
        "positions": {"embedding": get("embeddings.position_embeddings.weight", config.text_positions, width)},
        "types": {"embedding": get("embeddings.token_type_embeddings.weight", 2, width)},
        "norm": norm("embeddings.LayerNorm"),
    }
    for layer in range(config.text_layers):
        params[f"layer_{layer}"] = {
            ours: norm(f"encoder.layer.{layer}.{theirs}")
            if ours.endswith("norm")
            else dense(f"encoder.layer.{layer}.{theirs}", *sizes.get(ours, (width, width)))
            for ours, theirs in _LAYER.items()
        }
    return params


def load_bert(path: str, config: MulanConfig) -> Params:
    """Reads BERT weights (safetensors; `package:path` for a file inside a package) as parameters of `BertEncoder`."""
    file = resolve(path)
    try:
        with safe_open(file, framework="np") as reader:
            return bert_params({name: reader.get_tensor(name) for name in reader.keys()}, config)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as safetensors: {error}") from error


def training_text(
    captions: Sequence[str], aspects: Sequence[str], rng: np.random.Generator, aspects_share: float = 0.3
) -> str:
    """Draws the text of a clip for one epoch: a caption, or a few aspects joined by commas.

    Aspects teach the words without a sentence around them, which helps with unseen sentences.

    Args:
      captions: sentences about the clip.
      aspects: short phrases about the clip; may be empty.
      rng: source of randomness.
      aspects_share: probability of drawing aspects.
    """
    if len(aspects) and rng.random() < aspects_share:
        count = int(rng.integers(min(2, len(aspects)), len(aspects) + 1))
        return ", ".join(aspects[i] for i in rng.permutation(len(aspects))[:count])
    return captions[int(rng.integers(len(captions)))]
