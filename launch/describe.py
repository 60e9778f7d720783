"""`musiclm describe`: shows the tags and captions closest to a recording, and its tokens."""

import argparse
import sys

from musiclm_jax.launch import command


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    p = command.Parser("describe", "show the tags and captions closest to a recording, and its tokens")
    p.add_argument("files", type=command.local_path, nargs="+", metavar="FILE", help="audio file of any format")
    p.add_argument(
        "--bundle", type=command.bundle, default="tiny", help="bundle of models: a name or a folder (default: tiny)"
    )
    p.add_argument("--top", type=int, default=5, help="number of tags and captions to show (default: 5)")
    p.add_argument("--tokens", action="store_true", help="print all tokens instead of only the first ones")
    return p


def main(arguments: list[str]) -> int:
    """Runs the command. Files that cannot be used are named, and the others described.

    Raises:
      ValueError: if some of the files, or the bundle, cannot be used.
    """
    args = parser().parse_args(arguments)
    if args.top < 1:
        raise ValueError(f"--top {args.top}: give 1 or more")
    from musiclm_jax import bundles
    from musiclm_jax.data import audio
    from musiclm_jax.generation.describe import describe

    bundle = bundles.load(args.bundle)
    command.enable_compilation_cache()
    failed = []
    for path in args.files:
        try:
            sound = audio.load(path)
            print(f"{path}: {len(sound) / audio.SAMPLE_RATE:.1f} s", file=sys.stderr)
            description = describe(bundle, sound)
        except bundles.BundleError:
            raise
        except ValueError as error:
            reason = str(error) if isinstance(error, audio.AudioError) else f"{path}: {error}"
            if len(args.files) == 1:
                raise ValueError(reason) from error
            failed.append(path)
            print(f"left out: {reason}", file=sys.stderr)
            continue
        print_description(path, description, args.top, args.tokens)
    if failed:
        raise ValueError(f"{len(failed)} of {len(args.files)} files were left out: {', '.join(failed)}")
    return 0


def print_description(path: str, description, top: int, all_tokens: bool) -> None:
    """Prints a `describe.Description`."""
    print(f"{path} ({description.seconds:.1f} s)")
    print("  nearest tags (similarity of the MuLan embeddings):")
    for text, score in description.tags[:top]:
        print(f"    {score:5.2f}  {text}")
    print("  nearest captions:")
    for text, score in description.captions[:top]:
        print(f"    {score:5.2f}  {text}")
    tokens = description.tokens
    shown = None if all_tokens else 16
    print(f"  MuLan tokens:    {_row(tokens['mulan'], None)}")
    print(f"  semantic tokens: {_row(tokens['semantic'], shown)}")
    print("  acoustic tokens, first levels first:")
    for level in range(tokens["acoustic"].shape[1]):
        print(f"    level {level + 1:>2}: {_row(tokens['acoustic'][:, level], shown)}")
    print("  codebook use (distinct codes, entropy):")
    for name, use in [
        ("semantic", description.semantic_use),
        *((f"acoustic {u.level + 1}", u) for u in description.acoustic_use),
    ]:
        print(f"    {name:<12} {use.distinct:>4} of {use.codebook_size} in {use.frames} frames, {use.bits:.1f} bits")


def _row(codes, shown: int | None) -> str:
    more = "" if shown is None or len(codes) <= shown else f" ... ({len(codes)})"
    return " ".join(str(code) for code in codes[:shown]) + more
