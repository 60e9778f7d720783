"""`musiclm plan`: estimates the cost of a stage's train step on TPUs or GPUs by compiling it without them."""

import dataclasses
import json
import os
import pathlib
import sys

from musiclm_jax.launch import quiet_tensorflow  # noqa: F401  before anything imports TensorFlow

# isort: split
import gin
import jax

from musiclm_jax.data import audio, files
from musiclm_jax.launch import command, jax_environment, train
from musiclm_jax.planning import plan as planning
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.training import partitioning
from musiclm_jax.training.chips import CHIPS, GPU_KINDS

USAGE = """musiclm plan --gin_file=coarse.gin --topology=v4:4x4x4 [--gin.NAME=VALUE ...]

Takes the gin files and bindings of `musiclm train`; reads no data. The topology describes one slice of TPUs;
make_mesh.dcn_data is the number of slices. Or it is one node of GPUs, such as h100:8. Needs the compiler for the chip:
pip install '.[tpu]' or '.[cuda12]' in a checkout."""
GIB = 2**30
PREALLOCATED = 0.75  # of a GPU's memory, by XLA; see docs/gpu.md


def main(arguments: list[str]) -> int:
    """Runs the command.

    Args:
      arguments: command-line arguments without the command's name.

    Returns:
      0, or 1 if the step does not fit.

    Raises:
      ValueError: if the input cannot be used; the message has one line.
    """
    parser = command.Parser(
        "plan", "estimate the training cost of a stage on TPUs or GPUs you do not have", usage=USAGE
    )
    parser.add_argument(
        "--gin_file", type=command.local_path, action="append", required=True, help="as for `musiclm train`"
    )
    parser.add_argument("--topology", required=True, help="v4:4x4x4, v5e:16x16, v5p:8x8x8, v6e:16x16, h100:8, ...")
    parser.add_argument("--tokens", type=float, default=1e11, help="tokens of the whole training (default: 1e11)")
    parser.add_argument("--json", type=command.local_path, help="also write the figures to this file")
    args, bindings = parser.parse_with_bindings(arguments)
    if args.json:
        audio.check_output(args.json, force=True)
    # Compile for the chip without using one; keep libtpu and the CUDA plugin from looking for a device.
    jax.config.update("jax_platforms", "cpu")
    jax_environment.quiet_libtpu()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the plugin would report the missing driver
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    no_data = ["DATA_DIR = 'not read'"]
    train.parse_gin(args.gin_file, no_data + bindings)
    with train.one_line_errors():
        learner = gin.query_parameter("train.learner").scoped_configurable_fn()
        batch_size = gin.query_parameter("%BATCH_SIZE")
    if not isinstance(learner, StageLearner):
        raise ValueError(
            f"musiclm plan supports the three stages, not {type(learner).__name__}: give a stage's gin file"
        )
    bound = gin.get_bindings("make_mesh") if "make_mesh" in gin.config_str() else {}
    devices, chip = planning.topology_devices(args.topology, bound.get("dcn_data", 1))
    mesh = partitioning.make_mesh(**bound, devices=devices)
    print(
        f"{args.topology}: {learner.stage.name} stage, batch {batch_size}, mesh {dict(mesh.shape)}; compiling",
        flush=True,
    )
    try:
        found = planning.plan(learner, batch_size, mesh, chip)
    except planning.DoesNotFitError as error:
        print(error)
        if args.json:
            files.write(pathlib.Path(args.json), json.dumps({"does_not_fit": str(error)}) + "\n")
        return 1
    print("\n".join(report(found, args.tokens)))
    if args.json:
        files.write(pathlib.Path(args.json), json.dumps(dataclasses.asdict(found)) + "\n")
    return 0 if found.hbm_bytes <= chip.hbm_bytes else 1


def report(found: planning.Plan, tokens: float) -> list[str]:
    """Returns the report on a plan, line by line."""
    kinds = {
        "parameters": found.parameter_bytes,
        "optimiser": found.optimizer_bytes,
        "activations kept": found.activation_bytes,
        "temporaries": found.temporary_bytes,
    }
    memory = ", ".join(f"{name} {value / GIB:.2f}" for name, value in kinds.items())
    share = found.hbm_bytes / found.chip.hbm_bytes
    sent = ", ".join(f"{kind} {value / 1e9:.2f}" for kind, value in sorted(found.traffic.collectives.items())) or "none"
    slices = f"; {found.traffic.slices / 1e9:.2f} to other slices" if found.slices > 1 else ""
    seconds = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in found.seconds.items())
    days = tokens / found.tokens_per_second / 86_400
    verdict = f"fits: {share:.0%} of HBM" if share <= 1 else f"does not fit: {share:.0%} of HBM. {planning.KNOBS}"
    if PREALLOCATED < share <= 1 and found.chip in map(CHIPS.get, GPU_KINDS.values()):
        verdict += f", but XLA takes {PREALLOCATED:.0%} unless XLA_PYTHON_CLIENT_MEM_FRACTION says more, such as 0.95"
    return [
        f"parameters          {found.parameter_count / 1e6:.1f}M on {found.chips} chips",
        f"HBM a chip (GiB)    {found.hbm_bytes / GIB:.2f} of {found.chip.hbm_bytes / GIB:.0f}, {share:.0%}: {memory}",
        f"FLOPs a step        {found.flops * found.chips:.3e} executed; 6 N D and causal attention: "
        f"{found.model_flops * found.chips:.3e}",
        f"HBM traffic (GB)    {found.traffic.hbm / 1e9:.1f} a chip",
        f"collectives (GB)    {sent} sent by a chip" + slices,
        f"roofline (ms)       {1e3 * found.step_seconds:.1f}: {seconds}",
        f"MFU at most         {found.mfu:.1%}",
        f"tokens/s at most    {found.tokens_per_second:,.0f}; {tokens:.3g} tokens take {days:.2f} days or more",
        verdict,
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
