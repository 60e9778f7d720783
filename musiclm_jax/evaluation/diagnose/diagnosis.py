"""Finds the part of a bundle that is at fault, by comparing each part with a broken version of itself.

`diagnose` measures the parts along `finding.CHAIN`, on clips that no part was trained on. docs/diagnose.md lists the
bounds and their sources.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from musiclm_jax.bundles import Bundle
from musiclm_jax.bundles.encode import Tokenizers, encode_acoustic, encode_semantic
from musiclm_jax.data.samples import is_silent
from musiclm_jax.data.tokens import ACOUSTIC, MULAN, SEMANTIC, STAGES
from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.diagnose import agreement, codec, instruments, resynthesis, retrieval, semantic, stage_bits
from musiclm_jax.evaluation.diagnose.finding import Finding, first_fault
from musiclm_jax.generation import pipeline
from musiclm_jax.generation.windows import Progress, silent
from musiclm_jax.tokenizers import mulan

BATCH = 8
Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Clips:
    """The clips that parts are measured on.

    Attributes:
      held_out: audio records of clips that no part was trained on.
      train: audio records of the training split.
      token_records: id to token record for held-out clips; empty skips the check of the records.
      train_tokens: token records of the training split; if empty, `train` is tokenized.
    """

    held_out: Sequence[Record]
    train: Sequence[Record]
    token_records: Mapping[str, Record] = dataclasses.field(default_factory=dict)
    train_tokens: Sequence[Record] = ()


@dataclasses.dataclass
class Diagnosis:
    """Results of a diagnosis.

    Attributes:
      findings: in the order in which they were measured.
      left_out: for each check that was skipped, a line that says why.
    """

    findings: list[Finding] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)

    @property
    def fault(self) -> Finding | None:
        """The first part at fault; None if there is none."""
        return first_fault(self.findings)


def diagnose(
    bundle: Bundle, clips: Clips, resynthesized: int = 16, seed: int = 0, progress: Progress = silent
) -> Diagnosis:
    """Measures every part that the bundle contains.

    Args:
      bundle: may lack parts; the stages can only be measured if all tokenizers are present.
      clips: equally long clips to measure on.
      resynthesized: number of held-out clips to regenerate from their true tokens; 0 skips this.
      seed: for crops, generated music and bootstrap intervals.
      progress: called while the diagnosis runs.

    Raises:
      ValueError: if fewer than two clips are audible, clips differ in length, or all come from one composition.
      BundleError: if a part is damaged.
    """
    found = Diagnosis()
    held_out = _audible(clips.held_out, found)
    compositions = [clip["composition"] for clip in held_out]
    other = stage_bits.strangers(compositions, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    texts = [str(rng.choice(clip["caption"])) for clip in held_out]
    streams: list[dict[str, Any]] = [dict(clip) for clip in held_out]
    if _has(bundle, found, "soundstream"):
        _codec(bundle, streams, other, seed, progress, found)
    if _has(bundle, found, "w2v_bert"):
        _semantic(bundle, streams, clips, other, seed, progress, found)
    if _has(bundle, found, "mulan", "text_encoder"):
        _mulan(bundle, streams, texts, other, seed, progress, found)
    if all(bundle.has(part) for part in ("soundstream", "w2v_bert", "mulan", "text_encoder")):
        agree = _records(streams, clips, seed, found)
        use_records = clips.train_tokens and agree
        train: Sequence[Record] = clips.train_tokens if use_records else _tokenized(bundle, clips.train, progress)
        for name in STAGES:
            if _has(bundle, found, name):
                progress(f"{name} stage", 0, 1)
                found.findings += stage_bits.diagnose_stage(bundle.part(name), streams, train, seed)
                progress(f"{name} stage", 1, 1)
        if all(bundle.has(part) for part in STAGES):
            _resynthesis(bundle, streams[:resynthesized], texts, seed, progress, found)
    return found


def _audible(clips: Sequence[Record], found: Diagnosis) -> list[Record]:
    heard = [clip for clip in clips if not is_silent(clip["audio"])]
    if len(heard) < len(clips):
        found.left_out.append(f"{len(clips) - len(heard)} silent clips: distances to silence are meaningless")
    if len(heard) < 2:
        raise ValueError(
            f"only {len(heard)} held-out clips are not silent: a diagnosis needs at least 2, preferably 64"
        )
    lengths = {len(clip["audio"]) for clip in heard}
    if len(lengths) > 1:
        raise ValueError(f"held-out clips have {min(lengths)} to {max(lengths)} samples: expected equal lengths")
    return heard


def _has(bundle: Bundle, found: Diagnosis, *parts: str) -> bool:
    missing = [part for part in parts if not bundle.has(part)]
    if missing:
        found.left_out.append(f"{' and '.join(missing)}: not in the bundle")
    return not missing


def _batches(clips: Sequence[Record]) -> list[np.ndarray]:
    """Returns the audio in batches of one size; the last is padded by repeating a clip."""
    audio = [clip["audio"] for clip in clips]
    audio += audio[-1:] * (-len(audio) % BATCH)
    return [np.stack(audio[start : start + BATCH]) for start in range(0, len(audio), BATCH)]


def _codec(
    bundle: Bundle, streams: list[dict], other: np.ndarray, seed: int, progress: Progress, found: Diagnosis
) -> None:
    """Judges round trip and codebooks; adds "acoustic" codes to the streams."""
    part = bundle.part("soundstream")
    codes: list[np.ndarray] = []
    decoded: list[np.ndarray] = []
    for done, audio in enumerate(_batches(streams)):
        progress("codec", done * BATCH, len(streams) * 2)
        of_batch = np.asarray(encode_acoustic(part, audio))
        codes.extend(of_batch)
        decoded.extend(pipeline.decode_audio(part, of_batch))
    for clip, own in zip(streams, codes, strict=False):
        clip[ACOUSTIC.name] = own
    bad = float(np.mean([not np.isfinite(audio).all() for audio in decoded[: len(streams)]]))
    levels, size = part.config.num_quantizers, part.config.codebook_size
    if bad:
        found.findings.append(codec.not_finite(bad))
    else:
        with_opus = codec.opus_is_there()
        if not with_opus:
            found.left_out.append("Opus: ffmpeg is not installed (apt install ffmpeg)")
        compared: dict[Any, Sequence[np.ndarray]] = {"near": decoded, "far": [decoded[i] for i in other]}
        for k in codec.OPUS_KILOBITS if with_opus else ():
            compared[k] = codec.opus_of_clips([clip["audio"] for clip in streams], k)
        distances: dict[Any, list] = {name: [] for name in compared}
        for i, clip in enumerate(streams):
            for name, sounds in compared.items():
                distances[name].append(codec.distances(clip["audio"], sounds[i]))
            progress("codec", len(streams) + i, len(streams) * 2)
        near, far, *opus = (np.array(values) for values in distances.values())
        rate = codec.kilobits(levels, size)
        found.findings += codec.round_trip(near, far, dict(zip(codec.OPUS_KILOBITS, opus, strict=False)), rate, seed)
    every = np.concatenate(codes[: len(streams)])
    found.findings.append(codec.level_energy(part.variables["codebooks"], every))
    for level in range(levels):
        found.findings.append(codec.codebook_use(every[:, level], size, "soundstream", f"level {level + 1}"))
    progress("codec", 1, 1)


def _semantic(
    bundle: Bundle,
    streams: list[dict],
    clips: Clips,
    other: np.ndarray,
    seed: int,
    progress: Progress,
    found: Diagnosis,
) -> None:
    """Judges use and purity of the clusters; adds "semantic" codes to the streams."""
    part = bundle.part("w2v_bert")
    progress("clusters", 0, 1)
    codes = np.concatenate([np.asarray(encode_semantic(part, audio)) for audio in _batches(streams)])[: len(streams)]
    for clip, own in zip(streams, codes, strict=True):
        clip[SEMANTIC.name] = own
    clusters = part.config.num_clusters
    found.findings.append(codec.codebook_use(codes.reshape(-1), clusters, "w2v_bert", "semantic tokens"))
    labels = semantic.labels_of(streams, codes.shape[1])
    if not labels:
        found.left_out.append("purity of semantic tokens: pitch classes and instruments do not vary in the corpus")
    raw = None
    if labels and len(clips.train) * codes.shape[1] >= clusters:
        raw = semantic.mel_clusters(streams, clips.train, clusters, part.config.kmeans_iterations, seed)
    for name, label in labels.items():
        found.findings.append(semantic.judge_purity(name, codes, label, other, raw, seed))
    progress("clusters", 1, 1)


def _mulan(
    bundle: Bundle,
    streams: list[dict],
    texts: list[str],
    other: np.ndarray,
    seed: int,
    progress: Progress,
    found: Diagnosis,
) -> None:
    """Judges retrieval and tokens; adds "mulan" codes to the streams."""
    config, variables = bundle.mulan()
    progress("mulan", 0, 1)
    heard = [np.asarray(mulan.embed_audio(config, variables, audio)) for audio in _batches(streams)]
    audio = np.concatenate(heard)[: len(streams)]
    text = np.asarray(mulan.embed_text(config, variables, texts))
    codes = np.asarray(mulan.tokens(config, variables, audio, "audio"))
    of_text = np.asarray(mulan.tokens(config, variables, text, "text"))
    for clip, own in zip(streams, codes, strict=True):
        clip[MULAN.name] = own
    levels = config.num_quantizers
    if bundle.has("semantic"):
        read = [own for own in bundle.part("semantic").config.stage.conditioning if own.stream == MULAN.name]
        levels = max([own.last_level + 1 for own in read], default=levels)
    found.findings += retrieval.judge_retrieval(text @ audio.T, seed)
    found.findings.append(retrieval.judge_tokens(of_text, codes, other, levels, seed))
    progress("mulan", 1, 1)


def _records(streams: list[dict], clips: Clips, seed: int, found: Diagnosis) -> bool:
    """Compares token records with tokens computed now; returns True if there are none or they agree."""
    if not clips.token_records:
        found.left_out.append("token records: no --tokens given")
        return True
    both = [(clips.token_records[clip["id"]], clip) for clip in streams if clip["id"] in clips.token_records]
    if len(both) < 2:
        raise ValueError(
            f"{len(both)} of {len(streams)} held-out clips are among the token records: give the folder that "
            "`musiclm tokenize` wrote for this corpus"
        )
    checked = agreement.judge_records([old for old, _ in both], [new for _, new in both], seed)
    found.findings += checked
    return all(finding.verdict != "broken" for finding in checked)


def _tokenized(bundle: Bundle, clips: Sequence[Record], progress: Progress) -> list[dict]:
    """Tokenizes clips."""
    tokenizers = Tokenizers.from_bundle(bundle)
    made: list[dict] = []
    for done, audio in enumerate(_batches(clips)):
        progress("tokenize", done * BATCH, len(clips))
        streams = tokenizers.tokenize(audio)
        made += [{name: codes[i] for name, codes in streams.items()} for i in range(BATCH)]
    progress("tokenize", 1, 1)
    return made[: len(clips)]


def _resynthesis(
    bundle: Bundle, clips: list[dict], texts: list[str], seed: int, progress: Progress, found: Diagnosis
) -> None:
    """Regenerates music from true tokens up to each link, and judges it with MuLan and musicnn."""
    if len(clips) < 2:
        found.left_out.append("resynthesis: not requested, or fewer than two clips")
        return
    texts = texts[: len(clips)]
    sounds = resynthesis.resynthesize(bundle, clips, texts, seed, progress)
    if not all(np.isfinite(audio).all() for audio in sounds.values()):
        found.left_out.append("judging of resynthesis: SoundStream decodes to NaN or infinite samples")
        return
    real = sounds[resynthesis.REAL]
    other = stage_bits.strangers([clip["composition"] for clip in clips], np.random.default_rng(seed))
    compared = (resynthesis.CODEC, resynthesis.COARSE_ALONE, resynthesis.TRUE_COARSE, resynthesis.TRUE_SEMANTIC)
    distances = {name: resynthesis.mel_distances(real, sounds[name]) for name in compared}
    strange = resynthesis.mel_distances(real[other], sounds[resynthesis.TRUE_SEMANTIC])
    found.findings += resynthesis.judge_sounds(distances, strange, seed)

    config, variables = bundle.mulan()
    text = np.asarray(mulan.embed_text(config, variables, texts))
    wins = {}
    for name, audio in sounds.items():
        batches = np.array_split(audio, -(-len(audio) // BATCH))
        heard = np.concatenate([np.asarray(mulan.embed_audio(config, variables, batch)) for batch in batches])
        wins[name] = metrics.matched_wins(heard @ text.T, np.arange(len(texts)))
    found.findings += resynthesis.judge_links("AUC of its own caption by MuLan", wins, seed)

    names = sorted({clip["instrument"] for clip in clips})
    asked = np.array([names.index(clip["instrument"]) for clip in clips])
    if problem := instruments.cannot_hear(names, len(real[0])):
        found.left_out.append(f"AUC of the asked instrument by musicnn: {problem}")
        return
    wins = {}
    for done, (name, audio) in enumerate(sounds.items()):
        progress("musicnn", done, len(sounds))
        scores = np.stack([instruments.group_scores(instruments.tags(clip), names) for clip in audio])
        wins[name] = metrics.matched_wins(scores, asked)
    progress("musicnn", 1, 1)
    found.findings += resynthesis.judge_links("AUC of the asked instrument by musicnn", wins, seed)
