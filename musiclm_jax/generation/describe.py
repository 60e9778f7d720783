"""Describes a recording as the models hear it: nearest tags and captions (MuLan), tokens, and codebook use."""

import dataclasses

import numpy as np

from musiclm_jax.bundles import Bundle, BundleError
from musiclm_jax.bundles.encode import SAMPLES_PER_SEMANTIC_FRAME, Tokenizers
from musiclm_jax.data import files
from musiclm_jax.data.samples import is_silent
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.tokenizers import mulan

CANDIDATES_FILE = "tags.json"  # {"tags": [...], "captions": [...]}, written with MuLan's export
MAX_SECONDS = 300.0  # longer audio is truncated


@dataclasses.dataclass(frozen=True)
class CodebookUse:
    """Code usage at one level: `distinct` of `codebook_size` codes occur in `frames` frames, with `bits` of entropy."""

    level: int
    frames: int
    distinct: int
    codebook_size: int
    bits: float


@dataclasses.dataclass(frozen=True)
class Description:
    """A recording as MuLan and the tokenizers see it.

    Attributes:
      seconds: length of the audio that was analyzed.
      tags: (tag, cosine of the MuLan embeddings), best first.
      captions: (caption, cosine of the MuLan embeddings), best first.
      tokens: int32 codes "mulan" `[12]`, "semantic" `[t]`, "acoustic" `[2 t, 12]`.
      semantic_use: usage of the semantic codes.
      acoustic_use: usage of the acoustic codes at each level.
    """

    seconds: float
    tags: list[tuple[str, float]]
    captions: list[tuple[str, float]]
    tokens: dict[str, np.ndarray]
    semantic_use: CodebookUse
    acoustic_use: list[CodebookUse]


def describe(bundle: Bundle, audio: np.ndarray) -> Description:
    """Describes a recording.

    Args:
      bundle: must hold the tokenizers and tags.json.
      audio: float32 `[samples]`, 24 kHz; truncated to `MAX_SECONDS`.

    Raises:
      ValueError: if the audio is shorter than one semantic frame (40 ms) or silent.
      BundleError: if a part is missing or damaged.
    """
    frames = min(len(audio), int(MAX_SECONDS * SAMPLE_RATE)) // SAMPLES_PER_SEMANTIC_FRAME
    audio = audio[: frames * SAMPLES_PER_SEMANTIC_FRAME]
    if not frames:
        raise ValueError("the recording is shorter than 40 ms: give a longer one")
    if is_silent(audio):
        raise ValueError("the recording is silent: there is nothing to describe")
    candidates = read_candidates(bundle)
    tokenizers = Tokenizers.from_bundle(bundle)
    config, variables = tokenizers.mulan
    heard = np.asarray(mulan.embed_audio(config, variables, audio[None]))[0]
    tokens = {name: codes[0] for name, codes in tokenizers.tokenize(audio[None]).items()}
    sound = tokenizers.soundstream.config
    return Description(
        seconds=len(audio) / SAMPLE_RATE,
        tags=_nearest(heard, candidates["tags"], config, variables),
        captions=_nearest(heard, candidates["captions"], config, variables),
        tokens=tokens,
        semantic_use=codebook_use(tokens["semantic"], 0, tokenizers.w2v_bert.config.num_clusters),
        acoustic_use=[
            codebook_use(tokens["acoustic"][:, level], level, sound.codebook_size)
            for level in range(sound.num_quantizers)
        ],
    )


def codebook_use(codes: np.ndarray, level: int, codebook_size: int) -> CodebookUse:
    """Counts the distinct codes in `codes` `[frames]` and computes the entropy of their histogram.

    The entropy is 0 bits if a single code is used throughout.
    """
    counts = np.unique(codes, return_counts=True)[1]
    shares = counts / counts.sum()
    return CodebookUse(level, len(codes), len(counts), codebook_size, float(-(shares * np.log2(shares)).sum()) + 0.0)


def read_candidates(bundle: Bundle) -> dict[str, list[str]]:
    """Reads the tags and captions to choose from.

    Raises:
      BundleError: if tags.json is missing or damaged.
    """
    path = bundle.file(CANDIDATES_FILE)
    try:
        candidates = files.from_json(path.read_text(encoding="utf-8"))
        lists = [candidates[name] for name in ("tags", "captions")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"bundle {bundle.path}: {CANDIDATES_FILE} is damaged ({error!r})") from error
    texts = [text for own in lists if isinstance(own, list) for text in own]
    usable = all(isinstance(own, list) for own in lists) and all(isinstance(t, str) and t.strip() for t in texts)
    if not texts or not usable:
        raise BundleError(f"bundle {bundle.path}: {CANDIDATES_FILE} must hold lists of texts, tags and captions")
    return candidates


def _nearest(heard: np.ndarray, texts: list[str], config, variables: dict) -> list[tuple[str, float]]:
    if not texts:
        return []
    scores = np.asarray(mulan.embed_text(config, variables, texts)) @ heard
    return [(texts[i], float(scores[i])) for i in np.argsort(-scores)]
