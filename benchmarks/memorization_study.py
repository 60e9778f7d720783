"""Measures memorization by the semantic stage: python -m benchmarks.memorization_study --tokens DIR --plot FILE.png

The paper's study (section "Memorization", arXiv 2301.11325): the stage receives the MuLan tokens of a clip's audio and
the clip's first tokens, continues for 5 s by greedy decoding, and the result is compared with the clip. In an exact
match all tokens are equal; in an approximate match the token histograms are close, by optimal transport. Held-out clips
are the control: matches there are predictable music, not memorization.

The threshold tau is set so that less than 0.01 % of permuted pairs match; both splits and all prompts share it.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.report import Figure, arguments, publish
from musiclm_jax import bundles
from musiclm_jax.data.tokens import SEMANTIC
from musiclm_jax.evaluation import memorization, metrics
from musiclm_jax.evaluation.memorization import CONTINUED, Continuations

SPLITS = {"train": "training clips", "test": "held-out clips"}
STRICT = 0.5 / 0.85  # share of tau: the paper reports the entropy of matches under 0.5, with tau 0.85


def choose(tokens: str, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Draws at most `count` token records of a split, in their order on disk.

    Raises:
      ValueError: if the split is missing.
    """
    from musiclm_jax.data.records import read_token_records, shard_paths  # here: it imports TensorFlow

    wanted = ("id", "semantic", "mulan", "composition")
    found = [{name: record[name] for name in wanted} for record in read_token_records(shard_paths(tokens, split))]
    drawn = np.random.default_rng(seed).permutation(len(found))[:count]
    return [found[index] for index in sorted(drawn)]


def figures(
    own: dict[str, list[Continuations]], costs: dict[str, list[np.ndarray]], tau: float, seed: int
) -> tuple[list[Figure], dict[str, Any]]:
    """Builds the table, and the data of the plot: {split: {"seconds", "exact", "approximate"}}."""
    lines, curves = [], {}
    for split, name in SPLITS.items():
        curve: dict[str, list] = {"seconds": [], "exact": [], "approximate": []}
        for made, cost in zip(own[split], costs[split], strict=True):
            seconds = made.prompt / SEMANTIC.frame_rate
            curve["seconds"].append(seconds)
            for kind, matches in (("exact", made.exact), ("approximate", cost < tau)):
                estimate = memorization.share(matches)
                curve[kind].append(estimate)
                note = f"{int(matches.sum())} of {len(matches)}"
                lines.append(Figure(f"{kind} matches, {name}, prompt of {seconds:g} s", estimate, note=note))
        curves[split] = curve
        entropy = np.concatenate([made.entropy for made in own[split]])
        cost = np.concatenate(costs[split])
        true = np.concatenate([[metrics.entropy_bits(codes) for codes in made.true] for made in own[split]])
        lines.append(Figure(f"entropy in bits of 5 s, {name}", metrics.bootstrap(entropy, seed=seed)))
        lines.append(Figure(f"entropy in bits of 5 s, {name}, of the clips themselves", float(true.mean())))
        for kind, bound in (("tau", tau), ("0.59 tau", STRICT * tau)):
            if len(matching := entropy[cost < bound]):
                note = f"{len(matching)} matches"
                lines.append(Figure(f"entropy in bits of matches under {kind}, {name}", matching.mean(), note=note))
    # All prompts use the same clips, so the bootstrap resamples clips.
    by_clip = [np.mean([cost < tau for cost in costs[split]], axis=0) for split in SPLITS]
    items = np.concatenate([np.stack([np.full(len(of), i), of], axis=1) for i, of in enumerate(by_clip)])

    def ahead(drawn: np.ndarray) -> float:
        return float(drawn[drawn[:, 0] == 0, 1].mean() - drawn[drawn[:, 0] == 1, 1].mean())

    name = "approximate matches of all prompts, training less held-out clips"
    lines.append(Figure(name, metrics.bootstrap(items, ahead, seed=seed), note="above 0: remembered"))
    return lines, curves


def plot(curves: dict[str, Any], path: pathlib.Path) -> None:
    """Plots the shares of matches over the length of the prompt, as in the paper's figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for split, line in (("train", "-"), ("test", "--")):
        for kind, color in (("approximate", "#2451c4"), ("exact", "#c2571a")):
            estimates = np.array(curves[split][kind]) * 100
            errors = np.abs(estimates[:, 1:] - estimates[:, :1]).T
            axes.errorbar(
                curves[split]["seconds"],
                estimates[:, 0],
                yerr=errors,
                linestyle=line,
                color=color,
                marker="o",
                markersize=4,
                capsize=3,
                label=f"{kind} matches, {SPLITS[split]}",
            )
    axes.set(xlabel="prompt in s", ylabel="share of clips in %", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__.splitlines()[0], corpus=False)
    parser.add_argument("--tokens", required=True, help="folder of token records, made by `musiclm tokenize`")
    parser.add_argument("--clips", type=int, default=256, help="clips of each split")
    parser.add_argument(
        "--prompts",
        type=float,
        nargs="+",
        default=[0, 1, 2, 3, 4, 5],
        help="lengths of prompts in s; clips of 10 s allow up to 5; the paper uses up to 10",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="clips continued at once")
    parser.add_argument("--plot", default="", help="PNG file for the plot")
    args = parser.parse_args(argv)
    prompts = checked_prompts(args)
    bundle = bundles.load(args.bundle)
    distances = memorization.centroid_distances(bundle.part("w2v_bert").variables["centroids"])
    own: dict[str, list[Continuations]] = {}
    for split in SPLITS:
        clips = choose(args.tokens, split, args.clips, args.seed)
        own[split] = []
        for prompt in prompts:
            made = memorization.continue_clips(bundle.part("semantic"), clips, prompt, batch_size=args.batch_size)
            own[split].append(made)
            print(f"{split}: {len(clips)} clips continued from {prompt / SEMANTIC.frame_rate:g} s", flush=True)
    threshold = memorization.calibrate([made for of_split in own.values() for made in of_split], distances)
    print(f"tau {threshold.cost:.3f}: {threshold.matching} of {threshold.pairs:,} permuted pairs match", flush=True)
    costs = {split: [made.costs(distances) for made in of_split] for split, of_split in own.items()}
    lines, curves = figures(own, costs, threshold.cost, args.seed)
    scale = memorization.mean_distance(distances)
    lines.append(Figure("tau", threshold.cost, note=f"the mean distance of two centroids is {scale:.3f}"))
    false = threshold.matching / threshold.pairs * 100
    lines.append(Figure("permuted pairs that match, in %", false, "< 0.01", false < 0.01, f"{threshold.pairs:,} pairs"))
    if args.plot:
        plot(curves, pathlib.Path(args.plot).expanduser())
    details = {
        "clips": {split: len(of_split[0].made) for split, of_split in own.items()},
        "continued": CONTINUED,
        "curves": curves,
        "median_cost": {split: [float(np.median(cost)) for cost in of_split] for split, of_split in costs.items()},
        "regularisation": memorization.REGULARISATION,
        "semantic_sha256": bundle.config["parts"]["semantic"]["sha256"],
    }
    publish("memorization", lines, args.output, json.loads(json.dumps(details)))


def checked_prompts(args: argparse.Namespace) -> list[int]:
    """Returns the prompt lengths in tokens.

    Raises:
      ValueError: if an argument is invalid.
    """
    if args.clips < 2 or args.batch_size < 1:
        raise ValueError(f"--clips {args.clips} --batch_size {args.batch_size}: give 2 or more, and 1 or more")
    if min(args.prompts) < 0:
        raise ValueError(f"--prompts {min(args.prompts):g}: give seconds of 0 or more")
    if args.plot and not pathlib.Path(args.plot).expanduser().parent.is_dir():
        raise ValueError(f"--plot {args.plot}: there is no such folder")
    return sorted({SEMANTIC.frames(seconds) for seconds in args.prompts})


if __name__ == "__main__":
    main()
