"""The tasks: aligned crops of the true streams, captions and aspects, clear errors."""

import itertools

import numpy as np
import pytest
import record_folders
import seqio
import tensorflow as tf

from musiclm_jax.data.datasets import TaskDataset
from musiclm_jax.data.tokens import ACOUSTIC, MULAN, SEMANTIC
from musiclm_jax.tasks import coarse, fine, melody, mulan, semantic, soundstream, streams, w2v_bert


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return str(record_folders.token_folder(tmp_path_factory.mktemp("records") / "tokens"))


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    return str(record_folders.audio_folder(tmp_path_factory.mktemp("records") / "audio"))


def epoch(task, number=0, split="train"):
    batches = TaskDataset(task, split, 1).epoch(number)
    return [{name: value[0] for name, value in batch.items()} for batch in batches]


def test_coarse_crops_are_aligned_and_raw(tokens):
    task = coarse.coarse_task(tokens, crop_seconds=0.4)
    examples = epoch(task)
    assert sorted(example["mulan"][0] for example in examples) == list(range(record_folders.CLIPS))
    starts = set()
    for example in examples:
        assert example["semantic"].shape == (10,) and example["acoustic"].shape == (20, 12)
        start = example["semantic"][0]
        np.testing.assert_array_equal(example["semantic"], np.arange(start, start + 10))
        # Level 0 of the acoustic codes counts semantic frames: both streams were cut at the same time.
        np.testing.assert_array_equal(example["acoustic"][:, 0], np.repeat(example["semantic"], 2))
        np.testing.assert_array_equal(example["acoustic"][0, 1:], np.arange(1, 12))
        starts.add(int(start))
    assert len(starts) > 2
    assert starts != {int(example["semantic"][0]) for example in epoch(task, 1)}


def test_crops_reach_both_ends(tokens):
    task = semantic.semantic_task(tokens, crop_seconds=1.92, crops_per_clip=20)
    examples = epoch(task)
    assert len(examples) == 20 * record_folders.CLIPS
    assert {int(example["semantic"][0]) for example in examples} == {0, 1, 2}


def test_short_clips_are_padded_not_dropped(tokens):
    examples = epoch(semantic.semantic_task(tokens, crop_seconds=30.0))
    assert len(examples) == record_folders.CLIPS
    for example in examples:
        np.testing.assert_array_equal(example["semantic"], np.r_[np.arange(50), np.full(700, -1)])
        assert set(example) == {"semantic", "mulan"}


def test_fine_has_only_the_acoustic_stream(tokens):
    examples = epoch(fine.fine_task(tokens, crop_seconds=1.0, crops_per_clip=3))
    assert len(examples) == 3 * record_folders.CLIPS and set(examples[0]) == {"acoustic"}
    codes = np.stack([example["acoustic"] for example in examples])
    assert codes.shape[1:] == (50, 12) and codes.dtype == np.int32
    np.testing.assert_array_equal(np.diff(codes[:, ::2, 0], axis=1), np.ones((len(codes), 24)))


def test_tf_crop_equals_numpy_slices(tokens):
    """Compares tf.data with the same crop sliced from the records in NumPy."""
    for example in epoch(coarse.coarse_task(tokens, crop_seconds=0.8)):
        codes = record_folders.clip_codes(example["mulan"][0])
        start = example["semantic"][0]
        np.testing.assert_array_equal(example["semantic"], codes["semantic"][start : start + 20])
        np.testing.assert_array_equal(example["acoustic"], codes["acoustic"][2 * start : 2 * (start + 20)])


def is_of_text(example):
    """Returns whether the MuLan codes come from one of the clip's texts; fails if they come from another clip."""
    codes, clip = example["mulan"], example["mulan"][0] % 100
    known = [record_folders.clip_codes(clip)["mulan"], *record_folders.caption_codes(clip)]
    [place] = [i for i, own in enumerate(known) if np.array_equal(codes, own)]
    return place > 0


@pytest.mark.parametrize(
    ("share", "low", "high"), [(0.0, 0, 0), (0.5, 0.25, 0.75), (1.0, 1, 1)], ids=["sound", "both", "text"]
)
@pytest.mark.parametrize("make", [coarse.coarse_task, semantic.semantic_task])
def test_caption_share_is_the_share_of_crops_with_codes_of_a_text(tokens, make, share, low, high):
    task = make(tokens, crop_seconds=0.4, crops_per_clip=8, caption_share=share)
    examples = epoch(task)
    assert len(examples) == 8 * record_folders.CLIPS and "caption_mulan" not in examples[0]
    assert sorted(example["mulan"][0] % 100 for example in examples) == sorted([*range(record_folders.CLIPS)] * 8)
    assert low <= np.mean([is_of_text(example) for example in examples]) <= high
    assert {int(example["mulan"][0]) // 100 for example in examples} == {
        number for number in range(3) if (number == 0 and share < 1) or (number > 0 and share > 0)
    }, "every text is drawn"


def test_a_clip_without_texts_keeps_the_codes_of_its_audio():
    own = {"mulan": np.full(12, 7), "caption_mulan": np.zeros((0, 12), np.int64)}
    [chosen] = streams.choose_mulan(tf.data.Dataset.from_tensors(own), caption_share=1.0)
    assert set(chosen) == {"mulan"}
    np.testing.assert_array_equal(chosen["mulan"], own["mulan"])


def test_missing_codes_of_texts_are_an_error(tmp_path):
    without = str(record_folders.token_folder(tmp_path / "without", texts=False))
    message = "has tokens without codes of captions: make them with `musiclm tokenize --captions 3`"
    for make in (coarse.coarse_task, semantic.semantic_task):
        with pytest.raises(ValueError, match=message) as error:
            make(without, crop_seconds=0.4, caption_share=0.5)
        assert "\n" not in str(error.value)
        make(without, crop_seconds=0.4)
    with pytest.raises(ValueError, match=r"caption_share is 1\.5, expected 0 to 1"):
        coarse.coarse_task(without, crop_seconds=0.4, caption_share=1.5)


@pytest.mark.parametrize("make", [soundstream.soundstream_task, w2v_bert.w2v_bert_task])
def test_audio_crops_are_stretches_of_the_clips(audio, make):
    task = make(audio, crop_seconds=0.5, crops_per_clip=4)
    examples = epoch(task)
    assert len(examples) == 4 * record_folders.CLIPS
    slope = 0.2 / 47_999
    starts = set()
    for example in examples:
        crop = example["audio"]
        assert crop.shape == (12_000,) and crop.dtype == np.float32
        np.testing.assert_allclose(crop - crop[0], slope * np.arange(12_000), atol=1e-4)
        starts.add(round(float(crop[0]), 4))
    assert len(starts) > 3 * record_folders.CLIPS


def test_mulan_pairs_audio_with_its_captions_or_aspects(audio, tmp_path):
    vocab = str(record_folders.vocabulary(tmp_path / "vocab.txt"))
    names = {index: word for index, word in enumerate((tmp_path / "vocab.txt").read_text().split("\n"))}
    task = mulan.mulan_task(audio, vocab, max_text_tokens=9, crop_seconds=2.0, aspect_probability=0.5)
    seen = set()
    for number in range(8):
        for example in epoch(task, number):
            words = [names[i] for i in example["text_ids"][: example["text_mask"].sum()]]
            assert words[0] == "[CLS]" and words[-1] == "[SEP]"
            text = " ".join(words[1:-1])
            clip = round(float(example["audio"][0]) / 0.1)
            if "caption" in text:
                assert text in {f"first caption {clip}", f"second caption {clip}"}
                text = text.removesuffix(f" {clip}")
            seen.add(text)
    subsets = [" , ".join(p) for n in (1, 2, 3) for p in itertools.permutations(["jig", "flute", "fast"], n)]
    assert {"first caption", "second caption"} <= seen <= {"first caption", "second caption", *subsets}
    assert len(seen) > 8, "random subsets of the aspects"


def test_only_captions_if_aspects_are_off(audio, tmp_path):
    vocab = str(record_folders.vocabulary(tmp_path / "vocab.txt"))
    task = mulan.mulan_task(audio, vocab, max_text_tokens=9, crop_seconds=2.0, aspect_probability=0.0)
    assert all(example["text_mask"].sum() == 5 for example in epoch(task))


@pytest.fixture(scope="module")
def renditions(tmp_path_factory):
    return str(record_folders.rendition_folder(tmp_path_factory.mktemp("records") / "renditions", samples=240))


def test_melody_draws_different_renditions_of_one_passage(renditions):
    task = melody.melody_task(renditions, window_seconds=0.01)
    pairs, tunes = set(), {}
    for number in range(8):
        examples = epoch(task, number)
        assert len(examples) == record_folders.CLIPS
        for example in examples:
            first, second = example["audio"].reshape(2, 240)
            assert first[0] == second[0] and example["melody"].shape == (1,) and example["melody"].dtype == np.int32
            pairs.add((round(float(first[1]) / 0.1), round(float(second[1]) / 0.1)))
            tunes.setdefault(round(float(first[0]) / 0.1), set()).add(int(example["melody"][0]))
    assert pairs == set(itertools.permutations(range(4), 2)), "another pair each epoch"
    assert all(len(found) == 1 for found in tunes.values())
    numbers = [tunes[passage].pop() for passage in range(record_folders.CLIPS)]
    assert numbers[0] == numbers[1] and len(set(numbers)) == record_folders.CLIPS - 1
    again = [example["audio"] for example in epoch(task, 3)]
    np.testing.assert_array_equal(again, [example["audio"] for example in epoch(task, 3)])


def test_melody_takes_all_renditions_once_if_all_are_requested(renditions):
    examples = epoch(melody.melody_task(renditions, window_seconds=0.01, renditions=4))
    assert len(examples) == record_folders.CLIPS
    for example in examples:
        numbers = [round(float(audio[1]) / 0.1) for audio in example["audio"].reshape(4, 240)]
        assert sorted(numbers) == [0, 1, 2, 3]


def test_melody_names_bad_values(renditions):
    with pytest.raises(ValueError, match="holds 4 renditions of 240 samples: asked for 5 of 240"):
        melody.melody_task(renditions, window_seconds=0.01, renditions=5)
    with pytest.raises(ValueError, match="asked for 2 of 96000"):
        melody.melody_task(renditions)
    with pytest.raises(ValueError, match="renditions is 1 and"):
        melody.melody_task(renditions, renditions=1)


def test_tasks_are_seqio_tasks(tokens):
    coarse.coarse_task(tokens, crop_seconds=0.4)
    task = seqio.get_mixture_or_task("coarse")
    assert set(task.splits) == {"train", "validation", "test"}
    (first, *_) = task.get_dataset(split="validation", shuffle=False, seed=0).as_numpy_iterator()
    assert first["semantic"].min() >= 1, "code + 1, so that 0 is padding"
    assert task.output_features["acoustic"].rank == 2 and task.output_features["mulan"].rank == 1
    (metric,) = task.score_metric_fns
    assert metric(None, np.log([0.5, 0.125]))["bits"] == pytest.approx(2.0), "1 and 3 bits"


def test_features_of_streams():
    ranks = [streams.codes_feature(stream).rank for stream in (SEMANTIC, ACOUSTIC, MULAN)]
    assert ranks == [1, 2, 1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"crop_seconds": 0.0}, "crop_seconds 0.0"),
        ({"crops_per_clip": 0}, "crops_per_clip 0"),
        ({"crop_seconds": 0.41}, "0.41 s of the semantic stream"),
        ({"data_dir": "/nowhere"}, "/nowhere holds no shards of split 'train'"),
    ],
)
def test_bad_arguments_have_a_clear_error(tokens, arguments, message):
    with pytest.raises(ValueError, match=message):
        coarse.coarse_task(**{"data_dir": tokens, **arguments})
