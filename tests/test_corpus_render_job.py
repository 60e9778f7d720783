"""Clips from worker processes equal make_clip's; failed workers are reported."""

import pathlib
import shutil
import time

import numpy as np
import pytest
import test_corpus

from musiclm_jax.corpus import clips, compositions, leads, pack, render_worker, rendering, resident
from musiclm_jax.data.samples import to_pcm16

SEED = 3


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    pretty_midi = pytest.importorskip("pretty_midi")
    pytest.importorskip("tinysoundfont")
    folder = tmp_path_factory.mktemp("pack")
    found = test_corpus._scores()
    compositions.group(found)
    pack.write_scores(folder / pack.SCORES, found)
    for name in pack.FONTS.values():  # TimGM6mb has all programs of the other font
        shutil.copyfile(pathlib.Path(pretty_midi.__file__).parent / "TimGM6mb.sf2", folder / name)
    return folder


def wait(job, **counts):
    began = time.monotonic()
    while any(job.available(split) < count for split, count in counts.items()):
        job.failed()
        assert time.monotonic() - began < 60
        time.sleep(0.05)


def test_clips_equal_make_clips(packed, tmp_path):
    job = resident.RenderJob(packed, tmp_path, SEED, {"train": 5, "validation": 2, "test": 0}, 2, leads_every=2)
    try:
        assert job.available("test") == 0
        wait(job, train=5, validation=2)
        assert job.available("train") == 5
        found, fonts = pack.read_pack(packed)
        pools, renderer = compositions.split_scores(found), rendering.Renderer(fonts)
        for split, count in (("validation", 2), ("train", 5)):
            rows = job.metadata(split, count)
            assert [row["id"] for row in rows] == [f"{split}-{index:05d}" for index in range(count)]
            for index, row in enumerate(rows):
                fields = clips.make_clip(renderer, pools[split], SEED, split, index).fields
                assert {name: row[name] for name in ("caption", "key", "gain_db", "composition")} == {
                    name: fields[name] for name in ("caption", "key", "gain_db", "composition")
                }
                np.testing.assert_array_equal(
                    job.arrays[f"{split}.audio.int16"][index], to_pcm16(fields["audio"])
                )  # fmt: skip
                if split == "train" and index % 2 == 0:
                    lead = leads.performed(row["id"], fields["audio"], fields["pitch_class"])
                    np.testing.assert_array_equal(
                        job.arrays["train.leads.int16"][index // 2], to_pcm16(np.clip(lead, -1, 1))
                    )  # fmt: skip
        with pytest.raises(ValueError, match="6 clips of train requested, but only 5 are rendered"):
            job.metadata("train", 6)
        job.failed()
    finally:
        job.stop()


def test_order_and_claims(tmp_path):
    order = resident.schedule({"train": 3, "validation": 2})
    assert order == [("validation", 0), ("validation", 1), ("train", 0), ("train", 1), ("train", 2)]
    (tmp_path / "next").write_text("0")
    assert [render_worker.claim(tmp_path) for _ in range(12)] == list(range(12))


def test_a_worker_that_dies_is_reported(tmp_path):
    job = resident.RenderJob(tmp_path / "nothing", tmp_path, SEED, {"train": 1}, 1, leads_every=1)
    try:
        with pytest.raises(RuntimeError, match=r"(?s)render worker 0 ended with status 1:.*FileNotFoundError"):
            wait(job, train=1)
    finally:
        job.stop()
    with pytest.raises(ValueError, match="expected splits from"):
        resident.RenderJob(tmp_path, tmp_path, SEED, {"valid": 1}, 1, leads_every=1)


def test_stop_ends_the_workers(packed, tmp_path):
    job = resident.RenderJob(packed, tmp_path, SEED, {"train": 5000}, 1, leads_every=4)
    wait(job, train=1)
    job.stop()
    done = int(job.arrays["train.done"].sum())
    time.sleep(0.3)
    assert int(job.arrays["train.done"].sum()) == done < 5000


def test_a_clip_that_cannot_be_made_is_replaced(monkeypatch):
    asked = []

    def make(renderer, pool, seed, split, index):
        asked.append(index)
        if len(asked) < 3:
            raise RuntimeError("none of 40 draws is suitable")
        return clips.Clip({"id": f"{split}-{index:05d}"}, {})

    monkeypatch.setattr(render_worker, "make_clip", make)
    assert render_worker.make_or_replace(None, [], SEED, "train", 7).fields["id"] == "train-00007"
    assert asked[0] == 7 and len(set(asked)) == 3
