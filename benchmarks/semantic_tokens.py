"""Measures what semantic tokens encode: python -m benchmarks.semantic_tokens --corpus DIR --bundle tiny

Normalised mutual information (NMI) of the tokens with the pitch class of the lead voice (in frames where it sounds) and
with the instrument, on held-out compositions. The baseline is k-means with the same number of clusters on raw log-mel
features at the same rate (80 bins, four frames averaged, normalised per dimension), fitted to the training split.
Intervals are bootstrapped over clips, with the same draws for both sides of a difference. Clips drawn twice raise the
NMI of a sample, so intervals of single figures are biased upwards; in the difference this almost cancels.
"""

import functools

import numpy as np

from benchmarks.report import Figure, arguments, publish, sample_clips
from musiclm_jax import bundles
from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.diagnose.semantic import REST, in_batches, mel_clusters
from musiclm_jax.tokenizers import w2v_bert

DRAWS = 500  # of the bootstrap


def information(codes: np.ndarray, labels: np.ndarray) -> float:
    """Computes the NMI of codes with labels of the same shape, ignoring rests."""
    known = labels != REST
    return metrics.normalized_mutual_information(codes[known], labels[known])


def compare(
    ours: np.ndarray, raw: np.ndarray, labels: np.ndarray, seed: int
) -> tuple[metrics.Estimate, metrics.Estimate, metrics.Estimate]:
    """Compares the NMI of two kinds of codes with the same labels.

    Args:
      ours: int `[clips, frames]`.
      raw: int `[clips, frames]`.
      labels: int `[clips, frames]`.
      seed: seed of the bootstrap.

    Returns:
      Estimates for `ours`, for `raw`, and for the paired difference.
    """
    clips = np.stack([ours, raw, labels], axis=1)  # [clips, 3, frames]

    def of(sample: np.ndarray, kind: int) -> float:
        return information(sample[:, kind], sample[:, 2])

    statistics = (lambda s: of(s, 0), lambda s: of(s, 1), lambda s: of(s, 0) - of(s, 1))
    first, second, difference = (metrics.bootstrap(clips, s, draws=DRAWS, seed=seed) for s in statistics)
    return first, second, difference


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1000, help="maximum number of held-out clips")
    parser.add_argument("--fit_clips", type=int, default=1500, help="training clips for the clusters of raw features")
    args = parser.parse_args()
    config, variables = bundles.load(args.bundle).part("w2v_bert")
    clips = sample_clips(args.corpus, "test", args.clips, args.seed)
    ours = in_batches(functools.partial(w2v_bert.semantic_tokens, config, variables), clips)

    fit_clips = sample_clips(args.corpus, "train", args.fit_clips, args.seed)
    raw = mel_clusters(clips, fit_clips, config.num_clusters, config.kmeans_iterations, args.seed)

    frames = ours.shape[1]
    names = sorted({clip["instrument"] for clip in clips})
    labels = {
        "pitch class of the lead voice": np.stack([clip["pitch_class"][:frames] for clip in clips]),
        "instrument": np.stack([np.full(frames, names.index(clip["instrument"])) for clip in clips]),
    }
    figures = []
    for name, label in labels.items():
        first, second, difference = compare(ours, raw, label, args.seed)
        figures += [
            Figure(f"NMI with {name}, semantic tokens", first),
            Figure(f"NMI with {name}, k-means on log-mel", second),
            Figure(f"NMI with {name}, difference", difference, "> 0", difference.low > 0),
        ]
    counts = np.bincount(ours.reshape(-1), minlength=config.num_clusters)
    figures += [
        Figure(f"perplexity of semantic tokens (of {config.num_clusters})", metrics.perplexity(ours)),
        Figure("share of frames that repeat the token before", float(np.mean(ours[:, 1:] == ours[:, :-1]))),
    ]
    details = {
        "clips": len(clips),
        "instruments": names,
        "clusters": config.num_clusters,
        "feature_layer": config.feature_layer,
        "tokens_used": int(np.sum(counts > 0)),
    }
    publish("semantic_tokens", figures, args.output, details)


if __name__ == "__main__":
    main()
