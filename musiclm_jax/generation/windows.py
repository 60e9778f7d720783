"""Runs the three stages in windows of their training length, on demand (MusicLM section 3.4).

* semantic: each window after the first overlaps the one before by half; the overlap is its prefix.
* coarse: likewise, conditioned on the semantic codes of the whole window.
* fine: adjacent, independent windows, several in one batch (as in AudioLM; MusicLM does not say).

Semantic and coarse windows end where the prompt of a story changes; the next window overlaps as usual.

Each stage is a generator of codes. It reads the codes of the previous stage through `Frames`, which requests no more
than it needs, so audio starts while most of the piece is still to be generated. The codes do not depend on how much is
requested at once. Codes are NumPy int32 `[batch, frames, levels]`: with JAX arrays, every new shape would compile a
new program.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.bundles import Part
from musiclm_jax.data.tokens import ACOUSTIC, MELODY, MULAN, SEMANTIC
from musiclm_jax.generation.conditions import Melody
from musiclm_jax.generation.request import Request
from musiclm_jax.stages import decoding

TOKENS_AT_ONCE = 100  # per row and decoder call
ACOUSTIC_PER_SEMANTIC = ACOUSTIC.frame_rate // SEMANTIC.frame_rate

# Called with the name of the current task, the amount done and the total.
Progress = Callable[[str, float, float], None]


def silent(name: str, done: float, total: float) -> None:
    """Ignores progress."""


class Conditions(NamedTuple):
    """MuLan codes of a batch over time: `codes[i]` applies from semantic frame `starts[i]` on.

    `codes` is int32 `[changes, batch, 12]`. All rows follow the same melody, if there is one.
    """

    starts: tuple[int, ...]  # the first is 0
    codes: np.ndarray
    melody: Melody | None = None

    def at(self, frame: int) -> np.ndarray:
        """Returns the codes `[batch, 12]` that apply at a semantic frame."""
        return self.codes[sum(start <= frame for start in self.starts) - 1]

    def streams(self, step: "Step") -> dict[str, np.ndarray]:
        """Returns the conditioning of a semantic window; melody codes are those of the window's own time span."""
        codes = {MULAN.name: self.at(step.known)}
        if self.melody is not None:
            codes[MELODY.name] = np.repeat(self.melody.at(step.begin)[None], len(codes[MULAN.name]), axis=0)
        return codes


class Frames:
    """Codes `[batch, frames, levels]`: first the known ones, then those of an iterator, consumed on demand."""

    def __init__(self, known: np.ndarray, pieces: Iterable[np.ndarray] = ()):
        self._codes = known
        self._pieces = iter(pieces)

    def until(self, frames: int) -> np.ndarray:
        """Returns the first `frames` frames."""
        made = [self._codes]
        while sum(piece.shape[1] for piece in made) < frames:
            made.append(next(self._pieces))
        self._codes = np.concatenate(made, axis=1)
        return self._codes[:, :frames]


class Step(NamedTuple):
    """A window in frames: codes from `begin` to `known` are its prefix, codes from `known` to `end` are generated."""

    begin: int
    known: int
    end: int


def steps(known: int, frames: int, window: int, changes: Sequence[int] = (), last: int | None = None) -> list[Step]:
    """Returns the windows that generate the frames from `known` to `frames`.

    Args:
      known: number of known frames.
      frames: total number of frames.
      window: maximum window length in frames.
      changes: frames at which the condition changes.
      last: latest frame at which a window may begin; None sets no limit.
    """
    made = []
    while known < frames:
        begin = max(0, known - window // 2)
        begin = begin if last is None else min(begin, last)
        end = min([begin + window, frames, *(change for change in changes if change > known)])
        made.append(Step(begin, known, end))
        known = end
    return made


def window_frames(part: Part) -> int:
    """Returns a stage's training length in semantic frames (25 Hz), rounded down to an even number."""
    frames = int(part.config.stage.seconds * SEMANTIC.frame_rate)
    return max(2, frames - frames % 2)


def window_keys(keys: jax.Array, stage: int, start: int) -> jax.Array:
    """Derives the keys `[batch]` for one window of one stage."""
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, stage), start))(keys)


def sample_window(
    part: Part,
    conditioning: dict[str, np.ndarray],
    prefix: np.ndarray,
    frames: int,
    keys: jax.Array,
    sampling: decoding.Sampling,
) -> Iterator[np.ndarray]:
    """Samples one window of a stage.

    Args:
      part: the stage; its parameters are unstacked.
      conditioning: raw conditioning streams of the window.
      prefix: `[batch, known frames, levels]`, the codes that the window begins with.
      frames: length of the window, including the prefix.
      keys: random keys `[batch]`.
      sampling: temperature, top-k, top-p and guidance.

    Yields:
      The codes after the prefix, about `TOKENS_AT_ONCE` tokens per row at a time.
    """
    config, stage, params = part.config.transformer, part.config.stage, part.variables["params"]
    state = decoding.prefill(
        config, stage, params, conditioning, jnp.asarray(prefix), frames, keys, sampling.guidance != 1
    )
    done = prefix.shape[1]
    while done < frames:
        count = min(max(1, TOKENS_AT_ONCE // stage.target.levels), frames - done)
        state, codes = decoding.decode_frames(config, stage, params, state, count, sampling)
        done += count
        yield np.asarray(codes)


def generate_semantic(
    part: Part,
    conditions: Conditions,
    known: np.ndarray,
    frames: int,
    request: Request,
    keys: jax.Array,
    progress: Progress,
) -> Iterator[np.ndarray]:
    """Generates the semantic codes that follow `known` `[batch, t, 1]`, up to `frames` frames in total."""
    codes, sampling = known, request.sampling("semantic")
    for step in steps(known.shape[1], frames, window_frames(part), conditions.starts):
        prefix = codes[:, step.begin :]
        conditioning = conditions.streams(step)
        step_keys = window_keys(keys, 0, step.begin)
        for new in sample_window(part, conditioning, prefix, step.end - step.begin, step_keys, sampling):
            codes = np.concatenate([codes, new], axis=1)
            progress("semantic", codes.shape[1], frames)
            yield new


def generate_coarse(
    part: Part,
    conditions: Conditions,
    semantic: Frames,
    known: np.ndarray,
    frames: int,
    request: Request,
    keys: jax.Array,
    progress: Progress,
) -> Iterator[np.ndarray]:
    """Generates the coarse codes that follow `known` `[batch, 2 t, levels]`, up to `frames` semantic frames in total.

    `semantic` must provide `semantic_frames(part, frames)` frames: a window needs the semantic codes of its whole span.
    """
    window, codes, sampling = window_frames(part), known, request.sampling("coarse")
    last = semantic_frames(part, frames) - window
    for step in steps(known.shape[1] // ACOUSTIC_PER_SEMANTIC, frames, window, conditions.starts, last):
        prefix = codes[:, ACOUSTIC_PER_SEMANTIC * step.begin :]
        conditioning = {
            MULAN.name: conditions.at(step.known),
            SEMANTIC.name: semantic.until(step.begin + window)[:, step.begin :, 0],
        }
        length, step_keys = ACOUSTIC_PER_SEMANTIC * (step.end - step.begin), window_keys(keys, 1, step.begin)
        for new in sample_window(part, conditioning, prefix, length, step_keys, sampling):
            codes = np.concatenate([codes, new], axis=1)
            progress("coarse", codes.shape[1], ACOUSTIC_PER_SEMANTIC * frames)
            yield new


def semantic_frames(coarse_part: Part, frames: int) -> int:
    """Returns the number of semantic frames that the coarse stage needs for `frames` frames: at least one window."""
    return max(frames, window_frames(coarse_part))


def generate_acoustic(
    part: Part,
    coarse: Frames,
    known: np.ndarray,
    frames: int,
    request: Request,
    keys: jax.Array,
    at_once: int,
    progress: Progress,
) -> Iterator[np.ndarray]:
    """Generates the fine codes that follow `known` `[batch, t, 12]` and yields them with their coarse codes.

    The last window ends with the piece; frames that it shares with the window before are taken from that window.

    Args:
      part: the fine stage.
      coarse: the coarse codes, at least `frames` of them.
      known: the acoustic codes that are known.
      frames: total number of acoustic frames.
      request: sampling settings.
      keys: random keys `[batch]`.
      at_once: windows per batch; a short last batch is padded, so that one compiled program fits all.
      progress: called with the number of finished frames.
    """
    rows, done, sampling = len(known), known.shape[1], request.sampling("fine")
    first, window = done, min(ACOUSTIC_PER_SEMANTIC * window_frames(part), frames)
    starts = [*range(first, frames - window, window), frames - window]
    batches = -(-len(starts) // at_once)
    at_once = -(-len(starts) // batches)  # even batches
    for batch in range(batches):
        own = starts[batch * at_once : (batch + 1) * at_once]
        filled = own + own[-1:] * (at_once - len(own))
        above = coarse.until(own[-1] + window)
        conditioning = {ACOUSTIC.name: np.concatenate([above[:, start : start + window] for start in filled])}
        prefix = np.zeros((rows * at_once, 0, part.config.stage.target.levels), np.int32)
        batch_keys = jnp.concatenate([window_keys(keys, 2, start) for start in filled])
        pieces = []
        for new in sample_window(part, conditioning, prefix, window, batch_keys, sampling):
            pieces.append(new)
            made = sum(piece.shape[1] for piece in pieces) / window
            progress("fine", done - first + made * (own[-1] + window - done), frames - first)
        fine = np.concatenate(pieces, axis=1)
        for index, start in enumerate(own):
            end = start + window
            new = fine[index * rows : (index + 1) * rows, done - start :]
            yield np.concatenate([above[:, done:end], new], axis=2)
            done = end
