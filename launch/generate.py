"""`musiclm generate`: generates music from text, from a recording, or from both."""

import argparse
import itertools
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

import numpy as np

from musiclm_jax.launch import command

if TYPE_CHECKING:
    from musiclm_jax.bundles import Bundle
    from musiclm_jax.generation.prompts import Story
    from musiclm_jax.generation.request import Request

SECTION_SECONDS = 15.0  # length of a story's last section without --seconds (MusicLM's sections last 15 s)
EXAMPLES = """examples:
  musiclm generate "a cheerful Irish jig on the fiddle" --seconds 10 --output jig.wav
  musiclm generate "a slow church organ" "steel drums, fast" --num_samples 2 --output songs.flac
  musiclm generate "a calm piano piece" --best_of 4 --spectrogram piano.png --output piano.wav
  musiclm generate "a calm piano piece" --at 0:15 "a brass band" --at 0:30 "steel drums" --output story.wav
  musiclm generate --mix "jazz piano:0.7" "church organ:0.3" --output mix.wav
  musiclm generate "a brass band" --continue jig.wav --seconds 10 --output longer.wav
  musiclm generate "a church organ" --melody hum.wav --output organ.wav
  musiclm generate --like jig.wav --num_samples 3 --output alike.wav
  musiclm generate "a calm piano piece" --seconds 60 --stream --output - | aplay -r 24000 -f S16_LE

Several prompts or samples are written as songs-1.flac, songs-2.flac, ... in the order of the prompts, each as soon as
it is ready.
"""


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    p = command.Parser(
        "generate",
        "generate music from text, from a recording, or from both",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = p.add_argument_group("what to generate")
    what.add_argument("prompts", nargs="*", metavar="PROMPT", help="description of the music, in English")
    what.add_argument(
        "--prompts_file", type=command.local_path, metavar="FILE", help="text file with one prompt per line"
    )
    what.add_argument("--seconds", type=float, help="length of the music (default: 10, or the length of the story)")
    what.add_argument("--seed", type=int, default=0, help="the same seed gives the same music (default: 0)")
    what.add_argument("--num_samples", type=int, default=1, help="pieces per prompt (default: 1)")

    story = p.add_argument_group("several prompts in one piece")
    story.add_argument(
        "--at", action="append", default=[], nargs=2, metavar=("TIME", "TEXT"), help="prompt from TIME (0:15) on"
    )
    story.add_argument(
        "--story",
        type=command.local_path,
        metavar="FILE",
        help='text file with one line per section, such as "0:15 rock band"',
    )
    story.add_argument("--blend", type=float, metavar="S", help="seconds over which one section blends into the next")
    story.add_argument(
        "--mix", nargs="+", metavar="TEXT:WEIGHT", help='one prompt from several texts, "jazz:0.7" "rock:0.3"'
    )

    recording = p.add_argument_group("recordings (any format)")
    recording.add_argument(
        "--continue", dest="continue_from", type=command.local_path, metavar="FILE", help="recording to continue"
    )
    recording.add_argument("--like", type=command.local_path, metavar="FILE", help="recording to use as the prompt")
    recording.add_argument(
        "--melody",
        type=command.local_path,
        metavar="FILE",
        help="hummed or played melody for the music to follow; PROMPT says what plays it",
    )
    recording.add_argument(
        "--vary",
        choices=("all", "acoustics"),
        default="all",
        help="what differs between samples; 'acoustics' keeps the semantic tokens of --like, or of the first sample",
    )

    draw = p.add_argument_group("sampling")
    draw.add_argument(
        "--best_of", type=int, default=1, metavar="N", help="candidates per piece; keeps the closest to the prompt"
    )
    draw.add_argument(
        "--temperature",
        type=float,
        nargs=3,
        metavar=("SEMANTIC", "COARSE", "FINE"),
        help="lower is safer, higher bolder (default: the bundle's; the paper uses 1.0 0.95 0.4)",
    )
    draw.add_argument("--top_k", type=int, default=0, help="sample from the k most likely codes (default: 0, all)")
    draw.add_argument("--top_p", type=float, help="nucleus sampling: probability mass to keep (default: the bundle's)")
    draw.add_argument(
        "--guidance",
        type=float,
        nargs=2,
        metavar=("SEMANTIC", "COARSE"),
        help="classifier-free guidance: 1 is none, more follows the text more closely (default: the bundle's)",
    )

    out = p.add_argument_group("output")
    out.add_argument(
        "--output",
        type=command.output_path,
        default="music.wav",
        help=".wav, .flac or .ogg file to write (default: %(default)s)",
    )
    out.add_argument(
        "--stream",
        action="store_true",
        help="write one piece while it is generated; --output can then also be .pcm, or - for standard output "
        "(16-bit little-endian, mono, 24 kHz)",
    )
    out.add_argument("--report", action="store_true", help="print level and spectral centroid for every 15 s")
    out.add_argument(
        "--spectrogram", type=command.local_path, metavar="PNG", help="also plot the spectrogram to this file"
    )
    out.add_argument("--force", action="store_true", help="overwrite existing files")
    p.add_argument(
        "--bundle", type=command.bundle, default="tiny", help="bundle of models: a name or a folder (default: tiny)"
    )
    p.add_argument("--batch_size", type=int, default=8, help="pieces generated at once (default: 8)")
    p.add_argument(
        "--weights",
        choices=("float32", "bfloat16", "int8"),
        help="precision of the stages: bfloat16 is for accelerators; int8 rounds kernels and activations to 8 bits, "
        "which is faster on CPUs (default: the bundle's)",
    )
    return p


def main(arguments: list[str]) -> int:
    """Runs the command.

    Raises:
      ValueError: if the prompts, recordings, numbers, files or the bundle cannot be used.
    """
    began = time.monotonic()
    args = parser().parse_args(arguments)
    from musiclm_jax import bundles
    from musiclm_jax.data import audio
    from musiclm_jax.generation import generate
    from musiclm_jax.generation.prompts import language_warnings

    # Validate everything before doing anything slow.
    stories = read_prompts(args)
    if args.output == "-" and not args.stream:
        raise ValueError("--output - needs streaming: add --stream")
    outputs = numbered(args.output, max(1, len(stories)) * args.num_samples)
    pictures = numbered(args.spectrogram, len(outputs)) if args.spectrogram else []
    for path in outputs:
        audio.check_writable(path, args.force, args.stream)
    for path in pictures:
        if path.suffix.lower() != ".png":
            raise ValueError(f"--spectrogram {path}: use a name that ends in .png")
        if args.stream:
            raise ValueError("--spectrogram needs the whole piece: remove --stream")
        audio.check_output(path, args.force)
    bundle = bundles.load(args.bundle)
    request = read_request(args, bundle, stories)
    generate.check(bundle, stories, request, args.stream)
    for warning in language_warnings(stories):
        print(f"musiclm generate: {warning}", file=sys.stderr)
    if request.seconds > (meant := bundle.generation.max_seconds):
        print(f"musiclm generate: this bundle is meant for {meant:g} s: longer music may drift", file=sys.stderr)

    command.enable_compilation_cache()
    if args.stream:
        heard = write_stream(outputs[0], bundle, stories, request, began, args.force)
        if args.report:
            print_report(heard, sys.stderr)
        return 0
    finished = generate.pieces(bundle, stories, request, command.ProgressPrinter(sys.stderr))
    for index, music in enumerate(finished):
        path, gain = write_piece(outputs[index], music.audio, args.force)
        turned_down = "" if gain == 1 else f", turned down by {-20 * np.log10(gain):.1f} dB to avoid clipping"
        print(f"{path}: {music.prompt!r}, similarity {music.similarity:.2f}{turned_down}")
        if args.report:
            print_report(music.audio)
        if pictures:
            picture = pictures[index] if path == outputs[index] else path.with_suffix(".png")
            draw_spectrogram(music.audio, picture, music.prompt)
            print(picture)
    return 0


def read_prompts(args: argparse.Namespace) -> "list[Story]":
    """Returns one story per piece; none if a recording is the prompt.

    Raises:
      ValueError: if prompts are missing or contradict each other, or a file cannot be read.
    """
    from musiclm_jax.data import text_files
    from musiclm_jax.generation import prompts

    texts = list(args.prompts)
    if args.prompts_file:
        texts += text_files.lines(args.prompts_file)
    given = {"--mix": args.mix, "--story": args.story, "--at": args.at, "PROMPT": texts}
    names = [name for name, value in given.items() if value]
    if len(names) > 1 and not (names == ["--at", "PROMPT"] and len(texts) == 1):
        raise ValueError(f"{' and '.join(names)} exclude each other: give one (--at takes one PROMPT, the opening)")
    if args.blend is not None and not (args.at or args.story):
        raise ValueError("--blend needs a story: give --at or --story")
    if args.mix:
        return [prompts.parse_mix(args.mix)]
    if args.story:
        lines = text_files.read(args.story)
        try:
            return [prompts.parse_story(lines, args.blend or 0.0)]
        except ValueError as error:
            raise ValueError(f"--story {args.story}: {error}") from error
    if args.at:
        return [prompts.timed_story([*(("0:00", text) for text in texts), *args.at], args.blend or 0.0)]
    if not texts and (args.like or args.continue_from):
        return []
    if not texts:
        raise ValueError('give a prompt, such as "a cheerful Irish jig on the fiddle", or --prompts_file')
    return prompts.as_stories(texts)


def read_request(args: argparse.Namespace, bundle: "Bundle", stories: "list[Story]") -> "Request":
    """Builds the request and loads its recordings.

    Raises:
      ValueError: if a recording cannot be used.
    """
    from musiclm_jax.data import audio
    from musiclm_jax.generation import generate
    from musiclm_jax.generation.request import MAX_RECORDING_SECONDS, check_recording

    recordings = {"like": args.like, "continue_from": args.continue_from, "melody": args.melody}
    given = {name: audio.load(path, longest=MAX_RECORDING_SECONDS) for name, path in recordings.items() if path}
    for name, recording in given.items():
        check_recording(recording, recordings[name])
    seconds = args.seconds
    if seconds is None and args.vary == "acoustics" and "like" in given:
        seconds = len(given["like"]) / audio.SAMPLE_RATE
    elif seconds is None:
        last = max((story.sections[-1].start for story in stories), default=0.0)
        seconds = last + SECTION_SECONDS if last else 10.0
    settings = {name: getattr(args, name) for name in ("temperature", "top_p", "guidance", "weights")}
    settings = {name: value for name, value in settings.items() if value is not None}
    return generate.request_for(
        bundle,
        seconds=seconds,
        seed=args.seed,
        num_samples=args.num_samples,
        best_of=args.best_of,
        top_k=args.top_k,
        batch_size=args.batch_size,
        vary=args.vary,
        **given,
        **{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()},
    )


def write_piece(path: pathlib.Path, sound: np.ndarray, force: bool) -> tuple[pathlib.Path, float]:
    """Writes a piece; if another process has written a file of that name meanwhile, under a free name next to it.

    Returns:
      The path, and the gain of `audio.write`.
    """
    from musiclm_jax.data import audio

    others = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    for target in itertools.chain([path], others):
        try:
            return target, audio.write(target, sound, force)
        except audio.ExistsError:
            continue
    raise AssertionError("one of endless names is free")


def write_stream(
    path: pathlib.Path,
    bundle: "Bundle",
    stories: "list[Story]",
    request: "Request",
    began: float,
    force: bool,
) -> np.ndarray:
    """Writes a piece while it is generated, reports the time to first sound, and returns the audio `[samples]`."""
    from musiclm_jax.data import audio
    from musiclm_jax.generation import generate

    heard: list[np.ndarray] = []
    known = 0 if request.continue_from is None else len(request.continue_from)

    def blocks() -> Iterator[np.ndarray]:
        done = 0
        for block in generate.stream(bundle, stories, request, command.ProgressPrinter(sys.stderr)):
            if done <= known < done + len(block):  # the continued recording comes first, without generation
                print(f"first sound after {time.monotonic() - began:.1f} s", file=sys.stderr)
            done += len(block)
            heard.append(block)
            yield block

    clipped = audio.write_stream(path, blocks(), force)
    seconds, whole = sum(len(block) for block in heard) / audio.SAMPLE_RATE, time.monotonic() - began
    note = f", {clipped} samples clipped" if clipped else ""
    print(f"{path}: {seconds:.1f} s of music in {whole:.1f} s{note}", file=sys.stderr)
    return np.concatenate(heard)


def print_report(audio: np.ndarray, file: TextIO | None = None) -> None:
    """Prints level and spectral centroid for every 15 s."""
    from musiclm_jax.generation import drift

    print(drift.table(drift.spans(audio)), file=file)


def numbered(path: str, count: int) -> list[pathlib.Path]:
    """Returns `path` for one file, else path-1, path-2, ... before the extension, padded to equal width."""
    target = pathlib.Path(path).expanduser()
    if count <= 1:
        return [target]
    digits = len(str(count))
    return [target.with_name(f"{target.stem}-{index:0{digits}d}{target.suffix}") for index in range(1, count + 1)]


def draw_spectrogram(audio: np.ndarray, path: str | os.PathLike, title: str) -> None:
    """Plots the log-mel spectrogram of audio `[samples]` at 24 kHz to a PNG file."""
    import jax.numpy as jnp

    from musiclm_jax.data import files, spectrogram
    from musiclm_jax.data.tokens import SAMPLE_RATE
    from musiclm_jax.launch import drawing

    title = title.encode(errors="backslashreplace").decode()  # matplotlib refuses text that is not UTF-8
    config = spectrogram.LogMelConfig(num_mels=128, window=1024)
    mel = np.asarray(spectrogram.log_mel(jnp.asarray(audio[None]), config))[0]
    decibel = 20 / np.log(10) * mel
    extent = (0, len(audio) / SAMPLE_RATE, 0, config.num_mels)
    edges = np.linspace(_mel(config.min_hz), _mel(config.max_hz), config.num_mels + 1)
    ticks = [100, 200, 500, 1000, 2000, 5000, 10000]
    with drawing.pyplot() as pyplot:
        figure, axes = pyplot.subplots(figsize=(max(6, len(audio) / SAMPLE_RATE), 4))
        picture = axes.imshow(
            decibel.T, origin="lower", aspect="auto", extent=extent, vmin=decibel.max() - 80, cmap="magma"
        )
        axes.set_yticks(
            [float(np.interp(_mel(hz), edges, np.arange(len(edges)))) for hz in ticks], [str(hz) for hz in ticks]
        )
        axes.set(xlabel="s", ylabel="Hz", title=title if len(title) < 90 else title[:87] + "...")
        figure.colorbar(picture, label="dB")
        with files.replaced(pathlib.Path(path)) as partial:
            figure.savefig(partial, format="png", dpi=100, bbox_inches="tight")


def _mel(hz: float) -> float:
    """Converts Hz to Slaney's mel scale, as in `spectrogram.mel_filterbank`."""
    return hz * 3 / 200 if hz < 1000 else float(15 + 27 * np.log(hz / 1000) / np.log(6.4))
