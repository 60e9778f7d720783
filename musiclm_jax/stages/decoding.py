"""Sampling from a stage: the known tokens in one pass, then token by token with a KV cache.

`sample` makes all frames. `prefill` and `decode_frames` do the same in pieces, so that a caller can show progress or
pass frames on in between. The cache grows in steps of CACHE_STEP tokens, and all shapes are multiples of it: a step
reads little more than the filled part, and few programs are compiled for sequences of any length.

Classifier-free guidance (arXiv 2207.12598, on logits as in arXiv 2306.05284): each row is decoded twice in parallel,
with its conditioning and with the streams per clip dropped. The difference of the two logits is multiplied by
`guidance`, and both copies continue with the same code.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.kernels.transposed import transposed_kernels
from musiclm_jax.stages.layout import condition_ids, flatten
from musiclm_jax.stages.sampling import AS_TRAINED, Drawing, Sampling, choose
from musiclm_jax.stages.stage import ConditionSpan, Stage
from musiclm_jax.stages.transformer import (
    KeysValues,
    Params,
    Transformer,
    TransformerConfig,
    step_logits,
    time_features,
    unstack_layers,
)

CACHE_STEP = 256  # tokens
DRAWN_STEP = 16  # tokens whose random numbers are drawn together: XLA takes five times as long for one at a time


class DecodeState(NamedTuple):
    """State of decoding. `decode_frames` donates the caches of its state: keep only the state that it returns.

    With guidance the model has r = 2 b rows: first those with the conditioning, then those without; else r = b.

    Attributes:
      start: flat position of the first target token's input.
      position: number of tokens in the cache, which is the position of the next token.
      end: position after the last frame of `prefill`'s num_frames.
      token: int32 ids [r], the next input.
      keys: PRNG keys [b].
      valid: bool [r, l], positions that may be attended to once they are not in the future; l is a multiple of
        CACHE_STEP.
      features: float32 [r or 1, l, d], added to the embeddings.
      caches: keys and values of each layer, [r, h, length, c]; length is a multiple of CACHE_STEP and grows.
    """

    start: int
    position: int
    end: int
    token: jax.Array
    keys: jax.Array
    valid: jax.Array
    features: jax.Array
    caches: list[KeysValues]


def sample(
    config: TransformerConfig,
    stage: Stage,
    params: Params,
    conditioning: Mapping[str, Any],
    prefix: jax.Array | None,
    num_frames: int,
    keys: jax.Array,
    sampling: Sampling = AS_TRAINED,
) -> jax.Array:
    """Samples the target codes of a stage.

    Args:
      config: the model.
      stage: the stage.
      params: parameters, unboxed; stacked, or from `unstacked`, which saves a copy in each call.
      conditioning: raw streams of `stage.conditioning`, int32, of any length; see `layout.condition_ids`.
      prefix: known target codes to continue, int32 [b, frames, q]; None or no frames for none.
      num_frames: total frames of the target, including the prefix.
      keys: PRNG keys [b], one per row, so that a row's codes do not depend on other rows.
      sampling: how codes are sampled.

    Returns:
      int32 codes [b, num_frames, q], beginning with the prefix.

    Raises:
      ValueError: if a stream is missing or an argument is not valid, see `prefill`.
    """
    params = unstacked(params)
    state = prefill(config, stage, params, conditioning, prefix, num_frames, keys, sampling.guidance != 1)
    known = 0 if prefix is None else prefix.shape[1]
    _, codes = decode_frames(config, stage, params, state, num_frames - known, sampling)
    return codes if prefix is None else jnp.concatenate([jnp.asarray(prefix, jnp.int32), codes], axis=1)


def unstacked(params: Params) -> Params:
    """Prepares parameters for decoding: unstacks layers and transposes kernels; unstacked ones are unchanged.

    Args:
      params: parameters, unboxed.
    """
    return _laid_out(params) if "layers" in params else params


@jax.jit
def _laid_out(params: Params) -> Params:
    return transposed_kernels(unstack_layers(params))


def prefill(
    config: TransformerConfig,
    stage: Stage,
    params: Params,
    conditioning: Mapping[str, Any],
    prefix: jax.Array | np.ndarray | None,
    num_frames: int,
    keys: jax.Array,
    guided: bool = False,
) -> DecodeState:
    """Runs conditioning and prefix in one pass. Arguments as in `sample`; set `guided` for a guidance other than 1.

    Raises:
      ValueError: if a stream is missing, the prefix is not shorter than num_frames or does not have the target's
        levels, or the stage cannot be guided.
    """
    target = stage.target
    if guided and not stage.condition_dropout:
        raise ValueError(
            f"the {stage.name} stage never saw its conditioning dropped and cannot be guided: leave its guidance at 1, "
            "or train it with condition_dropout"
        )
    ids, valid = _conditions(stage, guided, dict(conditioning))
    rows, start = ids.shape
    rows //= 1 + guided
    if prefix is None:
        prefix = np.zeros((rows, 0, target.levels), np.int32)
    if prefix.ndim != 3 or prefix.shape[0] != rows or prefix.shape[2] != target.levels:
        raise ValueError(
            f"prefix has shape {prefix.shape}, expected [{rows}, frames, {target.levels}] to match the conditioning"
        )
    if not prefix.shape[1] < num_frames:
        raise ValueError(f"num_frames is {num_frames}, expected more than the {prefix.shape[1]} frames of the prefix")
    if keys.shape != (rows,):
        raise ValueError(f"keys have shape {keys.shape}, expected [{rows}], one typed key (jax.random.key) per row")

    position, end = start + prefix.shape[1] * target.levels, start + num_frames * target.levels
    filled, full = _round_up(position), _round_up(end)
    inputs, token, tokens, valid = _known(stage, filled, full, ids, valid, prefix)
    frames = tuple(_frames(stage, part.stream, conditioning) for part in stage.conditioning)
    times = np.pad(stage.times((*frames, num_frames)), (0, full), constant_values=-1)[:full]
    params, spans = unstacked(params), stage.spans((*frames, num_frames))
    features = _features(config, spans, full, params, inputs, time_features(times, config.d_model))
    caches = _prefill(config, params, tokens, *_first(filled, features, valid))
    return DecodeState(start, position, end, token, keys, valid, features, caches)


def decode_frames(
    config: TransformerConfig,
    stage: Stage,
    params: Params,
    state: DecodeState,
    num_frames: int,
    sampling: Sampling = AS_TRAINED,
) -> tuple[DecodeState, jax.Array]:
    """Samples the next frames. Arguments as in `sample`; the codes do not depend on how they are split into calls.

    Returns:
      The next state, and int32 codes [b, num_frames, q].

    Raises:
      ValueError: if more frames are requested than `prefill` was given, or `guided` did not match the guidance there.
    """
    levels, size = stage.target.levels, stage.stream(stage.target.stream).codebook_size
    last = state.position + num_frames * levels
    if num_frames < 1 or last > state.end:
        left = (state.end - state.position) // levels
        raise ValueError(f"num_frames is {num_frames}, expected 1 to {left}, the frames left to sample")
    if (sampling.guidance != 1) != (len(state.token) == 2 * len(state.keys)):
        raise ValueError(f"guidance is {sampling.guidance}: prefill must be called with guided=True if it is not 1")
    top_k = None if not sampling.top_k or sampling.top_k >= size else int(sampling.top_k)
    drawing = Drawing.of(sampling)
    params, pieces, counts = unstacked(params), [], []
    while state.position < last:
        length = _round_up(state.position + 1)
        caches = _grown(length, state.caches) if state.caches[0][0].shape[2] < length else state.caches
        features, valid = _first(length, state.features, state.valid)
        count = min(length, last) - state.position
        known = state._replace(valid=valid, features=features, caches=[])
        codes, token, caches = _decode(config, stage, top_k, params, caches, known, count, drawing)
        pieces.append(codes)
        counts.append(count)
        state = state._replace(position=state.position + count, token=token, caches=caches)
    return state, _joined(levels, tuple(counts), pieces)


def _round_up(length: int) -> int:
    return max(1, -(-length // CACHE_STEP)) * CACHE_STEP


# The small steps around the passes are jitted too: unjitted, JAX would dispatch each operation as its own program.


@functools.partial(jax.jit, static_argnums=(0, 1))
def _conditions(stage: Stage, guided: bool, conditioning: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns `condition_ids`; with guidance, the same rows follow with their streams per clip dropped."""
    ids, valid = condition_ids(stage, conditioning)
    if not guided:
        return ids, valid
    dropped_ids, dropped_valid = condition_ids(stage, conditioning, jnp.ones(len(ids), bool))
    return jnp.concatenate([ids, dropped_ids]), jnp.concatenate([valid, dropped_valid])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _known(
    stage: Stage, filled: int, full: int, ids: jax.Array, valid: jax.Array, prefix: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Prepares the inputs of `prefill` from conditioning [r, l] and prefix [b, frames, q].

    Returns:
      The decoder inputs of conditioning alone, [r, l + 1]; the last known input [r], where `decode_frames` starts; the
      inputs before it, padded to [r, filled]; and the positions that may be attended to, [r, full].
    """
    rows, start = ids.shape
    prefix = jnp.tile(jnp.asarray(prefix, jnp.int32), (rows // len(prefix), 1, 1))
    bos = jnp.full((rows, 1), stage.vocabulary.bos, jnp.int32)
    inputs = jnp.concatenate([bos, ids, flatten(stage, stage.target, prefix)], axis=1)
    tokens = jnp.pad(inputs[:, :-1], ((0, 0), (0, filled - inputs.shape[1] + 1)))
    # Generated tokens are valid, and so is the prefix where it is not padding.
    valid = jnp.concatenate([jnp.ones((rows, 1), bool), valid, (prefix >= 0).reshape(rows, -1)], axis=1)
    valid = jnp.pad(valid, ((0, 0), (0, full - valid.shape[1])), constant_values=True)
    return inputs[:, : start + 1], inputs[:, -1], tokens, valid


@functools.partial(jax.jit, static_argnums=0)
def _first(length: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the first `length` positions of arrays [r, l, ...]."""
    return tuple(array[:, :length] for array in arrays)


@functools.partial(jax.jit, static_argnums=0)
def _grown(length: int, caches: list[KeysValues]) -> list[KeysValues]:
    """Pads keys and values [b, h, l, c] to `length`."""
    return jax.tree.map(lambda kept: jnp.pad(kept, ((0, 0), (0, 0), (0, length - kept.shape[2]), (0, 0))), caches)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _joined(levels: int, counts: tuple[int, ...], pieces: list[jax.Array]) -> jax.Array:
    """Joins pieces [b, n], of which the first `counts` codes are filled, to codes [b, frames, levels]."""
    codes = jnp.concatenate([piece[:, :count] for piece, count in zip(pieces, counts, strict=True)], axis=1)
    return codes.reshape(len(codes), -1, levels)


def _frames(stage: Stage, stream: str, conditioning: Mapping[str, Any]) -> int:
    """Returns the number of frames of a conditioning stream."""
    return conditioning[stream].shape[1] if stage.stream(stream).frame_rate else 1


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _features(
    config: TransformerConfig,
    spans: tuple[ConditionSpan, ...],
    length: int,
    params: Params,
    tokens: jax.Array,
    times: np.ndarray,
) -> jax.Array:
    """Computes what is added to the embeddings of a sequence; see `Transformer.input_features`."""
    model = Transformer(config, params["embedding"].shape[0], stacked=False)
    return model.apply({"params": params}, tokens, times, spans, length, method=Transformer.input_features)


@functools.partial(jax.jit, static_argnums=0)
def _prefill(
    config: TransformerConfig, params: Params, tokens: jax.Array, features: jax.Array, valid: jax.Array
) -> list[KeysValues]:
    """Computes keys and values of each layer for decoder inputs [b, l]."""
    model = Transformer(config, params["embedding"].shape[0], stacked=False)
    return model.apply({"params": params}, tokens, features, valid, True, True)[1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _decode(
    config: TransformerConfig,
    stage: Stage,
    top_k: int | None,
    params: Params,
    caches: list[KeysValues],
    state: DecodeState,
    count: jax.Array,
    drawing: Drawing,
) -> tuple[jax.Array, jax.Array, list[KeysValues]]:
    """Samples `count` tokens; returns codes [b, CACHE_STEP], `count` of them filled, the last token and the caches.

    The caches are passed separately from the state, because only they are donated.
    """
    target = stage.target
    size = stage.stream(target.stream).codebook_size
    offset = stage.vocabulary.offset(target.stream, target.first_level)
    model = Transformer(config, params["embedding"].shape[0], stacked=False)
    copies = len(state.token) // len(state.keys)  # 2 with guidance
    draw = jax.vmap(choose, in_axes=(0, 0, None, None, None))

    def gumbel(numbers: jax.Array) -> jax.Array:
        own_keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))(state.keys, numbers)
        return jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (size,))))(own_keys)

    def body(noise: jax.Array, first: jax.Array, i: jax.Array, carry: tuple) -> tuple:
        codes, token, caches = carry
        place = state.position + i
        number = place - state.start  # index of the target token to sample
        added = jax.lax.dynamic_index_in_dim(state.features, place, axis=1, keepdims=False)
        hidden, caches = model.apply(
            {"params": params}, token, added, state.valid, caches, place, method=Transformer.step
        )
        first_id = size * (number % target.levels) + offset
        logits = step_logits(params, hidden, first_id, size)
        if copies == 2:
            conditioned, dropped = jnp.split(logits, 2)
            logits = dropped + drawing.guidance * (conditioned - dropped)
        code = draw(logits, noise[i - first], drawing.temperature, top_k, drawing.top_p)
        codes = jax.lax.dynamic_update_slice(codes, code[:, None], (0, i))
        return codes, jnp.tile(first_id + code, copies), caches

    def several(block: jax.Array, carry: tuple) -> tuple:
        first = block * DRAWN_STEP
        noise = gumbel(state.position - state.start + first + jnp.arange(DRAWN_STEP))
        last = jnp.minimum(first + DRAWN_STEP, count)
        return jax.lax.fori_loop(first, last, functools.partial(body, noise, first), carry)

    codes = jnp.zeros((len(state.keys), CACHE_STEP), jnp.int32)
    blocks = (count + DRAWN_STEP - 1) // DRAWN_STEP
    return jax.lax.fori_loop(0, blocks, several, (codes, state.token, caches))
