"""Building renditions: splits, tunes taking turns, metadata, resuming."""

import json

import numpy as np
import pytest
import tensorflow as tf
import test_corpus

from musiclm_jax.corpus import build_renditions, compositions, rendering, renditions, scores
from musiclm_jax.data import records
from musiclm_jax.launch import corpus as launch_corpus


@pytest.fixture
def sources(monkeypatch):
    monkeypatch.setattr(scores, "load_scores", lambda folder, progress: (test_corpus._scores(), {}))
    monkeypatch.setattr(rendering, "Renderer", test_corpus.SineRenderer)
    monkeypatch.setattr(build_renditions, "RENDITIONS", 2)


def read(folder):
    return {s: list(records.read_rendition_records(records.shard_paths(folder, s))) for s in records.SPLITS}


def test_records_are_of_tunes_of_their_split_and_can_be_resumed(sources, tmp_path):
    lines = []
    assert build_renditions.build(str(tmp_path), 3, 60, progress=lines.append)
    found = read(tmp_path)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 53, "validation": 2, "test": 5}
    pool = test_corpus._scores()
    compositions.group(pool)
    allowed = {
        split: {score.composition for score in same if score.source in scores.TUNE_BOOKS}
        for split, same in compositions.split_scores(pool).items()
    }
    players = set()
    for split, rows in found.items():
        assert {row["composition"] for row in rows} <= allowed[split]
        assert len({row["composition"] for row in rows}) == len(rows), "tunes take turns"
        for row in rows:
            assert row["renditions"].shape == (build_renditions.RENDITIONS, 96_000)
            assert np.abs(row["renditions"]).max() <= rendering.MAX_PEAK + 1e-4
            assert len(np.unique(row["renditions"][:, ::100], axis=0)) == build_renditions.RENDITIONS
            players |= set(row["players"])
    assert players == set(renditions.PLAYERS)
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows if row["split"] == "test"] == [row["id"] for row in found["test"]]
    assert rows[0]["players"] == found["test"][0]["players"]

    lost = tmp_path / "train-00005-of-00016.tfrecord"
    before = lost.read_bytes()
    lost.rename(f"{lost}.tmp")
    assert build_renditions.build(str(tmp_path), 3, 60, progress=lines.append)
    assert lost.read_bytes() == before
    with pytest.raises(ValueError, match="choose another --output"):
        build_renditions.build(str(tmp_path), 3, 61, progress=lines.append)


def test_a_passage_depends_only_on_seed_split_and_number(sources):
    pool = test_corpus._scores()
    compositions.group(pool)
    pools = compositions.split_scores([score for score in pool if score.source in scores.TUNE_BOOKS])
    make = build_renditions.make_passage
    first, metadata = make(test_corpus.SineRenderer(), pools, 0, "train", 7)
    assert make(test_corpus.SineRenderer(), pools, 0, "train", 7)[0] == first
    others = [
        make(test_corpus.SineRenderer(), pools, 0, "train", 8),
        make(test_corpus.SineRenderer(), pools, 1, "train", 7),
    ]
    assert metadata["composition"] not in {other[1]["composition"] for other in others}
    # With a single tune, only the random draws can differ.
    tune = [score for score in pools["train"] if score.composition == metadata["composition"]]
    alone = {"train": tune, "test": tune}
    arguments = [(0, "train", 7), (0, "train", 8), (1, "train", 7), (0, "test", 7)]
    made = [tf.train.Example.FromString(make(test_corpus.SineRenderer(), alone, *own)[0]) for own in arguments]
    sounds = {example.features.feature["renditions"].bytes_list.value[0] for example in made}
    assert len(sounds) == len(arguments)
    for score in pools["train"]:
        score.notes = score.notes[:3]
    with pytest.raises(RuntimeError, match=r"passage train-7: none of 40 draws is suitable; the last: .*than 6 notes"):
        make(test_corpus.SineRenderer(), pools, 0, "train", 7)


def test_the_command_builds_renditions_with_the_passages_option(sources, tmp_path, capsys):
    assert launch_corpus.main(["--output", str(tmp_path / "a"), "--passages", "9"]) == 1
    assert "passages = 9 give {" in capsys.readouterr().err
    command = ["--output", str(tmp_path / "b"), "--passages", "50", "--workers", "2"]
    assert launch_corpus.main(command) == 0
    assert "others are still running" in capsys.readouterr().out
    assert launch_corpus.main([*command, "--worker", "1"]) == 0
    assert "complete, 50 passages, 0.11 h of renditions" in capsys.readouterr().out
