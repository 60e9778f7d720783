"""Judges stages: bits per token against code frequencies, the cost of another clip's conditioning, order of levels.

"condition_bits" is also measured while a stage trains (the stage learner); here the conditioning comes from another
composition, and its streams are swapped one at a time.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from musiclm_jax.bundles import Part
from musiclm_jax.data.tokens import ACOUSTIC, MULAN, SEMANTIC
from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.diagnose.finding import Finding, grade
from musiclm_jax.stages.layout import assemble
from musiclm_jax.stages.losses import token_losses
from musiclm_jax.stages.stage import Stage
from musiclm_jax.stages.transformer import TransformerConfig, target_logits

BATCH = 8
ORDER_BITS = 0.1  # bits of KL divergence by which another level's codes must be closer than the level's own
WEAK_SAVING = 0.1  # of the unigram entropy
WEAK_CONDITION = 0.1  # of the saving, for time-varying conditioning
WEAK_CLIP_CONDITION = 0.5  # of the entropy of the codes, for conditioning per clip
Crop = dict[str, np.ndarray]


class StageScores(NamedTuple):
    """Predictions of a stage for a set of clips.

    Attributes:
      bits: bits per token `[clips, levels]`.
      predicted: mean probabilities `[levels, codebook_size]` over all positions of a level.
    """

    bits: np.ndarray
    predicted: np.ndarray


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scores(
    stage: Stage, config: TransformerConfig, params: dict, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Mean bits per token `[batch, levels]`, as `StageLearner` computes the loss, and mean probabilities."""
    lm = assemble(stage, batch)
    logits = target_logits(config, stage, params, lm)
    bits = jnp.mean(token_losses(logits, lm.target_codes).cross_entropy, axis=1) / math.log(2)
    return bits, jnp.mean(jax.nn.softmax(logits), axis=1)


def crop(record: Mapping, stage: Stage, rng: np.random.Generator) -> Crop:
    """Draws an aligned crop of `stage.seconds` that starts on a semantic frame."""
    length = SEMANTIC.frames(stage.seconds)
    start = int(rng.integers(0, len(record["semantic"]) - length + 1))
    ratio = ACOUSTIC.frame_rate // SEMANTIC.frame_rate
    return {
        SEMANTIC.name: record["semantic"][start : start + length],
        ACOUSTIC.name: record["acoustic"][start * ratio : (start + length) * ratio],
        MULAN.name: record["mulan"],
    }


def strangers(compositions: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Draws, for each clip, the index of a clip from another composition.

    Raises:
      ValueError: if all clips come from one composition.
    """
    if len(set(compositions)) < 2:
        raise ValueError("all clips come from one composition: use clips of several, to swap their conditioning")
    names = np.array(compositions)
    return np.array([rng.choice(np.flatnonzero(names != name)) for name in names])


def with_condition(stage: Stage, own: Crop, other: Crop, streams: Sequence[str] | None = None) -> Crop:
    """Combines the target of `own` with the conditioning of `other`: all of it, or only the given `streams`."""
    swapped = [part.stream for part in stage.conditioning if streams is None or part.stream in streams]
    mixed = {part.stream: own[part.stream] for part in (*stage.conditioning, stage.target)}
    mixed |= {name: other[name] for name in swapped}
    target = stage.target
    if target.stream in swapped:  # the fine stage: conditioning and target are levels of one stream
        levels = slice(target.first_level, target.last_level + 1)
        mixed[target.stream] = mixed[target.stream].copy()
        mixed[target.stream][:, levels] = own[target.stream][:, levels]
    return mixed


def score(stage: Stage, config: TransformerConfig, params: dict, crops: Sequence[Crop]) -> StageScores:
    """Computes bits per token and mean probabilities for crops."""
    bits, predicted = [], []
    for start in range(0, len(crops), BATCH):
        group = list(crops[start : start + BATCH])
        filled = group + group[-1:] * (BATCH - len(group))
        batch = {name: np.stack([c[name] for c in filled]).astype(np.int32) for name in filled[0]}
        of_batch = _scores(stage, config, params, batch)
        bits.append(np.asarray(of_batch[0])[: len(group)])
        predicted.append(np.asarray(of_batch[1])[: len(group)])
    return StageScores(np.concatenate(bits), np.concatenate(predicted).mean(axis=0))


def measure(stage: Stage, config: TransformerConfig, params: dict, crops: Sequence[Crop]) -> np.ndarray:
    """Computes bits per token `[clips, levels]`."""
    return score(stage, config, params, crops).bits


def target_codes(stage: Stage, crops: Sequence[Mapping]) -> np.ndarray:
    """Returns the codes of the target, `[frames of all clips, levels]`."""
    streams = [c[stage.target.stream] for c in crops]
    joined = np.concatenate([s[:, None] if s.ndim == 1 else s for s in streams])
    return joined[:, stage.target.first_level : stage.target.last_level + 1]


def unigram(stage: Stage, train_codes: np.ndarray, crops: Sequence[Crop]) -> np.ndarray:
    """Computes bits per token `[clips, levels]` under the code frequencies of `train_codes` `[frames, levels]`."""
    size = stage.stream(stage.target.stream).codebook_size
    of_clips = [target_codes(stage, [own]) for own in crops]
    return np.array(
        [
            [metrics.unigram_bits(train_codes[:, i], codes[:, i], size) for i in range(codes.shape[1])]
            for codes in of_clips
        ]
    )


def diagnose_stage(part: Part, clips: Sequence[Mapping], train: Sequence[Mapping], seed: int) -> list[Finding]:
    """Judges a stage on held-out clips.

    Args:
      part: the stage.
      clips: token streams and "composition" of held-out clips.
      train: token streams of training clips.
      seed: for crops and bootstrap intervals.

    Raises:
      ValueError: if the clips are shorter than the stage's crops, or all come from one composition.
    """
    stage, config, params = part.config.stage, part.config.transformer, part.variables["params"]
    shortest = min(len(record["semantic"]) for record in clips)
    if shortest < SEMANTIC.frames(stage.seconds):
        raise ValueError(
            f"the shortest clip lasts {shortest / SEMANTIC.frame_rate:g} s, the {stage.name} stage reads "
            f"{stage.seconds:g} s: give longer clips"
        )
    rng = np.random.default_rng(seed)
    crops = [crop(record, stage, rng) for record in clips]
    other = strangers([record["composition"] for record in clips], rng)
    right = score(stage, config, params, crops)
    by_frequency = unigram(stage, target_codes(stage, train), crops)
    costs = {}
    for name in dict.fromkeys(own.stream for own in stage.conditioning):
        mixed = [with_condition(stage, own, crops[i], [name]) for own, i in zip(crops, other, strict=True)]
        costs[name] = np.mean(measure(stage, config, params, mixed) - right.bits, axis=1)
    order = level_order(stage, right.predicted, np.concatenate([_streams(stage, record) for record in train]))
    findings = [order, *level_bits(stage, right.bits, by_frequency, seed)]
    saving = float(np.mean(by_frequency - right.bits))
    for name, cost in costs.items():
        findings.append(condition_bits(stage, name, cost, saving, clip_entropy(stage, name, train), seed))
    return findings


def _streams(stage: Stage, record: Mapping) -> np.ndarray:
    codes = np.asarray(record[stage.target.stream])
    return codes[:, None] if codes.ndim == 1 else codes


def level_bits(stage: Stage, bits: np.ndarray, by_frequency: np.ndarray, seed: int) -> list[Finding]:
    """Judges each level by the bits it saves over code frequencies.

    A model that saves nothing has learned nothing, or was trained on other tokens.

    Args:
      stage: the stage.
      bits: bits per token `[clips, levels]`.
      by_frequency: bits per token `[clips, levels]` under the unigram frequencies.
      seed: for the bootstrap intervals.
    """
    findings = []
    for i in range(bits.shape[1]):
        saved = metrics.bootstrap(by_frequency[:, i] - bits[:, i], seed=seed)
        mean = by_frequency[:, i].mean()
        findings.append(
            Finding(
                stage.name,
                f"bits per token, level {stage.target.first_level + i + 1}",
                metrics.bootstrap(bits[:, i], seed=seed),
                grade(saved.low <= 0, saved.value < WEAK_SAVING * mean),
                f"broken from {mean:.2f} (unigram entropy), weak above {(1 - WEAK_SAVING) * mean:.2f} "
                f"({WEAK_SAVING:.0%} saved)",
                f"saved {saved}",
                "no better than the code frequencies: the stage was trained on other tokens (another codec, other "
                "clusters, another order of levels); tokenize again with this bundle and train"
                if saved.low <= 0
                else "train the stage longer",
            )
        )
    return findings


def condition_bits(stage: Stage, stream: str, cost: np.ndarray, saving: float, entropy: float, seed: int) -> Finding:
    """Judges whether a stage uses a stream of its conditioning.

    For a time-varying stream, the bound is a share of the stage's total saving. It lies between two coarse stages of
    the tiny bundle: one at 5 %, whose music did not follow its text, and its successor at 42 %. For codes per clip, the
    bound is a share of their entropy: over a crop, a model that knows what the codes say loses at least that much when
    they come from another clip. If the stage also reads a time-varying stream, that stream may carry the same
    information, so anything above 0 is enough.

    Args:
      stage: the stage.
      stream: name of the stream whose codes come from another clip.
      cost: added bits per token `[clips]`.
      saving: bits per token that the stage saves over the unigram entropy.
      entropy: entropy in bits of the stream's codes per clip, see `clip_entropy`.
      seed: for the bootstrap interval.
    """
    lost = metrics.bootstrap(cost, seed=seed)
    in_time = [part.stream for part in stage.conditioning if stage.stream(part.stream).frame_rate]
    if stream in in_time:
        bound, source = WEAK_CONDITION * saving, f"{WEAK_CONDITION:.0%} of the {saving:.2f} bits that the stage saves"
    elif in_time:
        bound, source = 0.0, f"its {' and '.join(in_time)} tokens may carry the same information"
    else:
        bound = WEAK_CLIP_CONDITION * entropy / stage.target_length()
        source = f"half of the {entropy:.1f} bits of a clip's codes, over {stage.target_length()} tokens"
    needed = stream in in_time or not in_time
    read = f"{stage.name} stage does not read its {stream} tokens"
    return Finding(
        stage.name,
        f"condition_bits, {stream} tokens",
        lost,
        grade(needed and lost.low <= 0, lost.low <= 0 or lost.value < bound),
        f"{'broken' if needed else 'weak'} if not above 0" + f", weak under {bound:.3f} ({source})" * needed,
        "added bits per token with another clip's tokens",
        f"the {read}: were they shuffled, or made by another tokenizer than those it was trained on? Check the "
        "token records, continue training with TransformerConfig.aligned_condition and watch condition_bits"
        if lost.low <= 0
        else f"the {read} enough: continue training with TransformerConfig.aligned_condition and watch condition_bits",
    )


def clip_entropy(stage: Stage, stream: str, train: Sequence[Mapping]) -> float:
    """Computes the entropy in bits, over training clips, of the codes per clip that a stage reads.

    It is 0 for a time-varying stream.
    """
    if stage.stream(stream).frame_rate:
        return 0.0
    own = next(part for part in stage.conditioning if part.stream == stream)
    read = np.stack([record[stream][own.first_level : own.last_level + 1] for record in train])
    counts = np.unique(read, axis=0, return_counts=True)[1]
    return float(scipy.stats.entropy(counts, base=2))


def level_order(stage: Stage, predicted: np.ndarray, train_codes: np.ndarray) -> Finding:
    """Judges whether the levels of stage and tokens match: each must predict the code frequencies of its own level.

    Args:
      stage: the stage.
      predicted: mean probabilities `[levels, codebook_size]`.
      train_codes: int `[frames, levels]`, all levels of the target's stream.
    """
    size, levels = predicted.shape[1], stage.target.first_level + np.arange(len(predicted))
    counts = np.stack([np.bincount(level, minlength=size) + 1.0 for level in train_codes.T])
    frequencies = counts / counts.sum(axis=1, keepdims=True)
    logs = np.log2(np.maximum(predicted, 1e-12))
    divergence = np.sum(predicted * logs, axis=1)[:, None] - predicted @ np.log2(frequencies).T  # KL in bits
    rows = np.arange(len(levels))
    nearest = np.argmin(divergence, axis=1)
    own, least = divergence[rows, levels], divergence[rows, nearest]
    # Half: an untrained stage is equally far from all levels. ORDER_BITS: levels may have equal frequencies.
    moved = (least < own / 2) & (own - least > ORDER_BITS)
    wrong = [f"level {levels[i] + 1} predicts the codes of level {nearest[i] + 1}" for i in np.flatnonzero(moved)]
    return Finding(
        stage.name,
        "order of the levels: levels that predict the codes of another level",
        float(len(wrong)),
        grade(bool(wrong), False),
        "ok at 0 (counts levels whose predictions are less than half as far from another level's frequencies)",
        "; ".join(wrong),
        "the levels are out of order: " + ", ".join(wrong) + "; tokenize again with this bundle and train the stage"
        if wrong
        else "",
    )
