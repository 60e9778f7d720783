"""The codec against Opus: python -m benchmarks.codec --corpus DIR --bundle tiny

Clips of compositions that were never trained on pass through SoundStream (12 levels at 50 frames/s: 6 kbit/s) and
through Opus at 6 and at 12 kbit/s (ffmpeg with libopus, its defaults). Each decoded clip is shifted by its best lag
of up to 50 ms before it is compared. Then the codes: perplexity and share of the codebook in use, level by level,
over all clips.
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np

import musiclm_jax
from benchmarks.report import Figure, arguments, publish, sample_clips
from musiclm_jax import metrics
from musiclm_jax.generate import decode_audio
from musiclm_jax.tokenizers import acoustic_codes
from musiclm_jax.tokens import ACOUSTIC, SAMPLE_RATE

MAX_LAG = SAMPLE_RATE // 20  # samples
BATCH = 4


def opus(audio: np.ndarray, kilobits: int) -> tuple[np.ndarray, float]:
    """Codes and decodes `[samples]` at 24 kHz with Opus.

    Returns:
      The decoded audio float32 `[about samples]` and the kbit/s that its packets really took.

    Raises:
      RuntimeError: if ffmpeg is missing or lacks libopus.
    """
    pcm = (np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes()
    raw = ["-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1"]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "clip.opus")
        _run(["ffmpeg", "-v", "error", *raw, "-i", "-", "-c:a", "libopus", "-b:a", f"{kilobits}k", path], pcm)
        decoded = _run(["ffmpeg", "-v", "error", "-i", path, *raw, "-"])
        sizes = _run(["ffprobe", "-v", "error", "-show_entries", "packet=size", "-of", "csv=p=0", path])
    bits = 8 * sum(int(size.strip(",")) for size in sizes.decode().split())
    return np.frombuffer(decoded, "<i2").astype(np.float32) / 32767, bits / (len(audio) / SAMPLE_RATE) / 1000


def _run(command: list[str], stdin: bytes = b"") -> bytes:
    try:
        return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise RuntimeError(f"{command[0]} is not installed: apt install ffmpeg") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{command[0]} failed: {error.stderr.decode(errors='replace').strip()[:300]}") from error


def distances(reference: np.ndarray, decoded: np.ndarray) -> tuple[float, float]:
    """Multi-scale log-mel distance in dB and SI-SDR in dB of `[samples]`, after alignment."""
    aligned = metrics.shifted(decoded, metrics.best_lag(reference, decoded, MAX_LAG), len(reference))
    return metrics.log_mel_distance(reference, aligned, SAMPLE_RATE), metrics.si_sdr(reference, aligned)


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=128, help="held-out clips")
    args = parser.parse_args()
    part = musiclm_jax.load(args.bundle).part("soundstream")
    clips = sample_clips(args.corpus, "test", args.clips, args.seed)
    scores: dict[str, list[tuple[float, float]]] = {"SoundStream": [], "Opus 6": [], "Opus 12": []}
    rates: dict[str, list[float]] = {"Opus 6": [], "Opus 12": []}
    codes = []
    for start in range(0, len(clips), BATCH):
        audio = np.stack([clip["audio"] for clip in clips[start : start + BATCH]])
        codes.append(np.asarray(acoustic_codes(part, audio)))
        decoded = decode_audio(part, codes[-1])
        for reference, ours in zip(audio, decoded, strict=True):
            scores["SoundStream"].append(distances(reference, ours))
            for kilobits in (6, 12):
                theirs, rate = opus(reference, kilobits)
                scores[f"Opus {kilobits}"].append(distances(reference, theirs))
                rates[f"Opus {kilobits}"].append(rate)
        print(f"{min(start + BATCH, len(clips))} of {len(clips)} clips", flush=True)

    mel = {name: np.array([mel for mel, _ in values]) for name, values in scores.items()}
    gain = metrics.bootstrap(mel["Opus 6"] - mel["SoundStream"], seed=args.seed)
    figures = []
    for name, values in scores.items():
        note = f"{np.mean(rates[name]):.1f} kbit/s" if name in rates else "6.0 kbit/s at 12 x 1024"
        figures.append(
            Figure(f"log-mel distance in dB, {name}", metrics.bootstrap(mel[name], seed=args.seed), note=note)
        )
        sdr = metrics.bootstrap([sdr for _, sdr in values], seed=args.seed)
        figures.append(Figure(f"SI-SDR in dB, {name}", sdr))
    figures.append(Figure("log-mel distance, Opus 6 minus SoundStream", gain, "> 0", gain.low > 0, "paired"))
    every = np.concatenate([c.reshape(-1, c.shape[-1]) for c in codes])
    size = part.variables["codebooks"].shape[1]
    used = [len(np.unique(every[:, level])) / size for level in range(every.shape[1])]
    perplexities = [metrics.perplexity(every[:, level]) for level in range(every.shape[1])]
    figures.append(Figure("codes used, least used level", min(used), "> 0.5", min(used) > 0.5, f"share of {size}"))
    figures.append(Figure("perplexity, lowest level", min(perplexities)))
    print("level:      " + " ".join(f"{level + 1:6d}" for level in range(len(used))))
    print("used:       " + " ".join(f"{share:6.2f}" for share in used))
    print("perplexity: " + " ".join(f"{value:6.0f}" for value in perplexities))
    details = {"clips": len(clips), "used": used, "perplexity": perplexities, "rates": rates, "scores": scores}
    details["kilobits"] = ACOUSTIC.frame_rate * every.shape[1] * np.log2(size) / 1000
    publish("codec", figures, args.output, details)


if __name__ == "__main__":
    main()
