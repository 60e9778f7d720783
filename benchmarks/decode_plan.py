"""Estimates the cost of decoding on TPUs you do not have: a step of each of the paper's stages, and 30 s of music.

    python -m benchmarks.decode_plan --work plans --output docs/generation.md

Each row compiles one step of `decoding` for a topology, with a full KV cache for the stage's window, kernels and cache
in bfloat16, and separate pieces on every chip. libtpu's compiler reports its HBM. The bytes that a step has to read
(kernels, the codebook of its level, the KV cache) and its FLOPs, at the chip's peak rates, give a lower bound on its
time. Needs libtpu: pip install '.[tpu]'. A row takes a minute or two on one core. Figures stay in --work, and the
table is written after each row.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.plan_table import put
from musiclm_jax.data.tokens import SEMANTIC, STAGES
from musiclm_jax.generation import windows
from musiclm_jax.planning import plan
from musiclm_jax.stages import decoding, layout, transformer
from musiclm_jax.stages.stage import Stage
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training import partitioning

TOPOLOGIES = ("v5e:2x2", "v4:2x2x1")
SECONDS = 30.0  # of music
MUSIC_ROWS = 4  # pieces on each device


@dataclasses.dataclass(frozen=True)
class Row:
    """A step of a stage on a topology; rows, FLOPs and bytes are per chip."""

    stage: str
    topology: str
    rows: int
    read: float  # bytes that the step has to read
    flops: float
    allocated: float  # share of the chip's HBM
    milliseconds: float  # the roofline of a step
    bound: str  # the resource that sets the roofline
    steps: int  # for SECONDS of music


def steps_of(stage: Stage, window: int, seconds: float) -> tuple[int, int]:
    """Counts the sequential steps for a length of music, and the windows that are decoded in parallel.

    Args:
      stage: the stage.
      window: length of its window in semantic frames.
      seconds: length of the music.
    """
    frames = round(seconds * SEMANTIC.frame_rate)
    per_frame = stage.target.levels * stage.stream(stage.target.stream).frame_rate // SEMANTIC.frame_rate
    if stage.name == "fine":
        return window * per_frame, -(-frames // window)
    return sum(step.end - step.known for step in windows.steps(0, frames, window)) * per_frame, 1


def shapes(config: TransformerConfig, stage: Stage, rows: int, mesh: jax.sharding.Mesh) -> tuple[Any, ...]:
    """Returns the shapes of the parameters, caches, token, keys, valid positions and features of `decoding._decode`."""
    own, everywhere = partitioning.batch_sharding(mesh), partitioning.replicated(mesh)

    def shape(size: tuple[int, ...], dtype: Any, sharding: Any = own) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(size, dtype, sharding=sharding)

    made = jax.eval_shape(
        lambda key: transformer.unstack_layers(
            partitioning.unbox(transformer.init_params(config, stage.vocabulary.rows, key))
        ),
        jax.random.key(0),
    )
    params = jax.tree.map(lambda leaf: shape(leaf.shape, jnp.bfloat16, everywhere), made)
    length = -(-(1 + stage.condition_length() + stage.target_length()) // decoding.CACHE_STEP) * decoding.CACHE_STEP
    past = shape((rows, config.num_heads, length, config.d_model // config.num_heads), jnp.bfloat16)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    return (
        params,
        [(past, past) for _ in range(config.num_layers)],
        shape((rows,), jnp.int32),
        shape((rows,), keys.dtype),
        shape((rows, length), bool),
        shape((1, length, config.d_model), jnp.float32, everywhere),
    )


def make(name: str, topology: str) -> Row:
    """Compiles one step.

    Args:
      name: name of the stage.
      topology: such as "v5e:2x2".
    """
    devices, chip = plan.topology_devices(topology)
    stage, config = getattr(layout, f"{name}_stage")(), TransformerConfig(dtype="bfloat16", dropout=0.0)
    steps, side_by_side = steps_of(stage, round(stage.seconds * SEMANTIC.frame_rate), SECONDS)
    mesh = partitioning.make_mesh(devices=devices)
    rows = MUSIC_ROWS * side_by_side * len(devices)
    traced_arguments = shapes(config, stage, rows, mesh)

    def step(params: Any, caches: Any, token: Any, keys: Any, valid: Any, features: Any) -> Any:
        end = valid.shape[1]
        state = decoding.DecodeState(stage.condition_length(), end - 1, end, token, keys, valid, features, [])
        drawing = decoding.Drawing.of(decoding.Sampling())
        return decoding._decode.__wrapped__(config, stage, None, params, caches, state, 1, drawing)

    with partitioning.activation_rules(mesh):
        traced = jax.jit(step, donate_argnums=1).trace(*traced_arguments)
        memory = traced.lower().compile().memory_analysis()
    per_chip = len(devices) // len({tuple(device.coords) for device in devices})
    in_all = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    params, past, *_ = traced_arguments
    size = stage.stream(stage.target.stream).codebook_size
    kernels = sum(_bytes(own) for name, own in params.items() if name != "embedding") + 2 * size * config.d_model
    read = per_chip * (kernels + _bytes(past) / len(devices))
    flops = plan.matmul_flops(traced.jaxpr.jaxpr) * per_chip / len(devices)
    seconds = {"HBM": read / chip.hbm_rate, "compute": flops / chip.flops}
    bound = max(seconds, key=seconds.__getitem__)
    rows_of_chip, share = rows * per_chip // len(devices), per_chip * in_all / chip.hbm_bytes
    return Row(name, topology, rows_of_chip, read, flops, share, 1e3 * seconds[bound], bound, steps)


def _bytes(tree: Any) -> float:
    return float(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)))


def table(rows: list[Row]) -> str:
    """Formats the rows as a Markdown table, with the seconds for the music on each topology."""
    lines = [
        "| stage, topology | rows a chip | HBM in use | GB that a step reads | FLOPs a step | least ms a step | "
        f"steps for {SECONDS:g} s | seconds for them |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = row.steps * row.milliseconds / 1e3
        lines.append(
            f"| {row.stage}, {row.topology} | {row.rows} | {row.allocated:.0%} | {row.read / 1e9:.2f} | "
            f"{row.flops:.2e} | {row.milliseconds:.2f} ({row.bound}) | {row.steps} | {seconds:.1f} |"
        )
    for topology in dict.fromkeys(row.topology for row in rows):
        own = [row for row in rows if row.topology == topology]
        if len(own) == len(STAGES):
            seconds = sum(row.steps * row.milliseconds / 1e3 for row in own)
            pieces = own[0].rows
            lines.append(f"| all stages, {topology}: {pieces} pieces a chip | | | | | | | {seconds:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Makes the missing rows and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for the figures, created if missing")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="page with the table's marks")
    args = parser.parse_args()
    # Compile for the TPU without using one; keep libtpu from looking for a device.
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    args.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for topology in TOPOLOGIES:
        for name in STAGES:
            path = args.work / f"decode_{name}_{topology.replace(':', '_')}.json"
            if not path.exists():
                print(f"{name}, {topology}", flush=True)
                path.write_text(json.dumps(dataclasses.asdict(make(name, topology))) + "\n", encoding="utf-8")
            rows.append(Row(**json.loads(path.read_text(encoding="utf-8"))))
            page = args.output.read_text(encoding="utf-8")
            args.output.write_text(put(page, "decode", table(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
