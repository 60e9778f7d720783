"""Figures of an evaluation: clips matched by id, counts, order of the controls, cached references."""

import miniature
import numpy as np
import pytest

from musiclm_jax import bundles
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.evaluation import embedders, evaluate, frechet, metrics
from musiclm_jax.evaluation.embedders import Embedder
from musiclm_jax.evaluation.evaluate import EvaluationSet, Item

CLASSES = 6
IDS = [f"clip {i}" for i in range(24)]
ITEMS = tuple(
    Item(name, f"a {'slow' if i % 2 else 'fast'} piano", ("slow" if i % 2 else "fast", "piano"))
    for i, name in enumerate(IDS)
)


def tone(index, seconds=1.0, wobble=0.0):
    """Returns one of six pitches, by the item's index."""
    hz = 500.0 * (1 + index % CLASSES) * (1 + wobble)
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE).astype(np.float32)


def band_levels(_, windows):
    """Computes the share of energy around each of the six pitches."""
    spectrum = np.abs(np.fft.rfft(np.asarray(windows), axis=1)) ** 2
    bins = np.arange(spectrum.shape[1]) * 24_000 / windows.shape[1]
    bands = np.stack([spectrum[:, abs(bins - 500 * k) < 250].sum(axis=1) for k in range(1, CLASSES + 1)], axis=1)
    return bands / np.maximum(bands.sum(axis=1, keepdims=True), 1e-12)


def listener(kind, name="bands", window=12_000, version="1"):
    return Embedder(name, version, kind, SAMPLE_RATE, window, window, band_levels)


def source(wobble=0.0, ids=IDS, seconds=1.0):
    off = dict(zip(IDS, np.random.default_rng(0).normal(0, wobble, len(IDS)), strict=True))
    return lambda: ((name, tone(IDS.index(name), seconds, off[name])) for name in ids)


def evaluation_set(**options):
    return EvaluationSet("pitches", ITEMS, source(), **options)


@pytest.fixture(scope="module")
def judges():
    listeners = [listener(embedders.EMBEDDINGS), listener(embedders.PROBABILITIES, "band_classes")]
    return evaluate.Judges(evaluation_set(), listeners)


def scored(judges, clips):
    return judges.score("model", judges.hear(clips))


def figures(scores):
    return {figure.metric: figure for figure in scores.figures}


def test_a_perfect_system_and_its_controls_come_in_order(judges):
    ids = [item.id for item in ITEMS]
    rows = {
        "real": source(),
        "model": source(wobble=0.1),
        "noise": evaluate.noise(ids, 1.0, seed=0),
    }
    hearing = {name: judges.hear(clips) for name, clips in rows.items()}
    hearing["shuffled"] = evaluate.shuffled(hearing["model"], ids, seed=0)
    found = {name: figures(judges.score(name, heard)) for name, heard in hearing.items()}
    assert figures(judges.score("real", judges.references())) == found["real"]
    fad = {name: row["FAD"].estimate.value for name, row in found.items()}
    kld = {name: row["KLD"].estimate.value for name, row in found.items()}
    assert fad["real"] == pytest.approx(0, abs=1e-9) and kld["real"] == pytest.approx(0, abs=1e-9)
    assert fad["real"] < fad["model"] < fad["noise"]
    assert fad["shuffled"] == pytest.approx(fad["model"]), "FAD does not depend on which clip belongs to which caption"
    assert kld["real"] < kld["model"] < kld["shuffled"]
    assert found["model"]["KLD"].estimate.high < found["shuffled"]["KLD"].estimate.low
    assert all(row["FAD"].embedder == "bands" and row["KLD"].embedder == "band_classes" for row in found.values())


def test_figures_match_the_metrics(judges):
    scores = scored(judges, source(wobble=0.1))
    heard = evaluate.hear(listener(embedders.EMBEDDINGS), source(wobble=0.1)())
    reference = evaluate.hear(listener(embedders.EMBEDDINGS), source()())
    rows = {name: [np.concatenate(parts) for parts in side.values()] for name, side in (("a", heard), ("b", reference))}
    assert figures(scores)["FAD"].estimate == frechet.fad(rows["a"], frechet.fit(rows["b"])).estimate
    expected = {
        name: metrics.kl_divergence(reference[name][0].mean(axis=0), heard[name][0].mean(axis=0)) for name in IDS
    }
    assert scores.by_clip["KLD band_classes"] == pytest.approx(expected)
    slow = [expected[item.id] for item in ITEMS if "slow" in item.tags]
    assert scores.by_tag["KLD band_classes"]["slow"] == (pytest.approx(np.mean(slow)), 12)
    assert list(scores.by_tag["KLD band_classes"]) == ["piano", "fast", "slow"]


def test_missing_and_short_clips_are_counted_and_order_does_not_matter(judges):
    def some():
        yield from source(ids=IDS[:10])()
        yield IDS[10], tone(10, seconds=0.2)  # shorter than the window
        yield "stranger", tone(0)

    found = figures(scored(judges, some))
    assert (found["FAD"].clips, found["FAD"].asked) == (10, 24) and (found["KLD"].clips, found["KLD"].asked) == (10, 24)
    assert found["KLD"].estimate.value == pytest.approx(0, abs=1e-9)
    backwards = figures(scored(judges, source(wobble=0.1, ids=IDS)))
    again = figures(scored(judges, lambda: reversed(list(source(wobble=0.1)()))))
    assert again["KLD"].estimate.value == pytest.approx(backwards["KLD"].estimate.value)
    assert again["FAD"].estimate.value == pytest.approx(backwards["FAD"].estimate.value)


def test_silent_references_and_clips_that_are_too_short_are_named(judges):
    def silence():
        yield from source(ids=IDS[:4])()
        yield IDS[4], np.zeros(SAMPLE_RATE, np.float32)

    asked = EvaluationSet("pitches", ITEMS, silence, background=silence)
    assert evaluate.silent_references(asked) == [
        "1 reference clips are silent (they are scored): clip 4",
        "1 background clips of FAD are silent (they are scored): clip 4",
    ]
    assert evaluate.silent_references(evaluation_set()) == []

    def short():
        yield from source(ids=IDS[:2])()
        yield IDS[2], tone(2, seconds=0.2)

    needed = "which needs 0.50 s: clip 2"
    assert evaluate.unheard(judges.embedders, judges.hear(short), IDS[:3]) == [
        f"1 clips are too short for bands, {needed}",
        f"1 clips are too short for band_classes, {needed}",
    ]
    assert evaluate.unheard(judges.embedders, judges.hear(source()), IDS) == []


def test_too_few_clips_and_no_references_give_no_figure(judges):
    found = figures(scored(judges, source(ids=IDS[:1])))
    assert found["FAD"].estimate is None and "fewer than two clips" in found["FAD"].note
    assert found["KLD"].estimate is None and (found["KLD"].clips, found["KLD"].asked) == (1, 24)
    alone = EvaluationSet("no clips", ITEMS, lambda: [])
    listeners = [listener(embedders.EMBEDDINGS), listener(embedders.PROBABILITIES, "band_classes")]
    found = figures(scored(evaluate.Judges(alone, listeners), source()))
    assert found["FAD"].estimate is None and found["FAD"].note == "no reference clips"
    assert found["KLD"].estimate is None and "and a reference" in found["KLD"].note and found["KLD"].clips == 0


def test_long_clips_are_judged_in_segments_of_ten_seconds():
    items = ITEMS[:2]
    classifier = listener(embedders.PROBABILITIES, "band_classes", window=24_000)
    references = evaluation_set().references
    judge = evaluate.Judges(EvaluationSet("long", items, references), [classifier])

    def long():  # 10 s at the right pitch, 20 s at another
        for index, name in enumerate(IDS[:2]):
            yield name, np.concatenate([tone(index, 10), tone(index + 1, 20)])

    right, wrong = (np.asarray(band_levels(None, tone(k)[None]))[0] for k in (0, 1))
    expected = metrics.kl_divergence(right, wrong) * 2 / 3
    assert scored(judge, long).by_clip["KLD band_classes"][IDS[0]] == pytest.approx(expected, rel=1e-3)


def test_fad_uses_the_background_if_there_is_one():
    judge = evaluate.Judges(evaluation_set(background=source(wobble=0.2)), [listener(embedders.EMBEDDINGS)])
    assert figures(scored(judge, source()))["FAD"].estimate.value > 1e-3


def test_references_are_embedded_once(tmp_path):
    calls = []

    def counted():
        calls.append(1)
        return source()()

    def judge(version, embedder_version="1"):
        listeners = [listener(embedders.EMBEDDINGS, version=embedder_version)]
        return evaluate.Judges(EvaluationSet("p", ITEMS, counted, version=version), listeners, cache=tmp_path)

    first = scored(judge("a"), source(wobble=0.1))
    second = scored(judge("a"), source(wobble=0.1))
    assert len(calls) == 1 and first == second
    judge("b")
    judge("a", "2")
    judge("")
    judge("")
    assert len(calls) == 5, "other clips, other weights or no version: embedded again"


def test_mcc_is_the_cosine_of_caption_and_clip():
    bundle = bundles.load(miniature.path())
    items = tuple(Item(name, "a fast piano" if i % 2 else "a slow jig on the fiddle") for i, name in enumerate(IDS[:6]))
    judge = evaluate.Judges(EvaluationSet("p", items, lambda: []), [embedders.load("mulan", bundle)], bundle)
    scores = scored(judge, source(ids=IDS[:6]))
    values = scores.by_clip["MCC mulan"]
    config, variables = bundle.mulan()
    for name, item in zip(IDS[:6], items, strict=True):
        text = evaluate.mulan.embed_text(config, variables, [item.caption])
        heard = evaluate.mulan.embed_audio(config, variables, tone(IDS.index(name))[None])
        assert values[name] == pytest.approx(float(np.sum(np.asarray(text) * np.asarray(heard))), abs=1e-4)
    found = figures(scores)["MCC"]
    assert found.estimate.value == pytest.approx(np.mean(list(values.values()))) and found.clips == 6


def test_shuffling_gives_every_item_another_clip():
    renamed = evaluate.shuffled({"bands": {name: [name] for name in IDS}}, IDS, seed=1)["bands"]
    assert sorted(renamed) == sorted(IDS) and all(name != parts[0] for name, parts in renamed.items())


def test_the_codec_keeps_the_lengths_of_the_clips():
    bundle = bundles.load(miniature.path())
    found = dict(evaluate.codec_round_trip(bundle, lambda: [("a", tone(0)[:10_000]), ("b", tone(1)[:10_000])])())
    assert all(len(audio) == 10_000 and np.ptp(audio) > 0 for audio in found.values()) and list(found) == ["a", "b"]


def test_embedders_without_weights_are_named(monkeypatch):
    monkeypatch.delenv("MUSICLM_VGGISH", raising=False)
    bundle = bundles.load(miniature.path())
    loaded, absent = evaluate.load_embedders(("vggish", "mulan"), bundle)
    assert [embedder.name for embedder in loaded] == ["mulan"]
    assert absent[0].startswith("no figures from vggish: $MUSICLM_VGGISH is not set")
    with pytest.raises(ValueError, match="none of the embedders vggish can be used"):
        evaluate.load_embedders(("vggish",), bundle)
