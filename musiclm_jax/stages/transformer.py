"""The decoder-only Transformer of the three stages (MusicLM section 4.2: 24 layers, 16 heads, d 1024, d_ff 4096).

The paper's 430M parameters per stage match T5 1.1's gated feed-forward (402.65M in 24 layers) and one table of all
streams' ids that input and output share (25,728 rows of 1024: 26.35M).

Parameters of all layers are stacked ([layers, ...]). This is the canonical form, in which they are trained, saved and
sharded. `unstack_layers` separates them for unrolled layers, as in decoding. Shapes: b batch, l flat length, t frames,
q quantizers, k codebook entries, d model, h heads, c head channels, v table rows.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.kernels.flash_attention import SAVED
from musiclm_jax.kernels.rounded_products import rounded_einsum
from musiclm_jax.kernels.transposed import few_on_cpu
from musiclm_jax.stages.layers import (
    ATTENTIONS,
    MASKED,
    Attention,
    GatedMlp,
    RMSNorm,
    distance_bias,
    dropout,
    saturation_distance,
)
from musiclm_jax.stages.layout import LMBatch
from musiclm_jax.stages.stage import ConditionSpan, Stage

DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "full", "dots_saveable", "dots_with_no_batch_dims_saveable")
CONDITION_GAIN = 0.3  # initial scale of the conditioning that `aligned_condition` adds to the targets
Params = Mapping[str, Any]
KeysValues = tuple[jax.Array, jax.Array]  # of one layer, each [b, h, l, c]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Size and execution of the Transformer; the default sizes are the paper's."""

    num_layers: int = 24  # blocks of attention and feed-forward
    num_heads: int = 16  # attention heads of d_model / num_heads channels
    d_model: int = 1024  # width of the residual stream
    d_ff: int = 4096  # width of the gated feed-forward
    dropout: float = 0.1  # of embeddings, hidden units, branches and output, not attention weights (not in the paper)
    relative_buckets: int = 32  # rows of T5's bias table, shared by all layers
    relative_max_distance: int = 128  # further distances share the last bucket
    dtype: str = "float32"  # of activations, one of DTYPES; parameters and softmax are float32
    round_products: bool = False  # operands of matrix products to bfloat16; faster on CPUs with AVX512-BF16 or AMX
    scan_layers: bool = True  # one compiled layer in a loop (compiles fast) or all unrolled (runs faster on CPUs)
    remat: str = "none"  # what the backward pass recomputes, one of REMAT_POLICIES (jax.checkpoint_policies)
    attention: str = "blocks"  # one of ATTENTIONS: 'flash' is for TPUs, 'cudnn' for GPUs, 'auto' see `attention_kernel`
    attention_block_size: int = 256  # queries per block of causal attention; 0 for a single block ('blocks' only)
    remat_attention: bool = False  # the backward pass recomputes the scores of each block
    # Two aids for small models, which learn late or never which conditioning belongs to a token; not in the paper.
    time_embedding: bool = False  # add an embedding of each token's time in the crop
    aligned_condition: bool = False  # add to each target's input the conditioning tokens that apply at its time

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          ValueError: if a value is not allowed; names the field, its value and what is expected.
        """
        for field in ("num_layers", "num_heads", "d_model", "d_ff", "relative_buckets"):
            if getattr(self, field) < 1:
                raise ValueError(f"TransformerConfig.{field} is {getattr(self, field)}, expected 1 or more")
        if self.d_model % self.num_heads or self.d_model % 2:
            raise ValueError(
                f"TransformerConfig.d_model is {self.d_model}, expected an even multiple of num_heads "
                f"({self.num_heads})"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"TransformerConfig.dropout is {self.dropout}, expected 0 or more and less than 1")
        for field, allowed in (("dtype", DTYPES), ("remat", REMAT_POLICIES), ("attention", ATTENTIONS)):
            if getattr(self, field) not in allowed:
                raise ValueError(f"TransformerConfig.{field} is {getattr(self, field)!r}, expected one of {allowed}")
        if self.attention_block_size < 0:
            raise ValueError(
                f"TransformerConfig.attention_block_size is {self.attention_block_size}, expected 0 (one block) or more"
            )
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"TransformerConfig.relative_max_distance is {self.relative_max_distance}, expected more than half of "
                f"relative_buckets ({self.relative_buckets})"
            )


class Block(nn.Module):
    """One layer: attention and feed-forward, each with a norm before it and a residual connection (T5's pre-norm)."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        by_distance: jax.Array,
        valid: jax.Array,
        deterministic: bool,
        keep: bool = False,
        cache: KeysValues | None = None,
        position: jax.Array | None = None,
    ) -> tuple[jax.Array, KeysValues | None]:
        """Maps [b, l, d] to [b, l, d]; with `keep`, also returns keys and values. For arguments see `Attention`."""
        config = self.config
        attention = Attention(
            config.num_heads,
            config.attention_block_size,
            config.remat_attention,
            kernel=config.attention,
            rounded=config.round_products,
            name="attention",
        )
        branch, keys_values = attention(RMSNorm(name="attention_norm")(x), by_distance, valid, cache, position)
        x = x + dropout(config.dropout)(branch, deterministic=deterministic)
        mlp = GatedMlp(config.d_ff, config.dropout, config.round_products, name="mlp")
        branch = mlp(RMSNorm(name="mlp_norm")(x), deterministic)
        x = x + dropout(config.dropout)(branch, deterministic=deterministic)
        return nn.with_logical_constraint(x, ("batch", "length", "embed")), keys_values if keep else None


class Transformer(nn.Module):
    """Maps ids to hidden states. With `stacked`, layers run as one scan over stacked parameters, else unrolled."""

    config: TransformerConfig
    rows: int  # rows of the embedding table
    stacked: bool = True
    frequent_id: int | None = None  # an id that many tokens may have; see `_embed`

    def setup(self) -> None:
        """Creates the parameters."""
        config = self.config
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed")),
            (self.rows, config.d_model),
        )
        self.relative_bias = self.param(
            "relative_bias",
            nn.with_logical_partitioning(nn.initializers.normal(config.d_model**-0.5), (None, "heads")),
            (config.relative_buckets, config.num_heads),
        )
        if config.time_embedding:
            self.time_gain = self.param("time_gain", nn.initializers.ones, (1,))
        if config.aligned_condition:
            # Small at first: at full scale, the conditioning would dominate the embedding that it is added to.
            self.condition_gain = self.param("condition_gain", nn.initializers.constant(CONDITION_GAIN), (1,))
        block = Block
        if config.remat != "none":
            policy = None if config.remat == "full" else _saved_by(config.remat)
            block = nn.remat(Block, prevent_cse=not self.stacked, policy=policy, static_argnums=(4, 5))
        if self.stacked:
            self.layers = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
                length=config.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(config)
        else:
            self.layers = [block(config) for _ in range(config.num_layers)]
        self.final_norm = RMSNorm()
        self.input_dropout = dropout(config.dropout)
        self.output_dropout = dropout(config.dropout)

    def __call__(
        self, tokens: jax.Array, features: jax.Array, valid: jax.Array, deterministic: bool = True, keep: bool = False
    ) -> tuple[jax.Array, list[KeysValues | None]]:
        """Runs a whole sequence.

        Args:
          tokens: int32 decoder inputs [b, l].
          features: float32 [b or 1, l, d] from `input_features`, added to the embeddings.
          valid: bool [b, l], positions that may be attended to.
          deterministic: disables dropout; without it, a "dropout" key is needed.
          keep: also return keys and values of each layer (unrolled layers only).

        Returns:
          Hidden states [b, l, d] after the final norm, and keys and values [b, h, l, c] or None of each layer.
        """
        config = self.config
        x = self._embed(tokens) + features.astype(config.dtype)
        x = self.input_dropout(x, deterministic=deterministic)
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        near = saturation_distance(config.relative_buckets, config.relative_max_distance)
        by_distance = distance_bias(self.relative_bias, near + 1, config.relative_max_distance)
        kept: list[KeysValues | None] = []
        if self.stacked:
            x, _ = self.layers(x, by_distance, valid, deterministic, False)
        else:
            for layer in self.layers:
                x, keys_values = layer(x, by_distance, valid, deterministic, keep)
                kept.append(keys_values)
        return self.output_dropout(self.final_norm(x), deterministic=deterministic), kept

    def step(
        self, tokens: jax.Array, features: jax.Array, valid: jax.Array, caches: list[KeysValues], position: jax.Array
    ) -> tuple[jax.Array, list[KeysValues]]:
        """Runs one token with the KV cache of the tokens before it (unrolled layers only).

        Args:
          tokens: int32 [b].
          features: float32 [b or 1, d], `input_features` of the token.
          valid: bool [b, length], positions that may be attended to once they are not in the future.
          caches: keys and values [b, h, length, c] of each layer.
          position: int32 scalar, position of the token.

        Returns:
          Hidden states [b, d], and the caches updated with the token.
        """
        config = self.config
        length = caches[0][0].shape[2]
        x = self._embed(tokens[:, None]) + features[:, None].astype(config.dtype)
        # Entry m of the reversed row is for distance length - 1 - m; the slice moves distance 0 to `position`.
        line = distance_bias(self.relative_bias, length, config.relative_max_distance)[:, ::-1]
        line = jnp.pad(line, ((0, 0), (0, length)), constant_values=MASKED)  # the future
        by_key = jax.lax.dynamic_slice_in_dim(line, length - 1 - position, length, axis=1)
        filled = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, keys_values = layer(x, by_key, valid, True, True, cache, position)
            filled.append(keys_values)
        return self.final_norm(x)[:, 0], filled

    def input_features(
        self, tokens: jax.Array, times: jax.Array, spans: tuple[ConditionSpan, ...], length: int
    ) -> jax.Array:
        """Returns what is added to the embeddings of a sequence: times, and the conditioning aligned with its targets.

        Args:
          tokens: int32 decoder inputs [b, n], with bos and all conditioning tokens at least.
          times: float32 [length, d] from `time_features`; used only with `time_embedding`.
          spans: spans of the conditioning; used only with `aligned_condition`.
          length: length of the result, which may be shorter or longer than the sequence.

        Returns:
          float32 [b or 1, length, d].
        """
        features = jnp.zeros((1, length, self.config.d_model))
        if self.config.time_embedding:
            features = features + self.time_gain[:, None, None] * times[None]
        if self.config.aligned_condition:
            place = 1  # after bos
            start = sum(span.frames * span.levels for span in spans)  # the input whose output is the first target
            for span in spans:
                end = place + span.frames * span.levels
                held = self._embed(tokens[:, place:end]).astype(jnp.float32)
                if span.slots:
                    held = jnp.stack([held[:, list(slot)].sum(axis=1) for slot in span.slots], axis=1)
                else:
                    held = jnp.sum(held.reshape(-1, span.frames, span.levels, self.config.d_model), axis=2)
                held = jnp.repeat(held, span.positions, axis=1)[:, : length - start]
                held = self.condition_gain[:, None, None] * held
                features = features + jnp.pad(held, ((0, 0), (start, length - start - held.shape[1]), (0, 0)))
                place = end
        return features

    def _embed(self, tokens: jax.Array) -> jax.Array:
        """Embeds ids [..., l]. On a mesh, the table is gathered along d, so that devices look up whole vectors.

        The gradient of a row is a sum over the tokens with its id. GPUs add them one by one, which is slow if a
        thousand tokens of a batch share an id; the gradient of `frequent_id` is a masked sum instead.
        """
        table = nn.with_logical_constraint(self.embedding.astype(self.config.dtype), ("vocab", None))
        if self.frequent_id is None:
            return jnp.take(table, tokens, axis=0)
        is_frequent = tokens == self.frequent_id
        # Frequent tokens look up different rows by position, so that their zero gradients are not all added to one row.
        places = jnp.broadcast_to(jnp.arange(tokens.shape[-1]) % self.rows, tokens.shape)
        others = jnp.take(table, jnp.where(is_frequent, places, tokens), axis=0)
        return jnp.where(is_frequent[..., None], table[self.frequent_id], others)


def _saved_by(policy: str) -> Any:
    """Returns a jax.checkpoint policy that also saves the results of the flash attention kernel."""
    kernel = jax.checkpoint_policies.save_only_these_names(*SAVED)
    return jax.checkpoint_policies.save_from_both_policies(getattr(jax.checkpoint_policies, policy), kernel)


def time_features(times: np.ndarray, d_model: int) -> np.ndarray:
    """Returns sines and cosines of times [l]: float32 [l, d], periods of 2 pi to 10,000 x 2 pi units; 0 if time < 0."""
    rates = 10_000.0 ** -(np.arange(d_model // 2) / (d_model // 2))
    angles = times[:, None] * rates[None, :]
    features = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return np.where(times[:, None] < 0, 0.0, features).astype(np.float32)


def init_params(config: TransformerConfig, rows: int, key: jax.Array) -> Params:
    """Makes stacked float32 parameters, boxed with the names of their logical axes (see `partitioning.unbox`).

    Args:
      config: the model.
      rows: rows of the embedding table, `Vocabulary.rows`.
      key: PRNG key.
    """
    tokens = jnp.zeros((1, 2), jnp.int32)
    config = dataclasses.replace(config, attention="blocks")  # parameters can be made on any machine
    return Transformer(config, rows).init(key, tokens, jnp.zeros((1, 2, config.d_model)), jnp.ones((1, 2), bool))[
        "params"
    ]


def unstack_layers(params: Params) -> Params:
    """Splits stacked parameters ("layers") into those of unrolled layers ("layers_0", ...); differentiable."""
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    # jnp.unstack of a leaf is one operation, whose gradient is one concatenation.
    taken_apart = jax.tree.map(lambda leaf: list(jnp.unstack(leaf)), params["layers"])
    is_list = lambda node: isinstance(node, list)  # noqa: E731
    layers = {
        f"layers_{i}": jax.tree.map(lambda leaves, i=i: leaves[i], taken_apart, is_leaf=is_list) for i in range(count)
    }
    return {name: value for name, value in params.items() if name != "layers"} | layers


def hidden_states(
    config: TransformerConfig,
    params: Params,
    tokens: jax.Array,
    times: np.ndarray,
    spans: tuple[ConditionSpan, ...],
    valid: jax.Array,
    dropout_key: jax.Array | None = None,
    frequent_id: int | None = None,
) -> jax.Array:
    """Computes the hidden states [b, l, d] of a whole sequence.

    Args:
      config: the model; `scan_layers` decides whether the layers are scanned or unrolled.
      params: stacked or unstacked parameters, unboxed.
      tokens: int32 decoder inputs [b, l].
      times: times of these tokens, int [l]; see `Stage.times`.
      spans: spans of the conditioning; see `Stage.spans`.
      valid: bool [b, l], positions that may be attended to.
      dropout_key: PRNG key that enables dropout.
      frequent_id: an id that many tokens may have; it changes only how the gradient is computed.
    """
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    rows = params["embedding"].shape[0]
    stacked = config.scan_layers and "layers" in params
    model = Transformer(config, rows, stacked=stacked, frequent_id=frequent_id)
    params = unstack_layers(params) if "layers" in params and not stacked else params
    features = jnp.asarray(time_features(times, config.d_model))
    length = tokens.shape[1]
    features = model.apply({"params": params}, tokens, features, spans, length, method=Transformer.input_features)
    return model.apply({"params": params}, tokens, features, valid, dropout_key is None, rngs=rngs)[0]


def level_logits(
    params: Params,
    hidden: jax.Array,
    first_id: int | jax.Array,
    levels: int,
    codebook_size: int,
    rounded: bool = False,
) -> jax.Array:
    """Computes logits over the codes of each position's own level, so that no other id can be sampled.

    Args:
      params: parameters with the shared table "embedding" [v, d].
      hidden: hidden states [b, t, q, d] that predict q levels whose ids are consecutive in the table.
      first_id: id of code 0 of the first of these levels.
      levels: number of levels q.
      codebook_size: number of codes k per level.
      rounded: round the product's operands to bfloat16.

    Returns:
      float32 [b, t, q, k], divided by sqrt(d) as in T5 with a shared table.
    """
    d = hidden.shape[-1]
    table = jax.lax.dynamic_slice_in_dim(params["embedding"], first_id, levels * codebook_size)
    table = table.reshape(levels, codebook_size, d).astype(hidden.dtype)
    hidden = hidden * jnp.asarray(d**-0.5, hidden.dtype)
    if rounded:
        by_level = hidden.transpose(2, 0, 1, 3).reshape(levels, -1, d)  # an order in which XLA rounds on CPUs
        logits = rounded_einsum("qnd,qkd->qnk", by_level, table)
        return logits.reshape(levels, *hidden.shape[:2], codebook_size).transpose(1, 2, 0, 3)
    return jnp.einsum("btqd,qkd->btqk", hidden, table, preferred_element_type=jnp.float32)


def target_logits(
    config: TransformerConfig,
    stage: Stage,
    params: Params,
    lm: LMBatch,
    dropout_key: jax.Array | None = None,
    frequent_id: int | None = None,
) -> jax.Array:
    """Computes the logits of a stage at all target positions of a batch: float32 [b, t, q, k].

    Args:
      config: the model.
      stage: conditioning and target.
      params: stacked or unstacked parameters, unboxed.
      lm: a batch from `layout.assemble`.
      dropout_key: as for `hidden_states`.
      frequent_id: as for `hidden_states`.
    """
    times, target = stage.times()[:-1], stage.target
    hidden = hidden_states(
        config, params, lm.decoder_input_tokens, times, stage.spans(), lm.valid, dropout_key, frequent_id
    )
    rows, frames, levels = lm.target_codes.shape
    hidden = hidden[:, stage.condition_length() :].reshape(rows, frames, levels, -1)
    first_id = stage.vocabulary.offset(target.stream, target.first_level)
    codes = stage.stream(target.stream).codebook_size
    return level_logits(params, hidden, first_id, levels, codes, config.round_products)


def step_logits(params: Params, hidden: jax.Array, first_id: jax.Array, codebook_size: int) -> jax.Array:
    """Computes `level_logits` of one position and one level: float32 [b, k] from hidden [b, d]."""

    def usual(hidden: jax.Array, table: jax.Array, first_id: jax.Array) -> jax.Array:
        return level_logits({"embedding": table}, hidden[:, None, None], first_id, 1, codebook_size)[:, 0, 0]

    def on_cpu(hidden: jax.Array, table: jax.Array, first_id: jax.Array) -> jax.Array:
        return cpu_decoding.rows_product_numba(hidden * hidden.shape[-1] ** -0.5, table, first_id, codebook_size)

    table = params["embedding"]
    if not few_on_cpu(hidden, table[:codebook_size]):
        return usual(hidden, table, first_id)
    from musiclm_jax.kernels import cpu_decoding  # compiles when it is imported

    return jax.lax.platform_dependent(hidden, table, first_id, cpu=on_cpu, default=usual)
