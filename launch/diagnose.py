"""`musiclm diagnose`: finds the part of a bundle that is at fault, and says what to do about it."""

import argparse
import dataclasses
import json
import pathlib
import sys
import textwrap

from musiclm_jax.data import files
from musiclm_jax.launch import command

WIDTH = 116  # of the printed lines


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    p = command.Parser("diagnose", "find the part of a bundle that is at fault, and say what to do about it")
    p.add_argument(
        "--bundle", type=command.bundle, default="tiny", help="bundle of models: a name or a folder (default: tiny)"
    )
    p.add_argument(
        "--corpus", type=command.path_or_bucket, required=True, help="folder of audio records (`musiclm corpus`)"
    )
    p.add_argument(
        "--tokens",
        type=command.path_or_bucket,
        help="folder of token records of that corpus (`musiclm tokenize`), to check them",
    )
    p.add_argument("--split", default="test", help="split that no part was trained on (default: test)")
    p.add_argument("--clips", type=int, default=64, help="clips of the split to measure (default: 64)")
    p.add_argument("--train_clips", type=int, default=128, help="training clips to compare with (default: 128)")
    p.add_argument(
        "--resynthesis", type=int, default=16, help="clips to regenerate from true tokens; 0 for none (default: 16)"
    )
    p.add_argument("--seed", type=int, default=0, help="seed of the choice of clips, of the music and the intervals")
    p.add_argument("--output", type=command.local_path, help="JSON file for the findings")
    return p


def main(arguments: list[str]) -> int:
    """Runs the command.

    Raises:
      ValueError: if the corpus, the token records or the bundle cannot be used.
    """
    args = parser().parse_args(arguments)
    for name, least in (("clips", 2), ("train_clips", 1), ("resynthesis", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} {getattr(args, name)}: give {least} or more")
    output = pathlib.Path(args.output).expanduser() if args.output else None
    from musiclm_jax.launch import quiet_tensorflow  # noqa: F401  before anything imports TensorFlow

    # isort: split
    from musiclm_jax import bundles
    from musiclm_jax.data import audio, records
    from musiclm_jax.evaluation.diagnose import Clips, diagnose

    if output:
        audio.check_output(output, force=True)
    bundle = bundles.load(args.bundle)
    command.enable_compilation_cache()
    tokens, train_tokens = {}, []
    if args.tokens:
        held_out = records.read_token_records(records.shard_paths(args.tokens, args.split))
        tokens = {record["id"]: record for record in held_out}
        train_tokens = list(records.read_token_records(records.shard_paths(args.tokens, "train")))
    clips = Clips(
        records.sample_audio_records(args.corpus, args.split, args.clips, args.seed),
        records.sample_audio_records(args.corpus, "train", args.train_clips, args.seed),
        tokens,
        train_tokens,
    )
    found = diagnose(bundle, clips, args.resynthesis, args.seed, command.ProgressPrinter(sys.stderr))
    print(report(found))
    if output:
        content = {
            "bundle": {name: part["sha256"] for name, part in bundle.config["parts"].items()},
            "findings": [dataclasses.asdict(finding) for finding in found.findings],
            "left_out": found.left_out,
            "fault": found.fault and dataclasses.asdict(found.fault),
        }
        files.write(output, json.dumps(content, indent=1, default=float) + "\n")
    return 0


def report(found) -> str:
    """Formats a `diagnose.Diagnosis` as text."""
    from musiclm_jax.evaluation.diagnose import CHAIN, JUDGES

    lines = []
    for part in (*CHAIN, JUDGES):
        of_part = [finding for finding in found.findings if finding.part == part]
        lines += [part] if of_part else []
        shown: set[str] = set()  # levels share bounds and advice: print each once
        for finding in of_part:
            lines.append(f"  {finding.verdict:<7} {finding.name}: {_value(finding.value)}")
            lines += _indented(finding.note)
            said = [f"bounds: {finding.bounds}"] if finding.verdict else []
            said += [f"what to do: {finding.advice}"] if finding.verdict in ("weak", "broken") else []
            lines += [line for text in said if text not in shown for line in _indented(text)]
            shown.update(said)
    lines += [line for reason in found.left_out for line in _indented(f"left out: {reason}", 0)]
    fault = found.fault
    if fault is None:
        return "\n".join([*lines, "", "No part is at fault."])
    kind = "The first part at fault" if fault.verdict == "broken" else "No part is broken; the first weak one"
    end = _indented(f"{kind}: {fault.part} ({fault.name}: {_value(fault.value)}). What to do: {fault.advice}.", 0)
    return "\n".join([*lines, "", *end])


def _value(value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _indented(text: str, indent: int = 10) -> list[str]:
    margin = " " * indent
    return textwrap.wrap(text, WIDTH, initial_indent=margin, subsequent_indent=margin + "  ")
