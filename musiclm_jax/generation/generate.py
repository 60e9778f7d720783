"""Text to audio: MuLan tokens, semantic, coarse and fine stages in windows, SoundStream (MusicLM sections 3.3 and 3.4).

`generate` and `pieces` make whole pieces, several in a batch; `stream` hands out the audio of one while it is made.
Both go the same way (`pipeline.py`) in the same windows (`windows.py`), and the codes are the same.

A piece depends on its prompt, the seed and its number among the prompt's pieces, not on the other prompts of a batch.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.bundles import Bundle
from musiclm_jax.data.tokens import ACOUSTIC, SAMPLE_RATE, STAGES
from musiclm_jax.generation import conditions
from musiclm_jax.generation.conditions import Condition
from musiclm_jax.generation.pipeline import Pipeline
from musiclm_jax.generation.prompts import Prompt, as_stories
from musiclm_jax.generation.request import MAX_SECONDS, Request
from musiclm_jax.generation.windows import Frames, Progress, silent

STREAMED_SECONDS = 1.0  # of audio, at once


@dataclasses.dataclass(frozen=True)
class GeneratedMusic:
    """One piece.

    Attributes:
      audio: float32 `[samples]`, 24 kHz; may exceed [-1, 1], `audio.write` scales it down. A recording that is
        continued stands before the new music, as its tokens sound.
      tokens: int32 codes "mulan" `[12]` (of a story's beginning), "semantic" `[t]`, "acoustic" `[2 t, 12]`.
      similarity: cosine of the MuLan embeddings of prompt and new music; of a story the mean of its sections.
      prompt: the text.
      seed: of the request.
      sample: number of the piece among those of its prompt, from 0.
    """

    audio: np.ndarray
    tokens: dict[str, np.ndarray]
    similarity: float
    prompt: str
    seed: int
    sample: int


def generate(
    bundle: Bundle, prompts: Sequence[Prompt] = (), progress: Progress | None = None, **options: Any
) -> list[GeneratedMusic]:
    """Music for each prompt.

    Args:
      bundle: with all six models.
      prompts: texts, in English, or stories; none where a recording is the prompt.
      progress: called while the stages work.
      **options: fields of `Request`; temperatures, top_p and guidance are the bundle's by default.

    Returns:
      The pieces of the first prompt, then those of the second, ...

    Raises:
      ValueError: if the prompts or options cannot be used.
      BundleError: if a model is missing or damaged.
    """
    return list(pieces(bundle, prompts, request_for(bundle, **options), progress))


def request_for(bundle: Bundle, **options: Any) -> Request:
    """A request whose temperatures, top_p and guidance are the bundle's where they are not given."""
    own = bundle.generation
    defaults: dict[str, Any] = {"temperature": own.temperature, "top_p": own.top_p, "guidance": own.guidance}
    return Request(**defaults | options)


def check(bundle: Bundle, prompts: Sequence[Prompt], request: Request, streamed: bool = False) -> None:
    """Refuses what `pieces`, or else `stream`, cannot generate, before any work.

    Raises:
      ValueError: in one line.
      BundleError: if a model is missing or damaged.
    """
    request.check(bundle)
    if streamed and (len(prompts) > 1 or request.num_samples != 1 or request.best_of != 1):
        raise ValueError("a stream is one piece: give one prompt, and leave num_samples and best_of at 1")
    if prompts or (request.like is None and request.continue_from is None):
        for story in as_stories(prompts):
            if story.sections[-1].start >= request.seconds:
                raise ValueError(
                    f"seconds is {request.seconds:g}: the last section of the story begins at "
                    f"{story.sections[-1].start:g} s"
                )
    if prompts and request.like is not None and request.vary != "acoustics":
        raise ValueError("both a text and a recording to sound like are given: give one, or vary='acoustics'")
    recording = request.continue_from
    total = request.seconds + (0 if recording is None else len(recording) / SAMPLE_RATE)
    if total > MAX_SECONDS:
        raise ValueError(f"recording and new music are {total:g} s together: give at most {MAX_SECONDS:g}")
    needed = ["soundstream", "mulan", *map(request.part, STAGES)]
    if request.melody is not None:
        needed.append("melody")
    if recording is not None or (request.like is not None and request.vary == "acoustics"):
        needed.append("w2v_bert")
    for name in needed:  # what is missing shows now
        bundle.part(name)


def pieces(
    bundle: Bundle, prompts: Sequence[Prompt], request: Request, progress: Progress | None = None
) -> Iterator[GeneratedMusic]:
    """As `generate`, yielding each piece as soon as it is finished."""
    check(bundle, prompts, request)
    progress = progress or silent
    progress("text", 0, 1)  # also stands for reading the weights
    asked = _conditions(bundle, prompts, request)
    pipeline = Pipeline.of(bundle, request)
    progress("text", 1, 1)

    wanted = [(c, s) for c in range(len(asked)) for s in range(request.num_samples)]
    group_size = max(1, request.batch_size // request.best_of)
    # Windows end where the prompt changes: what changes at other times goes into another batch.
    for _, same in itertools.groupby(wanted, lambda piece: (asked[piece[0]].starts, asked[piece[0]].times)):
        own = list(same)
        for start in range(0, len(own), group_size):
            group = own[start : start + group_size]
            # A short last group is filled up: the programs compiled for the first one fit.
            filled = group + group[-1:] * (min(group_size, len(own)) - len(group))
            rows = [(asked[c], s * request.best_of + n) for c, s in filled for n in range(request.best_of)]
            tokens = pipeline.tokens([condition for condition, _ in rows], *_keys(request, rows), progress)
            progress("audio", 0, 1)
            audio = np.concatenate(list(pipeline.audio(Frames(tokens[ACOUSTIC.name]))), axis=1)
            new = audio[:, pipeline.known_samples :]
            similarity = conditions.similarities(bundle.mulan(), [condition for condition, _ in rows], new)
            progress("audio", 1, 1)
            for index, (c, s) in enumerate(group):
                first = index * request.best_of
                best = first + int(np.argmax(similarity[first : first + request.best_of]))
                streams = {name: codes[best] for name, codes in tokens.items()}
                yield GeneratedMusic(audio[best], streams, float(similarity[best]), asked[c].label, request.seed, s)


def stream(
    bundle: Bundle, prompts: Sequence[Prompt], request: Request, progress: Progress | None = None
) -> Iterator[np.ndarray]:
    """The audio of one piece while it is made: the first second comes when little more than it has been made.

    Args:
      bundle: with all six models.
      prompts: one text or story, or none where a recording is the prompt.
      request: for one piece: num_samples and best_of are 1.
      progress: called with the seconds that are done.

    Yields:
      float32 `[samples]`, `STREAMED_SECONDS` at a time; together they are the audio of the piece that `pieces` makes.

    Raises:
      ValueError: if the prompt or request cannot be used, or more than one piece is asked for.
      BundleError: if a model is missing or damaged.
    """
    check(bundle, prompts, request, streamed=True)
    [condition] = _conditions(bundle, prompts, request)
    pipeline = Pipeline.of(bundle, request)
    acoustic = pipeline.acoustic([condition], *_keys(request, [(condition, 0)]))
    done = 0
    for block in pipeline.audio(acoustic, STREAMED_SECONDS):
        done += block.shape[1]
        (progress or silent)("audio", done / SAMPLE_RATE, pipeline.samples / SAMPLE_RATE)
        yield block[0]


def _conditions(bundle: Bundle, prompts: Sequence[Prompt], request: Request) -> list[Condition]:
    """What the prompts ask for; without any, what the recording does."""
    if prompts:
        return conditions.of_stories(bundle.mulan(), as_stories(prompts))
    recording = request.continue_from if request.like is None else request.like
    assert recording is not None  # see `check`
    return [conditions.of_recording(bundle.mulan(), recording)]


def _keys(request: Request, rows: Sequence[tuple[Condition, int]]) -> tuple[jax.Array, jax.Array]:
    """Random keys `[batch]` of (condition, candidate), and those of the semantic stage."""
    keys = jnp.stack([piece_key(request.seed, condition.label, candidate) for condition, candidate in rows])
    if request.vary == "all":
        return keys, keys
    return keys, jnp.stack([piece_key(request.seed, condition.label, 0) for condition, _ in rows])


def piece_key(seed: int, prompt: str, candidate: int) -> jax.Array:
    """Random key of one candidate of one prompt: its music does not depend on what else is asked for."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(prompt.encode()))
    return jax.random.fold_in(key, candidate)
