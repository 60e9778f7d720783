"""Compares the codec with Opus: python -m benchmarks.codec_quality --corpus DIR --bundle tiny

Clips of held-out compositions pass through SoundStream (12 levels at 50 frames/s: 6 kbit/s) and through Opus at 6 and
12 kbit/s (ffmpeg with libopus and its defaults). Each decoded clip is aligned by its best lag of up to 50 ms before the
comparison. The benchmark also reports perplexity and codebook usage of each level over all clips.
"""

import numpy as np

from benchmarks.report import Figure, arguments, publish, sample_clips
from musiclm_jax import bundles
from musiclm_jax.bundles.encode import encode_acoustic
from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.diagnose.codec import distances, kilobits, opus
from musiclm_jax.generation.pipeline import decode_audio

BATCH = 4


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=128, help="held-out clips")
    args = parser.parse_args()
    part = bundles.load(args.bundle).part("soundstream")
    clips = sample_clips(args.corpus, "test", args.clips, args.seed)
    scores: dict[str, list[tuple[float, float]]] = {"SoundStream": [], "Opus 6": [], "Opus 12": []}
    rates: dict[str, list[float]] = {"Opus 6": [], "Opus 12": []}
    codes = []
    for start in range(0, len(clips), BATCH):
        audio = np.stack([clip["audio"] for clip in clips[start : start + BATCH]])
        codes.append(np.asarray(encode_acoustic(part, audio)))
        decoded = decode_audio(part, codes[-1])
        for reference, ours in zip(audio, decoded, strict=True):
            scores["SoundStream"].append(distances(reference, ours))
            for rate in (6, 12):
                theirs, taken = opus(reference, rate)
                scores[f"Opus {rate}"].append(distances(reference, theirs))
                rates[f"Opus {rate}"].append(taken)
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
    details["kilobits"] = kilobits(every.shape[1], size)
    publish("codec", figures, args.output, details)


if __name__ == "__main__":
    main()
