"""Held-out bits per token of the stages: python -m benchmarks.stage_bits --tokens DIR --bundle tiny

Each test clip is cropped once to the stage's length. Its bits per token are measured level by level with its own
conditioning and with the conditioning of another clip of another composition, and set beside the unigram entropy: the
bits of the test codes under the frequencies of the training codes. A figure is met if the saving, paired by clip, is
above 0. Intervals: bootstrap over clips.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

import musiclm_jax
from benchmarks.report import Figure, arguments, publish
from musiclm_jax import metrics
from musiclm_jax.losses import token_losses
from musiclm_jax.stages import Stage, assemble
from musiclm_jax.tokens import ACOUSTIC, MULAN, SEMANTIC, STAGES
from musiclm_jax.transformer import TransformerConfig, hidden_states, level_logits

BATCH = 8
STREAMS = (SEMANTIC.name, ACOUSTIC.name, MULAN.name)


@functools.partial(jax.jit, static_argnums=(0, 1))
def clip_bits(stage: Stage, config: TransformerConfig, params: dict, batch: dict[str, jax.Array]) -> jax.Array:
    """Mean bits per token of each clip and level, as `stage_learner` computes the loss: float32 `[batch, levels]`."""
    lm = assemble(stage, batch)
    hidden = hidden_states(config, params, lm.decoder_input_tokens, stage.times()[:-1], stage.spans(), lm.valid, None)
    rows, frames, levels = lm.target_codes.shape
    hidden = hidden[:, stage.condition_length() :].reshape(rows, frames, levels, -1)
    first_id = stage.vocabulary.offset(stage.target.stream, stage.target.first_level)
    logits = level_logits(params, hidden, first_id, levels, stage.stream(stage.target.stream).codebook_size)
    return jnp.mean(token_losses(logits, lm.target_codes).cross_entropy, axis=1) / math.log(2)


def crop(record: dict, stage: Stage, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One aligned crop of `stage.seconds`, starting on a semantic frame."""
    length = SEMANTIC.frames(stage.seconds)
    start = int(rng.integers(0, len(record["semantic"]) - length + 1))
    ratio = ACOUSTIC.frame_rate // SEMANTIC.frame_rate
    return {
        SEMANTIC.name: record["semantic"][start : start + length],
        ACOUSTIC.name: record["acoustic"][start * ratio : (start + length) * ratio],
        MULAN.name: record["mulan"],
    }


def strangers(compositions: list[str], rng: np.random.Generator) -> np.ndarray:
    """For each clip the index of a clip of another composition.

    Raises:
      ValueError: if all clips are of one composition.
    """
    if len(set(compositions)) < 2:
        raise ValueError("all clips are of one composition: a shuffled condition needs several")
    names = np.array(compositions)
    return np.array([rng.choice(np.flatnonzero(names != name)) for name in names])


def with_condition(stage: Stage, own: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The target of `own` behind the conditioning of `other`."""
    mixed = {part.stream: other[part.stream] for part in stage.conditioning}
    target = stage.target
    if target.stream in mixed:  # the fine stage: conditioning and target are levels of one stream
        levels = slice(target.first_level, target.last_level + 1)
        mixed[target.stream] = mixed[target.stream].copy()
        mixed[target.stream][:, levels] = own[target.stream][:, levels]
    else:
        mixed[target.stream] = own[target.stream]
    return mixed


def measure(stage: Stage, config: TransformerConfig, params: dict, crops: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Bits per token `[clips, levels]`."""
    rows = []
    for start in range(0, len(crops), BATCH):
        group = crops[start : start + BATCH]
        filled = group + group[-1:] * (BATCH - len(group))
        batch = {name: np.stack([c[name] for c in filled]).astype(np.int32) for name in filled[0]}
        rows.append(np.asarray(clip_bits(stage, config, params, batch))[: len(group)])
    return np.concatenate(rows)


def target_codes(stage: Stage, crops: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Codes of the target `[frames of all clips, levels]`."""
    streams = [c[stage.target.stream] for c in crops]
    joined = np.concatenate([s[:, None] if s.ndim == 1 else s for s in streams])
    return joined[:, stage.target.first_level : stage.target.last_level + 1]


def main() -> None:
    """Runs the benchmark."""
    from musiclm_jax.records import read_token_records, shard_paths  # here: it imports TensorFlow

    parser = arguments(__doc__.splitlines()[0], corpus=False)
    parser.add_argument("--tokens", required=True, help="folder of token records, made by `musiclm tokenize`")
    parser.add_argument("--clips", type=int, default=200, help="held-out clips")
    parser.add_argument("--stages", nargs="+", default=STAGES)
    args = parser.parse_args()
    bundle = musiclm_jax.load(args.bundle)
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
        size = stage.stream(stage.target.stream).codebook_size
        train_codes, first = target_codes(stage, train), stage.target.first_level
        of_clips = [target_codes(stage, [own]) for own in crops]
        unigram = np.array(
            [
                [metrics.unigram_bits(train_codes[:, i], codes[:, i], size) for i in range(codes.shape[1])]
                for codes in of_clips
            ]
        )  # [clips, levels]
        for i in range(unigram.shape[1]):
            own = metrics.bootstrap(right[:, i], seed=args.seed)
            saved = metrics.bootstrap(unigram[:, i] - right[:, i], seed=args.seed)
            target = f"< {unigram[:, i].mean():.3f} (unigram)"
            note = f"saved {saved}"
            figures.append(Figure(f"bits per token, {name}, level {first + i + 1}", own, target, saved.low > 0, note))
        lost = metrics.bootstrap(np.mean(shuffled - right, axis=1), seed=args.seed)
        figures.append(Figure(f"bits lost by a shuffled condition, {name}", lost, "> 0", lost.low > 0, "paired"))
        details[name] = {
            "unigram": np.mean(unigram, axis=0).tolist(),
            "right": np.mean(right, axis=0).tolist(),
            "shuffled": np.mean(shuffled, axis=0).tolist(),
        }
        print(f"{name}: done", flush=True)
    publish("stages", figures, args.output, details)


if __name__ == "__main__":
    main()
