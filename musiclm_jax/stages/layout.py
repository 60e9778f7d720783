"""The three stages of MusicLM: their conditioning and target tokens, and the layout of both in one flat sequence.

A stage's sequence is its conditioning followed by its target, each flattened frame by frame (all quantizers of frame 0,
then of frame 1, ...). A code's id is its index in the stage's vocabulary. Only this module knows the layout: training
and generation use the same functions (MusicLM section 3, arXiv 2301.11325; crops as in AudioLM, arXiv 2209.03143).

Raw streams are int32: "semantic" [b, t], "acoustic" [b, t, q], "mulan" and "melody" [b, q]; code -1 marks a padding
frame.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.data.tokens import ACOUSTIC, MELODY, MULAN, SEMANTIC, TokenStream
from musiclm_jax.stages.stage import Stage, StreamSlice

PADDING = -1  # code of missing frames


def _make_stage(
    name: str,
    seconds: float,
    conditioning: tuple[StreamSlice, ...],
    target: StreamSlice,
    streams: tuple[TokenStream, ...],
    full_vocabulary: bool,
    condition_dropout: float,
) -> Stage:
    """Makes a stage; without the full vocabulary, unused streams and levels have no ids."""
    if not full_vocabulary:
        used = {
            own.name: max(
                (part.last_level + 1 for part in (*conditioning, target) if part.stream == own.name), default=0
            )
            for own in streams
        }
        streams = tuple(dataclasses.replace(own, quantizers=used[own.name]) for own in streams if used[own.name])
    return Stage(name, seconds, streams, conditioning, target, condition_dropout)


def _streams(mulan: tuple[int, int], semantic_codebook_size: int, acoustic: tuple[int, int]) -> tuple[TokenStream, ...]:
    """Returns the three streams; `mulan` and `acoustic` are (quantizers, codebook size)."""
    return (
        dataclasses.replace(MULAN, quantizers=mulan[0], codebook_size=mulan[1]),
        dataclasses.replace(SEMANTIC, codebook_size=semantic_codebook_size),
        dataclasses.replace(ACOUSTIC, quantizers=acoustic[0], codebook_size=acoustic[1]),
    )


def semantic_stage(
    seconds: float = 30.0,
    mulan_quantizers: int = 12,
    mulan_codebook_size: int = 1024,
    semantic_codebook_size: int = 1024,
    acoustic_quantizers: int = 12,
    acoustic_codebook_size: int = 1024,
    full_vocabulary: bool = True,
    condition_dropout: float = 0.0,
    melody_quantizers: int = 0,
    melody_codebook_size: int = MELODY.codebook_size,
    melody_parts: int = 0,
) -> Stage:
    """Returns the stage p(semantic | MuLan): 12 + 750 tokens in the paper's 30 s; a melody adds up to 72 (section 3.3).

    Args:
      seconds: length of a training crop.
      mulan_quantizers: MuLan codes per clip.
      mulan_codebook_size: number of codes of a MuLan quantizer.
      semantic_codebook_size: number of semantic codes.
      acoustic_quantizers: acoustic codes per frame; used only for the size of the full vocabulary.
      acoustic_codebook_size: number of codes of an acoustic quantizer; used only for the same.
      full_vocabulary: include the ids of all three streams, as the paper's 430M parameters imply, not only used ones.
      condition_dropout: see `Stage`.
      melody_quantizers: number of the melody's 72 tokens that follow MuLan's, a multiple of its 3 windows; 0 for a
        stage without melody.
      melody_codebook_size: number of codes of a melody quantizer.
      melody_parts: parts of a 4 s window with a code of their own, `MelodyConfig.chroma_parts`.
    """
    mulan, acoustic = (mulan_quantizers, mulan_codebook_size), (acoustic_quantizers, acoustic_codebook_size)
    streams = _streams(mulan, semantic_codebook_size, acoustic)
    conditioning: tuple[StreamSlice, ...] = (StreamSlice("mulan", 0, mulan_quantizers - 1),)
    target = StreamSlice("semantic", 0, 0)
    if melody_quantizers:
        conditioning += (StreamSlice("melody", 0, melody_quantizers - 1),)
        # The last stream, so that the other streams have the same ids as in a stage without melody.
        melody = dataclasses.replace(MELODY, quantizers=melody_quantizers, codebook_size=melody_codebook_size)
        streams += (dataclasses.replace(melody, parts=melody_parts),)
    return _make_stage("semantic", seconds, conditioning, target, streams, full_vocabulary, condition_dropout)


def coarse_stage(
    seconds: float = 10.0,
    mulan_quantizers: int = 12,
    mulan_codebook_size: int = 1024,
    semantic_codebook_size: int = 1024,
    acoustic_quantizers: int = 12,
    acoustic_codebook_size: int = 1024,
    coarse_quantizers: int = 4,
    use_semantic: bool = True,
    full_vocabulary: bool = True,
    condition_dropout: float = 0.0,
) -> Stage:
    """Returns the stage p(coarse acoustic levels | MuLan, semantic): 12 + 250 + 2000 tokens in the paper's 10 s.

    Args as in `semantic_stage`, and:
      coarse_quantizers: number of acoustic levels, from the first on, that are the target.
      use_semantic: False for the paper's ablation, which conditions on MuLan only.
    """
    mulan, acoustic = (mulan_quantizers, mulan_codebook_size), (acoustic_quantizers, acoustic_codebook_size)
    streams = _streams(mulan, semantic_codebook_size, acoustic)
    conditioning: tuple[StreamSlice, ...] = (StreamSlice("mulan", 0, mulan_quantizers - 1),)
    if use_semantic:
        conditioning += (StreamSlice("semantic", 0, 0),)
    target = StreamSlice("acoustic", 0, coarse_quantizers - 1)
    return _make_stage("coarse", seconds, conditioning, target, streams, full_vocabulary, condition_dropout)


def fine_stage(
    seconds: float = 3.0,
    mulan_quantizers: int = 12,
    mulan_codebook_size: int = 1024,
    semantic_codebook_size: int = 1024,
    acoustic_quantizers: int = 12,
    acoustic_codebook_size: int = 1024,
    coarse_quantizers: int = 4,
    full_vocabulary: bool = True,
) -> Stage:
    """Returns the stage p(fine acoustic levels | coarse levels): 600 + 1200 tokens in the paper's 3 s.

    Args as in `semantic_stage` (MuLan and semantic only determine the size of the full vocabulary), and:
      coarse_quantizers: number of acoustic levels, from the first on, that are the conditioning; the rest is target.
    """
    mulan, acoustic = (mulan_quantizers, mulan_codebook_size), (acoustic_quantizers, acoustic_codebook_size)
    streams = _streams(mulan, semantic_codebook_size, acoustic)
    conditioning = (StreamSlice("acoustic", 0, coarse_quantizers - 1),)
    target = StreamSlice("acoustic", coarse_quantizers, acoustic_quantizers - 1)
    return _make_stage("fine", seconds, conditioning, target, streams, full_vocabulary, 0.0)


@flax.struct.dataclass
class LMBatch:
    """Inputs of the Transformer and the loss.

    Attributes:
      decoder_input_tokens: int32 ids [b, l]; position i holds token i - 1, position 0 holds bos.
      target_codes: int32 [b, t, q], raw codes of the target's levels (0 for padding).
      loss_weights: float32 [b, t, q], 1 for target codes and 0 for padding.
      valid: bool [b, l], positions whose input token is not padding; no position attends to the others.
    """

    decoder_input_tokens: jax.Array
    target_codes: jax.Array
    loss_weights: jax.Array
    valid: jax.Array


def slice_codes(stage: Stage, part: StreamSlice, batch: Mapping[str, Any]) -> jax.Array:
    """Returns the codes of a slice, int32 [b, t, q] with -1 for padding, from raw streams and their optional masks.

    Args:
      stage: the stage.
      part: stream and levels.
      batch: raw streams; "<stream>_mask" bool [b, t] (or [b] for a stream per clip) is False for missing frames.

    Raises:
      ValueError: if the stream is missing or lacks levels.
    """
    if part.stream not in batch:
        raise ValueError(f"stage {stage.name!r} needs stream {part.stream!r}, the batch has {sorted(batch)}")
    codes = jnp.asarray(batch[part.stream], jnp.int32)
    stream = stage.stream(part.stream)
    if stream.frame_rate == 0:
        codes = codes[:, None, :] if codes.ndim == 2 else codes
    elif codes.ndim == 2:
        codes = codes[:, :, None]
    if codes.ndim != 3 or codes.shape[2] <= part.last_level:
        raise ValueError(
            f"stream {part.stream!r} has shape {jnp.shape(batch[part.stream])}, expected [batch, frames, quantizers] "
            f"with more than {part.last_level} quantizers"
        )
    codes = codes[:, :, part.first_level : part.last_level + 1]
    mask = batch.get(f"{part.stream}_mask")
    if mask is not None:
        mask = jnp.asarray(mask, bool)
        codes = jnp.where(mask[:, None, None] if mask.ndim == 1 else mask[:, :, None], codes, PADDING)
    return codes


def flatten(stage: Stage, part: StreamSlice, codes: jax.Array) -> jax.Array:
    """Converts codes [b, t, q] to ids [b, t * q], frame by frame; padding becomes bos."""
    vocabulary, size = stage.vocabulary, stage.stream(part.stream).codebook_size
    first = vocabulary.offset(part.stream, part.first_level)
    offsets = size * np.arange(part.levels)[None, None, :]
    ids = jnp.where(codes < 0, vocabulary.bos, codes + first + offsets)
    return ids.reshape(ids.shape[0], -1).astype(jnp.int32)


def unflatten(stage: Stage, part: StreamSlice, ids: jax.Array) -> jax.Array:
    """Inverts `flatten`: converts ids [b, t * q] to codes [b, t, q]; ids outside their level's range become -1."""
    size = stage.stream(part.stream).codebook_size
    first_ids = stage.vocabulary.offset(part.stream, part.first_level) + size * np.arange(part.levels)
    codes = ids.reshape(ids.shape[0], -1, part.levels) - first_ids[None, None, :]
    return jnp.where((codes >= 0) & (codes < size), codes, PADDING)


def condition_ids(stage: Stage, batch: Mapping[str, Any], drop: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns the conditioning as ids.

    Args:
      stage: the stage.
      batch: raw streams, of any length.
      drop: bool [b], rows whose streams per clip are replaced by bos (which is attended to, unlike padding).

    Returns:
      ids int32 [b, l] and valid bool [b, l].
    """
    ids, valid = [], []
    for part in stage.conditioning:
        codes = slice_codes(stage, part, batch)
        flat, there = flatten(stage, part, codes), (codes >= 0).reshape(codes.shape[0], -1)
        if drop is not None and stage.stream(part.stream).frame_rate == 0:
            flat, there = jnp.where(drop[:, None], stage.vocabulary.bos, flat), there | drop[:, None]
        ids.append(flat)
        valid.append(there)
    return jnp.concatenate(ids, axis=1), jnp.concatenate(valid, axis=1)


def assemble(stage: Stage, batch: Mapping[str, Any], key: jax.Array | None = None) -> LMBatch:
    """Makes a training batch from raw streams.

    Args:
      stage: the stage.
      batch: raw streams of `stage.seconds` each, and optional masks.
      key: PRNG key to drop conditioning with probability `stage.condition_dropout`; None never drops it.

    Raises:
      ValueError: if a stream is missing, has the wrong length, or lacks levels.
    """
    for part in (*stage.conditioning, stage.target):
        codes = slice_codes(stage, part, batch)
        if codes.shape[1] != stage.frames(part):
            raise ValueError(
                f"stream {part.stream!r} has {codes.shape[1]} frames, stage {stage.name!r} expects "
                f"{stage.frames(part)} in its {stage.seconds} s: change the crop of the task or the stage's seconds"
            )
    target = slice_codes(stage, stage.target, batch)
    rows, probability = target.shape[0], stage.condition_dropout
    drop = jax.random.bernoulli(key, probability, (rows,)) if key is not None and probability else None
    conditioning, conditioning_valid = condition_ids(stage, batch, drop)
    ids = jnp.concatenate([conditioning, flatten(stage, stage.target, target)], axis=1)
    valid = jnp.concatenate([conditioning_valid, (target >= 0).reshape(rows, -1)], axis=1)
    return LMBatch(
        decoder_input_tokens=shift_right(stage, ids),
        target_codes=jnp.maximum(target, 0),
        loss_weights=(target >= 0).astype(jnp.float32),
        valid=jnp.concatenate([jnp.ones((rows, 1), bool), valid[:, :-1]], axis=1),
    )


def shift_right(stage: Stage, ids: jax.Array) -> jax.Array:
    """Returns the decoder inputs of ids [b, l]: bos, then all but the last id."""
    return jnp.concatenate([jnp.full_like(ids[:, :1], stage.vocabulary.bos), ids[:, :-1]], axis=1)


def split(stage: Stage, ids: jax.Array) -> dict[str, jax.Array]:
    """Inverts `assemble`: splits a whole sequence of ids into raw streams.

    Args:
      stage: the stage.
      ids: int32 [b, l], not shifted; a whole number of frames of every stream.

    Returns:
      The streams of the stage as raw codes, -1 for padding; levels that it does not use are left out.

    Raises:
      ValueError: if the ids are not a whole number of frames.
    """
    parts = (*stage.conditioning, stage.target)
    per_clip = sum(part.levels for part in parts if stage.stream(part.stream).frame_rate == 0)
    per_second = sum(stage.stream(part.stream).frame_rate * part.levels for part in parts)
    seconds = (ids.shape[1] - per_clip) / per_second
    pieces: dict[str, list[jax.Array]] = {}
    start = 0
    for part in parts:
        length = stage.frames(part, seconds) * part.levels
        pieces.setdefault(part.stream, []).append(unflatten(stage, part, ids[:, start : start + length]))
        start += length
    streams = {}
    for name, codes in pieces.items():
        joined = jnp.concatenate(codes, axis=2)
        squeezed = joined[:, 0] if stage.stream(name).frame_rate == 0 else joined
        streams[name] = joined[:, :, 0] if name == SEMANTIC.name else squeezed
    return streams
