"""Renders a packed corpus (pack.py) in worker processes, into memory-mapped arrays that can be read meanwhile.

Clips equal those from `clips.make_clip` for the same seed, split and index. Workers are separate programs
(render_worker.py) that never import JAX.
"""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

import numpy as np

from musiclm_jax.corpus.arrangement import CLIP_SECONDS
from musiclm_jax.data.tokens import SAMPLE_RATE, SPLITS

SAMPLES = round(CLIP_SECONDS * SAMPLE_RATE)
SETTINGS = "render_job.json"
_ORDER = ("validation", "test", "train")  # small splits first: evaluation needs them complete
_STOP_SECONDS = 5.0


def schedule(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Returns (split, index) of all clips, in the order in which they are rendered."""
    return [(split, index) for split in _ORDER for index in range(counts.get(split, 0))]


def open_arrays(folder: pathlib.Path, counts: Mapping[str, int], leads_every: int, mode: str) -> dict[str, np.ndarray]:
    """Opens the memory-mapped arrays of a job, by file name.

    Args:
      folder: the job's folder.
      counts: number of clips in each split.
      leads_every: one in `leads_every` train clips has its lead performed by a voice.
      mode: mode of np.memmap: "w+" creates arrays of zeros, "r+" and "r" open existing ones.

    Returns:
      "<split>.audio.int16" `[n, samples]`, "<split>.done" `[n]`, "train.leads.int16" `[leads, samples]`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for split, count in counts.items():
        if count:
            shapes[f"{split}.audio.int16"] = (count, SAMPLES)
            shapes[f"{split}.done"] = (count,)
            if split == "train":
                shapes[f"{split}.leads.int16"] = (-(-count // leads_every), SAMPLES)
    arrays: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        kind = np.uint8 if name.endswith(".done") else np.int16
        arrays[name] = np.memmap(folder / name, kind, mode, shape=shape)  # type: ignore[call-overload]
    return arrays


class RenderJob:
    """Workers that render clips in the order of `schedule`.

    Attributes:
      arrays: read-only memory-mapped arrays from `open_arrays`, which the workers fill.
    """

    def __init__(
        self,
        pack_folder: pathlib.Path,
        work_folder: pathlib.Path,
        seed: int,
        counts: Mapping[str, int],
        workers: int,
        leads_every: int,
    ):
        """Starts the workers; overwrites the files of an earlier job in the work folder.

        Args:
          pack_folder: folder from `pack.pack`.
          work_folder: folder for the arrays (480 kB per clip); may be in memory (/dev/shm).
          seed: the corpus's seed.
          counts: number of clips in each split.
          workers: number of processes.
          leads_every: one in `leads_every` train clips has its lead performed by a voice.

        Raises:
          ValueError: if a split is unknown, or `workers` or `leads_every` is below 1.
        """
        if not set(counts) <= set(SPLITS) or workers < 1 or leads_every < 1:
            raise ValueError(
                f"counts = {dict(counts)}, workers = {workers}, leads_every = {leads_every}: expected splits from "
                f"{SPLITS}, and at least 1 for workers and leads_every"
            )
        self._folder, self._counts = pathlib.Path(work_folder), dict(counts)
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in ("metadata-*.jsonl", "worker-*.log"):
            for path in self._folder.glob(name):
                path.unlink()
        open_arrays(self._folder, self._counts, leads_every, "w+")
        self.arrays = open_arrays(self._folder, self._counts, leads_every, "r")
        (self._folder / "next").write_text("0")
        settings = {"pack": str(pathlib.Path(pack_folder).resolve()), "seed": seed, "counts": self._counts}
        settings |= {"leads_every": leads_every, "parent": os.getpid()}
        (self._folder / SETTINGS).write_text(json.dumps(settings))
        self._leading = dict.fromkeys(self._counts, 0)
        self._rows: dict[tuple[str, int], dict] = {}
        self._read = [0] * workers  # bytes read from each worker's metadata file
        self._processes = [self._start(number) for number in range(workers)]

    def _start(self, number: int) -> subprocess.Popen:
        root = str(pathlib.Path(__file__).parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        # One thread each: workers may fill all cores. They do not import JAX; if one did, it must leave the GPU alone.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        # -P: the current folder is no place to import from.
        command = [sys.executable, "-P", "-m", "musiclm_jax.corpus.render_worker", str(self._folder), str(number)]
        with open(self._log(number), "wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)

    def _log(self, number: int) -> pathlib.Path:
        return self._folder / f"worker-{number}.log"

    def available(self, split: str) -> int:
        """Returns how many clips of a split are rendered, counted up to the first missing one."""
        if not self._counts.get(split):
            return 0
        waiting = self.arrays[f"{split}.done"][self._leading[split] :] == 0
        self._leading[split] += int(np.argmax(waiting)) if waiting.any() else len(waiting)
        return self._leading[split]

    def metadata(self, split: str, n: int) -> list[dict]:
        """Returns metadata of the first n clips of a split, in order: id, caption, aspects, composition, and so on.

        Raises:
          ValueError: if fewer are available.
        """
        if n > self.available(split):
            raise ValueError(f"{n} clips of {split} requested, but only {self.available(split)} are rendered")
        if any((split, index) not in self._rows for index in range(n)):
            self._read_metadata()
        return [self._rows[split, index] for index in range(n)]

    def _read_metadata(self) -> None:
        for number in range(len(self._processes)):
            path = self._folder / f"metadata-{number}.jsonl"
            if path.exists():
                with open(path, "rb") as file:
                    file.seek(self._read[number])
                    content = file.read()
                whole = content[: content.rfind(b"\n") + 1]
                self._read[number] += len(whole)
                for line in whole.splitlines():
                    row = json.loads(line)
                    self._rows[row["split"], row["index"]] = row

    def failed(self) -> None:
        """Checks that no worker has failed.

        Raises:
          RuntimeError: if one has; the message includes the end of its log.
        """
        for number, process in enumerate(self._processes):
            if process.poll() not in (None, 0):
                text = self._log(number).read_text(errors="replace")[-4000:]
                raise RuntimeError(f"render worker {number} ended with status {process.returncode}:\n{text}")

    def stop(self) -> None:
        """Stops the workers; rendered clips are kept."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
