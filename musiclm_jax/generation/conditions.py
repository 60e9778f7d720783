"""Turns prompts and recordings into stage inputs: MuLan codes over time, and tokens known in advance."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from musiclm_jax.bundles import Bundle, Part
from musiclm_jax.bundles.encode import SAMPLES_PER_SEMANTIC_FRAME, encode_acoustic, encode_melody, encode_semantic
from musiclm_jax.data.tokens import SAMPLE_RATE, SEMANTIC
from musiclm_jax.generation.prompts import Story
from musiclm_jax.tokenizers import mulan

BLEND_STEP = 1.0  # seconds each mix of two sections lasts
RECORDING = "the recording"  # label used in place of a prompt


@dataclasses.dataclass(frozen=True)
class Condition:
    """MuLan conditioning for one prompt.

    Attributes:
      label: the prompt as text.
      times: seconds at which the sections begin; the first is 0.
      embeddings: MuLan embedding of each section, float32 `[sections, dim]`, unit norm.
      starts: semantic frames at which each row of `codes` takes effect; the first is 0. Blends add extra rows.
      codes: MuLan codes, int32 `[changes, 12]`.
    """

    label: str
    times: tuple[float, ...]
    embeddings: np.ndarray
    starts: tuple[int, ...]
    codes: np.ndarray


def similarities(part: Part, asked: Sequence[Condition], audio: np.ndarray) -> np.ndarray:
    """Returns the cosine similarity between each prompt and its audio.

    For a story, it is the mean over sections, weighted by their length.

    Args:
      part: `bundle.mulan()`.
      asked: one condition per row; their sections begin at the same times.
      audio: float32 `[batch, samples]`, 24 kHz.

    Returns:
      float32 `[batch]`.
    """
    edges = [*(round(time * SAMPLE_RATE) for time in asked[0].times), audio.shape[1]]
    total = np.zeros(len(audio), np.float32)
    for index, (start, end) in enumerate(itertools.pairwise(edges)):
        heard = np.asarray(mulan.embed_audio(part.config, part.variables, audio[:, start:end]))
        wanted = np.stack([condition.embeddings[index] for condition in asked])
        total += (heard * wanted).sum(axis=1) * (end - start) / audio.shape[1]
    return total


def of_stories(part: Part, stories: Sequence[Story]) -> list[Condition]:
    """Returns the conditions for text prompts; `part` is `bundle.mulan()`.

    Each text of a mix is embedded separately; their weighted mean is scaled to unit norm.
    """
    texts = list(dict.fromkeys(text for story in stories for section in story.sections for text in section.texts))
    embedded = np.asarray(mulan.embed_text(part.config, part.variables, texts))
    conditions = []
    for story in stories:
        embeddings = np.stack(
            [
                mix([embedded[texts.index(text)] for text in section.texts], section.weights)
                for section in story.sections
            ]
        )
        line = timeline(story, embeddings)
        times = tuple(section.start for section in story.sections)
        conditions.append(_condition(part, str(story), times, embeddings, line, "text"))
    return conditions


def of_recording(part: Part, audio: np.ndarray) -> Condition:
    """Returns the condition for a recording `[samples]` used as a prompt; `part` is `bundle.mulan()`."""
    embedding = np.asarray(mulan.embed_audio(part.config, part.variables, audio[None]))
    return _condition(part, RECORDING, (0.0,), embedding, [(0.0, embedding[0])], "audio")


def mix(embeddings: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Returns the weighted mean of unit embeddings `[dim]`, scaled to unit norm; a single one is returned unchanged."""
    if len(embeddings) == 1:
        return embeddings[0]
    total = np.asarray(weights, np.float32) @ np.stack(embeddings)
    return total / np.linalg.norm(total)


def timeline(story: Story, embeddings: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Returns (start in seconds, embedding) pairs for a story: its sections and, if it blends, the mixes between them.

    A blend is centered on the start of a section. Each mix lasts about `BLEND_STEP`; the shares change in equal steps.
    """
    line = [(0.0, embeddings[0])]
    count = math.ceil(story.blend / BLEND_STEP)
    for section, old, new in zip(story.sections[1:], embeddings, embeddings[1:], strict=False):
        for step in range(count):
            share = (step + 1) / (count + 1)
            time = section.start + story.blend * (step / count - 0.5)
            line.append((time, mix([old, new], [1 - share, share])))
        line.append((section.start + story.blend / 2, new))
    return line


def _condition(
    part: Part,
    label: str,
    times: tuple[float, ...],
    embeddings: np.ndarray,
    line: list[tuple[float, np.ndarray]],
    modality: str,
) -> Condition:
    codes = np.asarray(
        mulan.tokens(part.config, part.variables, jnp.stack([embedding for _, embedding in line]), modality)
    )
    starts = [round(time * SEMANTIC.frame_rate) for time, _ in line]
    # The stages only see codes: drop changes that leave the codes the same.
    changes = [0, *(i for i in range(1, len(line)) if (codes[i] != codes[i - 1]).any())]
    return Condition(label, times, embeddings, tuple(starts[i] for i in changes), codes[changes])


@dataclasses.dataclass(frozen=True)
class Melody:
    """A recording whose melody the music follows; it is looped if it is shorter than the music.

    Attributes:
      part: the melody model.
      audio: float32 `[samples]`, 24 kHz.
    """

    part: Part
    audio: np.ndarray

    def at(self, frame: int) -> np.ndarray:
        """Returns melody codes, int32 `[72]`, for the 10 s that begin at a semantic frame."""
        first = frame * SAMPLES_PER_SEMANTIC_FRAME
        own = np.take(self.audio, np.arange(first, first + self.part.config.clip_samples), mode="wrap")
        return np.asarray(encode_melody(self.part, own[None]))[0]


@dataclasses.dataclass(frozen=True)
class Known:
    """Tokens that are known before generation starts.

    Attributes:
      semantic: int32 `[t, 1]`.
      acoustic: int32 `[2 t', 12]`, where t' is at most t.
    """

    semantic: np.ndarray
    acoustic: np.ndarray


def known_tokens(bundle: Bundle, audio: np.ndarray | None, with_acoustic: bool) -> Known:
    """Returns the tokens of a recording `[samples]`, or empty arrays if it is None.

    Samples that do not fill a semantic frame are cut from the beginning.

    Raises:
      BundleError: if a tokenizer is missing or damaged.
    """
    levels = bundle.part("soundstream").config.num_quantizers
    no_acoustic = np.zeros((0, levels), np.int32)
    if audio is None:
        return Known(np.zeros((0, 1), np.int32), no_acoustic)
    audio = audio[len(audio) % SAMPLES_PER_SEMANTIC_FRAME :][None]
    semantic = np.asarray(encode_semantic(bundle.part("w2v_bert"), audio))[0, :, None]
    return Known(
        semantic,
        np.asarray(encode_acoustic(bundle.part("soundstream"), audio))[0] if with_acoustic else no_acoustic,
    )
