"""Text to audio: MuLan tokens, semantic, coarse and fine stages in windows, SoundStream (MusicLM sections 3.3 and 3.4).

`generate` and `pieces` generate whole pieces in batches; `stream` yields the audio of one piece while it is generated.
Both use the same pipeline (`pipeline.py`) and windows (`windows.py`), so they produce the same codes.

A piece depends only on its prompt, the seed and its sample number, not on the other prompts in the batch.
"""

import base64
import dataclasses
import html
import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.bundles import Bundle
from musiclm_jax.data import audio as sound
from musiclm_jax.data.tokens import ACOUSTIC, MULAN, SAMPLE_RATE, SEMANTIC, STAGES
from musiclm_jax.generation import conditions
from musiclm_jax.generation.conditions import Condition
from musiclm_jax.generation.pipeline import Pipeline
from musiclm_jax.generation.prompts import Prompt, as_stories
from musiclm_jax.generation.request import MAX_SECONDS, Request
from musiclm_jax.generation.windows import Frames, Progress, silent

STREAMED_SECONDS = 1.0  # of audio in each chunk


@dataclasses.dataclass(frozen=True)
class GeneratedMusic:
    """One generated piece.

    Attributes:
      audio: float32 `[samples]`, 24 kHz. It may exceed [-1, 1]; `audio.write` scales it down. A continued recording
        precedes the new music, resynthesized from its tokens.
      tokens: int32 codes "mulan" `[12]` (for a story, of its first section), "semantic" `[t]`, "acoustic" `[2 t, 12]`.
      similarity: cosine of the MuLan embeddings of the prompt and the new music; for a story, the mean over sections
        weighted by their length.
      prompt: the text.
      seed: the request's seed.
      sample: index among the pieces generated for the same prompt, from 0.
    """

    audio: np.ndarray
    tokens: dict[str, np.ndarray]
    similarity: float
    prompt: str
    seed: int
    sample: int

    def save(self, path: str | os.PathLike, force: bool = False) -> float:
        """Writes a wav, flac or ogg file, chosen by the extension; see `musiclm_jax.data.audio.write`.

        Args:
          path: file to write.
          force: overwrite an existing file.

        Returns:
          The gain that was applied: 1.0, or less if the audio was too loud.

        Raises:
          AudioError: if the file cannot be written, or exists and `force` is not set.
        """
        return sound.write(path, self.audio, force)

    def _repr_html_(self) -> str:
        """Returns a player with the prompt below it, for notebooks."""
        wav = base64.b64encode(sound.wav_bytes(self.audio)).decode()
        about = f"{html.escape(self.prompt)} (seed {self.seed}, sample {self.sample}, similarity {self.similarity:.2f})"
        player = f'<audio controls src="data:audio/wav;base64,{wav}"></audio>'
        return f"<figure>{player}<figcaption>{about}</figcaption></figure>"


def generate(
    bundle: Bundle, prompts: Sequence[Prompt] = (), progress: Progress | None = None, **options: Any
) -> list[GeneratedMusic]:
    """Generates music for each prompt.

    Args:
      bundle: must hold all six models.
      prompts: English texts, or stories; empty if a recording is the prompt.
      progress: called while the stages run.
      **options: fields of `Request`; temperature, top_p, guidance and weights default to the bundle's.

    Returns:
      All pieces for the first prompt, then all for the second, and so on.

    Raises:
      ValueError: if a prompt or option is invalid.
      BundleError: if a model is missing or damaged.
    """
    return list(pieces(bundle, prompts, request_for(bundle, **options), progress))


def request_for(bundle: Bundle, **options: Any) -> Request:
    """Builds a request; temperature, top_p, guidance and weights default to the bundle's."""
    own = bundle.generation
    defaults: dict[str, Any] = {name: getattr(own, name) for name in ("temperature", "top_p", "guidance", "weights")}
    return Request(**defaults | options)


def check(bundle: Bundle, prompts: Sequence[Prompt], request: Request, streamed: bool = False) -> None:
    """Checks, before any work, that `pieces` (or `stream`, if `streamed`) can generate this request.

    Raises:
      ValueError: if it cannot; the message is one line.
      BundleError: if a model is missing or damaged.
    """
    request.check(bundle)
    if streamed and (len(prompts) > 1 or request.num_samples != 1 or request.best_of != 1):
        raise ValueError("only one piece can be streamed: give one prompt, and leave num_samples and best_of at 1")
    if prompts or (request.like is None and request.continue_from is None):
        for story in as_stories(prompts):
            if story.sections[-1].start >= request.seconds:
                raise ValueError(
                    f"seconds is {request.seconds:g}: the last section of the story begins at "
                    f"{story.sections[-1].start:g} s"
                )
    if prompts and request.like is not None and request.vary != "acoustics":
        raise ValueError("both a text and a recording (like) are given: give one of them, or set vary='acoustics'")
    recording = request.continue_from
    total = request.seconds + (0 if recording is None else len(recording) / SAMPLE_RATE)
    if total > MAX_SECONDS:
        raise ValueError(f"the recording and the new music last {total:g} s together: the maximum is {MAX_SECONDS:g} s")
    needed = ["soundstream", "mulan", *map(request.part, STAGES)]
    if request.melody is not None:
        needed.append("melody")
    if recording is not None or (request.like is not None and request.vary == "acoustics"):
        needed.append("w2v_bert")
    for name in needed:  # raises now if a part is missing
        bundle.part(name)


def pieces(
    bundle: Bundle, prompts: Sequence[Prompt], request: Request, progress: Progress | None = None
) -> Iterator[GeneratedMusic]:
    """Like `generate`, but yields each piece as soon as it is finished."""
    check(bundle, prompts, request)
    progress = progress or silent
    progress("text", 0, 1)  # covers reading the weights, too
    asked = _conditions(bundle, prompts, request)
    pipeline = Pipeline.of(bundle, request)
    progress("text", 1, 1)

    wanted = [(c, s) for c in range(len(asked)) for s in range(request.num_samples)]
    group_size = max(1, request.batch_size // request.best_of)
    # Windows end where the prompt changes, so a batch can only hold prompts that change at the same times.
    for _, same in itertools.groupby(wanted, lambda piece: (asked[piece[0]].starts, asked[piece[0]].times)):
        own = list(same)
        for start in range(0, len(own), group_size):
            group = own[start : start + group_size]
            # Pad a short last group to full size, so that the compiled programs are reused.
            filled = group + group[-1:] * (min(group_size, len(own)) - len(group))
            rows = [(asked[c], s * request.best_of + n) for c, s in filled for n in range(request.best_of)]
            for (c, s), piece in zip(group, _finished(bundle, pipeline, rows, progress), strict=False):
                audio, tokens, similarity = piece
                yield GeneratedMusic(audio, tokens, similarity, asked[c].label, request.seed, s)


def _finished(
    bundle: Bundle, pipeline: Pipeline, rows: Sequence[tuple[Condition, int]], progress: Progress
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], float]]:
    """Generates a batch of pieces, `best_of` candidates each.

    Args:
      bundle: provides MuLan.
      pipeline: for the request.
      rows: conditions and numbers of the candidates; those of a piece follow one another.
      progress: called while the stages run.

    Yields:
      Audio `[samples]`, tokens and similarity of each piece.
    """
    request, asked = pipeline.request, [condition for condition, _ in rows]
    keys, semantic_keys = _keys(request, rows)
    semantic, coarse = pipeline.coarse_tokens(asked, keys, semantic_keys, progress)
    kept = np.arange(len(rows))
    if request.best_of > 1:
        # Candidates are compared by their coarse levels, which already tell what plays; only the best get fine levels.
        progress("candidates", 0, 1)
        _, similarity = _heard(bundle, pipeline, asked, coarse)
        best = similarity.reshape(-1, request.best_of).argmax(axis=1)
        kept = kept[:: request.best_of] + best
        progress("candidates", 1, 1)
    asked, acoustic = [asked[row] for row in kept], pipeline.acoustic_tokens(coarse[kept], keys[kept], progress)
    progress("audio", 0, 1)
    audio, similarity = _heard(bundle, pipeline, asked, acoustic)
    progress("audio", 1, 1)
    for index, (row, condition) in enumerate(zip(kept, asked, strict=True)):
        tokens = {MULAN.name: condition.codes[0], SEMANTIC.name: semantic[row], ACOUSTIC.name: acoustic[index]}
        yield audio[index], tokens, float(similarity[index])


def _heard(
    bundle: Bundle, pipeline: Pipeline, asked: Sequence[Condition], codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the audio `[batch, samples]` of acoustic codes, and the similarity of the new music to its prompt."""
    audio = np.concatenate(list(pipeline.audio(Frames(codes))), axis=1)
    return audio, conditions.similarities(bundle.mulan(), asked, audio[:, pipeline.known_samples :])


def stream(
    bundle: Bundle, prompts: Sequence[Prompt], request: Request, progress: Progress | None = None
) -> Iterator[np.ndarray]:
    """Yields the audio of one piece while it is generated.

    The first chunk arrives early: each stage generates only as much as that chunk needs.

    Args:
      bundle: must hold all six models.
      prompts: one text or story; empty if a recording is the prompt.
      request: must ask for one piece: num_samples and best_of are 1.
      progress: called with the seconds finished so far.

    Yields:
      float32 `[samples]`, `STREAMED_SECONDS` at a time; concatenated, they equal the audio from `pieces`.

    Raises:
      ValueError: if the prompt or request is invalid, or asks for more than one piece.
      BundleError: if a model is missing or damaged.
    """
    check(bundle, prompts, request, streamed=True)
    [condition] = _conditions(bundle, prompts, request)
    pipeline = Pipeline.of(bundle, request)
    acoustic = pipeline.streamed_acoustic([condition], *_keys(request, [(condition, 0)]))
    done = 0
    for block in pipeline.audio(acoustic, STREAMED_SECONDS):
        done += block.shape[1]
        (progress or silent)("audio", done / SAMPLE_RATE, pipeline.samples / SAMPLE_RATE)
        yield block[0]


def _conditions(bundle: Bundle, prompts: Sequence[Prompt], request: Request) -> list[Condition]:
    """Returns the conditions for the prompts or, without any, for the recording."""
    if prompts:
        return conditions.of_stories(bundle.mulan(), as_stories(prompts))
    recording = request.continue_from if request.like is None else request.like
    assert recording is not None  # see `check`
    return [conditions.of_recording(bundle.mulan(), recording)]


def _keys(request: Request, rows: Sequence[tuple[Condition, int]]) -> tuple[jax.Array, jax.Array]:
    """Returns the acoustic and the semantic stages' random keys, `[batch]` each, for rows of (condition, candidate)."""
    keys = jnp.stack([piece_key(request.seed, condition.label, candidate) for condition, candidate in rows])
    if request.vary == "all":
        return keys, keys
    return keys, jnp.stack([piece_key(request.seed, condition.label, 0) for condition, _ in rows])


def piece_key(seed: int, prompt: str, candidate: int) -> jax.Array:
    """Returns the random key for one candidate of one prompt, independent of the rest of the request."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(prompt.encode()))
    return jax.random.fold_in(key, candidate)
