"""Data in the devices' memory: epochs, crops, captions, and training on it without TensorFlow."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import record_folders
import resident_run

from musiclm_jax.data import clip_arrays, resident
from musiclm_jax.data.samples import FULL_SCALE
from musiclm_jax.launch import main
from musiclm_jax.tasks import coarse, melody, mulan

CLIPS, FRAMES = record_folders.CLIPS, record_folders.SEMANTIC_FRAMES
ORDER = [number for shard in range(2) for number in range(shard, CLIPS, 2)]  # of the clips in the records
STREAMS = ("mulan", "semantic", "acoustic")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return record_folders.token_folder(tmp_path_factory.mktemp("records") / "tokens")


@pytest.fixture(scope="module")
def audio_folder(tmp_path_factory):
    return record_folders.audio_folder(tmp_path_factory.mktemp("records") / "audio")


def tokens(folder, batch_size=2, **options):
    return resident.tokens(folder, "train", batch_size, **{"streams": STREAMS, "seconds": 0.4, **options})


def as_lists(batches):
    return [{name: np.asarray(value).tolist() for name, value in batch.items()} for batch in batches]


def test_epochs_give_each_clip_once_repeat_and_resume(folder):
    dataset = tokens(folder, seed=7)
    first = as_lists(dataset.epoch(3))
    assert sorted(row[0] for batch in first for row in batch["mulan"]) == list(range(CLIPS))
    assert as_lists(tokens(folder, seed=7).epoch(3)) == first
    assert as_lists(dataset.epoch(3, skip=4)) == first[2:]
    assert as_lists(dataset.epoch(4)) != first and as_lists(tokens(folder, seed=8).epoch(3)) != first
    assert len(list(tokens(folder, batch_size=4).epoch(0))) == 1, "the remainder is dropped"


def test_an_example_does_not_depend_on_the_batch_size(folder):
    rows = [[row for batch in as_lists(tokens(folder, n).epoch(1)) for row in batch["semantic"]] for n in (1, 3, 6)]
    assert rows[0] == rows[1] == rows[2] and len(rows[0]) == CLIPS


def test_evaluation_keeps_the_order(folder):
    batches = as_lists(tokens(folder, shuffle=False).epoch(0))
    assert [row[0] for batch in batches for row in batch["mulan"]] == ORDER


def test_crops_are_aligned_in_time_and_reach_both_ends(folder):
    dataset, starts = tokens(folder, 6), set()
    for epoch in range(60):
        (batch,) = dataset.epoch(epoch)
        assert {name: values.shape for name, values in batch.items()} == {
            "mulan": (6, 12),
            "semantic": (6, 10),
            "acoustic": (6, 20, 12),
        }
        assert {values.dtype for values in batch.values()} == {np.dtype(np.int32)}
        start = np.asarray(batch["semantic"][:, :1])
        np.testing.assert_array_equal(batch["semantic"], start + np.arange(10))
        np.testing.assert_array_equal(batch["acoustic"][:, :, 0], start + np.arange(20) // 2)
        np.testing.assert_array_equal(batch["acoustic"][:, :, 3], 3)
        starts |= set(start[:, 0].tolist())
    assert min(starts) == 0 and max(starts) == FRAMES - 10


def test_crops_of_acoustic_tokens_alone_start_at_any_frame(folder):
    dataset = resident.tokens(folder, "train", 6, streams=("acoustic",), seconds=0.1)
    firsts = [np.asarray(batch["acoustic"])[:, :2, 0] for epoch in range(20) for batch in dataset.epoch(epoch)]
    assert {int(a == b) for a, b in np.concatenate(firsts)} == {0, 1}, "at even frames and at odd ones"


def test_short_clips_are_padded(folder):
    (batch,) = tokens(folder, 6, seconds=2.4).epoch(0)
    np.testing.assert_array_equal(batch["semantic"][:, FRAMES:], -np.ones((6, 10)))
    np.testing.assert_array_equal(batch["acoustic"][:, 2 * FRAMES :], -np.ones((6, 20, 12)))
    np.testing.assert_array_equal(batch["semantic"][:, :FRAMES], np.tile(np.arange(FRAMES), (6, 1)))


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (1.0, 1, 1), (0.5, 0.35, 0.65)])
def test_caption_share_is_the_share_of_rows_with_codes_of_a_text(folder, share, low, high):
    dataset = tokens(folder, 6, caption_share=share, shuffle=False)
    codes = np.concatenate([np.asarray(batch["mulan"])[:, 0] for epoch in range(40) for batch in dataset.epoch(epoch)])
    assert low <= (codes >= 100).mean() <= high
    np.testing.assert_array_equal(codes % 100, np.tile(ORDER, 40))  # a row's text is about the row's clip
    if share:
        assert set(codes[codes >= 100] // 100) == {1, 2}, "both texts occur"


def test_a_clip_without_texts_keeps_the_codes_of_its_audio():
    arrays = {
        "frames": np.array([4]),
        "semantic": np.zeros((1, 4), np.int16),
        "mulan": np.full((1, 12), 3, np.int16),
        "caption_mulan": np.full((1, 2, 12), -1, np.int16),
    }
    lengths = {"mulan": 1, "semantic": 2}
    arrays = jax.tree.map(jax.numpy.asarray, arrays)
    found = resident.crop_tokens(jax.random.key(0), jax.numpy.int32(0), arrays, lengths=lengths, caption_share=1.0)
    assert found["mulan"].tolist() == [3] * 12


def test_melody_and_missing_streams(folder, tmp_path):
    (batch,) = tokens(folder, 6, streams=("mulan", "melody", "semantic"), shuffle=False).epoch(0)
    np.testing.assert_array_equal(batch["melody"], np.tile(np.array(ORDER)[:, None], 72))
    plain = record_folders.token_folder(tmp_path / "plain", texts=False)
    with pytest.raises(
        ValueError, match="plain has tokens without codes of captions: make them with `musiclm tokenize"
    ):
        tokens(plain, caption_share=0.5)


def test_audio_crops_are_ramps_of_one_clip(audio_folder):
    dataset = resident.audio(audio_folder, "train", 6, seconds=0.5, shuffle=False)
    (batch,) = dataset.epoch(0)
    ramp = np.asarray(batch["audio"])
    assert ramp.shape == (6, 12_000) and ramp.dtype == np.float32
    steps = np.diff(ramp, axis=1)
    np.testing.assert_allclose(steps, 0.2 / 47_999, atol=1.1 / FULL_SCALE)
    clip = (ramp[:, 0] / 0.1 + 1e-3).astype(int)
    assert all(number in (row, row + 1) for row, number in zip(ORDER, clip, strict=True)) and str(dataset).startswith(
        "6 clips, 0.00333 h"
    )
    padded = next(iter(resident.audio(audio_folder, "train", 6, seconds=2.5, shuffle=False).epoch(0)))["audio"]
    assert padded.shape == (6, 60_000) and not padded[:, 48_000:].any() and padded[:, 47_999].all()


def test_pairs_have_a_text_of_their_clip(audio_folder, tmp_path):
    vocab = str(record_folders.vocabulary(tmp_path / "vocab.txt"))
    words = pathlib.Path(vocab).read_text().split()
    options = {"seconds": 0.5, "vocab": vocab, "max_text_tokens": 9, "shuffle": False}
    for probability in (0.0, 1.0):
        dataset = resident.pairs(audio_folder, "train", 6, **options, aspect_probability=probability)
        texts = set()
        for epoch in range(8):
            (batch,) = dataset.epoch(epoch)
            ids, mask = np.asarray(batch["text_ids"]), np.asarray(batch["text_mask"])
            assert ids.shape == mask.shape == (6, 9) and ids.dtype == mask.dtype == np.int32
            for row in range(6):
                pieces = [words[i] for i in ids[row][: mask[row].sum()]]
                assert pieces[0] == "[CLS]" and pieces[-1] == "[SEP]" and not ids[row][mask[row].sum() :].any()
                texts.add(" ".join(pieces[1:-1]))
        captions = {f"{which} caption {row}" for which in ("first", "second") for row in range(CLIPS)}
        if probability:
            assert not texts & captions and {"jig", "flute"} & {text.split()[0] for text in texts}
        else:
            assert texts == captions


def test_what_does_not_fit_is_refused_with_the_figures(folder, audio_folder, monkeypatch):
    monkeypatch.setattr(resident, "free_memory", lambda device: 3000)
    figures = r"need 14.8\d* KiB and 1,000 bytes for the training, .* has 2.93 KiB free: train without --resident"
    with pytest.raises(ValueError, match=rf"the tokens of .* \(train\) {figures}"):
        tokens(folder, reserved=1000)
    monkeypatch.setattr(clip_arrays, "audio", None)  # what does not fit is not read
    with pytest.raises(ValueError, match=r"the audio of .* \(train\) need [\d.]+ KiB, .* has 2.93 KiB free"):
        resident.audio(audio_folder, "train", 2, seconds=0.5)
    monkeypatch.setattr(resident, "free_memory", lambda device: None)
    assert tokens(folder).clips == CLIPS, "a platform that does not tell"


def test_the_free_memory_of_a_cpu_is_that_of_the_machine():
    free = resident.free_memory(jax.local_devices()[0])
    assert free is None or 2**20 < free < 2**50


def test_tasks_give_their_data(folder, audio_folder, tmp_path):
    task = coarse.coarse_task(str(folder), crop_seconds=0.4, caption_share=1.0)
    (batch,) = task.resident(task.data_dir, "validation", 6).epoch(0)
    assert batch["acoustic"].shape == (6, 20, 12) and np.asarray(batch["mulan"]).min() >= 100
    file = tmp_path / "tokens.npz"
    clip_arrays.write_npz(folder, file)
    of_file = coarse.coarse_task(str(file), crop_seconds=0.4, caption_share=1.0)
    assert as_lists(of_file.resident(of_file.data_dir, "validation", 6).epoch(0)) == as_lists([batch])
    assert melody.melody_task(None).resident is None
    task = mulan.mulan_task(str(audio_folder), str(record_folders.vocabulary(tmp_path / "v.txt")), 9, crop_seconds=0.4)
    assert {name: v.shape for name, v in next(task.resident(task.data_dir, "train", 2).epoch(0)).items()} == {
        "audio": (2, 9600),
        "text_ids": (2, 9),
        "text_mask": (2, 9),
    }


class Replayed:
    """The batches of a dataset, as NumPy arrays."""

    def __init__(self, dataset):
        self.dataset, self.batch_size = dataset, dataset.batch_size

    def epoch(self, epoch, skip):
        for batch in self.dataset.epoch(epoch, skip):
            yield jax.device_get(batch)


def assert_equal_states(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_training_equals_training_fed_from_the_host_and_resumes(folder, tmp_path):
    data = tokens(folder)
    expected = resident_run.train(tmp_path / "fed", Replayed(data), 5)
    assert_equal_states(resident_run.train(tmp_path / "resident", data, 5), expected)
    resident_run.train(tmp_path / "parts", data, 2)
    assert_equal_states(resident_run.train(tmp_path / "parts", tokens(folder), 5), expected)


def test_sharded_equals_unsharded(folder):
    """On eight devices: the same batches bit for bit, and the same losses but for rounding."""
    environment = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=8", JAX_PLATFORMS="cpu")
    command = [sys.executable, str(pathlib.Path(resident_run.__file__)), "compare", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout.endswith("8 devices: equal\n"), done.stdout + done.stderr


def test_training_needs_neither_tensorflow_nor_seqio_nor_gin(folder, tmp_path):
    file = tmp_path / "tokens.npz"
    clip_arrays.write_npz(folder, file)
    for source in (folder, file):
        command = [sys.executable, str(pathlib.Path(resident_run.__file__)), "bare", str(source), str(tmp_path / "run")]
        environment = dict(os.environ, JAX_PLATFORMS="cpu")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0 and "done: step 2 of 2" in done.stdout, done.stdout + done.stderr


def test_train_resident_on_the_command_line(folder, tmp_path, capsys):
    arguments = ["train", "--gin_file=semantic_tiny.gin", f"--model_dir={tmp_path / 'run'}", "--resident"]
    sizes = ["num_layers=1", "num_heads=2", "d_model=16", "d_ff=16"]
    settings = [f"DATA_DIR='{folder}'", "BATCH_SIZE=2", "TRAIN_STEPS=6", "SECONDS=0.4", "train.steps_per_call=2"]
    settings += [
        "OptimizerConfig.warmup_steps=2",
        "train.log_period=2",
        *(f"TransformerConfig.{size}" for size in sizes),
    ]
    command = arguments + [f"--gin.{setting}" for setting in settings]
    assert main.main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("train: 6 clips, 0.00333 h, ") and "\nvalidation: 6 clips" in out
    assert "KiB on each device" in out and "held out after 6 steps" in out and "done: step 6 of 6" in out
    assert main.main([*command, "--gin.TRAIN_STEPS=8", "--gin.OptimizerConfig.total_steps=6"]) == 0
    assert "resuming from step 6 (epoch 1, example 6)" in capsys.readouterr().out
