"""The three stages of MusicLM: which tokens condition, which are modelled, and how they lie in one flat sequence.

A stage's sequence is its conditioning followed by its target, each flattened frame by frame (all quantizers of frame 0,
then of frame 1, ...). A code's id is its place in the stage's vocabulary. This is the one place that knows it: training
and generation use the same functions (MusicLM section 3, arXiv 2301.11325; crops as in AudioLM, arXiv 2209.03143).

Raw streams are int32: "semantic" [b, t], "acoustic" [b, t, q], "mulan" and "melody" [b, q]; code -1 marks a frame of
padding.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.data.tokens import ACOUSTIC, MELODY, MULAN, SEMANTIC, TokenStream
from musiclm_jax.stages.vocabulary import Vocabulary

PADDING = -1  # code of frames that are not there
TIME_RATE = 50  # times within a crop are counted in 1/50 s, the frame of the fastest stream


class StreamSlice(NamedTuple):
    """Levels first_level..last_level, both included and counted from 0, of a stream."""

    stream: str
    first_level: int
    last_level: int

    @property
    def levels(self) -> int:
        """Number of levels."""
        return self.last_level - self.first_level + 1


class ConditionSpan(NamedTuple):
    """A part of the conditioning: `frames` of `levels` tokens; a frame holds for `positions` tokens of the target.

    Where `slots` are given, the tokens do not come frame by frame: each slot names those that hold for `positions`
    tokens of the target.
    """

    frames: int
    levels: int
    positions: int
    slots: tuple[tuple[int, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Stage:
    """One autoregressive model: p(target | conditioning). `Stage(**json)` takes what JSON makes of its fields."""

    name: str  # "semantic", "coarse" or "fine"
    seconds: float  # length of a training crop
    streams: tuple[TokenStream, ...]  # the vocabulary's streams, in the order of their ids
    conditioning: tuple[StreamSlice, ...]  # what comes first, in order
    target: StreamSlice  # what is modelled
    condition_dropout: float = 0.0  # probability of training without the streams per clip, for classifier-free guidance

    def __post_init__(self) -> None:
        """Restores the types that JSON loses, and checks the values.

        Raises:
          ValueError: if a slice is not in the vocabulary or a probability is none.
        """
        streams = tuple(own if isinstance(own, TokenStream) else TokenStream(**own) for own in self.streams)
        object.__setattr__(self, "streams", streams)
        object.__setattr__(self, "conditioning", tuple(StreamSlice(*part) for part in self.conditioning))
        object.__setattr__(self, "target", StreamSlice(*self.target))
        for part in (*self.conditioning, self.target):
            self.vocabulary.offset(part.stream, part.first_level)
            self.vocabulary.offset(part.stream, part.last_level)
            if part.levels < 1:
                raise ValueError(f"{part} has no levels: last_level must be at least first_level")
            if part.levels % (windows := self.stream(part.stream).windows):
                raise ValueError(f"{part} has {part.levels} levels, expected a multiple of its {windows} windows")
        if self.stream(self.target.stream).frame_rate == 0:
            raise ValueError(f"the target {self.target.stream!r} has no frame rate: choose a stream of frames")
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"condition_dropout is {self.condition_dropout}, expected 0 or more and less than 1")
        if self.condition_dropout and not any(self.stream(part.stream).frame_rate == 0 for part in self.conditioning):
            raise ValueError(f"stage {self.name!r} has no stream per clip to drop: set condition_dropout to 0")

    @property
    def vocabulary(self) -> Vocabulary:
        """The ids of this stage."""
        return Vocabulary(self.streams)

    def stream(self, name: str) -> TokenStream:
        """The stream of that name."""
        return next(own for own in self.streams if own.name == name)

    def frames(self, part: StreamSlice, seconds: float | None = None) -> int:
        """Frames of a slice in `seconds`, by default those of a training crop."""
        return self.stream(part.stream).frames(self.seconds if seconds is None else seconds)

    def condition_length(self, seconds: float | None = None) -> int:
        """Flat length of the conditioning."""
        return sum(self.frames(part, seconds) * part.levels for part in self.conditioning)

    def target_length(self, seconds: float | None = None) -> int:
        """Flat length of the target."""
        return self.frames(self.target, seconds) * self.target.levels

    def times(self, frames: tuple[int, ...] | None = None) -> np.ndarray:
        """Time of each token, int32 [1 + l] in 1/50 s since the start of the crop; -1 for bos and streams per clip.

        Args:
          frames: of each part of the conditioning and of the target, by default those of a training crop.
        """
        parts = (*self.conditioning, self.target)
        times = [np.full(1, -1)]
        for part, count in zip(parts, frames or [self.frames(part) for part in parts], strict=True):
            rate = self.stream(part.stream).frame_rate
            frame_times = np.arange(count) * TIME_RATE // rate if rate else np.full(count, -1)
            times.append(np.repeat(frame_times, part.levels))
        return np.concatenate(times).astype(np.int32)

    def spans(self, frames: tuple[int, ...] | None = None) -> tuple[ConditionSpan, ...]:
        """Which conditioning tokens hold while a target token sounds, part by part in the order of the sequence.

        A frame of a stream in time holds for the target's tokens in that time, a stream per clip for all of them, or
        slot by slot (`TokenStream.slots`).

        Args:
          frames: of each part of the conditioning and of the target, by default those of a training crop.

        Raises:
          ValueError: if a frame of the conditioning is not a whole number of the target's.
        """
        *counts, target_frames = frames or [self.frames(part) for part in (*self.conditioning, self.target)]
        target_rate, spans = self.stream(self.target.stream).frame_rate, []
        for part, count in zip(self.conditioning, counts, strict=True):
            stream = self.stream(part.stream)
            rate = stream.frame_rate
            if rate and target_rate % rate:
                raise ValueError(f"{part.stream!r} has {rate} frames a second, expected a divisor of {target_rate}")
            held = target_rate // rate if rate else target_frames
            slots: tuple[tuple[int, ...], ...] = ()
            if stream.windows > 1:
                held = round(stream.slot_seconds * target_rate)
                slots = stream.slots(part.levels // stream.windows, -(-target_frames // held))
            spans.append(ConditionSpan(count, part.levels, held * self.target.levels, slots))
        return tuple(spans)


def _make_stage(
    name: str,
    seconds: float,
    conditioning: tuple[StreamSlice, ...],
    target: StreamSlice,
    streams: tuple[TokenStream, ...],
    full_vocabulary: bool,
    condition_dropout: float,
) -> Stage:
    """Makes a stage; without the full vocabulary, streams and levels that it does not use have no ids."""
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
    """The three streams of (quantizers, codebook size)."""
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
    """p(semantic | MuLan): 12 + 750 tokens in the paper's 30 s; with a melody 72 tokens more (section 3.3).

    Args:
      seconds: length of a training crop.
      mulan_quantizers: MuLan codes of a clip.
      mulan_codebook_size: codes of one MuLan quantizer.
      semantic_codebook_size: semantic codes.
      acoustic_quantizers: acoustic codes of a frame; here only for the size of the full vocabulary.
      acoustic_codebook_size: codes of one acoustic quantizer; likewise.
      full_vocabulary: the ids of all three streams, as the paper's 430M parameters imply; else only those in use.
      condition_dropout: see `Stage`.
      melody_quantizers: so many of the melody's 72 tokens follow those of MuLan, a multiple of its 3 windows; 0 for a
        stage without melody.
      melody_codebook_size: codes of one melody quantizer.
      melody_parts: parts of a window of 4 s that its first codes tell, `MelodyConfig.chroma_parts`.
    """
    mulan, acoustic = (mulan_quantizers, mulan_codebook_size), (acoustic_quantizers, acoustic_codebook_size)
    streams = _streams(mulan, semantic_codebook_size, acoustic)
    conditioning: tuple[StreamSlice, ...] = (StreamSlice("mulan", 0, mulan_quantizers - 1),)
    target = StreamSlice("semantic", 0, 0)
    if melody_quantizers:
        conditioning += (StreamSlice("melody", 0, melody_quantizers - 1),)
        # Last, so that the ids of the other streams are those of a stage without melody.
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
    """p(coarse acoustic levels | MuLan, semantic): 12 + 250 + 2000 tokens in the paper's 10 s.

    Args as in `semantic_stage`, and:
      coarse_quantizers: the first so many acoustic levels are the target.
      use_semantic: False for the paper's ablation, straight from MuLan.
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
    """p(fine acoustic levels | coarse levels): 600 + 1200 tokens in the paper's 3 s.

    Args as in `semantic_stage` (MuLan and semantic only size the full vocabulary), and:
      coarse_quantizers: the first so many acoustic levels are the conditioning, the others the target.
    """
    mulan, acoustic = (mulan_quantizers, mulan_codebook_size), (acoustic_quantizers, acoustic_codebook_size)
    streams = _streams(mulan, semantic_codebook_size, acoustic)
    conditioning = (StreamSlice("acoustic", 0, coarse_quantizers - 1),)
    target = StreamSlice("acoustic", coarse_quantizers, acoustic_quantizers - 1)
    return _make_stage("fine", seconds, conditioning, target, streams, full_vocabulary, 0.0)


@flax.struct.dataclass
class LMBatch:
    """What the Transformer and the loss need.

    Attributes:
      decoder_input_tokens: int32 ids [b, l]; position i holds token i - 1, position 0 bos.
      target_codes: int32 [b, t, q], raw codes of the target's levels (0 where padded).
      loss_weights: float32 [b, t, q], 1 where the target is there and 0 where it is padding.
      valid: bool [b, l], positions whose input token is there; others are seen by none.
    """

    decoder_input_tokens: jax.Array
    target_codes: jax.Array
    loss_weights: jax.Array
    valid: jax.Array


def slice_codes(stage: Stage, part: StreamSlice, batch: Mapping[str, Any]) -> jax.Array:
    """Codes of a slice, int32 [b, t, q] with -1 in padding, from raw streams and their optional masks.

    Args:
      stage: the stage.
      part: stream and levels.
      batch: raw streams; "<stream>_mask" bool [b, t] (or [b] per clip) says which frames are there.

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
    """Ids [b, t * q] of codes [b, t, q], frame by frame; padding becomes bos."""
    vocabulary, size = stage.vocabulary, stage.stream(part.stream).codebook_size
    first = vocabulary.offset(part.stream, part.first_level)
    ids = jnp.where(codes < 0, vocabulary.bos, codes + first + size * np.arange(part.levels))
    return ids.reshape(ids.shape[0], -1).astype(jnp.int32)


def unflatten(stage: Stage, part: StreamSlice, ids: jax.Array) -> jax.Array:
    """Inverse of `flatten`: codes [b, t, q] of ids [b, t * q]; ids outside their level's range become -1."""
    size = stage.stream(part.stream).codebook_size
    first_ids = stage.vocabulary.offset(part.stream, part.first_level) + size * np.arange(part.levels)
    codes = ids.reshape(ids.shape[0], -1, part.levels) - first_ids
    return jnp.where((codes >= 0) & (codes < size), codes, PADDING)


def condition_ids(stage: Stage, batch: Mapping[str, Any], drop: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The conditioning as ids.

    Args:
      stage: the stage.
      batch: raw streams, of any length.
      drop: bool [b], rows whose streams per clip are replaced by bos (which is seen, unlike padding).

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
    """Makes a training batch of raw streams.

    Args:
      stage: the stage.
      batch: raw streams of `stage.seconds` each, and optional masks.
      key: for dropping conditioning with probability `stage.condition_dropout`; None never drops.

    Raises:
      ValueError: if a stream is missing, of another length, or lacks levels.
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
    """Decoder inputs of ids [b, l]: bos, then all but the last id."""
    return jnp.concatenate([jnp.full_like(ids[:, :1], stage.vocabulary.bos), ids[:, :-1]], axis=1)


def split(stage: Stage, ids: jax.Array) -> dict[str, jax.Array]:
    """Inverse of `assemble`: raw streams of a whole sequence of ids.

    Args:
      stage: the stage.
      ids: int32 [b, l], not shifted, of a whole number of frames of every stream.

    Returns:
      The streams of the stage as raw codes (levels that it does not use are left out), -1 in padding.

    Raises:
      ValueError: if the length is that of no whole number of frames.
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
