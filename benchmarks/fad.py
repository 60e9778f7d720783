"""Compares our FAD with PyPI's frechet-audio-distance on the same clips and the same VGGish: values and times.

    pip install --no-deps frechet-audio-distance==0.3.4 torchvggish==0.2 resampy==0.4.3
    python -m benchmarks.fad --corpus DIR [--clips 64] [--rounds 3] [--clock processor]

(`--no-deps`: empty modules replace what its VGGish does not use, such as CLAP and EnCodec.) The network is the
published VGGish with random weights, or with torchvggish's weights from $MUSICLM_VGGISH; the time does not depend on
them. Both sides read, resample, embed and compare two folders of 24 kHz files, with one thread for each CPU of this
process (`taskset -c 0` leaves one). A warm-up round excludes compilation. Then both sides alternate; figures are
medians.
"""

import importlib
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import report
from benchmarks.report import Figure
from musiclm_jax.data import audio as sound
from musiclm_jax.evaluation import frechet, metrics
from musiclm_jax.evaluation.embedders import Embedder, embed, vggish
from musiclm_jax.evaluation.embedders.weights import read_torch

UNUSED = ("laion_clap", "encodec", "torchaudio", "torchvision", "torchlibrosa", "torchlibrosa.stft")
UNUSED += ("torchlibrosa.augmentation",)


def published() -> Any:
    """Builds frechet-audio-distance's scorer with torchvggish's network, without its downloads.

    Raises:
      ValueError: if a package is missing.
    """
    stand_ins = {name: mock.MagicMock() for name in UNUSED if name not in sys.modules}
    try:
        import torch

        # Imported by full name: in the package's namespace, functions shadow the modules.
        torchvggish = importlib.import_module("torchvggish.torchvggish")
        vggish_input = importlib.import_module("torchvggish.vggish_input")

        sys.modules.update(stand_ins)
        try:
            from frechet_audio_distance import fad
        finally:
            for name in stand_ins:
                del sys.modules[name]
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed: pip install --no-deps frechet-audio-distance==0.3.4 torchvggish==0.2 "
            "resampy==0.4.3"
        ) from error
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as XLA uses
    torch.manual_seed(0)
    network = torchvggish.VGG(torchvggish.make_layers(), postprocess=False)
    if path := os.environ.get(vggish.VARIABLE):
        network.load_state_dict({name: torch.tensor(value) for name, value in read_torch(path).items()})
    network.embeddings = torch.nn.Sequential(*list(network.embeddings.children())[:-1])  # before the activation
    network.eval()

    def forward(audio: np.ndarray, rate: int) -> Any:
        return network(vggish_input.waveform_to_examples(audio, rate))

    scorer = fad.FrechetAudioDistance.__new__(fad.FrechetAudioDistance)
    scorer.model_name, scorer.sample_rate, scorer.channels = "vggish", vggish.SAMPLE_RATE, 1
    scorer.verbose, scorer.audio_load_worker, scorer.device = False, 8, torch.device("cpu")
    scorer.model = mock.Mock(forward=forward, network=network)
    return scorer


def ours(network: Any) -> Embedder:
    """Returns our VGGish with the parameters of a torch network."""
    return vggish.embedder(vggish.from_torch({n: t.numpy() for n, t in network.state_dict().items()}), "benchmark")


def our_score(embedder: Embedder, background: pathlib.Path, evaluated: pathlib.Path) -> float:
    """Computes the FAD of two folders of audio files."""
    gaussians = []
    for folder in (background, evaluated):
        clips = (sound.load(path, embedder.sample_rate) for path in sorted(folder.iterdir()))
        gaussians.append(frechet.fit(list(embed(embedder, clips))))
    return frechet.frechet_distance(gaussians[1], gaussians[0])


def timed(call: Callable[[], float], clock: str) -> tuple[float, float]:
    """Returns the result of a call and its seconds."""
    now = time.perf_counter if clock == "wall" else time.process_time
    began = now()
    result = call()
    return result, now() - began


def arithmetic(scorer: Any, dim: int, seed: int) -> tuple[float, float, float]:
    """Returns the largest difference of the two distances on the same embeddings, and the seconds that each takes."""
    rng = np.random.default_rng(seed)
    differences, seconds = [], []
    for _ in range(5):
        mixing = rng.normal(size=(dim, dim)) / np.sqrt(dim)
        first, second = rng.normal(size=(1000, dim)) @ mixing, 1.2 * rng.normal(size=(1000, dim)) @ mixing + 0.1

        def theirs(first: np.ndarray = first, second: np.ndarray = second) -> float:
            statistics_of = scorer.calculate_embd_statistics
            return scorer.calculate_frechet_distance(*statistics_of(first), *statistics_of(second))

        def own(first: np.ndarray = first, second: np.ndarray = second) -> float:
            return frechet.frechet_distance(frechet.fit(first), frechet.fit(second))

        expected, their_time = timed(theirs, "processor")
        found, own_time = timed(own, "processor")
        differences.append(abs(expected - found))
        seconds.append((their_time, own_time))
    their_times, own_times = zip(*seconds, strict=True)
    return max(differences), statistics.median(their_times), statistics.median(own_times)


def scoring_seconds(clips: int, clock: str, seed: int) -> float:
    """Times scoring of 10 s clips from their embeddings: FAD with interval and limit, KLD and MCC with intervals."""
    rng = np.random.default_rng(seed)
    embeddings = list(rng.normal(size=(clips, 10, 128)).astype(np.float32))  # VGGish: ten vectors a clip
    reference = frechet.fit(rng.normal(size=(10 * clips, 128)))
    classes = rng.gamma(0.1, size=(2, clips, 521))  # YAMNet
    joint = rng.normal(size=(2, clips, 128))  # MuLan

    def score() -> float:
        fad = frechet.fad(embeddings, reference).estimate.value
        kld = metrics.bootstrap(metrics.kl_divergence(*classes)).value
        return fad + kld + metrics.bootstrap(metrics.cosine(*joint)).value

    return timed(score, clock)[1]


def main() -> None:
    """Runs the benchmark."""
    parser = report.arguments(__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=64, help="clips in each folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--clock", default="wall", choices=("wall", "processor"), help="use processor on a busy machine"
    )
    args = parser.parse_args()
    scorer = published()
    embedder = ours(scorer.model.network)
    with tempfile.TemporaryDirectory() as work:
        folders = [pathlib.Path(work) / name for name in ("background", "evaluated")]
        for folder, split in zip(folders, ("validation", "test"), strict=True):
            folder.mkdir()
            for clip in report.sample_clips(args.corpus, split, args.clips, args.seed):
                sound.write(folder / f"{clip['id']}.wav", clip["audio"])
        sides: dict[str, Callable[[], float]] = {
            "frechet-audio-distance": lambda: float(scorer.score(*map(str, folders))),
            "ours": lambda: our_score(embedder, *folders),
        }
        values = {name: call() for name, call in sides.items()}
        if values["frechet-audio-distance"] == -1:
            raise ValueError("frechet-audio-distance could not score the clips: see its message above")
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, call in sides.items():
                times[name].append(timed(call, args.clock)[1])
    seconds = {name: statistics.median(found) for name, found in times.items()}
    ratio = seconds["frechet-audio-distance"] / seconds["ours"]
    difference, their_time, own_time = arithmetic(scorer, 128, args.seed)
    clock, resampled = f"{args.clock} clock", "each with its own resampling to 16 kHz"
    figures = [
        Figure(f"FAD of {args.clips} against {args.clips} clips, {n}, s", s, note=clock) for n, s in seconds.items()
    ]
    figures += [Figure("times as fast, from files to FAD", ratio, ">= 3", ratio >= 3)]
    figures += [Figure(f"FAD, {name}, 1e-6", 1e6 * value, note=resampled) for name, value in values.items()]
    figures += [
        Figure(
            "difference of the distances on the same embeddings, 1e-6", 1e6 * difference, "<= 1", difference <= 1e-6
        ),
        Figure("seconds to score 1,000 clips from embeddings", scoring_seconds(1000, args.clock, args.seed)),
        Figure("times as fast, distance alone", their_time / own_time, note="128 dimensions, 1,000 vectors a side"),
    ]
    report.publish("fad", figures, args.output, {"seconds": times, "values": values})


if __name__ == "__main__":
    main()
