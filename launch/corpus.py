"""`musiclm corpus`: builds the audio records of the tiny bundle's corpus or, with --passages, of the melody model.

With --pack it writes the ingredients of clips, for machines that have neither scores nor sound fonts.

Needs the `corpus` extra, tinysoundfont and three Debian packages, two with music and one with a sound font:

    pip install '.[corpus]' && pip install --no-deps tinysoundfont
    apt install openttd-openmsx freedoom musescore-general-soundfont-small

(--no-deps: tinysoundfont declares pyaudio, which it needs only for playback and which needs a compiler and portaudio.)
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from musiclm_jax.launch import command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="musiclm corpus", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--output", type=command.local_path, required=True, help="folder of the corpus; an interrupted build resumes"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: 0)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--hours", type=float, default=14.0, help="hours of audio over all splits (default: 14)")
    what.add_argument(
        "--passages",
        type=int,
        help="instead of clips: build this many passages of tunes, each in four renditions of 4 s that\n"
        "share only the melody, for the melody model (5000: 22 h, 3.8 GB)",
    )
    what.add_argument(
        "--pack",
        action="store_true",
        help="instead of clips: write parsed scores and reduced sound fonts (11 MB), from which\n"
        "corpus/resident.py renders clips on machines where neither is installed",
    )
    parser.add_argument("--worker", type=int, default=0, help="index of this process among --workers (default: 0)")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes building this corpus; start each yourself (default: 1)"
    )
    args = parser.parse_args(argv)
    if args.seed < 0 or not 0 <= args.worker < args.workers:
        parser.error(
            f"--seed {args.seed} --worker {args.worker} --workers {args.workers}: "
            "expected seed >= 0 and 0 <= worker < workers"
        )
    if args.pack:
        from musiclm_jax.corpus import pack

        pack.pack(pathlib.Path(args.output).expanduser())
        return 0
    # Imported late: TensorFlow takes seconds to import, and --help should be instant.
    from musiclm_jax.launch import quiet_tensorflow  # noqa: F401

    # isort: split
    from musiclm_jax.corpus import build, build_renditions

    worker = (args.worker, args.workers)
    try:
        if args.passages is None:
            build.build(args.output, args.seed, args.hours, worker, lambda line: print(line, flush=True))
        else:
            build_renditions.build(args.output, args.seed, args.passages, worker, lambda line: print(line, flush=True))
    except ValueError as error:
        print(f"musiclm corpus: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
