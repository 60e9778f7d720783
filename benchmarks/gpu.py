"""Measures one GPU in one call of at most five minutes: training of the 430M coarse stage, decoding, the tiny bundle.

    python -m benchmarks.gpu --output gpu.json
    JAX_PLATFORMS=cpu python -m benchmarks.gpu --rehearsal

The second command runs every part at toy sizes on a CPU: its figures mean nothing, but what is missing shows.

"peak": a bfloat16 product of two square matrices, in JAX and PyTorch; the better one is the peak of the other figures.
"cudnn", "blocks": train steps of the stage (2262 tokens a row) with either attention, in bfloat16 with the settings of
coarse.gin. "pytorch": the same architecture in PyTorch (pytorch_stage.py). Each has the largest batch that fits, found
by halving. "decode": steps of the stage with a KV cache, bfloat16, from position 256 to 512, and "musicgen": a step of
transformers' MusicgenForCausalLM at 512, of the same width and depth. "decode_graphs" is "decode" with the whole loop
as a CUDA graph, which XLA does not do by itself. "bundle": whole pieces, text to audio.

Every part is a process of its own with a time limit. A part that fails or takes too long is one line; what it had
measured until then stays, and the others run.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import gc
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.report import Figure, publish

LIMITS = {  # seconds a part may take, in the order of running
    "peak": 40.0,
    "cudnn": 80.0,
    "pytorch": 80.0,
    "decode": 90.0,
    "musicgen": 50.0,
    "bundle": 90.0,
    "blocks": 80.0,
    "decode_graphs": 60.0,
}
GRAPHS = "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"  # else the host reads a loop's condition at every token
ROWS = (1, 8, 64)  # batches of decoding
START, END = 256, 512  # positions of decoding: one call of the compiled loop
LARGEST_BATCH = 32
STEPS = 5  # timed steps; the figure is their median
MEMORY = "0.92"  # share of the card that XLA preallocates


class Sizes:
    """Sizes of all parts: the real ones, or toys."""

    def __init__(self, rehearsal: bool):
        self.rehearsal = rehearsal
        self.side = 256 if rehearsal else 8192
        self.seconds = 0.16 if rehearsal else 10.0  # of a crop
        self.layers = 2 if rehearsal else 24
        self.batch = 2 if rehearsal else LARGEST_BATCH
        self.rows = (1, 2) if rehearsal else ROWS
        self.pieces, self.piece_seconds = (1, 1.0) if rehearsal else (64, 10.0)


def emit(**found: Any) -> None:
    """Writes what a part has measured, at once: a part that is stopped keeps it."""
    with open(os.environ["MUSICLM_BENCHMARK"], "a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    said = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in found.items())
    print(", ".join(said), flush=True)


def median_seconds(run: Callable[[], Any], times: int = STEPS) -> float:
    """Returns the median wall time of a function that waits for its result."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return float(np.median(found))


def measure_peak(sizes: Sizes) -> None:
    """Measures the rate of a bfloat16 product of random matrices."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    emit(card=device.device_kind, platform=device.platform, jax=jax.__version__)
    flops, chained = 2.0 * sizes.side**3, 10
    left, right = (jax.random.normal(jax.random.key(i), (sizes.side,) * 2, jnp.bfloat16) for i in range(2))
    product = jax.jit(lambda x, y: (x @ y) * jnp.bfloat16(sizes.side**-0.5))

    def several() -> None:
        found = left
        for _ in range(chained):
            found = product(found, right)
        found.block_until_ready()

    several()
    emit(jax_peak=chained * flops / median_seconds(several))
    if not importlib.util.find_spec("torch"):
        return
    import torch

    place = "cuda" if torch.cuda.is_available() else "cpu"
    matrices = [torch.randn(sizes.side, sizes.side, device=place, dtype=torch.bfloat16) for _ in range(2)]

    def in_torch() -> None:
        for _ in range(chained):
            matrices[0] @ matrices[1]
        if place == "cuda":
            torch.cuda.synchronize()

    in_torch()
    emit(torch_peak=chained * flops / median_seconds(in_torch))


def coarse_learner(sizes: Sizes, attention: str) -> Any:
    """Returns the learner of coarse.gin."""
    from musiclm_jax.stages.layout import coarse_stage
    from musiclm_jax.stages.learner import StageLearner
    from musiclm_jax.stages.transformer import TransformerConfig
    from musiclm_jax.training.optimizers import OptimizerConfig

    shrunk = {"d_model": 64, "num_heads": 4, "d_ff": 128} if sizes.rehearsal else {}
    config = TransformerConfig(
        num_layers=sizes.layers,
        dtype="bfloat16",
        attention=attention,
        attention_block_size=384,
        remat="dots_with_no_batch_dims_saveable",
        **shrunk,
    )
    return StageLearner(coarse_stage(seconds=sizes.seconds), config, OptimizerConfig())


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an error of XLA or PyTorch says that memory was too small."""
    said = f"{type(error).__name__} {error}"
    return any(sign in said for sign in ("RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory"))


def measure_training(
    sizes: Sizes, make: Callable[[Any, Mapping[str, np.ndarray]], Callable[[], None]], attention: str
) -> None:
    """Times a train step with the largest batch that fits.

    Args:
      sizes: sizes of the stage.
      make: makes the step of a learner and a batch.
      attention: `TransformerConfig.attention`.
    """
    from benchmarks.stage_step import fake_batch

    learner, batch = coarse_learner(sizes, attention), sizes.batch
    while batch:
        try:
            began = time.perf_counter()
            step = make(learner, fake_batch(learner.stage, batch))
            step()
            first = time.perf_counter() - began
            seconds = median_seconds(step)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            print(f"batch {batch} does not fit", flush=True)
            error.__traceback__ = None  # it holds the arrays
            step, batch = None, batch // 2
            gc.collect()
            continue
        tokens, flops = batch * learner.row_tokens, learner.model_flops(batch)
        emit(batch=batch, seconds=seconds, first_step=first, tokens=tokens, flops=flops)
        return
    raise ValueError("not even a batch of one row fits")


def jax_training(sizes: Sizes, attention: str) -> None:
    """Times our step; on a CPU, cuDNN's attention is computed by XLA."""
    import jax

    from benchmarks.train_step import our_step
    from musiclm_jax.kernels import cudnn_attention
    from musiclm_jax.stages import layers

    if jax.default_backend() != "gpu":
        layers.cudnn_attention = functools.partial(cudnn_attention.cudnn_attention, implementation="xla")
    measure_training(sizes, our_step, attention)
    memory = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in memory:
        emit(peak_gib=memory["peak_bytes_in_use"] / 2**30)


def pytorch_training(sizes: Sizes) -> None:
    """Times PyTorch's step."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # the learner assembles the batch; the card is PyTorch's
    import torch

    from benchmarks.pytorch_stage import step

    on_gpu = torch.cuda.is_available()
    options = {"device": "cuda", "backend": "inductor"} if on_gpu else {"device": "cpu", "backend": "aot_eager"}
    emit(torch=torch.__version__)
    measure_training(sizes, functools.partial(step, **options), "blocks")
    if on_gpu:
        emit(peak_gib=torch.cuda.max_memory_allocated() / 2**30)


def measure_decoding(sizes: Sizes) -> None:
    """Times a step of our decoding, with bfloat16 weights and cache."""
    import jax
    import jax.numpy as jnp

    from benchmarks.decode import random_params
    from musiclm_jax.kernels.transposed import transposed_kernels
    from musiclm_jax.stages import decoding, layout
    from musiclm_jax.stages.transformer import TransformerConfig

    stage = layout.coarse_stage()
    shrunk = {"d_model": 64, "num_heads": 4, "d_ff": 128} if sizes.rehearsal else {}
    config = TransformerConfig(num_layers=sizes.layers, dropout=0.0, dtype="bfloat16", **shrunk)
    exact = transposed_kernels(random_params(config, stage.vocabulary.rows, 0))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), exact)
    frames = (END - START) // stage.target.levels

    def runner(rows: int) -> Callable[[], None]:
        """Decodes END - START tokens again and again; the first call compiles."""
        shape = (rows, config.num_heads, END, config.d_model // config.num_heads)
        keys = jax.random.split(jax.random.key(0), 2 * config.num_layers)
        past = [
            tuple(jax.random.normal(keys[2 * i + j], shape, jnp.bfloat16) for j in range(2))
            for i in range(config.num_layers)
        ]
        token, valid = jnp.zeros(rows, jnp.int32), jnp.ones((rows, END), bool)
        features = jnp.zeros((1, END, config.d_model))
        own = jax.random.split(jax.random.key(1), rows)
        kept = [decoding.DecodeState(START - 4, START, END, token, own, valid, features, past)]

        def run() -> None:
            after, codes = decoding.decode_frames(config, stage, params, kept[0], frames)
            codes.block_until_ready()
            kept[0] = after._replace(position=START)

        run()
        return run

    # XLA compiles in the threads at the same time.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled = dict(zip(sizes.rows, pool.map(runner, sizes.rows), strict=True))
    for rows, run in compiled.items():
        emit(**{f"rows_{rows}": median_seconds(run, 3) / (END - START)})


def measure_musicgen(sizes: Sizes) -> None:
    """Times a step of transformers' MusicGen."""
    import torch

    from benchmarks.musicgen import musicgen_step

    for rows in sizes.rows:
        step = musicgen_step(sizes.layers, END, rows, "cuda" if torch.cuda.is_available() else "cpu")
        step()
        emit(**{f"rows_{rows}": float(np.median([step() for _ in range(10)]))})


def measure_bundle(sizes: Sizes) -> None:
    """Times whole pieces of the tiny bundle, once compiled."""
    from musiclm_jax import bundles
    from musiclm_jax.generation import generate

    loaded = bundles.load("tiny")
    texts = [f"a calm piano piece, number {number}" for number in range(sizes.pieces)]
    began = time.perf_counter()
    generate.generate(loaded, texts, seconds=sizes.piece_seconds)
    emit(first_call=time.perf_counter() - began)
    seconds = median_seconds(lambda: generate.generate(loaded, texts, seconds=sizes.piece_seconds), 2)
    emit(seconds=seconds, music=sizes.pieces * sizes.piece_seconds)


PARTS: dict[str, Callable[[Sizes], None]] = {
    "peak": measure_peak,
    "cudnn": lambda sizes: jax_training(sizes, "cudnn"),
    "blocks": lambda sizes: jax_training(sizes, "blocks"),
    "pytorch": pytorch_training,
    "decode": measure_decoding,
    "decode_graphs": measure_decoding,
    "musicgen": measure_musicgen,
    "bundle": measure_bundle,
}


def run_part(name: str, rehearsal: bool, seconds: float) -> tuple[dict[str, Any], str]:
    """Runs a part in its own process; returns what it measured, and one line about its failure or ""."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "found"
        environment = os.environ | {"MUSICLM_BENCHMARK": str(path), "XLA_PYTHON_CLIENT_MEM_FRACTION": MEMORY}
        if name == "decode_graphs":
            environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {GRAPHS}"
        if name in ("peak", "pytorch", "musicgen"):  # PyTorch needs memory, too
            environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, *(["--rehearsal"] if rehearsal else [])]
        failure = ""
        try:
            done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=seconds)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"code {done.returncode}"]
                failure = f"{name} failed: {lines[-1]}"
        except subprocess.TimeoutExpired:
            failure = f"{name} was stopped after {seconds:.0f} s"
        written = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found: dict[str, Any] = {}
    for line in written:
        if line.endswith("}"):  # the last one may be cut off
            found |= json.loads(line)
    return found, failure


def figures(found: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    """Computes the table from what the parts have measured; what is missing has no line."""
    lines = []
    peaks = [value for name, value in found.get("peak", {}).items() if name in ("jax_peak", "torch_peak")]
    if peaks:
        lines.append(Figure("peak of a bfloat16 product, TFLOP/s", max(peaks) / 1e12))
    rates = {}
    for name in ("cudnn", "blocks", "pytorch"):
        own = found.get(name, {})
        if "seconds" not in own:
            continue
        rates[name] = own["tokens"] / own["seconds"]
        lines.append(Figure(f"training, {name}: tokens/s", rates[name], note=f"batch {own['batch']}"))
        if peaks:
            share = own["flops"] / own["seconds"] / max(peaks)
            target = {} if name == "pytorch" else {"target": ">= 0.50", "passed": share >= 0.5}
            lines.append(Figure(f"training, {name}: model FLOPs over the peak", share, **target))
    for name in ("cudnn", "blocks"):
        if name in rates and "pytorch" in rates:
            ratio = rates[name] / rates["pytorch"]
            lines.append(Figure(f"training, {name} over PyTorch", ratio, ">= 1.3", ratio >= 1.3))
    ours, theirs = found.get("decode", {}), found.get("musicgen", {})
    for key, seconds in ours.items():
        lines.append(Figure(f"decoding, batch {key.removeprefix('rows_')}: ms a step", 1e3 * seconds))
        if key in theirs:
            ratio = theirs[key] / seconds
            name = f"decoding, batch {key.removeprefix('rows_')}: times as fast as MusicGen"
            lines.append(Figure(name, ratio, ">= 3", ratio >= 3))
    for key, seconds in found.get("decode_graphs", {}).items():
        lines.append(Figure(f"decoding as a graph, batch {key.removeprefix('rows_')}: ms a step", 1e3 * seconds))
    bundle = found.get("bundle", {})
    if "seconds" in bundle:
        speed = bundle["music"] / bundle["seconds"]
        lines.append(Figure("tiny bundle, times real time", speed, ">= 50", speed >= 50))
    return lines


def main() -> None:
    """Runs the parts and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="", help="JSON file for the figures")
    parser.add_argument("--seconds", type=float, default=290.0, help="time limit of all parts together")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(LIMITS))
    parser.add_argument("--rehearsal", action="store_true", help="toy sizes; the limits are ten times as long")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        PARTS[args.part](Sizes(args.rehearsal))
        return
    slack = 10 if args.rehearsal else 1
    end = time.monotonic() + slack * args.seconds
    found: dict[str, dict[str, Any]] = {}
    failures = []
    for name in args.parts:
        limit = min(slack * LIMITS[name], end - time.monotonic())
        print(f"--- {name}", flush=True)
        found[name], failure = run_part(name, args.rehearsal, limit) if limit > 5 else ({}, f"{name}: no time was left")
        if failure:
            failures.append(failure)
            print(failure, flush=True)
    card = found.get("peak", {}).get("card", "unknown card")
    details = {"card": card, "rehearsal": args.rehearsal, "failures": failures, "parts": found}
    title = f"gpu: {card}" + (" (a rehearsal: no figure means anything)" if args.rehearsal else "")
    table = figures(found)
    if args.rehearsal:
        table = [dataclasses.replace(figure, target="", passed=None) for figure in table]
    publish(title, table, args.output, details)
    for failure in failures:
        print(failure)


if __name__ == "__main__":
    main()
