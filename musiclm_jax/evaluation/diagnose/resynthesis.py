"""Regenerates music from true tokens up to each link of the chain, to measure the loss at each link.

    codec            all true acoustic codes, decoded
    coarse alone     the true coarse levels, decoded: generated fine levels must improve on this
    true coarse      true coarse levels, generated fine levels
    true semantic    true semantic codes, generated coarse and fine levels
    all generated    generated from the text

Judges score how well each version matches its request. AUC is the probability that a clip matches a request better
than clips that were made for another request.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from musiclm_jax.bundles import Bundle, Part
from musiclm_jax.data.tokens import SAMPLE_RATE, SEMANTIC, STAGES
from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.diagnose.codec import MAX_LAG
from musiclm_jax.evaluation.diagnose.finding import JUDGES, Finding, grade
from musiclm_jax.generation import pipeline, windows
from musiclm_jax.generation.generate import piece_key
from musiclm_jax.generation.request import Request
from musiclm_jax.stages import decoding
from musiclm_jax.tokenizers import mulan

BATCH = 16  # clips at once
REAL, CODEC, COARSE_ALONE, TRUE_COARSE, TRUE_SEMANTIC, GENERATED = (
    "real renders",
    "codec",
    "coarse alone",
    "true coarse",
    "true semantic",
    "all generated",
)
# Each link replaces true tokens with the output of one part: (part, before, after).
LINKS = (
    ("soundstream", REAL, CODEC),
    ("fine", CODEC, TRUE_COARSE),
    ("coarse", TRUE_COARSE, TRUE_SEMANTIC),
    ("semantic", TRUE_SEMANTIC, GENERATED),
)
# Shares of the margin above chance. Four links that keep 0.86 each take real renders from an AUC of 0.95 to 0.75.
ASKED_SHARE = 0.86
BROKEN_SHARE = 0.25
_LINK_ADVICE = {
    "soundstream": "the codec loses what the text describes: train it longer, its decoder against discriminators",
    "fine": "the fine stage loses what the text describes: train it longer",
    "coarse": "the coarse stage loses what the text describes: check its condition_bits and train it longer",
    "semantic": "the semantic stage does not follow the text: check its condition_bits and MuLan's tokens",
}
Sounds = dict[str, np.ndarray]


def resynthesize(
    bundle: Bundle,
    clips: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    seed: int,
    progress: windows.Progress,
) -> Sounds:
    """Generates every version in the module's table.

    Args:
      bundle: must hold all six models.
      clips: equally long, each with "audio" float32 `[samples]` and its true "semantic" `[t]` and "acoustic"
        `[2 t, 12]` codes.
      texts: one caption for each clip.
      seed: for the generated music.
      progress: called while the stages run.

    Returns:
      Version to audio `[clips, samples]`, including the real clips.

    Raises:
      ValueError: if the clips are shorter than a window of the coarse stage.
      BundleError: if a part is missing or damaged, or the parts are incompatible.
    """
    frames, samples = len(clips[0][SEMANTIC.name]), len(clips[0]["audio"])
    parts = {}
    for name in STAGES:
        pipeline.check_codebooks(bundle, name)
        config, variables = bundle.part(name)
        parts[name] = Part(config, {"params": decoding.unstacked(variables["params"])})
    if frames < (window := windows.window_frames(parts["coarse"])):
        raise ValueError(
            f"clips last {frames / SEMANTIC.frame_rate:g} s, the coarse stage needs windows of "
            f"{window / SEMANTIC.frame_rate:g} s: give longer clips or skip resynthesis"
        )
    own = bundle.generation
    request = Request(seed=seed, temperature=own.temperature, top_p=own.top_p, guidance=own.guidance)
    # Sampled tokens per clip: semantic tokens once, coarse tokens twice, fine tokens three times.
    drawn = [frames] + [(i + 1) * 2 * frames * parts[STAGES[i]].config.stage.target.levels for i in (1, 2)]
    done, total = 0, len(clips) * sum(drawn)
    sounds: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(clips), BATCH):
        group = clips[start : start + BATCH]

        def report(name: str, of_stage: float, whole: float, done: int = done, count: int = len(group)) -> None:
            stage = STAGES.index(name)
            made = sum(drawn[:stage]) + drawn[stage] * of_stage / whole
            progress("resynthesis", min(done + count * made, total - 1), total)

        acoustic = np.stack([clip["acoustic"] for clip in group])
        of_part = _generate(bundle, parts, group, acoustic, texts[start : start + BATCH], request, report)
        decoded = {name: pipeline.decode_audio(bundle.part("soundstream"), codes) for name, codes in of_part.items()}
        decoded[REAL] = np.stack([clip["audio"] for clip in group])
        for name, audio in decoded.items():
            sounds.setdefault(name, []).append(audio[:, :samples])
        done += len(group) * sum(drawn)
    progress("resynthesis", total, total)
    return {name: np.concatenate(pieces) for name, pieces in sounds.items()}


def _generate(
    bundle: Bundle,
    parts: Mapping[str, Part],
    clips: Sequence[Mapping[str, Any]],
    acoustic: np.ndarray,
    texts: Sequence[str],
    request: Request,
    report: windows.Progress,
) -> dict[str, np.ndarray]:
    """Returns each version's acoustic codes, `[clips, 2 t, levels]`; `acoustic` holds the true codes."""
    count, frames = len(clips), acoustic.shape[1] // windows.ACOUSTIC_PER_SEMANTIC
    keys = jnp.stack([piece_key(request.seed, text, 0) for text in texts])
    text_part = bundle.mulan()
    codes = mulan.tokens(*text_part, mulan.embed_text(*text_part, list(texts)), "text")

    def asked(rows: int) -> windows.Conditions:
        return windows.Conditions((0,), np.tile(np.asarray(codes), (rows, 1))[None])

    def joined(pieces: Iterator[np.ndarray]) -> np.ndarray:
        return np.concatenate(list(pieces), axis=1)

    none = np.zeros((count, 0, 1), np.int32)
    semantic = joined(windows.generate_semantic(parts["semantic"], asked(1), none, frames, request, keys, report))
    semantic = np.concatenate([np.stack([clip[SEMANTIC.name] for clip in clips])[..., None], semantic])
    levels = parts["coarse"].config.stage.target.levels
    none, keys_2 = np.zeros((2 * count, 0, levels), np.int32), jnp.tile(keys, 2)
    made = windows.generate_coarse(
        parts["coarse"], asked(2), windows.Frames(semantic), none, frames, request, keys_2, report
    )
    coarse = np.concatenate([acoustic[..., :levels], joined(made)])
    none, keys_3 = np.zeros((3 * count, 0, acoustic.shape[2]), np.int32), jnp.tile(keys, 3)
    at_once = max(1, pipeline.FINE_ROWS // (3 * count))
    fine = joined(
        windows.generate_acoustic(
            parts["fine"], windows.Frames(coarse), none, acoustic.shape[1], request, keys_3, at_once, report
        )
    )
    generated = dict(zip((TRUE_COARSE, TRUE_SEMANTIC, GENERATED), np.split(fine, 3), strict=True))
    return {CODEC: acoustic, COARSE_ALONE: acoustic[..., :levels]} | generated


def mel_distances(reference: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Computes the log-mel distance in dB of each pair of clips `[clips, samples]` at its best lag: `[clips]`."""

    def distance(one: np.ndarray, two: np.ndarray) -> float:
        aligned = metrics.shifted(two, metrics.best_lag(one, two, MAX_LAG), len(one))
        return metrics.log_mel_distance_db(one, aligned, SAMPLE_RATE)

    return np.array([distance(one, two) for one, two in zip(reference, made, strict=True)])


def judge_sounds(distances: Mapping[str, np.ndarray], strangers: np.ndarray, seed: int) -> list[Finding]:
    """Judges the fine and coarse stages by the distance of their output to the real clips.

    Args:
      distances: version to log-mel distances `[clips]` to the real clips.
      strangers: distances `[clips]` of `TRUE_SEMANTIC` to other real clips.
      seed: for the bootstrap intervals.
    """
    gain = metrics.bootstrap(distances[COARSE_ALONE] - distances[TRUE_COARSE], seed=seed)
    best = float(np.mean(distances[COARSE_ALONE] - distances[CODEC]))
    means = {name: float(np.mean(values)) for name, values in distances.items()}
    fine = Finding(
        "fine",
        "reduction in log-mel distance from generated fine levels, in dB",
        gain,
        grade(gain.high < 0, gain.low <= 0),
        "broken if below 0 (the stage harms), weak if the interval contains 0 (it adds nothing to the coarse levels)",
        f"true fine levels reduce it by {best:.2f}; distances: codec {means[CODEC]:.2f}, coarse alone "
        f"{means[COARSE_ALONE]:.2f}, true coarse {means[TRUE_COARSE]:.2f}",
        "train the fine stage longer; if it harms, check its levels, and that it was trained on this codec's tokens",
    )
    ahead = metrics.bootstrap(strangers - distances[TRUE_SEMANTIC], seed=seed)
    far = float(np.mean(strangers))
    coarse = Finding(
        "coarse",
        "log-mel distance of music from true semantic tokens in dB",
        metrics.bootstrap(distances[TRUE_SEMANTIC], seed=seed),
        grade(ahead.low <= 0, means[TRUE_SEMANTIC] > (far + means[CODEC]) / 2),
        f"broken if no closer to its own clip than to another, weak above {(far + means[CODEC]) / 2:.2f} "
        "(halfway from the codec to another clip)",
        f"another clip {far:.2f}, closer by {ahead}",
        "the coarse stage does not follow its semantic tokens: check its condition_bits and train it longer",
    )
    return [fine, coarse]


def judge_links(judge: str, wins: Mapping[str, np.ndarray], seed: int) -> list[Finding]:
    """Judges each link by how much of the match with the text it keeps.

    Args:
      judge: name of the figure, including the judge.
      wins: version to `metrics.matched_wins` `[clips]`.
      seed: for the bootstrap intervals.
    """
    aucs = {name: metrics.bootstrap(values, seed=seed) for name, values in wins.items()}
    deaf = "" if aucs[REAL].low > 0.5 else "at chance: it cannot judge these clips"
    findings = [Finding(JUDGES, f"{judge}, {REAL}", aucs[REAL], note=deaf)]
    findings.append(Finding(JUDGES, f"{judge}, {COARSE_ALONE}", aucs[COARSE_ALONE]))
    for part, before, after in LINKS:
        drop = metrics.bootstrap(wins[before] - wins[after], seed=seed)
        if aucs[before].low <= 0.5:
            verdict, note = "", f"{before}: already at chance, nothing to lose"
        else:
            kept = (aucs[after].value - 0.5) / (aucs[before].value - 0.5)
            note = f"keeps {kept:.2f} of the margin of {before} above chance, loses {drop}"
            verdict = grade(kept < BROKEN_SHARE, kept < ASKED_SHARE)
            if verdict != "ok" and drop.low <= 0:
                verdict, note = "", f"{note}: too few clips to tell, use more"
        bounds = f"weak if it keeps less than {ASKED_SHARE}, broken under {BROKEN_SHARE}"
        findings.append(Finding(part, f"{judge}, {after}", aucs[after], verdict, bounds, note, _LINK_ADVICE[part]))
    return findings
