"""Times a train step of the 430M coarse stage on this CPU and compares it with the matmul peak, PyTorch and T5X.

Contenders run one after the other, since each takes gigabytes, with matmuls between their steps. All use the same
threads, one for each core that the process may use (taskset). A step is complete, including Adafactor. Both processor
time and wall time are reported: on a shared machine only processor time shows the cost of a step.

  pip install '.[test]'; T5X as in docs/t5x.md (skipped if missing)
  python -m benchmarks.train_step [--seconds 1] [--batch 4] [--layers 24] [--rounds 3] [--clock processor]
"""

import argparse
import ctypes
import functools
import gc
import importlib.util
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report
from benchmarks.stage_step import fake_batch
from musiclm_jax.stages import layout
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training import partitioning
from musiclm_jax.training.optimizers import OptimizerConfig

MATMUL_SIDE = 2048
MATMUL_RUNS = 10  # per round: the peak is the best of many, since a single run may meet cold caches or a busy core
OURS, PYTORCH, T5X, MATMULS = "ours", "PyTorch", "T5X", ("matmul in JAX", "matmul in PyTorch")
Z_LOSS = 1e-4
Step = Callable[[], None]  # runs one whole step and waits for it


class Seconds(NamedTuple):
    """Shortest time of a step over all rounds."""

    wall: float
    processor: float


def our_step(learner: StageLearner, batch: Mapping[str, np.ndarray]) -> Step:
    """Makes the step of `musiclm train`."""
    key = jax.random.key(0)
    state = jax.jit(lambda k: partitioning.unbox(learner.init(k)))(key)
    step = jax.jit(learner.train_step, donate_argnums=0).lower(state, batch, key).compile()

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch, key)
        jax.block_until_ready((state, metrics))

    return run


def t5_stack(learner: StageLearner) -> Any:
    """Makes the same stack in PyTorch: T5's decoder without its cross-attention."""
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Stack

    config = learner.config
    stack = T5Stack(
        T5Config(
            vocab_size=learner.stage.vocabulary.rows,
            d_model=config.d_model,
            d_kv=config.d_model // config.num_heads,
            d_ff=config.d_ff,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.relative_buckets,
            relative_attention_max_distance=config.relative_max_distance,
            dropout_rate=config.dropout,
            feed_forward_proj="gated-gelu",
            is_decoder=True,
            use_cache=False,
        )
    )
    for block in stack.block:
        del block.layer[1]
    return stack


def pytorch_step(learner: StageLearner, batch: Mapping[str, np.ndarray]) -> Step:
    """Makes the step of `t5_stack`, with our logits and loss."""
    import torch

    config, stage = learner.config, learner.stage
    torch.manual_seed(0)
    stack = t5_stack(learner)
    optimizer = torch.optim.Adafactor(stack.parameters(), lr=0.01, weight_decay=0.0)
    lm = layout.assemble(stage, batch)
    ids = torch.from_numpy(np.array(lm.decoder_input_tokens, np.int64))
    targets = torch.from_numpy(np.array(lm.target_codes, np.int64))
    first = stage.vocabulary.offset(stage.target.stream, stage.target.first_level)
    size = stage.stream(stage.target.stream).codebook_size
    levels = stage.target.levels

    def run() -> None:
        hidden = stack(input_ids=ids).last_hidden_state[:, stage.condition_length() :]
        hidden = hidden.reshape(*targets.shape, -1) * config.d_model**-0.5
        table = stack.embed_tokens.weight[first : first + levels * size].view(levels, size, -1)
        logits = torch.einsum("btqd,qkd->btqk", hidden, table)
        normalizer = torch.logsumexp(logits, -1)
        expected = torch.gather(logits, -1, targets[..., None])[..., 0]
        loss = (normalizer - expected + Z_LOSS * normalizer.square()).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stack.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def t5x_step(learner: StageLearner, batch: Mapping[str, np.ndarray]) -> Step:
    """Makes T5X's own step on the same sequence, with its decoder-only network and its loss over the vocabulary."""
    import seqio
    from absl import logging
    from t5x import adafactor, decoding, models, train_state, trainer
    from t5x.examples.decoder_only import network

    logging.set_verbosity(logging.ERROR)  # Adafactor would warn about every matrix whose rules match its heuristics
    config, stage = learner.config, learner.stage
    module = network.DecoderWrapper(
        network.TransformerConfig(
            vocab_size=stage.vocabulary.rows,
            emb_dim=config.d_model,
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            head_dim=config.d_model // config.num_heads,
            mlp_dim=config.d_ff,
            mlp_activations=("gelu", "linear"),
            dropout_rate=config.dropout,
            logits_via_embedding=True,
        )
    )
    optimizer = adafactor.Adafactor(decay_rate=0.8, logical_factor_rules=adafactor.standard_logical_factor_rules())
    vocabulary = seqio.PassThroughVocabulary(stage.vocabulary.rows)
    model = models.DecoderOnlyModel(module, vocabulary, optimizer, decoding.temperature_sample, z_loss=Z_LOSS)
    lm = layout.assemble(stage, batch)
    ids = layout.condition_ids(stage, batch)[0]
    target = layout.flatten(stage, stage.target, layout.slice_codes(stage, stage.target, batch))
    weights = np.ones(lm.decoder_input_tokens.shape, np.float32)
    weights[:, : stage.condition_length()] = 0
    fed = {
        "decoder_input_tokens": lm.decoder_input_tokens,
        "decoder_target_tokens": jnp.concatenate([ids, target], axis=1),
        "decoder_loss_weights": jnp.asarray(weights),
    }

    def init(key: jax.Array) -> Any:
        shapes = {name: values.shape for name, values in fed.items()}
        return train_state.FlaxOptimTrainState.create(optimizer, model.get_initial_variables(key, shapes))

    def train(state: Any, fed: Mapping[str, jax.Array], key: jax.Array) -> tuple[Any, Any]:
        state, metrics = trainer.train_with_lr(state, fed, jnp.float32(0.01), key, model, None)
        return state, metrics["loss"]

    key = jax.random.PRNGKey(0)
    state = jax.jit(init)(key)
    step = jax.jit(train, donate_argnums=0).lower(state, fed, key).compile()

    def run() -> None:
        nonlocal state
        state, loss = step(state, fed, key)
        jax.block_until_ready((state, loss))

    return run


def matmul_steps() -> dict[str, Step]:
    """Makes float32 products of two square matrices, which measure the machine's peak."""
    import torch

    square = np.random.default_rng(0).normal(size=(MATMUL_SIDE, MATMUL_SIDE)).astype(np.float32)
    in_jax, in_torch = jnp.asarray(square), torch.from_numpy(square)
    product = jax.jit(jnp.matmul)
    product(in_jax, in_jax).block_until_ready()
    return dict(
        zip(MATMULS, (lambda: product(in_jax, in_jax).block_until_ready(), lambda: in_torch @ in_torch), strict=True)
    )


def least_seconds(makers: Mapping[str, Callable[[], Step]], rounds: int) -> dict[str, Seconds]:
    """Times every step, with matmuls between all runs; the first round of steps is a warm-up.

    Args:
      makers: functions that make the steps, by name. A step is freed before the next is made.
      rounds: number of rounds after the warm-up.
    """
    times: dict[str, list[tuple[float, float]]] = {}
    for name, make in makers.items():
        steps = {**matmul_steps(), name: make()}
        for number in range(rounds + 1):
            for own, step in steps.items():
                spent = [_seconds(step) for _ in range(1 if own == name else MATMUL_RUNS)]
                wall, processor = map(min, zip(*spent, strict=True))
                print(f"round {number}: {own} {wall:.3f} s, processor {processor:.3f} s", flush=True)
                if number or own != name:  # the peak is the best of all rounds
                    times.setdefault(own, []).append((wall, processor))
        del steps, step
        _give_back_memory()
    return {name: Seconds(*map(min, zip(*pairs, strict=True))) for name, pairs in times.items()}


def _seconds(step: Step) -> tuple[float, float]:
    """Returns wall and processor time of one run."""
    wall, processor = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - processor


def _give_back_memory() -> None:
    """Returns a step's memory to the system; glibc would keep it, and the next step needs gigabytes."""
    jax.clear_caches()
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def figures(times: Mapping[str, Seconds], tokens: int, flops: float, clock: str, threads: int) -> list[report.Figure]:
    """Computes tokens/s, MFU and ratios.

    Args:
      times: time of each contender's step, from `least_seconds`.
      tokens: tokens in a step.
      flops: FLOPs of our step, `StageLearner.model_flops`: 6 N D and causal attention.
      clock: "wall", or "processor" for the processor time of all threads divided by their number.
      threads: threads that every step uses.
    """
    seconds = {n: t.wall if clock == "wall" else t.processor / threads for n, t in times.items()}
    peak = max(2.0 * MATMUL_SIDE**3 / seconds[name] for name in MATMULS)
    mfu = flops / seconds[OURS] / peak
    lines = [
        report.Figure("float32 matmul peak, GFLOP/s", peak / 1e9, note=f"{clock} clock"),
        report.Figure("our tokens/s", tokens / seconds[OURS]),
        report.Figure("our MFU", mfu, ">= 0.60", mfu >= 0.60),
    ]
    for name, least in ((PYTORCH, 1.3), (T5X, 1.0)):
        if name in seconds:
            ratio = seconds[name] / seconds[OURS]
            lines.append(report.Figure(f"{name} tokens/s", tokens / seconds[name]))
            lines.append(report.Figure(f"ours over {name}", ratio, f">= {least}", ratio >= least))
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="length of a crop; a second has 12 + 25 + 200 tokens"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--layers", type=int, default=24, help="fewer for a quick look")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", default="wall", choices=("wall", "processor"))
    parser.add_argument("--without", default="", help=f"contender to skip: {PYTORCH} or {T5X}")
    parser.add_argument("--output", default="", help="JSON file for the figures")
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    stage = layout.coarse_stage(seconds=args.seconds)
    config = TransformerConfig(num_layers=args.layers, dropout=args.dropout, scan_layers=False)
    learner = StageLearner(stage, config, OptimizerConfig(), z_loss=Z_LOSS)
    batch = fake_batch(stage, args.batch)
    length = stage.condition_length() + stage.target_length()
    parameters = jax.eval_shape(lambda: learner.init(jax.random.key(0)).params)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters))
    print(f"{count / 1e6:.0f}M parameters, {args.batch} x {length} tokens, {threads} thread(s)", flush=True)
    makers = {OURS: our_step, PYTORCH: pytorch_step, T5X: t5x_step}
    if not importlib.util.find_spec("t5x"):
        del makers[T5X]
    makers = {n: functools.partial(make, learner, batch) for n, make in makers.items() if n != args.without}
    times = least_seconds(makers, args.rounds)
    found = figures(times, args.batch * length, learner.model_flops(args.batch), args.clock, threads)
    details = {"parameters": count, "tokens": args.batch * length, "threads": threads, **vars(args)}
    details["seconds"] = {name: value._asdict() for name, value in times.items()}
    report.publish("train_step", found, args.output, details)


if __name__ == "__main__":
    main()
