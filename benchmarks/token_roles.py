"""Measures what each kind of token controls: python -m benchmarks.token_roles --corpus DIR --work DIR

The paper's study of the conditioning (section "Generation", arXiv 2301.11325): several pieces are generated for each
held-out caption, once with MuLan and semantic tokens fixed (only acoustic tokens are resampled) and once with only
MuLan tokens fixed. Similarity is measured for all pairs of a caption:

* MuLan distance: 1 minus the cosine of the audio embeddings;
* chroma similarity: correlation of simultaneous pitch classes (melody and harmony);
* rhythm similarity: correlation of simultaneous onset strength.

Pairs from different captions are the baseline. Pieces stay in --work, and an interrupted run resumes. The bootstrap
resamples captions, not pairs, because pairs of one caption are not independent.
"""

import argparse
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import scipy.ndimage
import scipy.signal

from benchmarks.report import Figure, arguments, publish, sample_clips
from musiclm_jax import bundles
from musiclm_jax.bundles import Bundle
from musiclm_jax.data import audio as sound
from musiclm_jax.data.settings import check_settings
from musiclm_jax.data.spectrogram import mel_filterbank
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.evaluation import metrics
from musiclm_jax.generation import generate
from musiclm_jax.tokenizers import mulan

# Arms of the study and the `vary` of their requests.
ARMS = {"MuLan and semantic fixed": "acoustics", "MuLan fixed": "all"}
DIFFERENT = "different captions"
FRAME_RATE = 50  # Hz, of chroma and onset strength
CHROMA_WINDOW = 4096  # samples: bins of 5.9 Hz resolve semitones from 110 Hz
LOWEST_HZ, HIGHEST_HZ = 110.0, 2000.0
ONSET_WINDOW = 1024  # samples
ONSET_BLUR = 1.0  # frames: onsets up to about 40 ms apart count as simultaneous
FLOOR = 1e-3  # of full scale (-60 dB): quieter sound counts as silence


def _magnitudes(audio: np.ndarray, window: int) -> np.ndarray:
    """Computes STFT magnitudes at 50 Hz, 0.5 for a full-scale sine: `[frames, bins]`."""
    hop = SAMPLE_RATE // FRAME_RATE
    _, _, spectrum = scipy.signal.stft(np.asarray(audio, np.float64), nperseg=window, noverlap=window - hop)
    return np.abs(spectrum).T


@functools.cache
def _pitch_class_filters() -> np.ndarray:
    """Maps each bin to the pitch class of the nearest semitone: bool `[bins, 12]`, C first."""
    hz = np.arange(CHROMA_WINDOW // 2 + 1) * SAMPLE_RATE / CHROMA_WINDOW
    heard = (hz >= LOWEST_HZ) & (hz <= HIGHEST_HZ)
    midi = np.round(69 + 12 * np.log2(np.maximum(hz, 1.0) / 440)).astype(int)
    return (midi[:, None] % 12 == np.arange(12)) & heard[:, None]


def chroma(audio: np.ndarray) -> np.ndarray:
    """Computes the amplitude of each pitch class at 50 Hz from `[samples]` at 24 kHz: `[frames, 12]`, C first."""
    return np.sqrt(_magnitudes(audio, CHROMA_WINDOW) ** 2 @ _pitch_class_filters())


def onset_strength(audio: np.ndarray) -> np.ndarray:
    """Computes the increase in level, in dB summed over mel bands, at 50 Hz: `[frames]` from `[samples]` at 24 kHz."""
    filters = mel_filterbank(SAMPLE_RATE, ONSET_WINDOW, 40, 60.0, 11_000.0)
    bands = _magnitudes(audio, ONSET_WINDOW) @ (filters / np.maximum(filters.sum(axis=0), 1e-12))
    levels = 20 * np.log10(np.maximum(bands, FLOOR / 10))
    rise = np.maximum(np.diff(levels, axis=0, prepend=levels[:1]), 0).sum(axis=1)
    return scipy.ndimage.gaussian_filter1d(rise, ONSET_BLUR)


def chroma_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the mean correlation of two `chroma` over frames in which both sound; 0 if there are none."""
    frames = min(len(first), len(second))
    first, second = first[:frames], second[:frames]
    both = (first.max(axis=1) > FLOOR) & (second.max(axis=1) > FLOOR)
    if not both.any():
        return 0.0
    first, second = (c[both] - c[both].mean(axis=1, keepdims=True) for c in (first, second))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(np.mean(np.sum(first * second, axis=1) / np.maximum(lengths, 1e-12)))


def rhythm_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the correlation of two `onset_strength`; 0 if one is constant."""
    frames = min(len(first), len(second))
    first, second = (strength[:frames] - strength[:frames].mean() for strength in (first, second))
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / lengths) if lengths > 1e-9 else 0.0


def mulan_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Returns 1 minus the cosine of two embeddings `[dim]`."""
    return float(1 - metrics.cosine(first, second))


# Comparison of two clips' features for each measure; `hear` computes the features.
MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "MuLan distance": mulan_distance,
    "chroma similarity": chroma_similarity,
    "rhythm similarity": rhythm_similarity,
}
Features = dict[str, np.ndarray]


def hear(bundle: Bundle, clips: Sequence[np.ndarray]) -> list[Features]:
    """Computes the features that the measures compare, for clips `[samples]` of equal length."""
    part = bundle.mulan()
    embeddings = np.asarray(mulan.embed_audio(part.config, part.variables, np.stack(clips)))
    return [
        dict(zip(MEASURES, (embedding, chroma(clip), onset_strength(clip)), strict=True))
        for embedding, clip in zip(embeddings, clips, strict=True)
    ]


def compare(of_arms: dict[str, list[list[Features]]]) -> dict[str, dict[str, np.ndarray]]:
    """Measures all pairs.

    Args:
      of_arms: features of each arm's pieces, by caption.

    Returns:
      {measure: {arm: mean over the pairs of each caption, `[captions]`}}. `DIFFERENT` compares pieces of the second arm
      with those of the next caption.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, measure in MEASURES.items():
        found[name] = {}
        for arm, captions in of_arms.items():
            found[name][arm] = np.array(
                [np.mean([measure(a[name], b[name]) for a, b in itertools.combinations(own, 2)]) for own in captions]
            )
        captions = of_arms[list(ARMS)[1]]
        neighbours = zip(captions, captions[1:] + captions[:1], strict=True)
        found[name][DIFFERENT] = np.array(
            [
                np.mean([measure(a[name], b[name]) for a, b in zip(own, others, strict=True)])
                for own, others in neighbours
            ]
        )
    return found


def figures(found: dict[str, dict[str, np.ndarray]], seed: int) -> list[Figure]:
    """Builds the table; by the paper, fixed semantic tokens preserve rhythm and melody."""
    lines = []
    first, second = ARMS
    for name, arms in found.items():
        for arm, values in arms.items():
            lines.append(Figure(f"{name}, {arm}", metrics.bootstrap(values, seed=seed)))
        sign = -1 if name == "MuLan distance" else 1
        alike = metrics.bootstrap(sign * (arms[first] - arms[second]), seed=seed)
        note = "gain in similarity from the same semantic tokens"
        lines.append(Figure(f"{name}, difference", alike, "> 0", alike.low > 0, note))
    return lines


def make_pieces(bundle: Bundle, prompts: Sequence[str], args: argparse.Namespace) -> dict[str, list[list[np.ndarray]]]:
    """Generates the audio of every arm, caption and sample, or reads it from --work.

    Raises:
      ValueError: if --work holds pieces made with other settings.
    """
    work = pathlib.Path(args.work).expanduser()
    settings = {
        "bundle": bundle.sha256,
        "prompts": list(prompts),
        "samples": args.samples,
        "seconds": args.seconds,
        "seed": args.seed,
    }
    check_settings(work, settings, "choose another --work")
    pieces: dict[str, list[list[np.ndarray]]] = {arm: [] for arm in ARMS}
    for index, prompt in enumerate(prompts):
        for arm, vary in ARMS.items():
            files = [work / f"{index:03d}-{vary}-{sample}.flac" for sample in range(args.samples)]
            if not all(file.exists() for file in files):
                made = generate.generate(
                    bundle,
                    [prompt],
                    seconds=args.seconds,
                    seed=args.seed,
                    num_samples=args.samples,
                    vary=vary,
                    batch_size=args.samples,
                )
                for file, piece in zip(files, made, strict=True):
                    sound.write(file, piece.audio, force=True)
            pieces[arm].append([sound.load(file) for file in files])
        print(f"{index + 1} of {len(prompts)} captions", flush=True)
    return pieces


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark.

    Raises:
      ValueError: if the arguments, the corpus or the bundle cannot be used.
    """
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, help="folder for the pieces")
    parser.add_argument("--prompts", type=int, default=16, help="held-out captions")
    parser.add_argument("--samples", type=int, default=4, help="pieces per caption in each arm")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a piece")
    args = parser.parse_args(argv)
    if args.prompts < 2 or args.samples < 2:
        raise ValueError(f"--prompts {args.prompts} --samples {args.samples}: give 2 or more of both")
    clips = sample_clips(args.corpus, "test", args.prompts, args.seed)
    if len(clips) < args.prompts:
        raise ValueError(f"--prompts {args.prompts}: the test split has {len(clips)} clips")
    bundle = bundles.load(args.bundle)
    pieces = make_pieces(bundle, [clip["caption"][0] for clip in clips], args)
    heard = {arm: [hear(bundle, own) for own in captions] for arm, captions in pieces.items()}
    found = compare(heard)
    details = {
        "prompts": args.prompts,
        "samples": args.samples,
        "seconds": args.seconds,
        "by_caption": {name: {arm: values.tolist() for arm, values in arms.items()} for name, arms in found.items()},
    }
    publish("token_roles", figures(found, args.seed), args.output, details)


if __name__ == "__main__":
    main()
