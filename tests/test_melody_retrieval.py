"""Ranks and recalls in the melody benchmark on known vectors, and a run on a miniature bundle."""

import json

import miniature
import numpy as np
import pytest
import record_folders

from benchmarks import melody_retrieval


def test_ranks_count_closer_vectors():
    gallery = np.array([[0.0], [1.0], [3.0]])
    queries = np.array([[0.1], [2.9], [0.9], [2.0]])
    ranked = melody_retrieval.ranks(queries, gallery, np.array([0, 0, 2, 1]))
    np.testing.assert_allclose(ranked, [0, 2, 2, 0.5])  # the last is tied with vector 3, which counts half


def test_recall_weights_tunes_equally():
    ranked, tunes = np.array([0, 0, 0, 5]), np.array([4, 4, 4, 7])
    assert melody_retrieval.recall(ranked, tunes, 1, seed=0).value == pytest.approx(0.5)
    assert melody_retrieval.recall(ranked, tunes, 6, seed=0).value == 1


def test_the_benchmark_takes_one_passage_of_a_tune(tmp_path, monkeypatch, capsys):
    folder = record_folders.rendition_folder(tmp_path / "renditions")
    bundle = miniature.melodic(tmp_path / "bundle")
    output = tmp_path / "melody.json"
    command = ["benchmark", "--bundle", str(bundle), "--corpus", str(folder), "--output", str(output)]
    monkeypatch.setattr("sys.argv", command)
    melody_retrieval.main()
    found = json.loads(output.read_text())
    # Passages 0 and 1 come from one tune and only one counts; three of four renditions are queries.
    assert found["details"]["tunes"] == 5 and found["details"]["queries"] == 15
    figures = {figure["name"]: figure for figure in found["figures"]}
    assert figures["recall at 10 of 5, all"]["value"][0] == 1  # there are fewer than ten
    assert 0 <= figures["recall at 1 of 5, sung, by 4 levels of the RVQ"]["value"][0] <= 1
    assert figures["recall at 1 of 5, all"]["note"] == "chance 0.2000"
