"""Measures decoding speed: a stage's steps against memory bandwidth and MusicGen, and the whole tiny bundle.

    taskset -c 0 python -m benchmarks.decode --tokens tokens --output decode.json
    taskset -c 0 python -m benchmarks.decode --parts stage --layers 4 --positions 512 1024 2048
    python -m benchmarks.decode --parts bundle --long 600

The second command is quick, with fewer layers of the same width; the third generates ten minutes of music.

"stage": a stage of the paper's width (1024, 16 heads, gated feed-forward of 4096) samples codes at given positions,
with float32 and with 8-bit kernels (`int8.py`), for 1 and 8 rows. Weights and KV cache are random, which does not
affect the time. MusicgenForCausalLM has the same width, depth, heads, rows and position, its own feed-forward (4096,
not gated) and its cross-attention, and so as many weights. Its step is one call of the model, without the overhead of
`generate`. 24 layers take 8.5 GB at position 512, and 12 GB at 768. The bandwidth limit of a step comes from products
of the stage's gate and up kernels alone, with one row.

"kernels": matrix products by layout, dtype and number of rows. "layout": the effect of transposed kernels, and of
their products, on the bundle's small stages. "loss": held-out bits of the bundle's stages with 8-bit kernels, on token
records (--tokens). "bundle": whole commands, and music once compiled.

Contenders alternate round by round. Figures are medians of processor time, which other work on the machine affects
least, on one core.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.musicgen import musicgen_step
from benchmarks.report import Figure, arguments, publish
from musiclm_jax import bundles
from musiclm_jax.data.tokens import STAGES
from musiclm_jax.evaluation import metrics
from musiclm_jax.generation import generate
from musiclm_jax.kernels.int8 import SCALE, int8_kernels, int8_product
from musiclm_jax.kernels.transposed import TRANSPOSED, transposed_kernels, transposed_product, transposed_product_xla
from musiclm_jax.stages import decoding, layout
from musiclm_jax.stages.layers import attention_to_past, attention_to_past_xla, bits16
from musiclm_jax.stages.transformer import TransformerConfig, unstack_layers

POSITIONS = (512,)  # multiples of decoding.CACHE_STEP, so that the cache is full
KERNELS = ((1024, 8192, 4), (256, 1024, 16))  # inputs, outputs, number of kernels
PASTS = ((8, 16, 2048, 64), (10, 2, 512, 128))  # rows, heads, positions and channels
FRAMES = 2  # frames of the coarse stage per call
PARTS = ("stage", "kernels", "layout", "loss", "bundle")


def random_params(config: TransformerConfig, rows: int, seed: int) -> decoding.Params:
    """Draws float32 parameters of unrolled layers, normal and scaled to keep activations near 1."""
    rng, d, f = np.random.default_rng(seed), config.d_model, config.d_ff
    channels = d // config.num_heads

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32) * shape[0] ** -0.5)

    params: dict[str, Any] = {
        "embedding": normal(rows, d),
        "relative_bias": normal(config.relative_buckets, config.num_heads),
        "final_norm": {"scale": jnp.ones(d)},
    }
    for i in range(config.num_layers):
        params[f"layers_{i}"] = {
            "attention_norm": {"scale": jnp.ones(d)},
            "attention": {
                "qkv": normal(d, config.num_heads, 3, channels),
                "out": normal(config.num_heads, channels, d),
            },
            "mlp_norm": {"scale": jnp.ones(d)},
            "mlp": {"gate": normal(d, f), "up": normal(d, f), "down": normal(f, d)},
        }
    return params


def state_at(config: TransformerConfig, position: int, rows: int, rounded: bool) -> decoding.DecodeState:
    """Makes a state with a random KV cache of length `position`, `FRAMES` frames of four tokens before its end."""
    key, kept = jax.random.key(0), bits16 if rounded else jnp.asarray
    shape = (rows, config.num_heads, position, config.d_model // config.num_heads)
    past = [
        tuple(kept(jax.random.normal(jax.random.fold_in(key, 2 * i + j), shape)) for j in range(2))
        for i in range(config.num_layers)
    ]
    return decoding.DecodeState(
        start=262,
        position=position - 4 * FRAMES,
        end=2262,
        token=jnp.zeros(rows, jnp.int32),
        keys=jax.random.split(key, rows),
        valid=jnp.ones((rows, position), bool),
        features=jnp.zeros((1, position, config.d_model)),
        caches=past,
    )


def stage_step(config: TransformerConfig, params: decoding.Params, position: int, rows: int) -> Callable[[], float]:
    """Returns a function that samples the last frames before `position` and returns the processor time of a step."""
    stage = layout.coarse_stage()
    rounded = "qkv" + SCALE in params["layers_0"]["attention"]
    kept = [state_at(config, position, rows, rounded)]

    def run() -> float:
        began = time.process_time()
        after, codes = decoding.decode_frames(config, stage, params, kept[0], FRAMES)
        codes.block_until_ready()
        spent = time.process_time() - began
        kept[0] = after._replace(position=position - 4 * FRAMES)
        return spent / (4 * FRAMES)

    run()  # compiles
    return run


def kernels_read(params: decoding.Params, layers: int) -> Callable[[], float]:
    """Returns a function that measures bandwidth: kernel bytes per second in one-row products with gate and up."""
    kernels = [params[f"layers_{i}"]["mlp"][name + TRANSPOSED] for i in range(layers) for name in ("gate", "up")]
    row = jnp.ones((1, kernels[0].shape[1]))
    products = jax.jit(lambda row, kernels: [transposed_product(row, kernel) for kernel in kernels])

    def run() -> float:
        began = time.process_time()
        jax.block_until_ready(products(row, kernels))
        return sum(kernel.nbytes for kernel in kernels) / (time.process_time() - began)

    run()
    return run


def turns(parties: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Runs the parties in turns and returns the median of each."""
    found: dict[str, list[float]] = {name: [] for name in parties}
    for _ in range(rounds):
        for name, run in parties.items():
            found[name].append(run())
    return {name: float(np.median(values)) for name, values in found.items()}


def step_bytes(config: TransformerConfig, params: decoding.Params, position: int, rows: int) -> float:
    """Returns the bytes that a step has to read: kernels, norms, the codebook of its level, and the KV cache."""
    layers = sum(leaf.nbytes for name, own in params.items() if name != "embedding" for leaf in jax.tree.leaves(own))
    past = 2 * config.num_layers * rows * position * config.d_model * 4
    return layers + 1024 * config.d_model * 4 + past


def measure_stage(layers: int, rounds: int, positions: Iterable[int], musicgen: bool) -> tuple[list[Figure], dict]:
    """Measures steps of the stage against memory bandwidth and MusicGen."""
    config = TransformerConfig(num_layers=layers, dropout=0.0)
    params = transposed_kernels(random_params(config, layout.coarse_stage().vocabulary.rows, 0))
    kinds = {"float32": params, "int8": int8_kernels(params)}
    figures, details = [], {}
    for position in positions:
        parties: dict[str, Callable[[], float]] = {"kernels": kernels_read(params, layers)}
        for kind, own in kinds.items():
            parties |= {f"{kind}, {rows}": stage_step(config, own, position, rows) for rows in (1, 8)}
        if musicgen:
            parties |= {f"musicgen, {rows}": musicgen_step(layers, position, rows) for rows in (1, 8)}
        found = turns(parties, rounds)
        del parties
        details[str(position)] = found
        print(position, {name: f"{value:.3g}" for name, value in found.items()}, flush=True)
        at, bandwidth = f"at position {position}", found["kernels"]
        share = step_bytes(config, params, position, 1) / found["float32, 1"] / bandwidth
        figures.append(Figure(f"kernels alone, GB/s, {at}", bandwidth / 1e9))
        figures.append(
            Figure(f"share of that bandwidth, batch 1, {at}", share, ">= 0.85", share >= 0.85, "float32, past included")
        )
        for kind in kinds:
            figures.append(Figure(f"step in ms, batch 1, {kind}, {at}", 1e3 * found[f"{kind}, 1"]))
            more, target = found[f"{kind}, 8"] / found["float32, 1"], "<= 2"
            figures.append(Figure(f"batch 8 step over batch 1 step in float32, {kind}, {at}", more, target, more <= 2))
            for rows, least in ((1, 5.0), (8, 2.5)) if musicgen else ():
                ratio = found[f"musicgen, {rows}"] / found[f"{kind}, {rows}"]
                figures.append(
                    Figure(
                        f"times as fast as MusicGen, batch {rows}, {kind}, {at}", ratio, f">= {least}", ratio >= least
                    )
                )
    return figures, details


def measure_kernels(rounds: int) -> tuple[list[Figure], dict]:
    """Measures products by layout and dtype of the kernel, in ms, for 1 to 64 rows at the paper's and the tiny size.

    "Ours" are the products of decoding: `cpu_decoding` for few rows, else XLA's with the kernel first.
    """
    rng = np.random.default_rng(0)

    def product(contracted: int, sums: Any, rows: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.dot_general(rows, kernel, (((1,), (contracted,)), ((), ())), preferred_element_type=sums)

    def int8_rows(rows: jax.Array, kernel: jax.Array) -> jax.Array:
        return int8_product(rows[None].astype(jnp.float32), kernel, jnp.ones(len(kernel)))

    parties = {}
    dtypes = ((jnp.float32, jnp.float32), (jnp.bfloat16, jnp.float32), (jnp.int8, jnp.int32))
    for (inward, outward, copies), (dtype, sums) in itertools.product(KERNELS, dtypes):
        wide = [jnp.asarray(rng.standard_normal((inward, outward), np.float32)) for _ in range(copies)]
        usual = [(30 * kernel).astype(dtype) for kernel in wide]
        transposed = [kernel.T.copy() for kernel in usual]
        kinds = {
            "tokens first": (usual, functools.partial(product, 0, sums)),
            "tokens first, transposed": (transposed, functools.partial(product, 1, sums)),
            "kernel first": (transposed, functools.partial(transposed_product_xla, sums=sums)),
            "ours": (transposed, int8_rows if dtype is jnp.int8 else transposed_product),
        }
        for (kind, (kernels, own)), count in itertools.product(kinds.items(), (1, 2, 8, 64)):
            every = jax.jit(lambda rows, kernels, own=own: [own(rows, kernel) for kernel in kernels])
            rows = jnp.ones((count, inward), dtype)
            jax.block_until_ready(every(rows, kernels))

            def run(every=every, rows=rows, kernels=kernels) -> float:
                began = time.process_time()
                jax.block_until_ready(every(rows, kernels))
                return (time.process_time() - began) / len(kernels)

            parties[f"{inward} x {outward}, {jnp.dtype(dtype).name}, {kind}, {count} rows"] = run
    for shape, (kind, own) in itertools.product(
        PASTS, {"XLA": attention_to_past_xla, "ours": attention_to_past}.items()
    ):
        keys, values = (jnp.asarray(rng.standard_normal(shape, np.float32)) for _ in range(2))
        bias, valid = jnp.zeros(shape[1:3]), jnp.ones((shape[0], shape[2]), bool)
        operands = (keys[:, :, :1], keys, values, bias, valid, jnp.int32(shape[2] - 1))
        attend = jax.jit(own)

        def run_attention(attend=attend, operands=operands) -> float:
            began = time.process_time()
            attend(*operands).block_until_ready()
            return time.process_time() - began

        run_attention()
        parties[f"attention to a past of {shape[2]} positions, {shape[0]} rows, {kind}"] = run_attention
    found = turns(parties, rounds)
    return [Figure(f"in ms, {name}", 1e3 * value) for name, value in found.items()], found


def measure_layout(bundle: str, rounds: int) -> tuple[list[Figure], dict]:
    """Measures windows of the bundle's stages with kernels as stored and transposed."""

    loaded, rng, figures, details = bundles.load(bundle), np.random.default_rng(0), [], {}
    for name in STAGES:
        config, variables = loaded.part(name)
        stage, transformer_config = config.stage, config.transformer
        rows = 10 if name == "fine" else 1  # the windows of ten seconds at once, or a piece, which is guided
        sampling = decoding.Sampling(guidance=2.0 if stage.condition_dropout else 1.0)
        conditioning = {}
        for part in stage.conditioning:
            stream = stage.stream(part.stream)
            shape = (rows, stage.frames(part), stream.quantizers) if stream.frame_rate else (rows, stream.quantizers)
            codes = rng.integers(0, stream.codebook_size, shape)
            conditioning[part.stream] = codes[..., 0] if part.stream == "semantic" else codes
        keys, frames = jax.random.split(jax.random.key(0), rows), stage.frames(stage.target)
        apart = unstack_layers(variables["params"])

        def run(params: decoding.Params) -> float:
            began = time.process_time()
            codes = decoding.sample(transformer_config, stage, params, conditioning, None, frames, keys, sampling)  # noqa: B023
            codes.block_until_ready()
            return time.process_time() - began

        parties = {
            order: functools.partial(run, params)
            for order, params in (("own order", apart), ("transposed", transposed_kernels(apart)))
        }
        for party in parties.values():
            party()  # compiles
        details[name] = found = turns(parties, rounds)
        ratio = found["transposed"] / found["own order"]
        figures.append(
            Figure(f"window of the {name} stage, time with transposed kernels over that with their own", ratio)
        )
    return figures, details


def measure_loss(args: argparse.Namespace) -> tuple[list[Figure], dict]:
    """Measures the increase in held-out bits per token from float32 to 8-bit kernels, paired by clip."""
    from musiclm_jax.data.records import read_token_records, shard_paths
    from musiclm_jax.evaluation.diagnose.stage_bits import crop, measure

    bundle, rng = bundles.load(args.bundle), np.random.default_rng(args.seed)
    test = list(read_token_records(shard_paths(args.tokens, "test")))
    test = [test[i] for i in rng.permutation(len(test))[: args.clips]]
    figures = []
    for name in STAGES:
        config, variables = bundle.part(name)
        crops = [crop(record, config.stage, rng) for record in test]
        unrolled = dataclasses.replace(config.transformer, scan_layers=False)
        params = decoding.unstacked(variables["params"])
        exact, rounded = (measure(config.stage, unrolled, p, crops) for p in (params, int8_kernels(params)))
        figures.append(Figure(f"bits per token, {name}", metrics.bootstrap(exact.mean(axis=1), seed=args.seed)))
        more = metrics.bootstrap((rounded - exact).mean(axis=1), seed=args.seed)
        figures.append(Figure(f"added by 8-bit kernels, {name}", more, note=f"{len(test)} held-out clips"))
    return figures, {}


def measure_bundle(bundle: str, seconds: float, long: float) -> tuple[list[Figure], dict]:
    """Measures two commands in their own processes, of which only the first compiles, and then compiled music here.

    The start-up time of a command is its time minus that of the music itself.
    """

    figures, music = [], {}
    # Before this process has grown: a command's peak includes the process that it was forked from.
    with tempfile.TemporaryDirectory() as folder:
        commands = {which: _command(bundle, seconds, folder) for which in ("first", "second")}
        for which, (spent, peak) in commands.items():
            figures.append(Figure(f"{which} command, {seconds:g} s of music, processor s", spent))
            figures.append(Figure(f"{which} command, peak memory in GiB", peak))
        if long:
            spent, peak = _command(bundle, long, folder)
            figures.append(Figure(f"{long:g} s of music, processor s", spent))
            figures.append(Figure(f"{long:g} s of music, peak memory in GiB", peak))
    loaded = bundles.load(bundle)
    for weights in ("float32", "int8"):  # bfloat16 is for accelerators
        generate.generate(loaded, ["a calm piano piece"], seconds=seconds, weights=weights)
        began, clock = time.process_time(), time.perf_counter()
        generate.generate(loaded, ["a cheerful Irish jig on the fiddle"], seconds=seconds, weights=weights)
        music[weights], clock = time.process_time() - began, time.perf_counter() - clock
        factor = music[weights] / seconds
        name = f"processor s per second of music, {weights}, once compiled"
        figures.append(Figure(name, factor, "<= 0.5", factor <= 0.5))
        figures.append(Figure(f"by the clock, {weights}, {len(os.sched_getaffinity(0))} cores", clock / seconds))
    first, second = (commands[which][0] - music["float32"] for which in ("first", "second"))
    ratio, note = first / second, f"compilation cached on disk; {first:.1f} and {second:.1f} s without the music"
    figures.append(Figure("first start over second", ratio, ">= 3", ratio >= 3, note))
    figures.append(Figure("first command over second", commands["first"][0] / commands["second"][0]))
    return figures, {}


def _command(bundle: str, seconds: float, folder: str) -> tuple[float, float]:
    """Runs `musiclm generate` with its compilation cache in `folder`; returns processor seconds and peak GiB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "musiclm_jax.launch.main", "generate", "a calm piano piece", "--force"]
    command += ["--bundle", bundle, "--seconds", str(seconds), "--output", str(pathlib.Path(folder) / "music.wav")]
    subprocess.run(command, check=True, env=os.environ | {"MUSICLM_CACHE": folder}, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, after.ru_maxrss / 2**20  # the maximum of all children so far; music gets longer from call to call


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__.splitlines()[0], corpus=False)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--layers", type=int, default=24, help="layers of the stage and of MusicGen")
    parser.add_argument("--positions", nargs="+", type=int, default=list(POSITIONS), help="multiples of 256")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--without_musicgen", action="store_true", help="skip MusicGen (torch, transformers)")
    parser.add_argument("--tokens", help="folder of token records, made by `musiclm tokenize`, for the loss")
    parser.add_argument("--clips", type=int, default=100, help="held-out clips for the loss")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the bundle's music")
    parser.add_argument("--long", type=float, default=0.0, help="seconds of an additional long piece; 0 for none")
    args = parser.parse_args()
    if "loss" in args.parts and not args.tokens:
        parser.error("the loss needs held-out clips: give --tokens, or --parts without it")
    made = {
        "kernels": lambda: measure_kernels(args.rounds),
        "stage": lambda: measure_stage(args.layers, args.rounds, args.positions, not args.without_musicgen),
        "layout": lambda: measure_layout(args.bundle, args.rounds),
        "loss": lambda: measure_loss(args),
        "bundle": lambda: measure_bundle(args.bundle, args.seconds, args.long),
    }
    figures: list[Figure] = []
    details: dict[str, Any] = {"layers": args.layers}
    for part in args.parts:
        own, details[part] = made[part]()
        figures += own
    publish("decode", figures, args.output, details)


if __name__ == "__main__":
    main()
