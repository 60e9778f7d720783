"""Generation options other than the prompts: length, number of pieces, sampling, and recordings to start from."""

import dataclasses

import numpy as np

from musiclm_jax.bundles import Bundle
from musiclm_jax.data.audio import AudioError
from musiclm_jax.data.samples import is_silent
from musiclm_jax.data.tokens import ACOUSTIC, SAMPLE_RATE, STAGES
from musiclm_jax.stages.sampling import Sampling

MIN_SECONDS = 1.0
MAX_SECONDS = 600.0  # per piece; music longer than the bundle's max_seconds may drift
MAX_PIECES = 1000  # per request
MIN_RECORDING_SECONDS = 1.0
MAX_RECORDING_SECONDS = 300.0
VARIATIONS = ("all", "acoustics")
WEIGHTS = ("float32", "bfloat16", "int8")


@dataclasses.dataclass(frozen=True)
class Request:
    """Specifies what to generate.

    Attributes:
      seconds: length of each piece; when a recording is continued, length of the new music.
      seed: the same seed gives the same music.
      num_samples: pieces per prompt.
      best_of: candidates per piece. Their coarse tokens are decoded, and the one closest to the prompt by MuLan's
        embeddings is kept.
      temperature: for the semantic, coarse and fine stages.
      top_k: top-k sampling; 0 turns it off.
      top_p: nucleus (top-p) sampling; 1 turns it off.
      guidance: classifier-free guidance scale for the semantic and coarse stages; 1 turns it off.
      batch_size: pieces and candidates generated at once.
      like: float32 `[samples]` at 24 kHz: a recording used as the prompt in place of a text (its MuLan tokens).
      continue_from: float32 `[samples]` at 24 kHz: a recording that the music continues. Without a text or `like`, it
        is the prompt, too.
      vary: how the pieces of a prompt differ: in everything ("all"), or only in their acoustic tokens ("acoustics").
        In the latter case they share the semantic tokens of `like`, which a text may accompany, or of the first piece.
      melody: float32 `[samples]` at 24 kHz: a hummed, sung, whistled or played melody that the music follows from the
        beginning. It is looped if it is shorter than the music. The text says which instrument plays it.
      weights: precision of the stages' kernels: "float32" as trained, "bfloat16" for accelerators (activations and KV
        cache, too), or "int8" (see `int8.py`).
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
    like: np.ndarray | None = dataclasses.field(default=None, compare=False)
    continue_from: np.ndarray | None = dataclasses.field(default=None, compare=False)
    melody: np.ndarray | None = dataclasses.field(default=None, compare=False)
    vary: str = "all"
    weights: str = "float32"

    def check(self, bundle: Bundle) -> None:
        """Checks that the bundle can generate this request.

        Raises:
          ValueError: if it cannot; the message is one line and names the value.
        """
        if not MIN_SECONDS <= self.seconds <= MAX_SECONDS:  # also refuses NaN
            raise ValueError(f"seconds is {self.seconds:g}: give {MIN_SECONDS:g} to {MAX_SECONDS:g}")
        for name in ("num_samples", "best_of", "batch_size"):
            if not 1 <= getattr(self, name) <= MAX_PIECES:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 to {MAX_PIECES}")
        if len(self.temperature) != 3 or not all(0 <= t <= 10 for t in self.temperature):
            raise ValueError(
                f"temperature is {self.temperature}: give three numbers from 0 to 10 (semantic, coarse, fine stages)"
            )
        if not 0 <= self.top_k <= ACOUSTIC.codebook_size:
            raise ValueError(f"top_k is {self.top_k}: give 1 to {ACOUSTIC.codebook_size}, or 0 for all codes")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: give a number above 0 and at most 1 (1 samples from all codes)")
        if len(self.guidance) != 2 or not all(0 <= g <= 20 for g in self.guidance):
            raise ValueError(f"guidance is {self.guidance}: give two numbers from 0 to 20 (semantic, coarse stages)")
        if self.melody is not None and not (bundle.has("melody") and bundle.has("semantic_melody")):
            raise ValueError(
                f"bundle {bundle.path} has no stage that follows a melody: omit the melody, or use another bundle"
            )
        for name, guidance in zip(STAGES, self.guidance, strict=False):
            if guidance != 1 and not bundle.part(self.part(name)).config.stage.condition_dropout:
                raise ValueError(
                    f"guidance is {self.guidance}: the {name} stage of this bundle was trained without conditioning "
                    "dropout, leave its guidance at 1"
                )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}: give a whole number from 0 to {2**32 - 1}")
        if self.vary not in VARIATIONS:
            raise ValueError(f"vary is {self.vary!r}: give one of {', '.join(VARIATIONS)}")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights is {self.weights!r}: give one of {', '.join(WEIGHTS)}")
        for name in ("like", "continue_from", "melody"):
            if getattr(self, name) is not None:
                check_recording(getattr(self, name), name)
        if self.vary == "acoustics" and self.like is not None and self.continue_from is not None:
            raise ValueError(
                "vary is 'acoustics': the semantic tokens come from one recording, give either like or continue_from"
            )
        if self.melody is not None and (self.continue_from is not None or self.vary == "acoustics"):
            raise ValueError("melody needs new semantic tokens: omit continue_from, and leave vary at 'all'")

    def part(self, stage: str) -> str:
        """Returns the name of the bundle's part for "semantic", "coarse" or "fine"."""
        return "semantic_melody" if stage == "semantic" and self.melody is not None else stage

    def sampling(self, stage: str) -> Sampling:
        """Returns the sampling settings for "semantic", "coarse" or "fine"."""
        index = STAGES.index(stage)
        guidance = (*self.guidance, 1.0)[index]
        return Sampling(self.temperature[index], self.top_k, self.top_p, guidance)


def check_recording(audio: np.ndarray, name: str) -> None:
    """Checks that a recording can be used as a prompt, a continuation or a melody.

    Args:
      audio: float `[samples]` at 24 kHz.
      name: of the recording; error messages begin with it.

    Raises:
      AudioError: if it is not mono float audio, not finite, too short, too long or silent; the message is one line.
    """
    audio = np.asarray(audio)
    if audio.ndim != 1 or not np.issubdtype(audio.dtype, np.floating):
        raise AudioError(f"{name}: expected float audio [samples] at 24 kHz, got {audio.dtype} {audio.shape}")
    seconds = len(audio) / SAMPLE_RATE
    if not MIN_RECORDING_SECONDS <= seconds <= MAX_RECORDING_SECONDS:
        raise AudioError(
            f"{name}: the recording lasts {seconds:.3g} s: give one that lasts {MIN_RECORDING_SECONDS:g} to "
            f"{MAX_RECORDING_SECONDS:g} s"
        )
    if not np.isfinite(audio).all():
        raise AudioError(f"{name}: the recording contains NaN or infinite samples")
    if is_silent(audio):
        raise AudioError(f"{name}: the recording is silent: give one with audible sound")
