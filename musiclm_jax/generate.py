"""Text to audio: MuLan tokens, semantic, coarse and fine stages in windows, SoundStream (MusicLM sections 3.3 and 3.4).

Each stage works in windows of the seconds it was trained on:
* semantic: the first window, then always the next half with the last half as prefix, under the same text;
* coarse: windows that advance by half, whose first half is what the window before made of that time;
* fine: windows side by side, independent of each other, all in one batch (AudioLM's way; MusicLM leaves it open).

A piece depends on its prompt, the seed and its number among the prompt's pieces, not on the other prompts of a batch.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import decoding, mulan, soundstream
from musiclm_jax.bundles import Bundle, BundleError, Part
from musiclm_jax.prompts import check_prompts
from musiclm_jax.tokens import ACOUSTIC, MULAN, SAMPLE_RATE, SEMANTIC, STAGES

MIN_SECONDS = 1.0
MAX_PIECES = 1000  # of one request
TOKENS_PER_REPORT = 100  # of a row, between two calls of a progress function
ACOUSTIC_PER_SEMANTIC = ACOUSTIC.frame_rate // SEMANTIC.frame_rate

# Called with the name of the work under way, and how much of it is done.
Progress = Callable[[str, float, float], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """What to generate.

    Attributes:
      seconds: length of each piece.
      seed: the same seed gives the same music.
      num_samples: pieces per prompt.
      best_of: candidates per piece; the one whose MuLan embedding is nearest the text is kept.
      temperature: of the semantic, coarse and fine stage.
      top_k: draw only among the k likeliest codes; 0 draws among all.
      top_p: draw only among the likeliest codes whose probabilities first add up to it; 1 draws among all.
      guidance: of the semantic and coarse stage, how much the text counts; 1 draws as trained.
      batch_size: pieces and candidates generated at once.
    """

    seconds: float = 10.0
    seed: int = 0
    num_samples: int = 1
    best_of: int = 1
    temperature: tuple[float, float, float] = (1.0, 0.95, 0.4)
    top_k: int = 0
    top_p: float = 1.0
    guidance: tuple[float, float] = (1.0, 1.0)
    batch_size: int = 8

    def check(self, bundle: Bundle) -> None:
        """Refuses what cannot be generated.

        Raises:
          ValueError: in one line, naming the value.
        """
        longest = bundle.generation.max_seconds
        if not MIN_SECONDS <= self.seconds <= longest:  # also refuses NaN
            raise ValueError(f"seconds is {self.seconds:g}: this bundle makes {MIN_SECONDS:g} to {longest:g} seconds")
        for name in ("num_samples", "best_of", "batch_size"):
            if not 1 <= getattr(self, name) <= MAX_PIECES:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 to {MAX_PIECES}")
        if len(self.temperature) != 3 or not all(0 <= t <= 10 for t in self.temperature):
            raise ValueError(
                f"temperature is {self.temperature}: give three numbers from 0 to 10 (semantic, coarse, fine stage)"
            )
        if not 0 <= self.top_k <= ACOUSTIC.codebook_size:
            raise ValueError(f"top_k is {self.top_k}: give 1 to {ACOUSTIC.codebook_size}, or 0 for all codes")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: give more than 0 and at most 1, which draws among all codes")
        if len(self.guidance) != 2 or not all(0 <= g <= 20 for g in self.guidance):
            raise ValueError(f"guidance is {self.guidance}: give two numbers from 0 to 20 (semantic, coarse stage)")
        for name, guidance in zip(STAGES, self.guidance, strict=False):
            if guidance != 1 and not bundle.part(name).config.stage.condition_dropout:
                raise ValueError(
                    f"guidance is {self.guidance}: the {name} stage of this bundle was trained without dropping its "
                    "conditioning, leave its guidance at 1"
                )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}: give a whole number from 0 to {2**32 - 1}")

    def sampling(self, stage: str) -> decoding.Sampling:
        """How codes of "semantic", "coarse" or "fine" are drawn."""
        index = STAGES.index(stage)
        guidance = (*self.guidance, 1.0)[index]
        return decoding.Sampling(self.temperature[index], self.top_k, self.top_p, guidance)


@dataclasses.dataclass(frozen=True)
class GeneratedMusic:
    """One piece.

    Attributes:
      audio: float32 `[samples]`, 24 kHz; may exceed [-1, 1], `audio.write` scales it down.
      tokens: int32 codes "mulan" `[12]`, "semantic" `[t]`, "acoustic" `[2 t, 12]`; t covers whole windows, the audio
        may end earlier.
      similarity: cosine of the MuLan embeddings of prompt and audio.
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
    bundle: Bundle, prompts: Sequence[str], progress: Progress | None = None, **options: Any
) -> list[GeneratedMusic]:
    """Music for each prompt.

    Args:
      bundle: with all six models.
      prompts: texts, in English.
      progress: called while the stages work.
      **options: fields of `Request`; temperatures, top_p and guidance are the bundle's by default.

    Returns:
      The pieces of the first prompt, then those of the second, ...

    Raises:
      ValueError: if the prompts or options cannot be used.
      BundleError: if a model is missing or damaged.
    """
    own = bundle.generation
    defaults: dict[str, Any] = {"temperature": own.temperature, "top_p": own.top_p, "guidance": own.guidance}
    request = Request(**defaults | options)
    return list(stream(bundle, prompts, request, progress))


def stream(
    bundle: Bundle, prompts: Sequence[str], request: Request, progress: Progress | None = None
) -> Iterator[GeneratedMusic]:
    """As `generate`, yielding each piece as soon as it is finished."""
    check_prompts(prompts)
    request.check(bundle)
    for name in ("soundstream", "mulan", *STAGES):  # what is missing shows before any work
        bundle.part(name)
    progress = progress or (lambda name, done, total: None)
    progress("text", 0, 1)  # also stands for reading the weights
    text = bundle.mulan()
    embeddings = mulan.embed_text(text.config, text.variables, list(prompts))
    codes = mulan.tokens(text.config, text.variables, embeddings, "text")
    progress("text", 1, 1)

    pieces = [(p, s) for p in range(len(prompts)) for s in range(request.num_samples)]
    group_size = max(1, request.batch_size // request.best_of)
    for start in range(0, len(pieces), group_size):
        group = pieces[start : start + group_size]
        # A short last group is filled up: the programs compiled for the first one fit.
        filled = group + group[-1:] * (min(group_size, len(pieces)) - len(group))
        rows = [(p, s * request.best_of + c) for p, s in filled for c in range(request.best_of)]
        keys = jnp.stack([piece_key(request.seed, prompts[p], candidate) for p, candidate in rows])
        of_prompt = np.array([p for p, _ in rows])
        tokens = generate_tokens(bundle, codes[of_prompt], request, keys, progress)
        progress("audio", 0, 1)
        audio = decode_audio(bundle.part("soundstream"), tokens["acoustic"])[:, : round(request.seconds * SAMPLE_RATE)]
        heard = mulan.embed_audio(text.config, text.variables, audio)
        similarity = np.asarray(jnp.sum(heard * embeddings[of_prompt], axis=-1))
        progress("audio", 1, 1)
        for index, (p, s) in enumerate(group):
            first = index * request.best_of
            best = first + int(np.argmax(similarity[first : first + request.best_of]))
            streams = {name: stream[best] for name, stream in tokens.items()}
            yield GeneratedMusic(audio[best], streams, float(similarity[best]), prompts[p], request.seed, s)


def piece_key(seed: int, prompt: str, candidate: int) -> jax.Array:
    """Random key of one candidate of one prompt: its music does not depend on what else is asked for."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(prompt.encode()))
    return jax.random.fold_in(key, candidate)


def generate_tokens(
    bundle: Bundle, mulan_codes: jax.Array, request: Request, keys: jax.Array, progress: Progress
) -> dict[str, np.ndarray]:
    """Runs the three stages.

    Args:
      bundle: with the stages.
      mulan_codes: int32 `[batch, 12]`.
      request: length, and how codes are drawn.
      keys: random keys `[batch]`, one per row.
      progress: called while the stages work.

    Returns:
      int32 "mulan" `[batch, 12]`, "semantic" `[batch, t]`, "acoustic" `[batch, 2 t, 12]`, where t covers whole coarse
      windows.
    """
    semantic_part, coarse_part, fine_part = (_stage(bundle, name) for name in STAGES)
    window = window_frames(coarse_part)
    hop = window // 2
    frames = window + hop * max(0, math.ceil((request.seconds * SEMANTIC.frame_rate - window) / hop))
    semantic = semantic_windows(semantic_part, mulan_codes, frames, request, keys, progress)
    coarse = coarse_windows(coarse_part, mulan_codes, semantic, request, keys, progress)
    fine = fine_windows(fine_part, coarse, request, keys, progress)
    streams = {"mulan": mulan_codes, "semantic": semantic[..., 0], "acoustic": jnp.concatenate([coarse, fine], axis=-1)}
    return {name: np.asarray(codes) for name, codes in streams.items()}


def _stage(bundle: Bundle, name: str) -> Part:
    config, variables = bundle.part(name)
    check_codebooks(bundle, name)
    return Part(config, {"params": decoding.unstacked(variables["params"])})


def check_codebooks(bundle: Bundle, name: str) -> None:
    """Checks that a stage can take the codes that it is given, and that its own codes can be decoded.

    Raises:
      BundleError: naming the stage and the stream that do not fit.
    """
    stage = bundle.part(name).config.stage
    sound, text = bundle.part("soundstream").config, bundle.part("mulan").config
    made = {
        MULAN.name: (text.num_quantizers, text.codebook_size),
        ACOUSTIC.name: (sound.num_quantizers, sound.codebook_size),
    }
    if name != "semantic":
        made[SEMANTIC.name] = (1, bundle.part("semantic").config.stage.stream(SEMANTIC.name).codebook_size)
    for part in (*stage.conditioning, stage.target):
        quantizers, codebook_size = made.get(part.stream, (part.levels, stage.stream(part.stream).codebook_size))
        known = stage.stream(part.stream).codebook_size
        # A stage may know more codes of its conditioning than there are; what it draws must exist.
        if part.last_level >= quantizers or known < codebook_size or (part is stage.target and known > codebook_size):
            raise BundleError(
                f"bundle {bundle.path}: the {name} stage knows {part.last_level + 1} levels of {known} {part.stream} "
                f"codes, the other models have {quantizers} of {codebook_size}: export parts trained together"
            )


def sample_stage(
    part: Part,
    conditioning: dict[str, jax.Array],
    prefix: jax.Array,
    frames: int,
    keys: jax.Array,
    sampling: decoding.Sampling,
    report: Callable[[int], None],
) -> jax.Array:
    """Draws one window of a stage, in pieces, so that `report` hears of the frames that are done.

    Args:
      part: the stage, its parameters unstacked.
      conditioning: raw streams of the window.
      prefix: int32 `[batch, known frames, levels]`, the codes that the window begins with.
      frames: of the window, those of the prefix included.
      keys: random keys `[batch]`.
      sampling: how codes are drawn.
      report: called with the number of frames of the window that are done.

    Returns:
      int32 `[batch, frames, levels]`, beginning with the prefix.
    """
    config, stage, params = part.config.transformer, part.config.stage, part.variables["params"]
    state = decoding.prefill(config, stage, params, conditioning, prefix, frames, keys, sampling.guidance != 1)
    pieces, done = [prefix], prefix.shape[1]
    report(done)
    while done < frames:
        count = min(max(1, TOKENS_PER_REPORT // stage.target.levels), frames - done)
        state, codes = decoding.decode_frames(config, stage, params, state, count, sampling)
        pieces.append(codes.block_until_ready())
        done += count
        report(done)
    return jnp.concatenate(pieces, axis=1)


def window_frames(part: Part) -> int:
    """Semantic frames (25 Hz) in the seconds that a stage was trained on, rounded down to an even number of them."""
    frames = int(part.config.stage.seconds * SEMANTIC.frame_rate)
    return max(2, frames - frames % 2)


def semantic_windows(
    part: Part, mulan_codes: jax.Array, frames: int, request: Request, keys: jax.Array, progress: Progress
) -> jax.Array:
    """Semantic codes int32 `[batch, frames, 1]`: continued half a window at a time."""
    window = window_frames(part)
    conditioning = {MULAN.name: mulan_codes}
    sampling = request.sampling("semantic")
    codes = jnp.zeros((len(keys), 0, 1), jnp.int32)
    while codes.shape[1] < frames:
        prefix = codes[:, max(0, codes.shape[1] - window // 2) :]
        made = codes.shape[1] - prefix.shape[1]  # where this window begins
        length = min(window, frames - made)

        def report(done: int, made: int = made) -> None:
            progress("semantic", made + done, frames)

        new = sample_stage(part, conditioning, prefix, length, _window_keys(keys, 0, made), sampling, report)
        codes = jnp.concatenate([codes[:, :made], new], axis=1)
    return codes


def coarse_windows(
    part: Part, mulan_codes: jax.Array, semantic: jax.Array, request: Request, keys: jax.Array, progress: Progress
) -> jax.Array:
    """Coarse codes int32 `[batch, 2 t, levels]` for semantic codes `[batch, t, 1]`, t a window and whole hops."""
    window = window_frames(part)
    hop = window // 2
    codes = jnp.zeros((len(keys), 0, part.config.stage.target.levels), jnp.int32)
    total = ACOUSTIC_PER_SEMANTIC * semantic.shape[1]
    sampling = request.sampling("coarse")
    for start in range(0, semantic.shape[1] - window + 1, hop):
        first = ACOUSTIC_PER_SEMANTIC * start
        prefix = codes[:, first:]
        conditioning = {MULAN.name: mulan_codes, SEMANTIC.name: semantic[:, start : start + window, 0]}

        def report(done: int, first: int = first) -> None:
            progress("coarse", first + done, total)

        length = ACOUSTIC_PER_SEMANTIC * window
        new = sample_stage(part, conditioning, prefix, length, _window_keys(keys, 1, start), sampling, report)
        codes = jnp.concatenate([codes[:, :first], new], axis=1)
    return codes


def fine_windows(part: Part, coarse: jax.Array, request: Request, keys: jax.Array, progress: Progress) -> jax.Array:
    """Fine codes int32 `[batch, frames, levels]` for coarse codes `[batch, frames, levels]`: all windows at once.

    The last window ends with the piece; what it shares with the one before is taken from that one.
    """
    rows, frames, _ = coarse.shape
    window = min(ACOUSTIC_PER_SEMANTIC * window_frames(part), frames)
    starts = [*range(0, frames - window, window), frames - window]
    side_by_side = jnp.concatenate([coarse[:, start : start + window] for start in starts])
    window_keys = jnp.concatenate([_window_keys(keys, 2, start) for start in starts])
    prefix = jnp.zeros((len(side_by_side), 0, part.config.stage.target.levels), jnp.int32)

    def report(done: int) -> None:
        progress("fine", done, window)

    conditioning = {ACOUSTIC.name: side_by_side}
    new = sample_stage(part, conditioning, prefix, window, window_keys, request.sampling("fine"), report)
    codes = jnp.zeros((rows, 0, new.shape[2]), jnp.int32)
    for index, start in enumerate(starts):
        part_of_piece = new[index * rows : (index + 1) * rows]
        codes = jnp.concatenate([codes, part_of_piece[:, codes.shape[1] - start :]], axis=1)
    return codes


def _window_keys(keys: jax.Array, stage: int, start: int) -> jax.Array:
    """Keys `[batch]` of one window of one stage."""
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, stage), start))(keys)


def decode_audio(part: Part, acoustic: np.ndarray) -> np.ndarray:
    """Audio float32 `[batch, samples]` of acoustic codes `[batch, frames, 12]`."""
    return np.asarray(_decode(part.config, part.variables, acoustic))


@functools.partial(jax.jit, static_argnums=0)
def _decode(config: soundstream.SoundStreamConfig, variables: dict, codes: jax.Array) -> jax.Array:
    return soundstream.decode(config, variables, codes)
