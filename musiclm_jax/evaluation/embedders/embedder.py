"""One interface for the models that score clips: embedders for FAD and MCC, classifiers for KLD.

| name | output | weights |
|---|---|---|
| mulan | the bundle's own joint embedding | in the bundle |
| musicnn, musicnn_tags | embedding, 50 music tags | the package: pip install --no-deps musicnn |
| vggish | AudioSet embedding of 128 dimensions | $MUSICLM_VGGISH: vggish_model.ckpt or vggish-10086976.pth |
| trill | speech embedding of 512 dimensions | $MUSICLM_TRILL: folder of the SavedModel |
| yamnet | 521 AudioSet classes | $MUSICLM_YAMNET: yamnet.h5 |

musicnn works without a download. The paper uses VGGish, TRILL and an AudioSet classifier; figures from different
embedders are never comparable.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import jax
import numpy as np

from musiclm_jax.bundles import Bundle
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.tokenizers import mulan

EMBEDDINGS, PROBABILITIES = "embeddings", "probabilities"
# Name to loader, imported only when it is needed. "mulan" comes from a bundle.
LOADERS = {
    "musicnn": "musiclm_jax.evaluation.embedders.musicnn:load_embedder",
    "musicnn_tags": "musiclm_jax.evaluation.embedders.musicnn:load_classifier",
    "vggish": "musiclm_jax.evaluation.embedders.vggish:load",
    "trill": "musiclm_jax.evaluation.embedders.trill:load",
    "yamnet": "musiclm_jax.evaluation.embedders.yamnet:load",
}
EMBEDDERS = ("mulan", "musicnn", "vggish", "trill")
CLASSIFIERS = ("musicnn_tags", "yamnet")


@dataclasses.dataclass(frozen=True)
class Embedder:
    """Maps windows of audio to vectors: embeddings, or the class probabilities of a classifier.

    Attributes:
      name: name in reports.
      version: identifies the weights; figures and caches of different versions are kept apart.
      kind: "embeddings" or "probabilities".
      sample_rate: of the audio, in Hz.
      window: samples per vector.
      hop: samples from one window to the next.
      apply: (params, float32 `[windows, window]`) -> `[windows, dim]`.
      params: parameters for `apply`, as arrays in nested dicts, or None.
      margin: zeros added before and after each clip, in samples.
      ending: how to treat an incomplete last window. "drop": it is dropped, and a clip shorter than a window has no
        vector. "repeat": likewise, but a clip shorter than a window is repeated to fill one. "pad": it is filled with
        zeros.
      at_once: maximum number of windows per device in one compiled call.
    """

    name: str
    version: str
    kind: str
    sample_rate: int
    window: int
    hop: int
    apply: Callable[[Any, jax.Array], jax.typing.ArrayLike] = dataclasses.field(repr=False)
    params: Any = dataclasses.field(default=None, repr=False)
    margin: int = 0
    ending: Literal["drop", "repeat", "pad"] = "drop"
    at_once: int = 32

    @property
    def min_seconds(self) -> float:
        """Duration in seconds of the shortest clip that has a vector."""
        return (self.window - 2 * self.margin) / self.sample_rate if self.ending == "drop" else 1 / self.sample_rate

    def windows(self, audio: np.ndarray) -> np.ndarray:
        """Cuts a clip into windows.

        Args:
          audio: float `[samples]` at `sample_rate`, at least one sample.

        Returns:
          float32 `[windows, window]`; there are no windows if the clip is shorter than `min_seconds`.
        """
        audio = np.pad(np.asarray(audio, np.float32), self.margin)
        if self.ending == "pad":
            hops = max(0, -(-(len(audio) - self.window) // self.hop))
            audio = np.pad(audio, (0, self.window + hops * self.hop - len(audio)))
        elif self.ending == "repeat" and len(audio) < self.window:
            audio = np.tile(audio, -(-self.window // len(audio)))[: self.window]
        if len(audio) < self.window:
            return np.zeros((0, self.window), np.float32)
        return np.lib.stride_tricks.sliding_window_view(audio, self.window)[:: self.hop]


def embed(embedder: Embedder, clips: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Computes the vectors of clips, in batches of windows over all local devices.

    Args:
      embedder: the model.
      clips: float `[samples]` each, at the embedder's sample rate, of any length.

    Yields:
      float32 `[windows, dim]` for each clip, in order; zero rows for a clip that is too short.
    """
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("batch",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = jax.device_put(embedder.params, everywhere)
    size = embedder.at_once * mesh.size

    def vectors(batch: np.ndarray) -> np.ndarray:
        # The last batch is padded to a power of two per device, so that few programs are compiled.
        count = mesh.size * 2 ** math.ceil(math.log2(max(1, len(batch) / mesh.size)))
        filled = np.concatenate([batch, np.zeros((count - len(batch), embedder.window), np.float32)])
        # Figures must not depend on the device: by default, some multiply float32 matrices in bfloat16.
        with jax.default_matmul_precision("highest"):
            return np.asarray(embedder.apply(params, jax.device_put(filled, rows)), np.float32)[: len(batch)]

    waiting: list[int] = []  # number of windows of each clip that has not been yielded
    pending: list[np.ndarray] = []
    count = 0  # windows in `pending`
    done: list[np.ndarray] = []
    dim = 0

    def complete() -> Iterator[np.ndarray]:
        ready = np.concatenate(done) if done else np.zeros((0, dim), np.float32)
        first = 0
        while waiting and (not waiting[0] or first + waiting[0] <= len(ready)):
            yield ready[first : first + waiting[0]].reshape(waiting[0], dim)
            first += waiting.pop(0)
        done[:] = [ready[first:]] if first < len(ready) else []

    for clip in clips:
        cut = embedder.windows(clip)
        waiting.append(len(cut))
        pending.append(cut)
        count += len(cut)
        if count < size:
            continue
        joined = np.concatenate(pending)
        for start in range(0, count - size + 1, size):
            done.append(vectors(joined[start : start + size]))
            dim = done[-1].shape[1]
            yield from complete()
        pending, count = [joined[count - count % size :]], count % size
    if count:
        done.append(vectors(np.concatenate(pending)))
        dim = done[-1].shape[1]
    yield from complete()


def load(name: str, bundle: Bundle | None = None) -> Embedder:
    """Loads an embedder or classifier by its name.

    Args:
      name: one of `EMBEDDERS` or `CLASSIFIERS`.
      bundle: provides "mulan".

    Raises:
      ValueError: if the name is unknown, or its weights are missing or invalid.
    """
    if name == "mulan":
        if bundle is None:
            raise ValueError("the embedder mulan is part of a bundle: give a bundle")
        return mulan_embedder(bundle)
    if name not in LOADERS:
        raise ValueError(f"there is no embedder {name!r}: use {', '.join((*EMBEDDERS, *CLASSIFIERS))}")
    module, function = LOADERS[name].split(":")
    return getattr(importlib.import_module(module), function)()


def mulan_embedder(bundle: Bundle) -> Embedder:
    """Returns a bundle's audio tower as an embedder: a unit vector for each window of 10 s, one window per second."""
    config, variables = bundle.part("mulan")
    return Embedder(
        name="mulan",
        version=f"{bundle.path.name} {bundle.config['parts']['mulan']['sha256'][:12]}",
        kind=EMBEDDINGS,
        sample_rate=SAMPLE_RATE,
        window=config.window_samples,
        hop=config.stride_samples,
        apply=lambda audio_tower, windows: mulan.embed_audio(config, {"audio": audio_tower}, windows),
        params=variables["audio"],
        ending="repeat",
    )
