"""The three stages in windows of the seconds they were trained on, as far as they are asked (MusicLM section 3.4).

* semantic: the first window, then always the next half with the last half as prefix;
* coarse: likewise, under the semantic codes of the window's whole time;
* fine: windows side by side, independent of each other, several in one batch (AudioLM's way; MusicLM leaves it open).

Where the prompt of a story changes, semantic and coarse windows end, and the next ones begin as everywhere else.

Each stage is an iterator of the codes it makes, and takes those of the stage before it from `Frames`, which asks for no
more than is needed: audio begins while most of the piece is still to be made. How much is asked for at once changes
nothing in the codes. Codes are NumPy int32 `[batch, frames, levels]`, since small JAX arrays of ever new shapes would
compile a program for each.
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

TOKENS_AT_ONCE = 100  # of a row, in one call of the decoder
ACOUSTIC_PER_SEMANTIC = ACOUSTIC.frame_rate // SEMANTIC.frame_rate

# Called with the name of the work under way, and how much of it is done.
Progress = Callable[[str, float, float], None]


def silent(name: str, done: float, total: float) -> None:
    """Progress for nobody."""


class Conditions(NamedTuple):
    """MuLan codes of a batch over time: from semantic frame `starts[i]` on `codes[i]`, int32 `[changes, batch, 12]`.

    With a melody, all rows follow the same.
    """

    starts: tuple[int, ...]  # the first is 0
    codes: np.ndarray
    melody: Melody | None = None

    def at(self, frame: int) -> np.ndarray:
        """Codes `[batch, 12]` that hold at a semantic frame."""
        return self.codes[sum(start <= frame for start in self.starts) - 1]

    def streams(self, step: "Step") -> dict[str, np.ndarray]:
        """What a window of the semantic stage is conditioned on: its melody is that of the window's own time."""
        codes = {MULAN.name: self.at(step.known)}
        if self.melody is not None:
            codes[MELODY.name] = np.repeat(self.melody.at(step.begin)[None], len(codes[MULAN.name]), axis=0)
        return codes


class Frames:
    """Codes `[batch, frames, levels]`: those known already, then those of an iterator, which is asked when needed."""

    def __init__(self, known: np.ndarray, pieces: Iterable[np.ndarray] = ()):
        self._codes = known
        self._pieces = iter(pieces)

    def until(self, frames: int) -> np.ndarray:
        """The first so many frames."""
        made = [self._codes]
        while sum(piece.shape[1] for piece in made) < frames:
            made.append(next(self._pieces))
        self._codes = np.concatenate(made, axis=1)
        return self._codes[:, :frames]


class Step(NamedTuple):
    """A window in frames: it begins at `begin`, its codes are known until `known` and made until `end`."""

    begin: int
    known: int
    end: int


def steps(known: int, frames: int, window: int, changes: Sequence[int] = (), last: int | None = None) -> list[Step]:
    """Windows that make the frames from `known` to `frames`.

    Args:
      known: frames that are there.
      frames: in all.
      window: the longest one.
      changes: frames at which the condition changes.
      last: where the last window may begin; by default anywhere.
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
    """Semantic frames (25 Hz) in the seconds that a stage was trained on, rounded down to an even number of them."""
    frames = int(part.config.stage.seconds * SEMANTIC.frame_rate)
    return max(2, frames - frames % 2)


def window_keys(keys: jax.Array, stage: int, start: int) -> jax.Array:
    """Keys `[batch]` of one window of one stage."""
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, stage), start))(keys)


def sample_window(
    part: Part,
    conditioning: dict[str, np.ndarray],
    prefix: np.ndarray,
    frames: int,
    keys: jax.Array,
    sampling: decoding.Sampling,
) -> Iterator[np.ndarray]:
    """Draws one window of a stage.

    Args:
      part: the stage, its parameters unstacked.
      conditioning: raw streams of the window.
      prefix: `[batch, known frames, levels]`, the codes that the window begins with.
      frames: of the window, those of the prefix included.
      keys: random keys `[batch]`.
      sampling: how codes are drawn.

    Yields:
      The codes that follow the prefix, `TOKENS_AT_ONCE` of a row at a time.
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
    """Semantic codes from those `known`, `[batch, t, 1]`, up to `frames`."""
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
    """Coarse codes from those `known`, `[batch, 2 t, levels]`, up to `frames`, counted in semantic frames.

    `semantic` must have `semantic_frames(part, frames)`: a window looks at the semantic codes of its whole time.
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
    """Semantic frames that the coarse stage looks at to make `frames` of them: at least a window."""
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
    """Coarse and fine codes from those `known`, `[batch, t, 12]`, up to `frames`, by the fine stage.

    The last window ends with the piece; what it shares with the one before is taken from that one.

    Args:
      part: the fine stage.
      coarse: the coarse codes, of which `frames` are asked for.
      known: acoustic codes that are there.
      frames: acoustic frames in all.
      request: how codes are drawn.
      keys: random keys `[batch]`.
      at_once: windows in one batch; a short last batch is filled up, so that one program fits all.
      progress: told of the frames that are done.
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
