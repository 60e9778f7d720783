"""`musiclm generate`: music from a description in words."""

import argparse
import os
import pathlib
import sys

import numpy as np

from musiclm_jax.launch import command

EXAMPLES = """examples:
  musiclm generate "a cheerful Irish jig on the fiddle" --seconds 10 --output jig.wav
  musiclm generate "a slow church organ" "steel drums, fast" --num_samples 2 --output songs.flac
  musiclm generate "a calm piano piece" --best_of 4 --spectrogram piano.png --output piano.wav

Several prompts or samples are written as songs-1.flac, songs-2.flac, ... in the order of the prompts, each as soon as
it is finished.
"""


def parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    p = command.Parser(
        "generate",
        "make music from a description in words",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("prompts", nargs="*", metavar="PROMPT", help="what the music should be like, in English")
    p.add_argument("--prompts_file", metavar="FILE", help="text file with one prompt per line")
    p.add_argument("--output", default="music.wav", help=".wav, .flac or .ogg file to write (default: %(default)s)")
    p.add_argument("--seconds", type=float, default=10.0, help="length of the music (default: 10)")
    p.add_argument("--seed", type=int, default=0, help="another seed gives other music; the same gives the same")
    p.add_argument("--num_samples", type=int, default=1, help="pieces per prompt (default: 1)")
    p.add_argument(
        "--best_of", type=int, default=1, metavar="N", help="make N for each piece, keep the one nearest the text"
    )
    p.add_argument(
        "--temperature",
        type=float,
        nargs=3,
        metavar=("SEMANTIC", "COARSE", "FINE"),
        help="of the three stages: lower is safer, higher bolder (default: the bundle's, as in the paper 1.0 0.95 0.4)",
    )
    p.add_argument("--top_k", type=int, default=0, help="draw only from the k likeliest codes (default: from all)")
    p.add_argument("--top_p", type=float, help="draw only from the likeliest codes that add up to this probability")
    p.add_argument(
        "--guidance",
        type=float,
        nargs=2,
        metavar=("SEMANTIC", "COARSE"),
        help="how much the text counts in these stages: 1 as trained, more follows it closer (default: the bundle's)",
    )
    p.add_argument("--spectrogram", metavar="PNG", help="draw the spectrogram into this file, too")
    p.add_argument("--force", action="store_true", help="overwrite existing files")
    p.add_argument("--bundle", default="tiny", help="bundle of models: a name or a folder (default: tiny)")
    p.add_argument("--batch_size", type=int, default=8, help="pieces made at once (default: 8)")
    return p


def main(arguments: list[str]) -> int:
    """Runs the command.

    Raises:
      ValueError: if the prompts, numbers, files or the bundle cannot be used.
    """
    args = parser().parse_args(arguments)
    prompts = read_prompts(args)
    from musiclm_jax import audio, bundles, generate
    from musiclm_jax.prompts import check_prompts, language_warnings

    # Everything that can be wrong is looked at before anything slow is done.
    check_prompts(prompts)
    outputs = numbered(args.output, len(prompts) * args.num_samples)
    pictures = numbered(args.spectrogram, len(outputs)) if args.spectrogram else []
    for path in outputs:
        audio.check_writable(path, args.force)
    for path in pictures:
        if path.suffix.lower() != ".png":
            raise ValueError(f"--spectrogram {path}: use a name that ends in .png")
        audio.check_output(path, args.force)
    bundle = bundles.load(args.bundle)
    own = bundle.generation
    request = generate.Request(
        seconds=args.seconds,
        seed=args.seed,
        num_samples=args.num_samples,
        best_of=args.best_of,
        temperature=tuple(args.temperature) if args.temperature else own.temperature,
        top_k=args.top_k,
        top_p=own.top_p if args.top_p is None else args.top_p,
        guidance=tuple(args.guidance) if args.guidance else own.guidance,
        batch_size=args.batch_size,
    )
    request.check(bundle)
    for warning in language_warnings(prompts):
        print(f"musiclm generate: {warning}", file=sys.stderr)

    command.enable_compilation_cache()
    finished = generate.stream(bundle, prompts, request, command.Progress(sys.stderr))
    for index, music in enumerate(finished):
        gain = audio.write(outputs[index], music.audio, args.force)
        turned_down = "" if gain == 1 else f", turned down by {-20 * np.log10(gain):.1f} dB so that it does not clip"
        print(f"{outputs[index]}: {music.prompt!r}, similarity {music.similarity:.2f}{turned_down}")
        if pictures:
            draw_spectrogram(music.audio, pictures[index], music.prompt)
            print(pictures[index])
    return 0


def read_prompts(args: argparse.Namespace) -> list[str]:
    """Prompts of the command line, then those of the file.

    Raises:
      ValueError: if there is none or the file cannot be read.
    """
    prompts = list(args.prompts)
    if args.prompts_file:
        path = pathlib.Path(args.prompts_file)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--prompts_file {path}: cannot be read as text ({error})") from error
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError('give a prompt, such as "a cheerful Irish jig on the fiddle", or --prompts_file')
    return prompts


def numbered(path: str, count: int) -> list[pathlib.Path]:
    """`path` itself for one file, else path-1, path-2, ... before the extension, with as many digits as needed."""
    target = pathlib.Path(path).expanduser()
    if count <= 1:
        return [target]
    digits = len(str(count))
    return [target.with_name(f"{target.stem}-{index:0{digits}d}{target.suffix}") for index in range(1, count + 1)]


def draw_spectrogram(audio: np.ndarray, path: str | os.PathLike, title: str) -> None:
    """Draws the log-mel spectrogram of audio `[samples]` at 24 kHz into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from musiclm_jax import spectrogram
    from musiclm_jax.tokens import SAMPLE_RATE

    config = spectrogram.LogMelConfig(num_mels=128, window=1024)
    mel = np.asarray(spectrogram.log_mel(audio[None], config))[0]
    figure, axes = pyplot.subplots(figsize=(max(6, len(audio) / SAMPLE_RATE), 4))
    decibel = 20 / np.log(10) * mel
    extent = (0, len(audio) / SAMPLE_RATE, 0, config.num_mels)
    picture = axes.imshow(
        decibel.T, origin="lower", aspect="auto", extent=extent, vmin=decibel.max() - 80, cmap="magma"
    )
    edges = np.linspace(_mel(config.min_hz), _mel(config.max_hz), config.num_mels + 1)
    ticks = [100, 200, 500, 1000, 2000, 5000, 10000]
    axes.set_yticks(
        [float(np.interp(_mel(hz), edges, np.arange(len(edges)))) for hz in ticks], [str(hz) for hz in ticks]
    )
    axes.set(xlabel="s", ylabel="Hz", title=title if len(title) < 90 else title[:87] + "...")
    figure.colorbar(picture, label="dB")
    figure.savefig(path, dpi=100, bbox_inches="tight")
    pyplot.close(figure)


def _mel(hz: float) -> float:
    """Slaney's mel scale, as in `spectrogram.mel_filterbank`."""
    return hz * 3 / 200 if hz < 1000 else float(15 + 27 * np.log(hz / 1000) / np.log(6.4))
