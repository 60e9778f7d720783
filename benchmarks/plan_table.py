"""Makes the paper-scale plans of docs/plan.md: three stages on three topologies, and the effect of each choice.

    python -m benchmarks.plan_table --work plans --output docs/plan.md

Each row compiles a whole train step in its own process, which takes some minutes on one core. Figures stay in --work,
so an interrupted run resumes. Needs libtpu: pip install '.[tpu]'.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterable

from musiclm_jax.data.tokens import STAGES
from musiclm_jax.planning import plan

TOPOLOGIES = ("v4:4x4x4", "v5e:16x16", "v5p:4x4x4")
GIB = 2**30
BEGIN, END = "<!-- table: {} -->", "<!-- end of table: {} -->"


@dataclasses.dataclass(frozen=True)
class Row:
    """A plan to make."""

    name: str  # name of its file in --work
    label: str
    stage: str
    topology: str
    bindings: tuple[str, ...] = ()
    whole_vocabulary: bool = False  # compute logits over all ids, which the package itself never does


PAPER = tuple(Row(f"{s}_{t.replace(':', '_')}", f"{s}, {t}", s, t) for s in STAGES for t in TOPOLOGIES)
BLOCKS = ("TransformerConfig.attention='blocks'", "TransformerConfig.attention_block_size=256")


def _changed(name: str, label: str, *bindings: str, **options) -> Row:
    return Row(f"coarse_{name}", label, "coarse", "v4:4x4x4", bindings, **options)


CHOICES = (
    Row("coarse_v4_4x4x4", "as `coarse.gin` stands", "coarse", "v4:4x4x4"),
    _changed("blocks", "attention 'blocks' of 256 queries, remat 'full'", *BLOCKS, "TransformerConfig.remat='full'"),
    _changed("remat_full", "remat 'full'", "TransformerConfig.remat='full'"),
    _changed("remat_none", "remat 'none'", "TransformerConfig.remat='none'"),
    _changed("microbatches", "microbatches 2", "StageLearner.microbatches=2"),
    _changed("float32", "activations in float32", "TransformerConfig.dtype='float32'"),
    _changed("vocabulary", "logits over all 25,728 ids", whole_vocabulary=True),
)
SLICES = (
    Row(
        "coarse_v5e_slices",
        "coarse, 2 slices of v5e:16x16, batch 512",
        "coarse",
        "v5e:16x16",
        ("BATCH_SIZE=512", "make_mesh.dcn_data=2"),
    ),
)


def make(row: Row, path: pathlib.Path) -> None:
    """Makes one plan in this process.

    Args:
      row: the plan to make.
      path: JSON file for its figures.
    """
    from musiclm_jax.launch import plan as command
    from musiclm_jax.stages import transformer

    if row.whole_vocabulary:
        transformer.level_logits = whole_vocabulary_logits
    bindings = [f"--gin.{binding}" for binding in row.bindings]
    command.main([f"--gin_file={row.stage}.gin", f"--topology={row.topology}", "--json", str(path), *bindings])


def whole_vocabulary_logits(params, hidden, *_):
    """Replaces `transformer.level_logits` to count its cost: `[batch, frames, levels, ids]`."""
    import jax.numpy as jnp

    d = hidden.shape[-1]
    table = params["embedding"].astype(hidden.dtype)
    scaled = hidden * jnp.asarray(d**-0.5, hidden.dtype)
    return jnp.einsum("btqd,vd->btqv", scaled, table, preferred_element_type=jnp.float32)


def table(rows: Iterable[Row], work: pathlib.Path) -> str:
    """Formats the rows as a Markdown table; rows without figures say "not made"."""
    lines = [
        "| plan | HBM a chip (GiB) | parameters, optimiser, activations, temporaries | FLOPs executed / model | "
        "compute, HBM, interconnect, between slices (ms) | roofline (ms) | MFU at most | tokens/s at most | "
        "days for 1e11 tokens |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        path = work / f"{row.name}.json"
        if not path.exists():
            lines.append(f"| {row.label} | not made |" + " |" * 7)
            continue
        figures = json.loads(path.read_text(encoding="utf-8"))
        if "does_not_fit" in figures:
            found = figures["does_not_fit"].split(". ")[0]
            lines.append(f"| {row.label} | {found} |" + " |" * 7)
            continue
        lines.append(_line(row.label, plan.Plan.from_json(figures)))
    return "\n".join(lines)


def _line(label: str, found: plan.Plan) -> str:
    share = found.hbm_bytes / found.chip.hbm_bytes
    kinds = (found.parameter_bytes, found.optimizer_bytes, found.activation_bytes, found.temporary_bytes)
    cells = (
        label,
        f"{found.hbm_bytes / GIB:.1f} of {found.chip.hbm_bytes / GIB:.0f}, {share:.0%}",
        ", ".join(f"{kind / GIB:.1f}" for kind in kinds),
        f"{found.flops * found.chips:.2e} / {found.model_flops * found.chips:.2e}",
        ", ".join(f"{1e3 * value:.0f}" for value in found.seconds.values()),
        f"{1e3 * found.step_seconds:.0f}",
        f"{found.mfu:.0%}",
        f"{found.tokens_per_second / 1e6:.2f}M",
        f"{1e11 / found.tokens_per_second / 86_400:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def put(text: str, name: str, content: str) -> str:
    """Replaces the text between a table's two marks in a page.

    Raises:
      ValueError: if the page lacks the marks.
    """
    begin, end = BEGIN.format(name), END.format(name)
    if begin not in text or end not in text:
        raise ValueError(f"the page has no lines {begin!r} and {end!r} for the table: add them where it belongs")
    return text[: text.index(begin) + len(begin)] + f"\n{content}\n" + text[text.index(end) :]


def main(argv: list[str] | None = None) -> None:
    """Makes the missing plans one by one and writes both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for the figures, created if missing")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="page with the tables' marks")
    parser.add_argument("--only", nargs="*", help="names of the rows to make; none only writes the tables")
    parser.add_argument("--here", action="store_true", help="make the rows in this process")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    rows = {row.name: row for row in PAPER + CHOICES + SLICES}
    for name in rows if args.only is None else args.only:
        path = args.work / f"{name}.json"
        if path.exists():
            continue
        if args.here:
            make(rows[name], path)
            continue
        print(f"{name}: {rows[name].label}", flush=True)
        command = [sys.executable, "-m", "benchmarks.plan_table", "--here", "--only", name]
        subprocess.run([*command, "--work", str(args.work), "--output", str(args.output)], check=False)
    if args.here:
        return
    page = args.output.read_text(encoding="utf-8")
    for name, content in (("paper", PAPER + SLICES), ("choices", CHOICES)):
        page = put(page, name, table(content, args.work))
    args.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
