"""Runs the benchmarks below and writes one table: python -m benchmarks.evidence --corpus DIR --tokens DIR --work DIR

Each benchmark runs in its own process and writes <work>/<name>.json; delete that file to run it again. The music of the
generation benchmark stays in <work>/generated. Takes hours on two cores, mostly for generation.

--card MODEL_CARD.md also writes the tables into that file, between the lines `<!-- figures -->` and
`<!-- /figures -->`, each below the command that makes it. This replaces all earlier figures there.
"""

import pathlib
import subprocess
import sys

from benchmarks.report import arguments, read_published, table

# Title in the table, module, kind of records that it reads.
BENCHMARKS = (
    ("Codec", "codec_quality", "corpus"),
    ("MuLan", "mulan_retrieval", "corpus"),
    ("Semantic tokens", "semantic_tokens", "corpus"),
    ("Stages", "held_out_bits", "tokens"),
    ("Judges on real renders", "judges", "corpus"),
    ("Generation", "generation", "corpus"),
)


BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def command(module: str, reads: str, args, output: pathlib.Path) -> list[str]:
    """Returns the command line of a benchmark."""
    line = [sys.executable, "-m", f"benchmarks.{module}", "--output", str(output)]
    line += ["--corpus", args.corpus] if reads == "corpus" else ["--tokens", args.tokens]
    line += ["--bundle", args.bundle] if module != "judges" else []
    if module == "generation":
        work = output.parent
        line += ["--work", str(work / "generated"), "--sheet", str(work / "spectrograms.png")]
    return line


def main() -> None:
    """Runs the missing benchmarks and writes the table."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--tokens", required=True, help="folder of token records, made by `musiclm tokenize`")
    parser.add_argument("--work", required=True, help="folder for the figures and the generated music")
    parser.add_argument("--card", help="model card to write the tables into")
    parser.add_argument("--only", nargs="+", default=[module for _, module, _ in BENCHMARKS], help="benchmarks to run")
    args = parser.parse_args()
    if unknown := sorted(set(args.only) - {module for _, module, _ in BENCHMARKS}):
        raise SystemExit(f"no benchmark {', '.join(unknown)}: there are {', '.join(m for _, m, _ in BENCHMARKS)}")
    work = pathlib.Path(args.work).expanduser().resolve()
    work.mkdir(parents=True, exist_ok=True)
    failed, sections = [], []
    for title, module, reads in BENCHMARKS:
        output = work / f"{module}.json"
        if module in args.only and not output.exists():
            print(f"== {module}", flush=True)
            if subprocess.run(
                command(module, reads, args, output), cwd=pathlib.Path(__file__).parent.parent
            ).returncode:
                failed.append(module)
        if output.exists():
            made_by = f"`python -m benchmarks.{module} --{reads} {reads.upper()}`"
            sections.append(f"### {title}\n\n{made_by}\n\n{table(read_published(output))}\n")
    path = pathlib.Path(args.output).expanduser() if args.output else work / "evidence.md"
    path.write_text("\n".join(sections), encoding="utf-8")
    if args.card:
        write_into(pathlib.Path(args.card).expanduser(), "\n".join(sections))
    print(f"{len(sections)} of {len(BENCHMARKS)} benchmarks are in {path}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def write_into(card: pathlib.Path, figures: str) -> None:
    """Replaces the text between the two marks of a card.

    Raises:
      SystemExit: if a mark is missing.
    """
    text = card.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{card} lacks the lines {BEGIN} and {END}: add them where the figures belong")
    card.write_text(f"{before}{BEGIN}\n\n{figures}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
