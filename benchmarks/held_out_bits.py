"""Measures held-out bits per token of the stages: python -m benchmarks.held_out_bits --tokens DIR --bundle tiny

Each test clip is cropped once to the stage's length. Bits per token are measured at each level, with the clip's own
conditioning and with that of a clip of another composition, and compared with the unigram entropy: the bits of the test
codes under the code frequencies of the training split. A figure passes if the saving, paired by clip, is above 0.
Intervals are bootstrapped over clips.
"""

import numpy as np

from benchmarks.report import Figure, arguments, publish
from musiclm_jax import bundles
from musiclm_jax.data.tokens import STAGES
from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.diagnose.stage_bits import crop, measure, strangers, target_codes, unigram, with_condition


def main() -> None:
    """Runs the benchmark."""
    from musiclm_jax.data.records import read_token_records, shard_paths  # here: it imports TensorFlow

    parser = arguments(__doc__.splitlines()[0], corpus=False)
    parser.add_argument("--tokens", required=True, help="folder of token records, made by `musiclm tokenize`")
    parser.add_argument("--clips", type=int, default=200, help="held-out clips")
    parser.add_argument("--stages", nargs="+", default=STAGES)
    args = parser.parse_args()
    bundle = bundles.load(args.bundle)
    train = list(read_token_records(shard_paths(args.tokens, "train")))
    test = list(read_token_records(shard_paths(args.tokens, "test")))
    rng = np.random.default_rng(args.seed)
    test = [test[i] for i in rng.permutation(len(test))[: args.clips]]
    figures, details = [], {"clips": len(test), "train_clips": len(train)}
    for name in args.stages:
        part = bundle.part(name)
        stage, config = part.config.stage, part.config.transformer
        crops = [crop(record, stage, rng) for record in test]
        other = strangers([record["composition"] for record in test], rng)
        mixed = [with_condition(stage, own, crops[i]) for own, i in zip(crops, other, strict=True)]
        right, shuffled = (measure(stage, config, part.variables["params"], c) for c in (crops, mixed))
        by_frequency, first = unigram(stage, target_codes(stage, train), crops), stage.target.first_level
        for i in range(by_frequency.shape[1]):
            own = metrics.bootstrap(right[:, i], seed=args.seed)
            saved = metrics.bootstrap(by_frequency[:, i] - right[:, i], seed=args.seed)
            target = f"< {by_frequency[:, i].mean():.3f} (unigram)"
            note = f"saved {saved}"
            figures.append(Figure(f"bits per token, {name}, level {first + i + 1}", own, target, saved.low > 0, note))
        lost = metrics.bootstrap(np.mean(shuffled - right, axis=1), seed=args.seed)
        figures.append(Figure(f"bits lost by a shuffled condition, {name}", lost, "> 0", lost.low > 0, "paired"))
        details[name] = {
            "unigram": np.mean(by_frequency, axis=0).tolist(),
            "right": np.mean(right, axis=0).tolist(),
            "shuffled": np.mean(shuffled, axis=0).tolist(),
        }
        print(f"{name}: done", flush=True)
    publish("stages", figures, args.output, details)


if __name__ == "__main__":
    main()
