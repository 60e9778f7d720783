"""The reader of records without TensorFlow equals TensorFlow's, and names what is damaged."""

import numpy as np
import pytest
import record_folders
import tensorflow as tf

from musiclm_jax.data import clip_arrays, records, shards, tfrecord


def example(**values):
    return records._example(values)


def test_checksums_equal_those_of_the_standard():
    """The check value of CRC-32C; both ways to compute it agree, also where their sizes meet."""
    assert tfrecord.crc32c(b"123456789") == 0xE3069283
    assert tfrecord.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    data = np.random.default_rng(0).bytes(tfrecord._SHORT + 13)
    for length in range(tfrecord._SHORT, len(data)):
        table, crc = tfrecord._first_table(), 0xFFFFFFFF
        for byte in data[:length]:
            crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
        assert tfrecord.crc32c(data[:length]) == crc ^ 0xFFFFFFFF


def test_values_equal_those_that_tensorflow_parses():
    rng = np.random.default_rng(1)
    for _ in range(20):
        numbers = rng.integers(-(2**63), 2**63 - 1, rng.integers(1, 40)) >> rng.integers(0, 63)
        written = {"n": numbers, "f": rng.normal(size=3).tolist(), "b": [b"", b"\xff12"], "s": "text", "none": []}
        data = example(**written)
        expected = tf.train.Example.FromString(data).features.feature
        found = tfrecord.parse_example(data, written)
        np.testing.assert_array_equal(found["n"], expected["n"].int64_list.value)
        np.testing.assert_array_equal(found["f"], np.float32(expected["f"].float_list.value))
        assert found["b"] == [b"", b"\xff12"] and found["s"] == [b"text"] and len(found["none"]) == 0
        assert set(tfrecord.parse_example(data, ("n",))) == {"n"}


def test_lists_that_are_not_packed_are_read():
    """Other writers may write one field per integer or float."""
    integers = b"\x08\x05\x08\xac\x02"  # 5, 300
    feature = bytes([3 << 3 | 2, len(integers)]) + integers
    entry = b"\x0a\x01n" + bytes([2 << 3 | 2, len(feature)]) + feature
    features = bytes([1 << 3 | 2, len(entry)]) + entry
    data = bytes([1 << 3 | 2, len(features)]) + features
    assert tf.train.Example.FromString(data).features.feature["n"].int64_list.value == [5, 300]
    np.testing.assert_array_equal(tfrecord.parse_example(data, ("n",))["n"], [5, 300])


@pytest.mark.parametrize(
    "data", [b"\x0a", b"\x0a\x05\x0a", b"\xff" * 12, b"\x0b", b"not an example", b"\x08\x01\x0a\x02\x0a\x7f"]
)
def test_what_is_no_example_is_refused(data):
    with pytest.raises(ValueError):
        tfrecord.parse_example(data, ("n",))


def test_any_byte_that_changes_is_noticed(tmp_path):
    """In the length, the data or a checksum: an error that names the file and the record, never another value."""
    file = tmp_path / "train-00000-of-00001.tfrecord"
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(b"first")
        writer.write(b"second")
    content = file.read_bytes()
    assert [data for _, data in tfrecord.read(file)] == [b"first", b"second"]
    assert b"".join(map(tfrecord.frame, (b"first", b"second"))) == content
    second = len(content) - len(tfrecord.frame(b"second"))
    for index in range(len(content)):
        file.write_bytes(content[:index] + bytes([content[index] ^ 0x10]) + content[index + 1 :])
        with pytest.raises(
            ValueError, match=rf"{file} has a damaged record at byte {second if index >= second else 0} "
        ):
            list(tfrecord.read(file))
    for length in range(1, len(content)):
        if length != second:
            file.write_bytes(content[:length])
            with pytest.raises(ValueError, match=rf"{file} has a damaged record at byte .*cut off"):
                list(tfrecord.read(file))


def test_tokens_equal_those_of_tensorflow(tmp_path):
    folder = record_folders.token_folder(tmp_path / "tokens")
    found = clip_arrays.tokens(folder, "train")
    expected = list(records.read_token_records(records.shard_paths(folder, "train")))
    assert len(expected) == record_folders.CLIPS
    for name in clip_arrays.CODES:
        np.testing.assert_array_equal(found[name], np.stack([clip[name] for clip in expected]))
    assert found["frames"].tolist() == [record_folders.SEMANTIC_FRAMES] * len(expected)


def token_record(frames=4, **changes):
    codes = {"semantic": np.arange(frames), "acoustic": np.zeros((2 * frames, 12), int), "mulan": np.arange(12)}
    return {"id": "x", "caption": ["x"], "instrument": "", "composition": "", "held_out_pair": 0} | codes | changes


def write(folder, *examples):
    folder.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(shards.shard_path(folder, "train", 0, 1))) as writer:
        for one in examples:
            writer.write(one)
    return folder


def test_clips_of_different_lengths_are_padded(tmp_path):
    captions = [np.full((2, 12), 7), None]
    made = [token_record(n, caption_mulan=texts) for n, texts in zip((3, 5), captions, strict=True)]
    folder = write(tmp_path / "t", *(records.token_example(**fields) for fields in made))
    found = clip_arrays.tokens(folder, "train")
    assert found["semantic"].tolist() == [[0, 1, 2, -1, -1], [0, 1, 2, 3, 4]] and found["frames"].tolist() == [3, 5]
    assert found["acoustic"].shape == (2, 10, 12) and (found["acoustic"][0, 6:] == -1).all()
    assert found["caption_mulan"][:, :, 0].tolist() == [[7, 7], [-1, -1]] and "melody" not in found


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"semantic": np.arange(5)}, "5 frames of semantic codes and 8 of acoustic ones"),
        ({"mulan": np.arange(11)}, "11 codes of mulan, expected 12"),
        ({"melody": np.arange(71)}, "71 codes of melody, expected 72"),
        ({"semantic": np.array([0, 1, 2, -1])}, "semantic has codes from -1 to 2"),
        ({"semantic": np.array([0, 1, 2, 40_000])}, "semantic has codes from 0 to 40000"),
        ({"semantic": ["a", "b"]}, "semantic is not a list of integers"),
        ({"acoustic": np.zeros(95, int)}, "95 codes of acoustic are no multiple of 12"),
    ],
)
def test_impossible_records_are_named_with_their_place(tmp_path, fields, reason):
    good, bad = example(**token_record()), example(**token_record(**fields))
    folder = write(tmp_path / "t", good, bad)
    place = len(tfrecord.frame(good))
    with pytest.raises(ValueError, match=rf"{folder}/train-.* has a record at byte {place} .*\({reason}\)"):
        clip_arrays.tokens(folder, "train")


def test_records_of_another_kind_and_empty_splits_have_a_clear_error(tmp_path):
    audio = record_folders.audio_folder(tmp_path / "audio")
    with pytest.raises(ValueError, match=r"at byte 0 that is damaged or of another kind .*token records"):
        clip_arrays.tokens(audio, "train")
    tokens = record_folders.token_folder(tmp_path / "tokens")
    with pytest.raises(ValueError, match=r"at byte 0 that is damaged or of another kind \(it has no audio\): .*audio"):
        clip_arrays.audio(tokens, "train")
    with pytest.raises(ValueError, match=r"split 'train' of .* holds no clips"):
        clip_arrays.tokens(write(tmp_path / "empty"), "train")
    some = [example(**token_record(melody=np.arange(72))), example(**token_record())]
    with pytest.raises(ValueError, match=f"a record without melody at byte {len(tfrecord.frame(some[0]))},"):
        clip_arrays.tokens(write(tmp_path / "some", *some), "train")


def test_one_file_has_the_tokens_of_the_records(tmp_path):
    folder = record_folders.token_folder(tmp_path / "tokens")
    assert clip_arrays.write_npz(folder, tmp_path / "all.npz") == dict.fromkeys(records.SPLITS, record_folders.CLIPS)
    for split in records.SPLITS:
        expected, found = clip_arrays.tokens(folder, split), clip_arrays.tokens(tmp_path / "all.npz", split)
        assert expected.keys() == found.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)
            assert found[name].dtype == values.dtype
    assert set(clip_arrays.tokens(tmp_path / "all.npz", "test", ("mulan",))) == {"mulan", "frames"}


def test_a_damaged_file_of_tokens_is_named(tmp_path):
    file = tmp_path / "all.npz"
    clip_arrays.write_npz(record_folders.token_folder(tmp_path / "tokens"), file)
    content = file.read_bytes()
    for damaged in (b"", b"not a zip", content[: len(content) // 2], content[:200] + b"\x00" * 50 + content[250:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{file} is damaged or no file of `musiclm tokenize --npz`"):
            clip_arrays.tokens(file, "train")
    with pytest.raises(ValueError, match="there is no file"):
        clip_arrays.tokens(tmp_path / "none.npz", "train")
    frames = np.array([4, 4], np.int32)
    for wrong in (
        {"semantic": np.zeros((2, 5), np.int16)},
        {"semantic": np.zeros((2, 4))},
        {"mulan": np.zeros(2, np.int16)},
    ):
        np.savez(file, **{"train/frames": frames} | {f"train/{name}": values for name, values in wrong.items()})
        with pytest.raises(ValueError, match=r"is no file of .*expected int16"):
            clip_arrays.tokens(file, "train")
