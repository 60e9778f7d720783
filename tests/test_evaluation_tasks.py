"""The evaluation tasks in seqio's Evaluator, with our generator as the predict function."""

import miniature
import musiccaps_folder
import numpy as np
import pytest
import record_folders
import seqio
import soundfile

from musiclm_jax import bundles
from musiclm_jax.evaluation import clips, embedders, evaluate
from musiclm_jax.generation import generate
from musiclm_jax.tasks import corpus, evaluation, musiccaps

MULAN_ALONE = {"embedder_names": ("mulan",), "bundle": str(miniature.path())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return musiccaps_folder.write(tmp_path_factory.mktemp("musiccaps"))


def evaluator(name, split):
    return seqio.Evaluator(name, evaluation.CaptionConverter(), split, async_compute_metrics=False)


def test_musiccaps_matches_references_by_id_and_reports_coverage(folder):
    found = musiccaps.musiccaps_task(str(folder), **MULAN_ALONE)
    # TFDS orders the examples of a split by the hash of their ids.
    assert sorted(item.id for item in found.items) == sorted(musiccaps_folder.IDS)
    by_id = {item.id: item for item in found.items}
    assert by_id[musiccaps_folder.IDS[1]].caption == "A slow piano, number 1"
    assert by_id[musiccaps_folder.IDS[0]].tags == ("fast", "fiddle's jig")
    references = dict(found.references())
    assert sorted(references) == sorted(musiccaps_folder.IDS[:5])
    peaks = {name: np.argmax(np.abs(np.fft.rfft(audio[:24_000]))) for name, audio in references.items()}
    assert peaks == {name: 300 + 200 * number for number, name in enumerate(musiccaps_folder.IDS[:5])}
    assert "references: 5 of 7 captions have a clip in clips" in found.remarks
    assert any("1 reference clips cannot be read" in remark for remark in found.remarks)


def test_musiccaps_subsets(folder):
    test = musiccaps.musiccaps_task(str(folder), "test", **MULAN_ALONE)
    assert {item.id for item in test.items} == {musiccaps_folder.IDS[i] for i in (0, 3, 6)}
    balanced = musiccaps.musiccaps_task(str(folder), balanced=True, **MULAN_ALONE)
    assert {item.id for item in balanced.items} == {musiccaps_folder.IDS[i] for i in (0, 2)}
    assert len(musiccaps.musiccaps_task(str(folder), limit=3, **MULAN_ALONE).items) == 3


def test_clips_that_are_added_later_are_scored(tmp_path):
    folder = musiccaps_folder.write(tmp_path)
    before = musiccaps.musiccaps_task(str(folder), **MULAN_ALONE)
    soundfile.write(folder / "clips" / f"{musiccaps_folder.MISSING}.wav", musiccaps_folder.clip(6), 16_000)
    after = musiccaps.musiccaps_task(str(folder), **MULAN_ALONE)
    assert len(dict(before.references())) == 5 and len(dict(after.references())) == 6
    assert before.version != after.version


@pytest.mark.parametrize("count, columns", [(1, musiccaps_folder.COLUMNS), (5, ("ytid", "caption"))])
@pytest.mark.parametrize("segment", ["True", "False"])
def test_a_file_may_hold_one_row_few_columns_or_one_split(tmp_path, count, columns, segment):
    lines = [row | {"is_audioset_eval": segment} for row in musiccaps_folder.rows()[:count]]
    folder = musiccaps_folder.write(tmp_path, lines, columns)
    present = "test" if segment == "True" and "is_audioset_eval" in columns else "train"
    for split in (present, "all"):
        found = musiccaps.musiccaps_task(str(folder), split, **MULAN_ALONE)
        assert sorted(item.id for item in found.items) == sorted(musiccaps_folder.IDS[:count])
        assert len(dict(found.references())) == count
    absent = {"test": "train", "train": "test"}[present]
    with pytest.raises(ValueError, match=f"split '{absent}' of musiccaps-public.csv has no captions: use {present} or"):
        musiccaps.musiccaps_task(str(folder), absent, **MULAN_ALONE)


def test_a_file_without_a_usable_row_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no captions: 1 rows of .* without id or caption"):
        musiccaps.musiccaps_task(str(musiccaps_folder.write(tmp_path, [{"ytid": "a"}])))


def test_invalid_folders_and_splits_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"has no musiccaps-public\.csv"):
        musiccaps.musiccaps_task(str(tmp_path))
    with pytest.raises(ValueError, match="split is 'dev'"):
        musiccaps.musiccaps_task(str(folder), "dev")


def test_the_evaluator_gives_fad_and_mcc_of_predicted_clips(folder, tmp_path):
    found = musiccaps.musiccaps_task(str(folder), **MULAN_ALONE)
    judge = evaluate.Judges(found, [evaluate_mulan()], bundles.load(miniature.path()))
    expected = {f.metric: f for f in judge.score("real", judge.references()).figures}

    def predict(dataset):  # the user's own clips as predictions, out of order, one of them missing
        paths = musiccaps.clip_files(folder)
        asked = [(int(i), example["targets"][0].decode()) for i, example in dataset.as_numpy_iterator()]
        return [(i, str(paths.get(name, evaluation.NO_CLIP))) for i, name in reversed(asked)]

    metrics, _ = evaluator("musiccaps", "all").evaluate(compute_metrics=True, predict_fn=predict)
    values = metrics.result()["musiccaps"]
    assert values["fad_mulan"] == pytest.approx(0, abs=1e-4) and values["fad_mulan_clips"] == 5
    assert values["mcc_mulan"] == pytest.approx(expected["MCC"].estimate.value, abs=1e-3)
    assert values["mcc_mulan_low"] < values["mcc_mulan"] < values["mcc_mulan_high"]
    assert not any(key.startswith("kld") for key in values), "no classifier was requested"


def test_the_evaluator_gives_kld_of_clips_against_the_reference_of_the_same_id(folder, monkeypatch):
    floor = np.arange(1, 11) ** 2 / 385  # not uniform, so that the two directions differ

    def band_shares(params, windows):  # of the power, so that a pitch is a class
        del params
        power = np.abs(np.fft.rfft(np.asarray(windows)))[:, :2000].reshape(len(windows), 10, 200) ** 2
        return power.sum(-1) / (power.sum((-1, -2), keepdims=True)[..., 0] + 1e-12) * 0.9 + 0.1 * floor

    def listen(name, bundle=None):
        return embedders.Embedder(name, "of this test", embedders.PROBABILITIES, 24_000, 24_000, 24_000, band_shares)

    monkeypatch.setattr(embedders, "load", listen)
    found = musiccaps.musiccaps_task(str(folder), embedder_names=("bands",), bundle=str(miniature.path()))
    heard = {name: band_shares(None, audio[None, :24_000])[0] for name, audio in found.references()}

    def evaluated(answers):  # clips by the id of their caption
        def predict(dataset):
            files = musiccaps.clip_files(folder)
            asked = [(int(i), example["targets"][0].decode()) for i, example in dataset.as_numpy_iterator()]
            return [(i, str(files[answers[name]]) if name in answers else evaluation.NO_CLIP) for i, name in asked]

        metrics, _ = evaluator("musiccaps", "all").evaluate(compute_metrics=True, predict_fn=predict)
        return metrics.result()["musiccaps"]

    ids = musiccaps_folder.IDS[:5]
    own = evaluated(dict(zip(ids, ids, strict=True)))
    assert own["kld_bands"] == pytest.approx(0, abs=1e-3) and own["kld_bands_clips"] == 5
    for strangers in (np.roll(ids, 1), [ids[0]] * 5):
        answers = dict(zip(ids, map(str, strangers), strict=True))
        divergence = [np.sum(heard[a] * np.log(heard[a] / heard[b])) for a, b in answers.items()]
        assert evaluated(answers)["kld_bands"] == pytest.approx(np.mean(divergence), rel=0.02)


def test_real_clips_of_captions_that_are_not_requested_are_not_scored(folder):
    found = musiccaps.musiccaps_task(str(folder), limit=3, **MULAN_ALONE)
    asked = {item.id for item in found.items} & set(musiccaps_folder.IDS[:5])
    judge = evaluate.Judges(found, [evaluate_mulan()], bundles.load(miniature.path()))
    assert set(judge.references()["mulan"]) == asked
    figures = {figure.metric: figure for figure in judge.score("real", judge.references()).figures}
    assert figures["MCC"].clips == figures["FAD"].clips == len(asked) < 5
    assert "against 5 embeddings" in figures["FAD"].note


def evaluate_mulan():
    return evaluation.embedders.load("mulan", bundles.load(miniature.path()))


def test_our_generator_serves_the_evaluator_and_resumes(tmp_path, monkeypatch):
    bundle = bundles.load(miniature.path())
    records = record_folders.audio_folder(tmp_path / "records")
    found = corpus.corpus_task(str(records), limit=0, **MULAN_ALONE)
    made = []

    def stand_in(bundle, prompts, request, progress):
        for prompt in prompts:
            made.append(prompt)
            yield generate.GeneratedMusic(miniature.tone(1), {}, 0.0, prompt, request.seed, 0)

    monkeypatch.setattr(clips, "pieces", stand_in)
    predict = evaluation.predict_fn(bundle, tmp_path / "clips", generate.Request(seconds=1.0))
    metrics, _ = evaluator("corpus", "test").evaluate(compute_metrics=True, predict_fn=predict)
    values = metrics.result()["corpus"]
    assert values["fad_mulan_clips"] == values["mcc_mulan_clips"] == 6 and values["fad_mulan"] > 0
    assert sorted(path.stem for path in (tmp_path / "clips").glob("*.wav")) == [f"test{i}" for i in range(6)]
    assert sorted(made) == sorted(item.caption for item in found.items)

    made.clear()
    (tmp_path / "clips" / "test4.wav").unlink()
    metrics, _ = evaluator("corpus", "test").evaluate(compute_metrics=True, predict_fn=predict)
    assert made == [item.caption for item in found.items if item.id == "test4"]
    other = evaluation.predict_fn(bundle, tmp_path / "clips", generate.Request(seconds=2.0))
    with pytest.raises(ValueError, match=r"was made with other settings \(seconds\)"):
        evaluator("corpus", "test").evaluate(compute_metrics=False, predict_fn=other)


def test_the_corpus_compares_with_its_own_splits(tmp_path):
    found = corpus.corpus_task(str(record_folders.audio_folder(tmp_path / "records")), **MULAN_ALONE)
    assert [item.id for item in found.items] == [f"test{i}" for i in range(6)]
    assert all(item.caption.endswith(item.id[-1]) and item.tags == ("jig", "flute", "fast") for item in found.items)
    assert {item.caption.split()[0] for item in found.items} == {"first", "second"}
    references, background = dict(found.references()), dict(found.background())
    assert set(references) == {item.id for item in found.items}
    assert set(background) == {f"train{i}" for i in range(6)}
    some = corpus.corpus_task(str(tmp_path / "records"), background_clips=4, limit=2, **MULAN_ALONE)
    assert len(some.items) == len(dict(some.references())) == 2 and len(dict(some.background())) == 4
    assert some.version != found.version
    np.testing.assert_allclose(references["test3"], record_folders.clip_audio(3), atol=1e-4)


def test_a_limit_takes_captions_with_a_clip_first(tmp_path):
    folder = musiccaps_folder.write(tmp_path)
    for name in musiccaps_folder.IDS[:3]:  # one of them as flac
        for path in (folder / "clips").glob(f"{name}.*"):
            path.unlink()
    there = musiccaps_folder.IDS[3:5]
    found = musiccaps.musiccaps_task(str(folder), limit=3, **MULAN_ALONE)
    assert {item.id for item in found.items[:2]} == set(there) and len(found.items) == 3
    assert found.items[2].id not in there
    assert "references: 2 of 3 captions have a clip in clips" in found.remarks
    assert len(musiccaps.musiccaps_task(str(folder), **MULAN_ALONE).items) == 7
