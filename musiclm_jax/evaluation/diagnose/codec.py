"""Judges SoundStream: the distance of decoded audio to its clip, and the use of each codebook."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from musiclm_jax.data.samples import from_pcm16, to_pcm16
from musiclm_jax.data.tokens import ACOUSTIC, SAMPLE_RATE
from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.diagnose.finding import Finding, grade

MAX_LAG = SAMPLE_RATE // 20  # samples
OPUS_KILOBITS = (6, 12)
STRANGER_SHARE = 0.75  # of the distance to another clip: from here on the codec hardly distinguishes clips
STRANGER_HALF = 0.5  # of that distance: the bound for "ok" if Opus is not available for comparison
RISE = 1.25  # largest allowed ratio of a level's RMS to that of an earlier level of the residual quantizer


def opus(audio: np.ndarray, kilobits: int) -> tuple[np.ndarray, float]:
    """Encodes and decodes `[samples]` at 24 kHz with Opus.

    Returns:
      The decoded audio, float32 `[about samples]`, and the actual bit rate in kbit/s.

    Raises:
      RuntimeError: if ffmpeg is missing or lacks libopus.
    """
    pcm = to_pcm16(np.clip(audio, -1, 1)).tobytes()
    raw = ["-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1"]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "clip.opus")
        _run(["ffmpeg", "-v", "error", *raw, "-i", "-", "-c:a", "libopus", "-b:a", f"{kilobits}k", path], pcm)
        decoded = _run(["ffmpeg", "-v", "error", "-i", path, *raw, "-"])
        sizes = _run(["ffprobe", "-v", "error", "-show_entries", "packet=size", "-of", "csv=p=0", path])
    bits = 8 * sum(int(size.strip(",")) for size in sizes.decode().split())
    return from_pcm16(np.frombuffer(decoded, "<i2")), bits / (len(audio) / SAMPLE_RATE) / 1000


def opus_of_clips(clips: Sequence[np.ndarray], kilobits: int) -> list[np.ndarray]:
    """Applies `opus` to equally long clips `[samples]`, concatenated to one stream to start the programs only once."""
    decoded, _ = opus(np.concatenate(clips), kilobits)
    return np.split(metrics.shifted(decoded, 0, sum(map(len, clips))), len(clips))


def _run(command: list[str], stdin: bytes = b"") -> bytes:
    try:
        return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise RuntimeError(f"{command[0]} is not installed: apt install ffmpeg") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{command[0]} failed: {error.stderr.decode(errors='replace').strip()[:300]}") from error


def opus_is_there() -> bool:
    """Returns whether ffmpeg and ffprobe are installed."""
    return bool(shutil.which("ffmpeg") and shutil.which("ffprobe"))


def distances(reference: np.ndarray, decoded: np.ndarray) -> tuple[float, float]:
    """Computes the multi-scale log-mel distance and the SI-SDR, both in dB, of `[samples]` after alignment."""
    aligned = metrics.shifted(decoded, metrics.best_lag(reference, decoded, MAX_LAG), len(reference))
    return metrics.log_mel_distance_db(reference, aligned, SAMPLE_RATE), metrics.si_sdr(reference, aligned)


def round_trip(
    own: np.ndarray, strangers: np.ndarray, opus_distances: dict[int, np.ndarray], kilobits: float, seed: int
) -> list[Finding]:
    """Judges decoded audio.

    Listeners preferred SoundStream at 3 kbit/s to Opus at 12 (arXiv 2107.03312), so a codec at 6 kbit/s should match
    Opus at 6. A decoder whose output is no closer to its own clip than to others ignores its codes.

    Args:
      own: `[clips, 2]`, `distances` of each clip to its own decoded audio.
      strangers: `[clips, 2]`, `distances` of each clip to another clip's decoded audio.
      opus_distances: kbit/s to `[clips, 2]`; empty if ffmpeg is missing.
      kilobits: bit rate of the codec in kbit/s.
      seed: for the bootstrap intervals.
    """
    mel, sdr = (metrics.bootstrap(own[:, i], seed=seed) for i in (0, 1))
    far = strangers[:, 0].mean()
    beside = [f"{k} kbit/s: {v[:, 0].mean():.2f}" for k, v in opus_distances.items()]
    if opus_distances:
        asked, why = opus_distances[OPUS_KILOBITS[0]][:, 0].mean(), f"Opus at {OPUS_KILOBITS[0]} kbit/s"
    else:
        asked, why = STRANGER_HALF * far, f"{STRANGER_HALF:g} of the distance to another clip, as ffmpeg is missing"
    first = Finding(
        "soundstream",
        "log-mel distance of the round trip in dB",
        mel,
        grade(mel.value >= STRANGER_SHARE * far, mel.value > asked),
        f"ok up to {asked:.2f} ({why}), broken from {STRANGER_SHARE * far:.2f} ({STRANGER_SHARE:g} of another clip's)",
        f"{kilobits:.1f} kbit/s; " + "; ".join([*(f"Opus {b}" for b in beside), f"another clip: {far:.2f}"]),
        "train the codec longer (soundstream.gin) and watch its reconstruction loss; if training went well, decoder "
        "and codebooks in the bundle come from different runs: export them together",
    )
    beside = [f"Opus {k} kbit/s: {v[:, 1].mean():.2f}" for k, v in opus_distances.items()]
    second = Finding(
        "soundstream",
        "SI-SDR of the round trip in dB",
        sdr,
        grade(False, sdr.value < 0),
        "weak under 0 (more error than signal); never broken, since a good decoder may choose its own phase",
        "; ".join([*beside, f"another clip: {strangers[:, 1].mean():.2f}"]),
        "listen: a decoder trained against discriminators may sound good with its own phase; if not, train it longer",
    )
    return [first, second]


def not_finite(share: float) -> Finding:
    """Returns the finding for a decoder that outputs NaN or infinite samples in `share` of the clips."""
    return Finding(
        "soundstream",
        "share of clips decoded to NaN or infinite samples",
        share,
        "broken",
        "ok at 0",
        advice="training diverged: export the codec from an earlier checkpoint",
    )


def codebook_use(codes: np.ndarray, codebook_size: int, part: str, name: str) -> Finding:
    """Judges how well a codebook is used.

    Broken if the perplexity is below the square root of the codebook size: the level then carries less than half of
    its nominal bits. Weak if fewer than half of the codes expected under uniform sampling occur; a code that is held
    for several frames counts as one draw.

    Args:
      codes: int `[frames]` of many clips.
      codebook_size: number of codes.
      part: one of `finding.CHAIN`.
      name: name of the level.
    """
    perplexity, used = metrics.perplexity(codes), len(np.unique(codes))
    draws = 1 + np.sum(codes[1:] != codes[:-1])
    met = codebook_size * (1 - (1 - 1 / codebook_size) ** draws)
    least = codebook_size**0.5
    return Finding(
        part,
        f"perplexity of {name}",
        perplexity,
        grade(perplexity < least, used < met / 2),
        f"broken under {least:.0f} (half of the bits of {codebook_size} codes), weak with fewer than {met / 2:.0f} "
        "codes in use (half of those expected under uniform sampling)",
        f"{used} of {codebook_size} codes in use, {codebook_size - used} dead",
        "the codebook collapsed: check its perplexity in the training log; initialize with k-means and raise "
        "dead_code_threshold, so that dead codes are replaced"
        if part == "soundstream"
        else "fit the clusters again on more and different clips (musiclm export)",
    )


def level_energy(codebooks: np.ndarray, codes: np.ndarray) -> Finding:
    """Judges the order of the levels: each codes the residual of the levels before it, so energies fall.

    Args:
      codebooks: float `[quantizers, codebook_size, dim]`.
      codes: int `[frames, quantizers]`.
    """
    norms = np.linalg.norm(np.asarray(codebooks, np.float64), axis=-1)
    energy = np.array([np.sqrt(np.mean(norms[i, codes[:, i]] ** 2)) for i in range(codes.shape[1])])
    rises = energy[None, :] / np.maximum(energy[:, None], 1e-12)  # [earlier, later]
    rises = np.where(np.triu(np.ones_like(rises), 1) > 0, rises, 0)
    earlier, later = np.unravel_index(np.argmax(rises), rises.shape)
    worst = float(rises[earlier, later])
    return Finding(
        "soundstream",
        "order of the levels: largest RMS of a level relative to an earlier one",
        worst,
        grade(worst > RISE, False),
        f"broken above {RISE:g} (each level codes the residual of the levels before it)",
        "energies " + " ".join(f"{value:.2f}" for value in energy),
        f"level {later + 1} is louder than level {earlier + 1}: the codebooks are out of order; export them again in "
        "the order in which they were trained",
    )


def kilobits(levels: int, codebook_size: int) -> float:
    """Returns the bit rate of acoustic codes in kbit/s."""
    return float(ACOUSTIC.frame_rate * levels * np.log2(codebook_size) / 1000)
