"""Computes FAD, KLD and MCC of a system's clips for a set of captions and reference clips (MusicLM section 5.2).

An `EvaluationSet` holds captions and references; `hear` embeds clips, `score` turns embeddings into figures. Nothing
here generates clips or depends on their origin, so the clips of any system are scored alike.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np

from musiclm_jax.bundles import Bundle
from musiclm_jax.bundles.encode import SAMPLES_PER_SEMANTIC_FRAME, encode_acoustic
from musiclm_jax.data import files
from musiclm_jax.data.audio import resample
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.evaluation import embedders as listeners
from musiclm_jax.evaluation import frechet, metrics
from musiclm_jax.evaluation.clips import is_silent, segments, some
from musiclm_jax.evaluation.embedders import EMBEDDINGS, PROBABILITIES, Embedder, embed
from musiclm_jax.evaluation.embedders.weights import WeightsError
from musiclm_jax.evaluation.metrics import Estimate
from musiclm_jax.tokenizers import mulan, soundstream

# Clip id to the vectors `[windows, dim]` of each of its segments.
Heard = dict[str, list[np.ndarray]]
# Embedder name to what it computed.
Hearing = dict[str, Heard]
# Each call returns a new iterable of (id, float32 `[samples]` at 24 kHz).
ClipSource = Callable[[], Iterable[tuple[str, np.ndarray]]]

MIN_TAG_CLIPS = 5  # a tag with fewer clips gets no mean of its own


@dataclasses.dataclass(frozen=True)
class Item:
    """One requested clip."""

    id: str
    caption: str
    tags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """The requested clips, and the real clips to compare with.

    Attributes:
      name: of the task, in seqio's registry and in reports.
      items: requested clips, in the order of the task.
      references: available real clips of the items; KLD compares clips with the same id.
      background: real clips for FAD to compare with; None uses `references`. With clips of other ids, the FAD of real
        clips against it is a fair lower bound.
      version: identifies both sets of real clips in the cache; "" turns caching off.
      remarks: notes about the set for readers of the figures.
    """

    name: str
    items: tuple[Item, ...]
    references: ClipSource
    background: ClipSource | None = None
    version: str = ""
    remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of one system.

    Attributes:
      metric: "FAD", "KLD" or "MCC".
      embedder: name of the embedder; figures from different embedders are not comparable.
      version: version of the embedder's weights.
      estimate: the value with its 95 % interval; None if it cannot be computed.
      clips: number of clips scored.
      asked: number of clips requested.
      infinity: FAD extrapolated to infinitely many clips; None for other metrics, or with too few clips.
      note: how to read the figure, or why there is none.
    """

    metric: str
    embedder: str
    version: str
    estimate: Estimate | None
    clips: int
    asked: int
    infinity: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Figures of one system.

    Attributes:
      system: name of the system.
      figures: the lines of the report.
      by_clip: KLD and MCC of each clip: {"KLD musicnn_tags": {id: value}, ...}.
      by_tag: means over the clips of each tag that has enough: {"KLD musicnn_tags": {tag: (mean, clips)}, ...}.
    """

    system: str
    figures: tuple[Figure, ...]
    by_clip: dict[str, dict[str, float]]
    by_tag: dict[str, dict[str, tuple[float, int]]]


def hear(embedder: Embedder, clips: Iterable[tuple[str, np.ndarray]]) -> Heard:
    """Computes the vectors of clips at 24 kHz, segment by segment; clips too short for the embedder are left out."""
    names: list[str] = []

    def parts() -> Iterator[np.ndarray]:
        for name, audio in clips:
            for part in segments(audio):
                names.append(name)
                yield resample(part, SAMPLE_RATE, embedder.sample_rate)

    heard: Heard = {}
    for index, vectors in enumerate(embed(embedder, parts())):
        if len(vectors):
            heard.setdefault(names[index], []).append(vectors)
    return heard


def hear_cached(embedder: Embedder, clips: ClipSource, version: str, cache: pathlib.Path | None) -> Heard:
    """Like `hear`, but caches the vectors in the folder `cache`, keyed by the versions of clips and embedder."""
    if cache is None or not version:
        return hear(embedder, clips())
    key = hashlib.sha256(json.dumps([version, embedder.name, embedder.version]).encode()).hexdigest()[:16]
    path = cache / f"{embedder.name}-{key}.npz"
    if path.exists():
        try:
            return _read_heard(path)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, and it is made again") from error
    heard = hear(embedder, clips())
    flat = [(name, vectors) for name, parts in heard.items() for vectors in parts]
    if flat:
        cache.mkdir(parents=True, exist_ok=True)
        with files.replaced(path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                names=[name for name, _ in flat],
                windows=[len(vectors) for _, vectors in flat],
                vectors=np.concatenate([vectors for _, vectors in flat]),
            )
    return heard


def _read_heard(path: pathlib.Path) -> Heard:
    """Reads vectors that `hear_cached` wrote."""
    heard: Heard = {}
    with np.load(path) as stored:
        rows = np.split(stored["vectors"], np.cumsum(stored["windows"])[:-1])
        for name, vectors in zip(stored["names"], rows, strict=True):
            heard.setdefault(str(name), []).append(vectors)
    return heard


def load_embedders(names: Sequence[str], bundle: Bundle) -> tuple[list[Embedder], list[str]]:
    """Loads embedders and classifiers; skips those whose weights are missing.

    Args:
      names: names for `embedders.load`.
      bundle: provides "mulan".

    Returns:
      The loaded embedders, and a line for each skipped one that says what it needs.

    Raises:
      ValueError: if a name is unknown or none can be loaded.
    """
    loaded, absent = [], []
    for name in names:
        try:
            loaded.append(listeners.load(name, bundle))
        except WeightsError as error:
            absent.append(f"no figures from {name}: {error}")
    if not loaded:
        raise ValueError(f"none of the embedders {', '.join(names)} can be used: {absent[0] if absent else 'name one'}")
    return loaded, absent


class Judges:
    """The embedders of an evaluation and their vectors of the references, which all systems share.

    Args:
      evaluation_set: captions and references.
      embedders: embedders give FAD, classifiers give KLD; "mulan" also gives MCC.
      bundle: its MuLan embeds the captions; None skips MCC.
      cache: folder for the vectors of the references.
      direction: direction of KLD, see `metrics.kl_divergence`.
      seed: for the bootstrap intervals.
    """

    def __init__(
        self,
        evaluation_set: EvaluationSet,
        embedders: Sequence[Embedder],
        bundle: Bundle | None = None,
        cache: pathlib.Path | None = None,
        direction: str = metrics.KLD_DIRECTIONS[0],
        seed: int = 0,
    ):
        self.evaluation_set = evaluation_set
        self.embedders = tuple(embedders)
        self.direction = direction
        self.seed = seed
        self._captions: dict[str, np.ndarray] = {}
        if bundle is not None and any(e.name == "mulan" for e in embedders):
            config, variables = bundle.mulan()
            items = evaluation_set.items
            vectors = np.asarray(mulan.embed_text(config, variables, [item.caption for item in items]))
            self._captions = {item.id: vector for item, vector in zip(items, vectors, strict=True)}
        self._cache = cache
        self._background: dict[str, frechet.Gaussian | None] = {}
        self._references: dict[str, Heard] = {}
        for embedder in embedders:
            if embedder.kind == PROBABILITIES or evaluation_set.background is None:
                self._references[embedder.name] = self._hear_references(embedder)
            if embedder.kind == EMBEDDINGS:
                heard = self._references.get(embedder.name, {})
                if evaluation_set.background is not None:
                    version = evaluation_set.version and f"{evaluation_set.version} background"
                    heard = hear_cached(embedder, evaluation_set.background, version, cache)
                rows = [vectors for parts in heard.values() for vectors in parts]
                enough = sum(len(vectors) for vectors in rows) >= 2
                self._background[embedder.name] = frechet.fit(rows) if enough else None

    def _hear_references(self, embedder: Embedder) -> Heard:
        return hear_cached(embedder, self.evaluation_set.references, self.evaluation_set.version, self._cache)

    def hear(self, clips: ClipSource) -> Hearing:
        """Computes every embedder's vectors of the clips; ids that are not in the evaluation set are ignored."""
        ids = {item.id for item in self.evaluation_set.items}
        return {e.name: hear(e, ((name, audio) for name, audio in clips() if name in ids)) for e in self.embedders}

    def references(self) -> Hearing:
        """Returns every embedder's vectors of the reference clips, to score real clips as a system.

        References without an item are left out: if the number of items is limited, there may be more references.
        """
        ids = {item.id for item in self.evaluation_set.items}
        heard = {e.name: self._references.get(e.name) or self._hear_references(e) for e in self.embedders}
        return {name: {clip: parts for clip, parts in of.items() if clip in ids} for name, of in heard.items()}

    def score(self, system: str, hearing: Hearing) -> Scores:
        """Computes the figures of a system from the vectors of its clips."""
        items = {item.id: item for item in self.evaluation_set.items}
        figures: list[Figure] = []
        by_clip: dict[str, dict[str, float]] = {}
        for embedder in self.embedders:
            heard = hearing[embedder.name]
            if embedder.kind == EMBEDDINGS:
                figures.append(self._fad(embedder, heard))
            else:
                values = self._kld(heard, self._references[embedder.name])
                figures.append(self._mean("KLD", embedder, values, f"KL({self.direction}), nats"))
                by_clip[f"KLD {embedder.name}"] = values
            if embedder.name == "mulan" and self._captions:
                values = {
                    name: float(np.mean(metrics.cosine(self._captions[name], np.stack([unit_mean(p) for p in parts]))))
                    for name, parts in heard.items()
                }
                figures.append(
                    self._mean(
                        "MCC",
                        embedder,
                        values,
                        "cosine of caption and clip; the bundle's music is conditioned with this MuLan",
                    )
                )
                by_clip[f"MCC {embedder.name}"] = values
        by_tag = {name: tag_means(values, items) for name, values in by_clip.items()}
        order = ("FAD", "KLD", "MCC")
        figures.sort(key=lambda figure: order.index(figure.metric))
        return Scores(system, tuple(figures), by_clip, by_tag)

    def _fad(self, embedder: Embedder, heard: Heard) -> Figure:
        asked = len(self.evaluation_set.items)
        clips = [np.concatenate(parts) for parts in heard.values()]
        background = self._background[embedder.name]

        def none(reason: str) -> Figure:
            return Figure("FAD", embedder.name, embedder.version, None, len(clips), asked, note=reason)

        if background is None:
            return none("no reference clips")
        if len(clips) < 2:
            return none("fewer than two clips have embeddings")
        found = frechet.fad(clips, background, seed=self.seed)
        counts = f"{found.vectors} against {found.reference_vectors} embeddings of {found.dim} dimensions"
        note = f"{counts}; {found.warning}" if found.warning else counts
        return Figure("FAD", embedder.name, embedder.version, found.estimate, found.clips, asked, found.infinity, note)

    def _kld(self, heard: Heard, references: Heard) -> dict[str, float]:
        values = {}
        for name in heard.keys() & references.keys():
            generated = np.stack([part.mean(axis=0) for part in heard[name]])
            reference = np.stack([part.mean(axis=0) for part in references[name]])
            if len(reference) != len(generated):  # such as 30 s generated for a caption that describes 10 s
                reference = reference.mean(axis=0, keepdims=True)
            values[name] = float(np.mean(metrics.kl_divergence(reference, generated, self.direction)))
        return {name: values[name] for name in heard if name in values}

    def _mean(self, metric: str, embedder: Embedder, values: Mapping[str, float], note: str) -> Figure:
        estimate = metrics.bootstrap(list(values.values()), seed=self.seed) if len(values) >= 2 else None
        if estimate is None:
            note = "fewer than two clips have embeddings" + (" and a reference" if metric == "KLD" else "")
        asked = len(self.evaluation_set.items)
        return Figure(metric, embedder.name, embedder.version, estimate, len(values), asked, note=note)


def unit_mean(vectors: np.ndarray) -> np.ndarray:
    """Returns the mean of unit vectors `[windows, dim]`, scaled to unit norm: MuLan's embedding of a clip."""
    mean = vectors.mean(axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def tag_means(values: Mapping[str, float], items: Mapping[str, Item]) -> dict[str, tuple[float, int]]:
    """Computes mean and number of clips for each tag with at least `MIN_TAG_CLIPS`, most frequent tags first."""
    of_tag: dict[str, list[float]] = {}
    for name, value in values.items():
        for tag in dict.fromkeys(items[name].tags):
            of_tag.setdefault(tag, []).append(value)
    kept = {tag: found for tag, found in of_tag.items() if len(found) >= MIN_TAG_CLIPS}
    ordered = sorted(kept, key=lambda tag: (-len(kept[tag]), tag))
    return {tag: (float(np.mean(kept[tag])), len(kept[tag])) for tag in ordered}


def silent_references(evaluation_set: EvaluationSet) -> list[str]:
    """Returns remarks that name silent real clips: they are scored, like the silent clips of a system."""
    sources = {"reference clips": evaluation_set.references, "background clips of FAD": evaluation_set.background}
    silent = {
        kind: [name for name, audio in source() if is_silent(audio)] for kind, source in sources.items() if source
    }
    return [
        f"{len(names)} {kind} are silent (they are scored): {some(names)}" for kind, names in silent.items() if names
    ]


def unheard(embedders: Sequence[Embedder], hearing: Hearing, ids: Iterable[str]) -> list[str]:
    """Returns remarks that name the clips of `ids` that are too short for an embedder."""
    remarks: list[str] = []
    ids = list(ids)
    for embedder in embedders:
        if names := [name for name in ids if name not in hearing[embedder.name]]:
            needs = f"{embedder.name}, which needs {embedder.min_seconds:.2f} s"
            remarks.append(f"{len(names)} clips are too short for {needs}: {some(names)}")
    return remarks


def shuffled(hearing: Hearing, ids: Sequence[str], seed: int) -> Hearing:
    """Assigns each clip's vectors to another id, to score music that does not match its text.

    FAD does not change, since it does not depend on which clip belongs to which caption.
    """
    order = np.random.default_rng(seed).permutation(len(ids))
    # A cyclic shift of a random order, so that no clip keeps its id.
    renamed = {ids[order[i]]: ids[order[(i + 1) % len(ids)]] for i in range(len(ids))}
    return {
        embedder: {renamed[name]: parts for name, parts in heard.items() if name in renamed}
        for embedder, heard in hearing.items()
    }


def noise(ids: Sequence[str], seconds: float, seed: int) -> ClipSource:
    """Returns white noise at -20 dBFS for each id: a worst case."""

    def clips() -> Iterator[tuple[str, np.ndarray]]:
        rng = np.random.default_rng(seed)
        for name in ids:
            yield name, (0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)

    return clips


def codec_round_trip(bundle: Bundle, source: ClipSource) -> ClipSource:
    """Encodes clips with SoundStream and decodes them: the best that the stages can reach."""
    part = bundle.part("soundstream")
    decode = jax.jit(functools.partial(soundstream.decode, part.config))

    def clips() -> Iterator[tuple[str, np.ndarray]]:
        for name, audio in source():
            whole = np.pad(audio, (0, -len(audio) % SAMPLES_PER_SEMANTIC_FRAME))
            decoded = decode(part.variables, encode_acoustic(part, whole[None]))
            yield name, np.asarray(decoded)[0, : len(audio)]

    return clips
