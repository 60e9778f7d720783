"""Fuzzes records and sound files: damaged bytes, records that claim to be huge, headers that make no sense."""

import itertools
import struct

import fuzzing
import numpy as np
import pytest
import record_folders
import soundfile
import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st

from musiclm_jax.data import audio, records
from musiclm_jax.data.datasets import TaskDataset
from musiclm_jax.tasks import semantic


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("strange")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A folder of token records, whose shards the tests replace, and a task that reads it."""
    folder = record_folders.token_folder(tmp_path_factory.mktemp("records") / "tokens")
    return folder, semantic.semantic_task(data_dir=str(folder), crop_seconds=1.0, name="fuzzed")


def crc32c(content):
    """Returns the checksum of TFRecord files."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record(content, length=None):
    """Returns a record with right checksums; it may claim another length."""
    size = struct.pack("<Q", len(content) if length is None else length)
    return size + struct.pack("<I", crc32c(size)) + content + struct.pack("<I", crc32c(content))


def features(values):
    """Returns a serialized tf.train.Example; a value is a list of int, float or bytes."""
    kinds = {int: "int64_list", float: "float_list", bytes: "bytes_list"}
    lists = {name: {kinds[type(own[0])]: {"value": own}} if own else {} for name, own in values.items()}
    example = tf.train.Example(
        features=tf.train.Features(feature={name: tf.train.Feature(**own) for name, own in lists.items()})
    )
    return example.SerializeToString()


TOKENS = {
    "id": [b"a"],
    "semantic": list(range(4)),
    "acoustic": [1] * 96,
    "mulan": [3] * 12,
    "melody": [0] * 72,
    "caption_mulan": [1] * 24,
    "caption": [b"x", b"y"],
    "instrument": [b""],
    "composition": [b"a"],
    "held_out_pair": [0],
}
WHOLE = record(features(TOKENS))
KINDS = (
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30)
    | st.lists(st.floats(width=32), max_size=3)
    | st.lists(st.binary(max_size=8), max_size=3)
    | st.sampled_from([0, 1, 11, 12, 24, 71, 72, 96]).map(lambda count: [5] * count)
)
SHARDS = (
    fuzzing.damaged([WHOLE, WHOLE * 2])
    | fuzzing.damaged([features(TOKENS)]).map(record)
    | st.builds(lambda name, own: record(features({**TOKENS, name: own})), st.sampled_from(list(TOKENS)), KINDS)
    | st.integers(0, 2**64 - 1).map(lambda length: WHOLE + record(b"abc", length))
)


@fuzzing.examples(25)
@given(SHARDS)
@example(record(b"", 2**62))
@example(record(b"", 2**40))
@example(record(b"\x80"))
@example(record(features({**TOKENS, "semantic": [1] * 5})))
@example(record(features({**TOKENS, "mulan": [-1] * 12})))
@example(record(features({**TOKENS, "id": [b"\xff"]})))
def test_token_records(folder, content):
    path = folder / "train-00000-of-00001.tfrecord"
    path.write_bytes(content)
    found = fuzzing.outcome(lambda: list(records.read_token_records([str(path)])), named=path)
    for own in [] if isinstance(found, Exception) else found:
        assert own["acoustic"].shape == (2 * len(own["semantic"]), 12) and own["mulan"].shape == (12,)
        assert min(own[name].min(initial=0) for name in ("semantic", "acoustic", "mulan", "caption_mulan")) == 0


@fuzzing.examples(2)
@given(SHARDS)
@example(record(b"", 2**62))
@example(record(features({**TOKENS, "semantic": [-5] * 4})))
def test_training_reads_token_records(tokens, content):
    folder, task = tokens
    shard = records.shard_path(folder, "train", 1, record_folders.SHARDS)
    shard.write_bytes(WHOLE * 4 + content)

    def batches():
        return list(itertools.islice(TaskDataset(task, "train", 2, shuffle=False).epoch(0), 8))

    found = fuzzing.outcome(batches)
    for batch in [] if isinstance(found, Exception) else found:
        assert batch["semantic"].min() >= -1 and batch["mulan"].min() >= 0


AUDIO = {
    "id": [b"a"], "audio": [bytes(960)], "caption": [b"x"], "aspects": [b"y"], "composition": [b"a"], "kind": [b""],
    "instrument": [b""], "texture": [b""], "key": [b""], "bpm": [1.0], "held_out_pair": [0], "pitch_class": [0],
    "gain_db": [0.0],
}  # fmt: skip


@fuzzing.examples(15)
@given(st.builds(lambda name, own: {**AUDIO, name: own}, st.sampled_from(list(AUDIO)), KINDS))
@example({**AUDIO, "audio": [b"odd"]})
@example({})
def test_audio_records(folder, values):
    path = folder / "train-00000-of-00001.tfrecord"
    path.write_bytes(record(features(values)))
    found = fuzzing.outcome(lambda: list(records.read_audio_records([str(path)])), named=path)
    for own in [] if isinstance(found, Exception) else found:
        assert np.abs(own["audio"]).max(initial=0) <= 1
    passages = fuzzing.outcome(lambda: list(records.read_rendition_records([str(path)])), named=path)
    assert isinstance(passages, ValueError)


def encoded(folder):
    """Returns a second of noise in many formats."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (6_000, 2)).astype(np.float32)
    formats = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("WAVEX", "PCM_24"), ("AIFF", "PCM_16")]
    formats += [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AU", "ULAW")]
    formats += [("RF64", "PCM_16"), ("CAF", "ALAC_16")]
    for container, subtype in formats:
        soundfile.write(folder / "whole", noise, 24_000, subtype, format=container)
        yield (folder / "whole").read_bytes()


@pytest.fixture(scope="module")
def sounds(folder):
    return list(encoded(folder))


def wave(rate=24_000, channels=1, bits=16, size=4_000, kind=1):
    """Returns a WAV file of 4,000 bytes of samples with any header."""
    bound = {"<H": 2**16, "<I": 2**32}
    fields = [("<H", kind), ("<H", channels), ("<I", rate), ("<I", rate * channels * bits // 8)]
    fields += [("<H", channels * bits // 8), ("<H", bits)]
    header = b"".join(struct.pack(form, value % bound[form]) for form, value in fields)
    samples = (np.arange(2_000) * 997 % 2**16).astype("<u2").tobytes()
    return b"RIFF\xff\xff\xff\x7fWAVEfmt \x10\0\0\0" + header + b"data" + struct.pack("<I", size) + samples


RATES = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 7, 999, 1000, 96_000, 655_350, 2**31 - 1, 2**32 - 1])
HEADERS = st.builds(
    wave,
    RATES,
    st.integers(0, 2**16 - 1) | st.integers(0, 3),
    st.sampled_from([0, 1, 8, 12, 16, 24, 32, 64, 65_535]),
    st.sampled_from([0, 1, 4_000, 2**31, 2**32 - 1]),
    st.sampled_from([0, 1, 2, 3, 6, 17, 85, 65_534]),
)


def check_sound(path):
    found = fuzzing.outcome(audio.load, path, named=path)
    if not isinstance(found, Exception):
        assert found.dtype == np.float32 and found.ndim == 1 and found.size and np.abs(found).max() <= 2 * audio.LOUDEST
    assert (fuzzing.outcome(audio.sample_rate_of, path) or 1) > 0
    assert (fuzzing.outcome(audio.seconds_of, path) or 0) >= 0


@fuzzing.examples(40)
@given(st.data())
def test_damaged_sound_files(folder, sounds, monkeypatch, data):
    monkeypatch.setenv("PATH", "/nowhere")  # without ffmpeg, which takes most of the time
    path = folder / "sound.wav"
    path.write_bytes(data.draw(fuzzing.damaged(sounds)))
    check_sound(path)


@fuzzing.examples(40)
@given(HEADERS)
@example(wave(rate=0))
@example(wave(rate=2**31 - 1))
@example(wave(rate=2**32 - 1, channels=65_535, bits=1))
@example(wave(channels=1024))
def test_headers_of_sound_files(folder, monkeypatch, content):
    monkeypatch.setenv("PATH", "/nowhere")
    path = folder / "header.wav"
    path.write_bytes(content)
    check_sound(path)


@fuzzing.examples(3)
@given(st.data())
def test_damaged_sound_files_with_ffmpeg(folder, sounds, data):
    path = folder / "decoded.wav"
    path.write_bytes(data.draw(fuzzing.damaged(sounds) | HEADERS))
    check_sound(path)


def test_a_high_rate_does_not_take_more_memory(folder):
    path = folder / "high.flac"
    soundfile.write(path, np.zeros(6 * audio.BLOCK), 6 * audio.HIGHEST_RATE)
    with pytest.raises(audio.AudioError, match=r"longer than 0\.0833333 s"):
        audio.load(path, longest=0.5)
    soundfile.write(path, 0.1 * np.ones(6 * audio.BLOCK), audio.HIGHEST_RATE // 2)
    with pytest.raises(audio.AudioError, match=r"longer than 0\.5 s"):
        audio.load(path, longest=0.5)
