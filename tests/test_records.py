import numpy as np
import pytest
import tensorflow as tf

from musiclm_jax.data import records

CLIP = {
    "id": "train-00001",
    "caption": ["A jig on a fiddle.", "Fiddle, solo.", "An Irish jig."],
    "aspects": ["fiddle", "jig"],
    "composition": "oneills1850/7",
    "kind": "jig",
    "instrument": "fiddle",
    "texture": "solo",
    "key": "G major",
    "bpm": 116.5,
    "held_out_pair": 1,
    "gain_db": -3.25,
}


def _audio(samples=480, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, samples).astype(np.float32)


def _write(folder, split, index, count, examples):
    with tf.io.TFRecordWriter(str(records.shard_path(folder, split, index, count))) as writer:
        for example in examples:
            writer.write(example)


def test_audio_record_round_trip(tmp_path):
    audio, pitch_class = _audio(), np.array([-1, 0, 11, 7])
    _write(tmp_path, "train", 0, 1, [records.audio_example(audio=audio, pitch_class=pitch_class, **CLIP)])
    (record,) = records.read_audio_records(records.shard_paths(tmp_path, "train"))
    assert {name: record[name] for name in CLIP} == CLIP
    assert set(record) == {*CLIP, "audio", "pitch_class"}
    assert record["audio"].dtype == np.float32
    np.testing.assert_allclose(record["audio"], audio, atol=0.5 / 32767 + 1e-7)
    np.testing.assert_array_equal(record["pitch_class"], pitch_class)


def test_pcm_is_little_endian_int16():
    audio = np.array([0.0, 1.0, -1.0, 1 / 32767], np.float32)
    assert records.pcm_from_audio(audio) == bytes.fromhex("0000ff7f01800100")
    np.testing.assert_allclose(records.audio_from_pcm(bytes.fromhex("ff7f0180")), [1.0, -1.0])


def test_parse_in_a_pipeline_gives_contract_shapes():
    serialized = records.audio_example(audio=_audio(), pitch_class=np.array([3, -1]), **CLIP)
    parsed = records.parse_audio_example(tf.constant(serialized))
    assert parsed["audio"].shape == (480,) and parsed["audio"].dtype == tf.float32
    assert parsed["caption"].shape == (3,) and parsed["aspects"].shape == (2,)
    assert parsed["held_out_pair"].dtype == tf.int64 and parsed["bpm"].numpy() == 116.5


def test_a_whole_number_as_bpm_stays_a_float_feature():
    fields = CLIP | {"bpm": 120, "gain_db": 0}
    parsed = records.parse_audio_example(records.audio_example(audio=_audio(), pitch_class=np.array([3]), **fields))
    assert parsed["bpm"].numpy() == 120.0 and parsed["gain_db"].numpy() == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio": _audio() * 2}, "scale it down"),
        ({"audio": np.array([0.0, np.nan], np.float32)}, "peak of nan"),
        ({"audio": _audio().reshape(2, -1)}, "mono"),
        ({"caption": "one string"}, "list of one or more"),
        ({"caption": []}, "list of one or more"),
        ({"pitch_class": np.array([12])}, "-1..11"),
    ],
)
def test_bad_clips_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        records.audio_example(**({"audio": _audio(), "pitch_class": np.array([0])} | CLIP | change))


def test_token_record_round_trip_is_frame_major(tmp_path):
    acoustic = np.arange(48).reshape(4, 12)
    fields = {"id": "a", "caption": ["x", "y"], "instrument": "flute", "composition": "c", "held_out_pair": 0}
    example = records.token_example(semantic=np.array([5, 0]), acoustic=acoustic, mulan=np.arange(12), **fields)
    stored = tf.train.Example.FromString(example).features.feature["acoustic"].int64_list.value
    assert list(stored[:13]) == list(range(13))
    _write(tmp_path, "test", 0, 1, [example])
    (record,) = records.read_token_records(records.shard_paths(tmp_path, "test"))
    np.testing.assert_array_equal(record["acoustic"], acoustic)
    np.testing.assert_array_equal(record["semantic"], [5, 0])
    np.testing.assert_array_equal(record["mulan"], np.arange(12))
    assert {name: record[name] for name in fields} == fields


@pytest.mark.parametrize(
    ("semantic", "acoustic", "mulan"),
    [((3,), (4, 12), (12,)), ((2,), (4, 11), (12,)), ((2,), (4, 12), (11,)), ((2, 1), (4, 12), (12,))],
)
def test_streams_that_do_not_match_are_refused(semantic, acoustic, mulan):
    with pytest.raises(ValueError, match="record a: semantic"):
        records.token_example(
            id="a",
            semantic=np.zeros(semantic, int),
            acoustic=np.zeros(acoustic, int),
            mulan=np.zeros(mulan, int),
            caption=["x"],
            instrument="i",
            composition="c",
            held_out_pair=0,
        )


FIELDS = {"id": "a", "caption": ["x", "y"], "instrument": "flute", "composition": "c", "held_out_pair": 0}
CODES = {"semantic": np.array([5, 0]), "acoustic": np.zeros((4, 12), int), "mulan": np.arange(12)}


def test_codes_of_captions_are_restored_per_text(tmp_path):
    of_texts = np.arange(36).reshape(3, 12)
    with_texts = records.token_example(**FIELDS, **CODES, caption_mulan=of_texts)
    _write(tmp_path, "train", 0, 1, [with_texts, records.token_example(**FIELDS, **CODES)])
    first, second = records.read_token_records(records.shard_paths(tmp_path, "train"))
    np.testing.assert_array_equal(first["caption_mulan"], of_texts)
    assert second["caption_mulan"].shape == (0, 12)


def test_old_records_without_codes_of_captions_are_still_readable():
    example = tf.train.Example.FromString(records.token_example(**FIELDS, **CODES))
    del example.features.feature["caption_mulan"]
    parsed = records.parse_token_example(tf.constant(example.SerializeToString()))
    assert parsed["caption_mulan"].shape == (0, 12)
    np.testing.assert_array_equal(parsed["mulan"], np.arange(12))


@pytest.mark.parametrize("shape", [(12,), (3, 11), (1, 3, 12)])
def test_codes_of_captions_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"record a: caption_mulan \(.*\), expected \[n, 12\]"):
        records.token_example(**FIELDS, **CODES, caption_mulan=np.zeros(shape, int))
    with pytest.raises(ValueError, match="record a has a negative code"):
        records.token_example(**FIELDS, **CODES, caption_mulan=np.full((1, 12), -1))


def test_rendition_record_round_trip(tmp_path):
    renditions = np.stack([_audio(seed=seed) for seed in range(3)])
    fields = {"id": "train-7", "players": ["sung", "instrument", "whistled"], "composition": "airdsAirs/3"}
    _write(tmp_path, "train", 0, 1, [records.rendition_example(renditions=renditions, **fields)])
    (record,) = records.read_rendition_records(records.shard_paths(tmp_path, "train"))
    np.testing.assert_allclose(record.pop("renditions"), renditions, atol=0.5 / 32767 + 1e-7)
    assert record == fields
    parsed = records.parse_rendition_example(records.rendition_example(renditions=renditions, **fields))
    assert parsed["renditions"].dtype == tf.int16 and parsed["renditions"].shape == (3, 480)


@pytest.mark.parametrize(("count", "players"), [(1, ["sung"]), (3, ["sung", "whistled"])])
def test_a_passage_without_a_pair_or_a_player_is_refused(count, players):
    with pytest.raises(ValueError, match=rf"p has renditions of shape \({count}, 480\) by {len(players)} players"):
        records.rendition_example(id="p", renditions=np.zeros((count, 480)), players=players, composition="c")


def test_shard_paths_are_sorted_and_complete(tmp_path):
    for index in (2, 0, 1):
        _write(tmp_path, "train", index, 3, [])
    (tmp_path / "train-00000-of-00003.tfrecord.tmp").write_bytes(b"")
    names = [path.rsplit("/")[-1] for path in records.shard_paths(tmp_path, "train")]
    assert names == [f"train-0000{index}-of-00003.tfrecord" for index in range(3)]
    with pytest.raises(ValueError, match="no shards of split 'test'"):
        records.shard_paths(tmp_path, "test")
    (tmp_path / "train-00001-of-00003.tfrecord").unlink()
    with pytest.raises(ValueError, match="2 shards of split 'train': expected 3"):
        records.shard_paths(tmp_path, "train")
