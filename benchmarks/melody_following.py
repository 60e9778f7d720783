"""Measures how closely music follows a given melody: python -m benchmarks.melody_following --corpus DIR --work DIR

Held-out tunes are sung or whistled (`corpus/voices.py`) and passed as `--melody`, each with a caption of another
held-out clip. The benchmark correlates the chroma of a piece with the simultaneous chroma of its own melody and of the
other melodies; the difference is the effect of the melody. It compares pitches in the melody's key and, since a tune
stays the same in another key, in the best transposition of each pair. It also reports the agreement of note onsets.

References are an instrument that plays the tune from its score (the ceiling), and pieces from the same captions without
a melody (which must show no difference). Pieces stay in --work, and an interrupted run resumes.
"""

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np

from benchmarks.report import Figure, arguments, publish, sample_clips
from benchmarks.token_roles import chroma, chroma_similarity, onset_strength, rhythm_similarity
from musiclm_jax import bundles
from musiclm_jax.bundles import Bundle
from musiclm_jax.corpus import compositions, instruments, rendering, renditions, scores, voices
from musiclm_jax.corpus.arrangement import UnsuitableError
from musiclm_jax.data import audio as sound
from musiclm_jax.data.settings import check_settings
from musiclm_jax.evaluation import metrics
from musiclm_jax.generation import generate

SECONDS = 10.0
ARMS = ("an instrument plays the tune", "music under the melody", "music without melody")


def tunes(corpus: str, count: int, seed: int) -> list[renditions.Passage]:
    """Draws passages of `SECONDS` from `count` held-out tunes, one per composition.

    Raises:
      ValueError: if there are fewer tunes.
    """
    found, _ = scores.load_scores(pathlib.Path(corpus).expanduser() / ".scores")
    compositions.group(found)
    rng = np.random.default_rng(seed)
    held_out = compositions.split_scores(found)["test"]
    passages: dict[str, renditions.Passage] = {}
    for index in rng.permutation(len(held_out)):
        score = held_out[index]
        if len(passages) < count and score.composition not in passages:
            try:
                passages[score.composition] = renditions.passage(rng, score, SECONDS)
            except UnsuitableError:
                continue
    if len(passages) < count:
        raise ValueError(f"--tunes {count}: the test split has {len(passages)} tunes that are long enough")
    return list(passages.values())


def performances(renderer: rendering.Renderer, played: renditions.Passage, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Renders a passage by a voice and by an instrument, in the same tempo and key: float32 `[samples]` each."""
    rng = np.random.default_rng((seed, int(played.start * 1000)))
    tune = renditions.in_seconds(played.notes, played.start, played.per_quarter, 0.0)
    voice, reach = voices.VOICES[rng.integers(len(voices.VOICES))]
    lead = instruments.LEADS[rng.integers(len(instruments.LEADS))]
    in_range = tune.copy()
    in_range[:, 2] += renditions.octaves(tune[:, 2], reach)
    tune[:, 2] += renditions.octaves(tune[:, 2], (lead.low, lead.high))
    return voice(in_range, SECONDS, rng), renderer.stem([(lead.font, lead.program, False, tune)], SECONDS)


def in_best_key(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the largest `chroma_similarity` over all transpositions of the second clip."""
    return max(chroma_similarity(first, np.roll(second, key, axis=1)) for key in range(12))


MEASURES = {
    "pitch agreement": (chroma, chroma_similarity),
    "pitch agreement in the best key": (chroma, in_best_key),
    "onset agreement": (onset_strength, rhythm_similarity),
}


def agreements(melodies: Sequence[np.ndarray], pieces: Sequence[np.ndarray], name: str) -> np.ndarray:
    """Computes a measure between all pieces and melodies, audio `[samples]`: `[pieces, melodies]`."""
    hear, compare = MEASURES[name]
    heard, played = [hear(melody) for melody in melodies], [hear(piece) for piece in pieces]
    return np.array([[compare(melody, piece) for melody in heard] for piece in played])


def above_shuffled(matrix: np.ndarray) -> np.ndarray:
    """Returns each piece's agreement with its own melody minus its mean agreement with the others, `[pieces]`."""
    own = np.diagonal(matrix)
    return own - (matrix.sum(axis=1) - own) / (len(matrix) - 1)


def make_pieces(
    bundle: Bundle, prompts: Sequence[str], melodies: Sequence[np.ndarray | None], folder: pathlib.Path, seed: int
) -> list[np.ndarray]:
    """Generates a piece for each prompt and melody, or reads it if `folder` has it."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = []
    for index, (prompt, melody) in enumerate(zip(prompts, melodies, strict=True)):
        file = folder / f"{index:03d}.flac"
        if not file.exists():
            [made] = generate.generate(bundle, [prompt], seconds=SECONDS, seed=seed, melody=melody)
            sound.write(file, made.audio, force=True)
        pieces.append(sound.load(file))
        print(f"{folder.name}: {index + 1} of {len(prompts)} pieces", flush=True)
    return pieces


def figures(matrices: dict[str, dict[str, np.ndarray]], seed: int) -> list[Figure]:
    """Builds the table from the matrix `[pieces, melodies]` of each measure and arm."""
    lines = []
    for name, arms in matrices.items():
        for arm, matrix in arms.items():
            own = metrics.bootstrap(np.diagonal(matrix), seed=seed)
            more = metrics.bootstrap(above_shuffled(matrix), seed=seed)
            asked = arm == ARMS[1] and name.startswith("pitch agreement")
            lines.append(Figure(f"{name}, {arm}", own))
            target, met = ("> 0", more.low > 0) if asked else ("", None)
            lines.append(Figure(f"{name}, {arm}, above shuffled melodies", more, target, met))
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark.

    Raises:
      ValueError: if the arguments, the corpus or the bundle cannot be used.
    """
    parser: argparse.ArgumentParser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, help="folder for the pieces")
    parser.add_argument("--tunes", type=int, default=48, help="held-out tunes, one piece each")
    args = parser.parse_args(argv)
    if args.tunes < 2:
        raise ValueError(f"--tunes {args.tunes}: give 2 or more")
    bundle, work = bundles.load(args.bundle), pathlib.Path(args.work).expanduser()
    parts = {name: entry["sha256"] for name, entry in bundle.config["parts"].items()}
    check_settings(work, {"parts": parts, "tunes": args.tunes, "seed": args.seed}, "choose another --work")
    prompts = [clip["caption"][0] for clip in sample_clips(args.corpus, "test", args.tunes, args.seed)]
    renderer = rendering.Renderer()
    played = [performances(renderer, passage, args.seed) for passage in tunes(args.corpus, args.tunes, args.seed)]
    melodies = [voice for voice, _ in played]
    for index, melody in enumerate(melodies):
        sound.write(work / f"melody-{index:03d}.flac", melody, force=True)
    arms = dict(
        zip(
            ARMS,
            (
                [instrument for _, instrument in played],
                make_pieces(bundle, prompts, melodies, work / "with_melody", args.seed),
                make_pieces(bundle, prompts, [None] * len(prompts), work / "without_melody", args.seed),
            ),
            strict=True,
        )
    )
    matrices = {name: {arm: agreements(melodies, own, name) for arm, own in arms.items()} for name in MEASURES}
    details = {name: {arm: matrix.tolist() for arm, matrix in own.items()} for name, own in matrices.items()}
    publish("melody_following", figures(matrices, args.seed), args.output, details)


if __name__ == "__main__":
    main()
