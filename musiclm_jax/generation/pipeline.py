"""Runs a batch through the stages and SoundStream, from conditions to codes to audio, whole or in chunks."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.bundles import Bundle, BundleError, Part
from musiclm_jax.bundles.encode import SAMPLES_PER_SEMANTIC_FRAME
from musiclm_jax.data.tokens import ACOUSTIC, MELODY, MULAN, SAMPLE_RATE, SEMANTIC, STAGES
from musiclm_jax.generation import windows
from musiclm_jax.generation.conditions import Condition, Known, Melody, known_tokens
from musiclm_jax.generation.request import Request
from musiclm_jax.generation.windows import ACOUSTIC_PER_SEMANTIC, Conditions, Frames, Progress
from musiclm_jax.kernels.int8 import int8_kernels
from musiclm_jax.kernels.transposed import TRANSPOSED, change_kernels
from musiclm_jax.stages import decoding
from musiclm_jax.tokenizers import soundstream

FINE_ROWS = 64  # batch size limit of the fine stage (rows x windows); each needs memory for its KV cache
DECODED_SECONDS = 10  # of audio that SoundStream decodes at a time
_int8_kernels = jax.jit(int8_kernels)


@jax.jit
def _bfloat16_kernels(params: decoding.Params) -> decoding.Params:
    """Rounds kernels and embeddings; norms and T5's bias stay as they are."""
    rounded = change_kernels(params, lambda name, kernel: {name + TRANSPOSED: kernel.astype(jnp.bfloat16)})
    return rounded | {"embedding": params["embedding"].astype(jnp.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The models, and the tokens that are known before they run.

    Attributes:
      parts: "soundstream" and the stages; the stages' parameters are unstacked.
      known: tokens of the recording that is continued or varied.
      request: lengths and sampling settings.
      melody: the melody that the semantic stage follows, or None.
    """

    parts: dict[str, Part]
    known: Known
    request: Request
    melody: Melody | None = None

    @classmethod
    def of(cls, bundle: Bundle, request: Request) -> "Pipeline":
        """Builds the pipeline for a bundle and a request.

        Raises:
          BundleError: if a part is missing or damaged, or the parts are incompatible.
        """
        parts = {"soundstream": bundle.part("soundstream")}
        for name in STAGES:
            config, variables = bundle.part(request.part(name))
            check_codebooks(bundle, request.part(name))
            params = decoding.unstacked(variables["params"])
            if request.weights == "int8":
                params = _int8_kernels(params)
            elif request.weights == "bfloat16":
                config = dataclasses.replace(
                    config, transformer=dataclasses.replace(config.transformer, dtype="bfloat16")
                )
                params = _bfloat16_kernels(params)
            parts[name] = Part(config, {"params": params})
        varied = request.like if request.vary == "acoustics" else None
        recording = request.continue_from if varied is None else varied
        known = known_tokens(bundle, recording, with_acoustic=varied is None)
        melody = None if request.melody is None else Melody(bundle.part("melody"), request.melody)
        return cls(parts, known, request, melody)

    @property
    def known_frames(self) -> int:
        """Semantic frames in the continued recording."""
        return len(self.known.acoustic) // ACOUSTIC_PER_SEMANTIC

    @property
    def known_samples(self) -> int:
        """Samples in the continued recording."""
        return self.known_frames * SAMPLES_PER_SEMANTIC_FRAME

    @property
    def frames(self) -> int:
        """Semantic frames in the piece."""
        return math.ceil(self.samples / SAMPLES_PER_SEMANTIC_FRAME)

    @property
    def samples(self) -> int:
        """Samples in the piece."""
        return self.known_samples + round(self.request.seconds * SAMPLE_RATE)

    def coarse_tokens(
        self, asked: Sequence[Condition], keys: jax.Array, semantic_keys: jax.Array, progress: Progress
    ) -> tuple[np.ndarray, np.ndarray]:
        """Generates the semantic and coarse codes of a batch, the semantic ones first.

        Args:
          asked: the condition of each row; all change at the same times.
          keys: random keys `[batch]` for the coarse and fine stages.
          semantic_keys: random keys `[batch]` for the semantic stage.
          progress: called while the stages run.

        Returns:
          int32 semantic codes `[batch, t]` and coarse codes `[batch, 2 t, levels]`.
        """
        semantic, coarse = self._coarse(asked, keys, semantic_keys, progress)
        semantic.until(windows.semantic_frames(self.parts["coarse"], self.frames))
        return semantic.until(self.frames)[..., 0], coarse.until(ACOUSTIC_PER_SEMANTIC * self.frames)

    def acoustic_tokens(self, coarse: np.ndarray, keys: jax.Array, progress: Progress) -> np.ndarray:
        """Generates the fine codes for a batch of coarse codes.

        Args:
          coarse: int32 `[batch, 2 t, levels]`, from `coarse_tokens`.
          keys: random keys `[batch]`, as for `coarse_tokens`.
          progress: called while the stage runs.

        Returns:
          The codes of all levels, int32 `[batch, 2 t, 12]`.
        """
        at_once = max(1, FINE_ROWS // len(coarse))
        return self._acoustic(Frames(coarse), len(coarse), keys, at_once, progress).until(coarse.shape[1])

    def streamed_acoustic(self, asked: Sequence[Condition], keys: jax.Array, semantic_keys: jax.Array) -> Frames:
        """Returns lazily generated acoustic tokens `[batch, 2 t, 12]`; arguments as in `coarse_tokens`."""
        _, coarse = self._coarse(asked, keys, semantic_keys, windows.silent)
        return self._acoustic(coarse, len(asked), keys, 1, windows.silent)

    def _coarse(
        self, asked: Sequence[Condition], keys: jax.Array, semantic_keys: jax.Array, progress: Progress
    ) -> tuple[Frames, Frames]:
        """Returns lazily generated semantic and coarse codes, known ones included."""
        starts = (0, *(start + self.known_frames for start in asked[0].starts[1:]))
        over_time = Conditions(starts, np.stack([condition.codes for condition in asked], axis=1), self.melody)
        levels = self.parts["coarse"].config.stage.target.levels
        in_all = windows.semantic_frames(self.parts["coarse"], self.frames)
        known_semantic = _repeated(self.known.semantic[:in_all], len(asked))
        made = windows.generate_semantic(
            self.parts["semantic"], over_time, known_semantic, in_all, self.request, semantic_keys, progress
        )
        semantic, known = Frames(known_semantic, made), _repeated(self.known.acoustic[:, :levels], len(asked))
        made = windows.generate_coarse(
            self.parts["coarse"], over_time, semantic, known, self.frames, self.request, keys, progress
        )
        return semantic, Frames(known, made)

    def _acoustic(self, coarse: Frames, rows: int, keys: jax.Array, at_once: int, progress: Progress) -> Frames:
        """Returns lazily generated acoustic codes, known ones included; `at_once` windows per batch."""
        known, frames = _repeated(self.known.acoustic, rows), ACOUSTIC_PER_SEMANTIC * self.frames
        new = windows.generate_acoustic(
            self.parts["fine"], coarse, known, frames, self.request, keys, at_once, progress
        )
        return Frames(known, new)

    def audio(self, acoustic: Frames, seconds: float = DECODED_SECONDS) -> Iterator[np.ndarray]:
        """Decodes acoustic tokens of all or the first levels to `[batch, samples]`, at most `seconds` at a time."""
        config, variables = self.parts["soundstream"]
        frames, context = ACOUSTIC_PER_SEMANTIC * self.frames, None
        block = min(round(seconds * ACOUSTIC.frame_rate), frames)
        for start in range(0, frames, block):
            codes = acoustic.until(min(start + block, frames))[:, start:]
            if context is None:
                context = soundstream.initial_decoder_context(config, variables["params"], len(codes))
            # Pad the last block, so that one program fits all. The decoder is causal: padding changes no earlier audio.
            codes = np.pad(codes, ((0, 0), (0, block - codes.shape[1]), (0, 0)))
            audio, context = _decode_block(config, variables, codes, context)
            yield np.asarray(audio)[:, : self.samples - start * config.total_stride]


def _repeated(codes: np.ndarray, rows: int) -> np.ndarray:
    """Repeats `[frames, levels]` for each row: `[rows, frames, levels]`."""
    return np.repeat(codes[None], rows, axis=0)


def check_codebooks(bundle: Bundle, name: str) -> None:
    """Checks that a stage accepts the codes the other models produce, and that its own codes can be decoded.

    Raises:
      BundleError: naming the stage and the incompatible stream.
    """
    stage = bundle.part(name).config.stage
    sound, text = bundle.part("soundstream").config, bundle.part("mulan").config
    made = {
        MULAN.name: (text.num_quantizers, text.codebook_size),
        ACOUSTIC.name: (sound.num_quantizers, sound.codebook_size),
    }
    if bundle.has("melody"):
        tune = bundle.part("melody").config
        made[MELODY.name] = (MELODY.quantizers, tune.codebook_size)
        takes = next((own.parts for own in stage.streams if own.name == MELODY.name), tune.chroma_parts)
        if takes != tune.chroma_parts:
            raise BundleError(
                f"bundle {bundle.path}: the {name} stage takes {takes} codes of a melody's window for its pitch "
                f"classes (melody_parts), the melody model makes {tune.chroma_parts} (chroma_parts): export parts "
                "trained together"
            )
    if stage.name != "semantic":
        made[SEMANTIC.name] = (1, bundle.part("semantic").config.stage.stream(SEMANTIC.name).codebook_size)
    for part in (*stage.conditioning, stage.target):
        quantizers, codebook_size = made.get(part.stream, (part.levels, stage.stream(part.stream).codebook_size))
        known = stage.stream(part.stream).codebook_size
        # A stage may know more conditioning codes than exist, but every code that it samples must exist.
        if part.last_level >= quantizers or known < codebook_size or (part is stage.target and known > codebook_size):
            raise BundleError(
                f"bundle {bundle.path}: the {name} stage knows {part.last_level + 1} levels of {known} {part.stream} "
                f"codes, the other models have {quantizers} of {codebook_size}: export parts trained together"
            )


def decode_audio(part: Part, acoustic: np.ndarray) -> np.ndarray:
    """Decodes acoustic codes `[batch, frames, 12]` to audio, float32 `[batch, samples]`, in one call."""
    return np.asarray(_decode(part.config, part.variables, acoustic))


@functools.partial(jax.jit, static_argnums=0)
def _decode(config: soundstream.SoundStreamConfig, variables: dict, codes: jax.Array) -> jax.Array:
    return soundstream.decode(config, variables, codes)


@functools.partial(jax.jit, static_argnums=0)
def _decode_block(config: soundstream.SoundStreamConfig, variables: dict, codes: jax.Array, context: tuple) -> tuple:
    return soundstream.decode_streaming(config, variables, codes, context)
