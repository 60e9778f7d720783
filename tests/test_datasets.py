"""Datasets: epochs repeat and resume exactly, hosts share the data, clear errors."""

import numpy as np
import pytest
import record_folders

from musiclm_jax.data import datasets, records
from musiclm_jax.data.datasets import TaskDataset, TaskSpec
from musiclm_jax.tasks import coarse, mulan, soundstream


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return record_folders.token_folder(tmp_path_factory.mktemp("records") / "tokens")


@pytest.fixture
def task(folder):
    return coarse.coarse_task(str(folder), crop_seconds=0.4, crops_per_clip=2)


def as_lists(batches):
    return [{name: value.tolist() for name, value in batch.items()} for batch in batches]


def test_epochs_repeat_resume_and_differ(task):
    dataset = TaskDataset(task, "train", batch_size=2, seed=7)
    first = as_lists(dataset.epoch(3))
    assert len(first) == 6
    assert as_lists(dataset.epoch(3)) == first
    assert as_lists(dataset.epoch(3, skip=8)) == first[4:]
    assert as_lists(dataset.epoch(4)) != first
    assert as_lists(TaskDataset(task, "train", batch_size=2, seed=10).epoch(0)) == first, "seed + epoch decides"


def test_evaluation_keeps_the_order_and_the_crops(task):
    dataset = TaskDataset(task, "validation", batch_size=4, shuffle=False)
    first = as_lists(dataset.epoch(0))
    assert as_lists(dataset.epoch(0)) == first
    assert [row[0] for batch in first for row in batch["mulan"]] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_the_remainder_is_dropped(task):
    assert [len(batch["mulan"]) for batch in TaskDataset(task, "train", batch_size=5).epoch(0)] == [5, 5]


def test_two_hosts_read_everything_once(task):
    halves = [TaskDataset(task, "train", batch_size=2, host=host, hosts=2) for host in range(2)]
    clips = [sorted(row[0] for batch in half.epoch(0) for row in batch["mulan"].tolist()) for half in halves]
    assert clips == [[0, 0, 2, 2, 4, 4], [1, 1, 3, 3, 5, 5]]
    assert all(len(batch["mulan"]) == 1 for batch in halves[0].epoch(0)), "a host's part of the batch"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"hosts": 3, "batch_size": 3}, "2 shards, which do not divide over 3 hosts"),
        ({"hosts": 2, "batch_size": 3}, "batch size 3 does not divide over 2 hosts"),
        ({"split": "dev"}, "no split 'dev'"),
        ({"task": TaskSpec("nothing", {})}, "no task 'nothing'"),
    ],
)
def test_bad_fields_have_a_clear_error(task, fields, message):
    with pytest.raises(ValueError, match=message):
        TaskDataset(**{"task": task, "split": "train", "batch_size": 2, **fields})


def test_a_truncated_file_is_named_before_training(tmp_path):
    folder = record_folders.token_folder(tmp_path / "tokens")
    file = records.shard_path(folder, "train", 1, record_folders.SHARDS)
    assert records.check_whole(file) == 3
    content = file.read_bytes()
    task = coarse.coarse_task(str(folder), crop_seconds=0.4)
    for kept, record in ((len(content) - 100, 2), (len(content) - 1, 2), (5, 0)):
        file.write_bytes(content[:kept])
        with pytest.raises(ValueError, match=rf"{file} is cut off within record {record} "):
            TaskDataset(task, "train", batch_size=1)
    assert TaskDataset(task, "train", batch_size=2, host=0, hosts=2), "another host's file"


def test_a_damaged_record_is_named(tmp_path):
    folder = record_folders.token_folder(tmp_path / "tokens")
    file = records.shard_path(folder, "train", 1, record_folders.SHARDS)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    dataset = TaskDataset(coarse.coarse_task(str(folder), crop_seconds=0.4), "train", batch_size=1)
    with pytest.raises(ValueError, match=rf"{file} has a damaged record \(corrupted record at \d+\): "):
        list(dataset.epoch(0))


def test_empty_files_and_records_of_another_kind_have_a_clear_error(tmp_path):
    audio = record_folders.audio_folder(tmp_path / "audio")
    with pytest.raises(ValueError, match=r"has a record of the wrong kind \(Feature: \w+ .*\): .*stages"):
        list(TaskDataset(coarse.coarse_task(str(audio), crop_seconds=0.4), "train", batch_size=1).epoch(0))
    for shard in range(record_folders.SHARDS):
        records.shard_path(audio, "train", shard, record_folders.SHARDS).write_bytes(b"")
    with pytest.raises(ValueError, match=r"split 'train' holds no records \(.*\): make it from three songs or more$"):
        TaskDataset(soundstream.soundstream_task(str(audio)), "train", batch_size=1)


def test_synthetic_batches_have_the_shapes_of_real_ones(tmp_path, folder):
    audio = record_folders.audio_folder(tmp_path / "audio")
    vocab = str(record_folders.vocabulary(tmp_path / "vocab.txt"))
    tasks = [
        lambda where: coarse.coarse_task(where and str(folder), crop_seconds=0.4),
        lambda where: mulan.mulan_task(where and str(audio), vocab, 9, crop_seconds=0.4),
    ]
    for make in tasks:
        (real, *_) = TaskDataset(make("data"), "train", batch_size=2).epoch(0)
        made_up = datasets.fake_batch(make(None), 2)
        assert {n: (x.shape, x.dtype) for n, x in made_up.items()} == {n: (x.shape, x.dtype) for n, x in real.items()}
    with pytest.raises(ValueError, match="task 'mulan' has no data: give its data_dir"):
        TaskDataset(make(None), "train", batch_size=2)


def test_captions_become_text_tokens(tmp_path):
    vocab = record_folders.vocabulary(tmp_path / "vocab.txt")
    batch = {"audio": np.zeros((2, 3)), "caption": np.array([b"first jig", b"flute, fast"], object)}
    converted = datasets.TextTokens(str(vocab), 6)(batch)
    assert set(converted) == {"audio", "text_ids", "text_mask"}
    np.testing.assert_array_equal(converted["text_ids"], [[2, 5, 8, 3, 0, 0], [2, 9, 11, 10, 3, 0]])
    np.testing.assert_array_equal(converted["text_mask"], [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]])
