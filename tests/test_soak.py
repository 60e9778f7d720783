"""Long runs keep their size: memory, open files and threads stay flat while music is made and models are trained.

The slow tests take MUSICLM_SOAK seconds each, a minute by default; `.ci/nightly` gives them an hour together.
"""

import dataclasses
import gc
import os
import pathlib
import signal
import statistics
import threading
import time
from collections.abc import Callable

import miniature
import numpy as np
import pytest
import toy_run

from musiclm_jax import bundles
from musiclm_jax.generation import generate
from musiclm_jax.training import checkpoints

SECONDS = float(os.environ.get("MUSICLM_SOAK", 60))
MEBIBYTES = 10  # of growth that is noise: the allocator keeps what it may need again
# TensorStore 0.1.86 forgets to free some 20 KiB of strings for each checkpoint, in `Spec.to_json` and in the metrics
# that Orbax collects. This project cannot change that.
PER_CHECKPOINT = 0.04  # MiB
COUNT = 3  # files or threads that are noise: a checkpoint that is being written has some
pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")


@dataclasses.dataclass(frozen=True)
class Size:
    """What a process holds: resident memory in MiB, open files, threads."""

    memory: float
    files: int
    threads: int

    @classmethod
    def now(cls) -> "Size":
        """Measures this process."""
        gc.collect()
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return cls(
            pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
        )


def growth(sizes: list[Size]) -> Size:
    """Returns how much the last third is larger than the middle one, by their medians; the first third is warm-up."""
    third = len(sizes) // 3
    assert third >= 3, f"only {len(sizes)} measurements"
    middle, last = sizes[third : 2 * third], sizes[-third:]
    return Size(
        *(
            statistics.median(getattr(size, name) for size in last)
            - statistics.median(getattr(size, name) for size in middle)
            for name in ("memory", "files", "threads")
        )
    )


def check_flat(sizes: list[Size], known: float = 0.0) -> None:
    """Checks that memory, files and threads did not grow, but for a known growth in MiB for each measurement."""
    grown = growth(sizes)
    grown = dataclasses.replace(grown, memory=grown.memory - known * (len(sizes) // 3))
    assert grown.memory < MEBIBYTES and grown.files < COUNT and grown.threads < COUNT, (
        f"{grown}, from {sizes[0]} to {sizes[-1]}"
    )
    print(f"{len(sizes)} measurements: {sizes[0]} to {sizes[-1]}, growth {grown}")


def repeated(work: Callable[[int], None], seconds: float = 0.0, times: int = 9) -> list[Size]:
    """Measures after each repetition, for at least `seconds` and `times`."""
    end, sizes = time.monotonic() + seconds, []
    while time.monotonic() < end or len(sizes) < times:
        work(len(sizes))
        sizes.append(Size.now())
    return sizes


@pytest.fixture(autouse=True)
def frozen():
    """Leaves what exists out of the collections before each measurement, which would take most of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def bundle():
    return bundles.load(miniature.path())


def piece(bundle, number):
    music = generate.generate(bundle, [f"a jig of the fiddle {number}"], seconds=1.1, seed=number)
    assert np.isfinite(music[0].audio).all()


def train(folder, seconds=0.0, steps=18) -> list[Size]:
    """Trains with a checkpoint after every step, for at least `seconds` and `steps`; a signal ends the run."""
    end, sizes = time.monotonic() + seconds, []

    class Data(toy_run.ToyData):
        def epoch(self, epoch, skip):
            for batch in super().epoch(epoch, skip):
                sizes.append(Size.now())
                if time.monotonic() > end and len(sizes) == max(len(sizes), steps):
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    toy_run.run(folder, 10**6, data=Data(), checkpoint_period=1, eval_period=50, log_period=1)
    step, _ = checkpoints.load(folder)
    assert step >= steps - 2, "the last step is saved"
    return sizes


def test_files_and_threads_are_flat(bundle, tmp_path):
    for sizes in (repeated(lambda number: piece(bundle, number)), train(tmp_path)):
        grown = growth(sizes)
        assert grown.files < COUNT and grown.threads < COUNT, sizes


@pytest.mark.slow
def test_generation_keeps_its_size(bundle):
    check_flat(repeated(lambda number: piece(bundle, number), SECONDS))


@pytest.mark.slow
def test_training_keeps_its_size(tmp_path):
    check_flat(train(tmp_path, SECONDS), PER_CHECKPOINT)


def test_a_leak_is_noticed(tmp_path):
    kept, opened, done = [], [], threading.Event()

    def leak(number):
        kept.append(np.ones(2**20))  # 8 MiB
        opened.append((tmp_path / "file").open("w"))
        threading.Thread(target=done.wait, daemon=True).start()

    try:
        sizes = repeated(leak, times=9)
        grown = growth(sizes)
        assert grown.memory == pytest.approx(3 * 8, rel=0.2) and (grown.files, grown.threads) == (3, 3)
        for name in ("memory", "files", "threads"):  # each of them alone is enough
            only = [dataclasses.replace(sizes[0], **{name: getattr(size, name)}) for size in sizes]
            with pytest.raises(AssertionError, match="Size"):
                check_flat(only)
        check_flat([sizes[0]] * 9)
    finally:
        done.set()
        for file in opened:
            file.close()
