"""`musiclm listen`: runs a blind listening test of two systems on a local web page, and reports the result."""

import argparse
import pathlib
import sys
import webbrowser

from musiclm_jax.launch import command

EXAMPLES = """examples:
  musiclm listen --a ours --b theirs --captions captions.csv --output answers.jsonl
  musiclm listen --results answers.jsonl

Clips of a pair have the same name in both folders. Each answer is saved at once, and the same command resumes. Keyboard
of the page: A and B play, 1 to 5 answer, Enter shows the next pair.
"""


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    p = command.Parser(
        "listen",
        "compare two systems by ear: blind pairs on a local web page",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--a", type=command.local_path, metavar="DIR", help="clips of one system, <id>.wav or another audio format"
    )
    p.add_argument("--b", type=command.local_path, metavar="DIR", help="clips of the other system, with the same ids")
    p.add_argument(
        "--output", type=command.local_path, metavar="FILE", help="file for the answers, one line of JSON each"
    )
    p.add_argument(
        "--captions",
        type=command.local_path,
        metavar="FILE",
        help="prompts of the clips: .csv or .jsonl with id and caption",
    )
    p.add_argument("--pairs", type=int, default=0, help="number of pairs, drawn by the seed (default: all)")
    p.add_argument("--seed", type=int, default=0, help="seed of the order and the sides (default: 0)")
    p.add_argument(
        "--listener", type=command.text, default="", help="name stored with the answers; each listener hears all pairs"
    )
    p.add_argument("--port", type=int, default=8765, help="port of the page; 0 for any free port (default: 8765)")
    p.add_argument("--no_browser", action="store_true", help="only print the address of the page")
    p.add_argument(
        "--results",
        type=command.local_path,
        nargs="+",
        metavar="FILE",
        help="report the answers in these files instead",
    )
    return p


def main(arguments: list[str]) -> int:
    """Runs the command.

    Raises:
      ValueError: if the folders, clips, captions, answers or the port cannot be used.
    """
    args = parser().parse_args(arguments)
    if args.results:
        if args.a or args.b or args.output:
            raise ValueError("--results only reads answers: remove --a, --b and --output")
        return results(args.results)
    missing = [f"--{name}" for name in ("a", "b", "output") if not getattr(args, name)]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing: give --a DIR --b DIR --output FILE, or --results FILE")
    for name in ("pairs", "seed"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name} {getattr(args, name)}: give 0 or more")
    from musiclm_jax.data import audio
    from musiclm_jax.evaluation import listening_test
    from musiclm_jax.evaluation.listening_test.server import Server

    output = pathlib.Path(args.output)
    audio.check_output(output, force=True)
    if output.exists():  # answers are added
        output.open("ab").close()
    captions = listening_test.read_captions(args.captions) if args.captions else None
    trials = listening_test.make_trials(args.a, args.b, captions, args.seed)
    if args.pairs > len(trials):
        raise ValueError(f"--pairs {args.pairs}: the folders share {len(trials)} ids")
    with Server(trials[: args.pairs or None], output, args.listener, args.port) as server:
        total = len(server.trials)
        print(f"{total} pairs, {server.answered} answered. The page is {server.url} (Ctrl-C stops)", flush=True)
        if not args.no_browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(f"\n{server.answered} of {total} pairs answered: {output}", file=sys.stderr)
    return 0


def results(paths: list[str]) -> int:
    """Prints wins and the significance test for files of answers.

    Raises:
      ValueError: if a file is missing, damaged or empty.
    """
    from musiclm_jax.evaluation.listening_test import answers

    found = [answer for path in paths for answer in answers.read(path)]
    if not found:
        raise ValueError(f"{', '.join(paths)}: no answers yet")
    for comparison in answers.compare(found):
        print(report(comparison))
    return 0


def report(comparison) -> str:
    """Formats an `answers.Comparison` as text."""
    first, second = comparison.systems
    words = [f"{first} is much better", f"{first} is better", "no difference"]
    words += [f"{second} is better", f"{second} is much better"]
    width = max(map(len, words))
    answered = sum(comparison.counts)
    lines = [f"{first} against {second}: {answered} answers about {comparison.clips} clips"]
    lines[0] += f" by {comparison.listeners} listeners" if comparison.listeners > 1 else ""
    lines += [f"  {name:<{width}} {count:5d}" for name, count in zip(words, comparison.counts, strict=True)]
    for system, wins in zip(comparison.systems, comparison.wins, strict=True):
        lines.append(f"  wins of {system}: {wins} of {answered}")
    lines.append(f"  mean answer: {comparison.mean:+.2f} (-2 all for {first}, +2 all for {second})")
    p_value = comparison.p_value
    said = f"p = {p_value:.3g}" if p_value >= 0.001 else "p < 0.001"
    lines.append(f"  Wilcoxon signed-rank test over the clips: W = {comparison.statistic:g}, {said} (two-sided)")
    return "\n".join(lines) + "\n"
