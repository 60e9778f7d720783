"""Measures drift and the audibility of window boundaries in long music: python -m benchmarks.long --seconds 60

Measures three jumps at each boundary of two windows, and at as many moments of the same piece far from all boundaries:
of the level (dB, 50 ms before against 50 ms after), of the spectrum (mean dB over 64 mel bands, same spans), and of the
waveform (a click: the largest second difference within 2 ms, in dB above its root mean square nearby). Music itself
jumps; boundaries should not add to that.
"""

import time

import numpy as np

from benchmarks.report import Figure, arguments, publish
from musiclm_jax import bundles
from musiclm_jax.bundles import Bundle
from musiclm_jax.data.spectrogram import mel_filterbank
from musiclm_jax.data.tokens import SAMPLE_RATE, SEMANTIC, STAGES
from musiclm_jax.evaluation import metrics
from musiclm_jax.generation import drift, generate, windows
from musiclm_jax.generation.pipeline import DECODED_SECONDS

PROMPTS = ("a calm piano piece", "a cheerful Irish jig on the fiddle", "a slow church organ", "steel drums, fast")
SIDE = SAMPLE_RATE // 20  # samples before and after a moment
CLICK = SAMPLE_RATE // 500  # samples
APART = 0.15  # least seconds between a boundary and a moment to compare with


def joins(bundle: Bundle, seconds: float) -> dict[str, np.ndarray]:
    """Returns the times in seconds of window boundaries by stage; "decoder" stands for SoundStream's blocks.

    A boundary shared by several stages counts for the first in the order semantic, coarse, fine, decoder.
    """
    frames = round(seconds * SEMANTIC.frame_rate)
    window = {name: windows.window_frames(bundle.part(name)) for name in STAGES}
    in_all = windows.semantic_frames(bundle.part("coarse"), frames)
    found = {
        "semantic": [step.end for step in windows.steps(0, in_all, window["semantic"])],
        "coarse": [step.end for step in windows.steps(0, frames, window["coarse"], last=in_all - window["coarse"])],
        "fine": list(range(window["fine"], frames, window["fine"])),
        "decoder": list(range(DECODED_SECONDS * SEMANTIC.frame_rate, frames, DECODED_SECONDS * SEMANTIC.frame_rate)),
    }
    taken: set[int] = set()
    times = {}
    for name, ends in found.items():
        own = sorted(set(end for end in ends if end < frames) - taken)
        taken |= set(own)
        times[name] = np.array(own) / SEMANTIC.frame_rate
    return times


def jumps(audio: np.ndarray, second: float) -> np.ndarray:
    """Computes the jumps of level, spectrum and waveform at a moment of audio `[samples]`: float `[3]` in dB."""
    place = round(second * SAMPLE_RATE)
    before, after = audio[place - SIDE : place], audio[place : place + SIDE]
    filters = mel_filterbank(SAMPLE_RATE, 2048, 64, 60.0, 11_000.0)
    bands = [
        20 * np.log10(np.abs(np.fft.rfft(part * np.hanning(SIDE), 2048)) @ filters + 1e-4) for part in (before, after)
    ]
    bend = np.abs(np.diff(audio[place - SIDE : place + SIDE].astype(np.float64), 2))
    click = 20 * np.log10((bend[SIDE - CLICK : SIDE + CLICK].max() + 1e-9) / (np.sqrt(np.mean(bend**2)) + 1e-9))
    return np.array(
        [
            abs(drift.span_level_db(after) - drift.span_level_db(before)),
            np.abs(bands[1] - bands[0]).mean(),
            click,
        ]
    )


def other_moments(times: np.ndarray, seconds: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws times in seconds at least `APART` away from all boundaries and from both ends."""
    drawn = rng.uniform(APART, seconds - APART, 50 * count)
    far = np.abs(drawn[:, None] - times[None]).min(axis=1, initial=np.inf) >= APART
    return drawn[far][:count]


def compare(pieces: list[np.ndarray], times: dict[str, np.ndarray], seed: int) -> list[Figure]:
    """Compares jumps at each stage's boundaries with jumps elsewhere in the same piece."""
    every, rng = np.concatenate(list(times.values())), np.random.default_rng(seed)
    seconds = len(pieces[0]) / SAMPLE_RATE
    at = {name: [np.stack([jumps(p, t) for t in own]) for p in pieces] for name, own in times.items() if len(own)}
    count = max(len(own) for own in times.values())
    elsewhere = [np.stack([jumps(p, t) for t in other_moments(every, seconds, count, rng)]) for p in pieces]
    figures = []
    for index, jump in enumerate(("level", "spectrum", "waveform")):
        everywhere = metrics.bootstrap(np.concatenate([found[:, index] for found in elsewhere]), seed=seed)
        figures.append(Figure(f"jump of the {jump} in dB, elsewhere", everywhere))
        for name, found in at.items():
            more = np.concatenate(
                [own[:, index] - others[:, index].mean() for own, others in zip(found, elsewhere, strict=True)]
            )
            added = metrics.bootstrap(more, seed=seed)
            title = f"added to the {jump} at joins of {name} windows"
            figures.append(Figure(title, added, "interval reaches 0", added.low <= 0, f"{len(more)} joins"))
    return figures


def main() -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__.splitlines()[0], corpus=False)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the pieces")
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS), help="prompts, one piece each")
    args = parser.parse_args()
    bundle, began = bundles.load(args.bundle), time.monotonic()
    pieces = [piece.audio for piece in generate.generate(bundle, args.prompts, seconds=args.seconds, seed=args.seed)]
    print(f"{len(pieces)} pieces of {args.seconds:g} s in {time.monotonic() - began:.0f} s", flush=True)
    figures = compare(pieces, joins(bundle, args.seconds), args.seed)
    spans = [drift.spans(piece) for piece in pieces]
    for prompt, found in zip(args.prompts, spans, strict=True):
        print(f"{prompt}\n{drift.table(found)}")
    for name in ("level", "centroid"):
        change = [getattr(found[-1], name) - getattr(found[0], name) for found in spans]
        unit = "dB" if name == "level" else "Hz"
        figures.append(Figure(f"drift of the {name} in {unit}, last 15 s less first", metrics.bootstrap(change)))
    details = {"prompts": args.prompts, "spans": [[s._asdict() for s in f] for f in spans]}
    publish("long", figures, args.output, details)


if __name__ == "__main__":
    main()
