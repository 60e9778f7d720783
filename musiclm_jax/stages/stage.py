"""A stage: its streams, its conditioning and target tokens, and the time of each token."""

import dataclasses
from typing import NamedTuple

import numpy as np

from musiclm_jax.data.tokens import TokenStream
from musiclm_jax.stages.vocabulary import Vocabulary

TIME_RATE = 50  # units per second of times within a crop: the frame rate of the fastest stream


class StreamSlice(NamedTuple):
    """Levels first_level..last_level of a stream, both included and counted from 0."""

    stream: str
    first_level: int
    last_level: int

    @property
    def levels(self) -> int:
        """Number of levels."""
        return self.last_level - self.first_level + 1


class ConditionSpan(NamedTuple):
    """A part of the conditioning: `frames` frames of `levels` tokens; a frame applies to `positions` target tokens.

    With `slots`, tokens are not grouped into frames: each slot lists the tokens that apply to the next `positions`
    target tokens.
    """

    frames: int
    levels: int
    positions: int
    slots: tuple[tuple[int, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Stage:
    """One autoregressive model, p(target | conditioning). `Stage(**fields)` also takes its fields as read from JSON."""

    name: str  # "semantic", "coarse" or "fine"
    seconds: float  # length of a training crop
    streams: tuple[TokenStream, ...]  # the vocabulary's streams, in the order of their ids
    conditioning: tuple[StreamSlice, ...]  # the beginning of the sequence, in order
    target: StreamSlice  # the tokens that are modelled
    condition_dropout: float = 0.0  # probability of training without the streams per clip, for classifier-free guidance

    def __post_init__(self) -> None:
        """Restores the types that JSON loses, and checks the values.

        Raises:
          ValueError: if a slice is not in the vocabulary or condition_dropout is not a probability.
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
            raise ValueError(f"the target {self.target.stream!r} has no frame rate: choose a stream that has one")
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"condition_dropout is {self.condition_dropout}, expected 0 or more and less than 1")
        if self.condition_dropout and not any(self.stream(part.stream).frame_rate == 0 for part in self.conditioning):
            raise ValueError(f"stage {self.name!r} has no stream per clip to drop: set condition_dropout to 0")

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of this stage."""
        return Vocabulary(self.streams)

    def stream(self, name: str) -> TokenStream:
        """Returns the stream with this name."""
        return next(own for own in self.streams if own.name == name)

    def frames(self, part: StreamSlice, seconds: float | None = None) -> int:
        """Returns the number of frames of a slice in `seconds`, by default in a training crop."""
        return self.stream(part.stream).frames(self.seconds if seconds is None else seconds)

    def condition_length(self, seconds: float | None = None) -> int:
        """Returns the number of conditioning tokens in `seconds`, by default in a training crop."""
        return sum(self.frames(part, seconds) * part.levels for part in self.conditioning)

    def target_length(self, seconds: float | None = None) -> int:
        """Returns the number of target tokens in `seconds`, by default in a training crop."""
        return self.frames(self.target, seconds) * self.target.levels

    def times(self, frames: tuple[int, ...] | None = None) -> np.ndarray:
        """Returns the time of each token in 1/50 s from the start, int32 [1 + l]; -1 for bos and streams per clip.

        Args:
          frames: numbers of frames of the parts of the conditioning and of the target, by default in a training crop.
        """
        parts = (*self.conditioning, self.target)
        times = [np.full(1, -1)]
        for part, count in zip(parts, frames or [self.frames(part) for part in parts], strict=True):
            rate = self.stream(part.stream).frame_rate
            frame_times = np.arange(count) * TIME_RATE // rate if rate else np.full(count, -1)
            times.append(np.repeat(frame_times, part.levels))
        return np.concatenate(times).astype(np.int32)

    def spans(self, frames: tuple[int, ...] | None = None) -> tuple[ConditionSpan, ...]:
        """Returns which conditioning tokens apply to which target tokens, for each part of the conditioning in order.

        A frame of a stream in time applies to the target tokens of the same time. A stream per clip applies to all of
        them, or slot by slot (`TokenStream.slots`).

        Args:
          frames: numbers of frames of the parts of the conditioning and of the target, by default in a training crop.

        Raises:
          ValueError: if a conditioning frame does not last a whole number of target frames.
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
