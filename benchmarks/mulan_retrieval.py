"""Measures MuLan's text-to-audio retrieval: python -m benchmarks.mulan_retrieval --corpus DIR --bundle tiny

Reports recall at 10 among 256 clips of held-out compositions, over repeated draws of the 256. Texts are the corpus's
captions, and paraphrases in words that no caption or aspect of the corpus uses (paraphrases.py; checked on every run).
Intervals are bootstrapped over clips. The benchmark also reports, for each level, the share of equal MuLan tokens
between text and audio, and between a text and another clip's audio (chance).
"""

import numpy as np

from benchmarks.paraphrases import corpus_words, paraphrase, repeated_words
from benchmarks.report import Figure, arguments, publish, sample_clips
from musiclm_jax import bundles
from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.diagnose.retrieval import TOP, hits
from musiclm_jax.tokenizers import mulan

BATCH = 8


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1024, help="maximum number of held-out clips")
    parser.add_argument("--pool", type=int, default=256, help="clips to retrieve from")
    parser.add_argument("--draws", type=int, default=40, help="number of pools to draw")
    args = parser.parse_args()
    if repeated := repeated_words(corpus_words(args.corpus)):
        raise ValueError(f"paraphrases use words of the corpus: {', '.join(sorted(repeated))}; choose others")
    config, variables = bundles.load(args.bundle).mulan()
    clips = sample_clips(args.corpus, "test", args.clips, args.seed)
    rng = np.random.default_rng(args.seed)
    texts = {
        "captions": [str(rng.choice(clip["caption"])) for clip in clips],
        "paraphrases": [paraphrase(clip) for clip in clips],
    }
    audio = np.concatenate(
        [
            np.asarray(mulan.embed_audio(config, variables, np.stack([c["audio"] for c in clips[i : i + BATCH]])))
            for i in range(0, len(clips), BATCH)
        ]
    )
    audio_codes = np.asarray(mulan.tokens(config, variables, audio, "audio"))
    chance = TOP / args.pool
    asked = {"captions": 10 * chance, "paraphrases": 5 * chance}
    figures, details = [], {"clips": len(clips), "chance": chance, "examples": {k: v[:5] for k, v in texts.items()}}
    for name, sentences in texts.items():
        embedded = np.asarray(mulan.embed_text(config, variables, sentences))
        found = metrics.bootstrap(hits(embedded @ audio.T, args.draws, args.pool, args.seed), seed=args.seed)
        target = f">= {asked[name]:.3f} ({asked[name] / chance:.0f} x chance)"
        figures.append(Figure(f"recall at {TOP} of {args.pool}, {name}", found, target, found.value >= asked[name]))
        codes = np.asarray(mulan.tokens(config, variables, embedded, "text"))
        other = rng.permutation(len(clips))
        equal, unrelated = codes == audio_codes, codes == audio_codes[other]
        print(f"{name}: equal tokens of text and audio, by level")
        print("  own clip:     " + " ".join(f"{share:5.3f}" for share in equal.mean(axis=0)))
        print("  another clip: " + " ".join(f"{share:5.3f}" for share in unrelated.mean(axis=0)))
        first = metrics.bootstrap(equal[:, 0], seed=args.seed)
        figures.append(
            Figure(f"equal MuLan tokens, level 1, {name}", first, note=f"{unrelated[:, 0].mean():.3f} by chance")
        )
        details[name] = {"agreement": equal.mean(axis=0).tolist(), "chance": unrelated.mean(axis=0).tolist()}
    publish("mulan", figures, args.output, details)


if __name__ == "__main__":
    main()
