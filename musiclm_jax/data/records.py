"""The record formats of this project, as `tf.train.Example` in TFRecord shards: audio, tokens and renditions.

Shards are named `<split>-00000-of-00016.tfrecord`; the splits are train, validation and test. Audio records hold mono
16-bit PCM at 24 kHz. Token records hold raw codes; stages/layout.py adds the vocabulary offsets inside the jitted step.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from musiclm_jax.data import files, tokens
from musiclm_jax.data.samples import FULL_SCALE, from_pcm16, to_pcm16
from musiclm_jax.data.shards import check_whole as check_whole  # re-exported, as those below
from musiclm_jax.data.shards import shard_path as shard_path
from musiclm_jax.data.shards import shard_paths as shard_paths
from musiclm_jax.data.tokens import MISSING_PITCH
from musiclm_jax.data.tokens import PITCH_CLASS_RATE as PITCH_CLASS_RATE
from musiclm_jax.data.tokens import SPLITS as SPLITS

_AUDIO_FEATURES = {
    "id": tf.io.FixedLenFeature([], tf.string),
    "audio": tf.io.FixedLenFeature([], tf.string),
    "caption": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
    "aspects": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
    "composition": tf.io.FixedLenFeature([], tf.string),
    "kind": tf.io.FixedLenFeature([], tf.string),
    "instrument": tf.io.FixedLenFeature([], tf.string),
    "texture": tf.io.FixedLenFeature([], tf.string),
    "key": tf.io.FixedLenFeature([], tf.string),
    "bpm": tf.io.FixedLenFeature([], tf.float32),
    "held_out_pair": tf.io.FixedLenFeature([], tf.int64),
    "pitch_class": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
    "gain_db": tf.io.FixedLenFeature([], tf.float32),
}

_TOKEN_FEATURES = {
    "id": tf.io.FixedLenFeature([], tf.string),
    "semantic": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
    "acoustic": tf.io.FixedLenSequenceFeature([tokens.ACOUSTIC.quantizers], tf.int64, allow_missing=True),
    "mulan": tf.io.FixedLenFeature([tokens.MULAN.quantizers], tf.int64),
    "melody": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
    "caption_mulan": tf.io.FixedLenSequenceFeature([tokens.MULAN.quantizers], tf.int64, allow_missing=True),
    "caption": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
    "instrument": tf.io.FixedLenFeature([], tf.string),
    "composition": tf.io.FixedLenFeature([], tf.string),
    "held_out_pair": tf.io.FixedLenFeature([], tf.int64),
}

_CODES = ("semantic", "acoustic", "mulan", "melody", "caption_mulan")
_RENDITION_FEATURES = {
    "id": tf.io.FixedLenFeature([], tf.string),
    "renditions": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
    "players": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
    "composition": tf.io.FixedLenFeature([], tf.string),
}


def _example(values: Mapping[str, Any]) -> bytes:
    """Serializes named values: str, bytes, int, float or sequences of one of these."""
    features = {}
    for name, value in values.items():
        items = np.asarray(value).reshape(-1).tolist() if isinstance(value, np.ndarray) else value
        items = items if isinstance(items, (list, tuple)) else [items]
        if items and all(isinstance(item, (str, bytes)) for item in items):
            encoded = [item.encode() if isinstance(item, str) else item for item in items]
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))
        elif all(isinstance(item, (int, np.integer)) for item in items):
            features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=[int(item) for item in items]))
        else:
            features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=[float(item) for item in items]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def pcm_from_audio(audio: np.ndarray) -> bytes:
    """Converts float audio `[samples]` in [-1, 1] to little-endian int16 PCM.

    Raises:
      ValueError: if the audio is not one-dimensional, not finite, or outside [-1, 1].
    """
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1:
        raise ValueError(f"audio has shape {audio.shape}: expected [samples], mono; average the channels first")
    peak = float(np.max(np.abs(audio), initial=0.0))
    if not peak <= 1.0:
        raise ValueError(f"audio has a peak of {peak}: expected values within [-1, 1]; scale it down first")
    return to_pcm16(audio).tobytes()


def audio_from_pcm(pcm: bytes) -> np.ndarray:
    """Converts little-endian int16 PCM to float32 audio `[samples]`; inverts `pcm_from_audio` up to rounding."""
    return from_pcm16(np.frombuffer(pcm, "<i2"))


def audio_example(
    *,
    id: str,
    audio: np.ndarray,
    caption: Sequence[str],
    aspects: Sequence[str],
    composition: str,
    kind: str,
    instrument: str,
    texture: str,
    key: str,
    bpm: float,
    held_out_pair: int,
    pitch_class: np.ndarray,
    gain_db: float,
) -> bytes:
    """Serializes one clip.

    Args:
      id: name of the clip, unique in the corpus.
      audio: float32 `[samples]` in [-1, 1], 24 kHz mono.
      caption: different sentences about the same clip, at least one.
      aspects: short phrases as in MusicCaps' aspect lists.
      composition: id of the composition; no two splits share one.
      kind: kind of piece ("jig").
      instrument: plain name of the lead instrument ("fiddle").
      texture: who plays with the lead ("solo").
      key: tonic and mode ("G major").
      bpm: beats per minute.
      held_out_pair: 1 if instrument and kind never occur together in the training split, else 0.
      pitch_class: int `[frames]` at 25 Hz, 0..11 (C = 0) of the lead voice, -1 in rests.
      gain_db: loudness relative to the corpus's nominal level, in dB.

    Returns:
      A serialized tf.train.Example.

    Raises:
      ValueError: if the audio is outside [-1, 1], there is no caption, or a pitch class is outside -1..11.
    """
    if isinstance(caption, str) or not caption:
        raise ValueError(f"clip {id} has caption {caption!r}: expected a list of one or more sentences")
    pitch_class = np.asarray(pitch_class)
    if pitch_class.size and not (pitch_class.min() >= MISSING_PITCH and pitch_class.max() <= 11):
        raise ValueError(f"clip {id} has pitch classes {pitch_class.min()}..{pitch_class.max()}: expected -1..11")
    return _example(
        {
            "id": id,
            "audio": pcm_from_audio(audio),
            "caption": list(caption),
            "aspects": list(aspects),
            "composition": composition,
            "kind": kind,
            "instrument": instrument,
            "texture": texture,
            "key": key,
            "bpm": float(bpm),
            "held_out_pair": int(held_out_pair),
            "pitch_class": pitch_class,
            "gain_db": float(gain_db),
        }
    )


def parse_audio_example(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Parses one audio record inside a tf.data pipeline.

    Returns:
      The fields of `audio_example`: audio is float32 `[samples]`, caption and aspects are string `[n]`, pitch_class is
      int64 `[frames]`.
    """
    fields = tf.io.parse_single_example(serialized, _AUDIO_FEATURES)
    fields["audio"] = tf.cast(tf.io.decode_raw(fields["audio"], tf.int16), tf.float32) / FULL_SCALE
    return fields


def token_example(
    *,
    id: str,
    semantic: np.ndarray,
    acoustic: np.ndarray,
    mulan: np.ndarray,
    caption: Sequence[str],
    instrument: str,
    composition: str,
    held_out_pair: int,
    melody: np.ndarray | None = None,
    caption_mulan: np.ndarray | None = None,
) -> bytes:
    """Serializes the token streams of one clip.

    Args:
      id: name of the clip.
      semantic: codes `[t]` at 25 Hz.
      acoustic: codes `[2 * t, 12]` at 50 Hz; stored flat, frame by frame.
      mulan: codes `[12]` of the clip's audio embedding.
      caption: sentences about the clip.
      instrument: plain name of the lead instrument.
      composition: id of the composition.
      held_out_pair: 1 if instrument and kind never occur together in the training split, else 0.
      melody: melody codes `[72]` of the clip, if there is a melody model.
      caption_mulan: codes `[n, 12]` of the text embeddings of n captions, if there are any.

    Raises:
      ValueError: if a stream has the wrong shape, the lengths do not match, or a code is negative.
    """
    semantic, acoustic, mulan = (np.asarray(codes) for codes in (semantic, acoustic, mulan))
    melody = np.zeros(0, np.int32) if melody is None else np.asarray(melody)
    if melody.shape not in ((0,), (tokens.MELODY.quantizers,)):
        raise ValueError(f"record {id}: melody {melody.shape}, expected [{tokens.MELODY.quantizers}], or none")
    of_texts = np.zeros((0, tokens.MULAN.quantizers), np.int32) if caption_mulan is None else np.asarray(caption_mulan)
    if of_texts.ndim != 2 or of_texts.shape[1] != tokens.MULAN.quantizers:
        raise ValueError(f"record {id}: caption_mulan {of_texts.shape}, expected [n, {tokens.MULAN.quantizers}]")
    frames = semantic.shape[0] * tokens.ACOUSTIC.frame_rate // tokens.SEMANTIC.frame_rate
    expected = (frames, tokens.ACOUSTIC.quantizers)
    if semantic.ndim != 1 or acoustic.shape != expected or mulan.shape != (tokens.MULAN.quantizers,):
        raise ValueError(
            f"record {id}: semantic {semantic.shape}, acoustic {acoustic.shape}, mulan {mulan.shape}: expected "
            f"[t], [2 t, {tokens.ACOUSTIC.quantizers}], [{tokens.MULAN.quantizers}]; tokenize all from the same audio"
        )
    if min(int(codes.min(initial=0)) for codes in (semantic, acoustic, mulan, melody, of_texts)) < 0:
        raise ValueError(f"record {id} has a negative code: records keep raw codes, 0..codebook_size-1")
    return _example(
        {
            "id": id,
            "semantic": semantic,
            "acoustic": acoustic,
            "mulan": mulan,
            "melody": melody,
            "caption_mulan": of_texts,
            "caption": list(caption),
            "instrument": instrument,
            "composition": composition,
            "held_out_pair": int(held_out_pair),
        }
    )


def parse_token_example(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Parses one token record.

    Returns:
      int64 semantic `[t]`, acoustic `[2 t, 12]`, mulan `[12]`, melody `[72]` or `[0]`, caption_mulan `[n, 12]`;
      string caption `[n]`.
    """
    fields = tf.io.parse_single_example(serialized, _TOKEN_FEATURES)
    frames, melody = tf.shape(fields["semantic"])[0], tf.shape(fields["melody"])[0]
    ratio = tokens.ACOUSTIC.frame_rate // tokens.SEMANTIC.frame_rate
    checks = [
        tf.debugging.assert_equal(tf.shape(fields["acoustic"])[0], ratio * frames, "acoustic and semantic lengths"),
        tf.debugging.assert_equal(melody * (tokens.MELODY.quantizers - melody), 0, "the number of melody codes"),
        *(tf.debugging.assert_non_negative(fields[name], f"{name} codes") for name in _CODES),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):  # None if it is not in a graph
        return {name: tf.identity(value) for name, value in fields.items()}


def rendition_example(*, id: str, renditions: np.ndarray, players: Sequence[str], composition: str) -> bytes:
    """Serializes the renditions of one passage.

    Args:
      id: name of the passage.
      renditions: float32 `[renditions, samples]` in [-1, 1], 24 kHz mono; they have only the melody in common.
      players: "instrument", "sung" or "whistled" for each rendition.
      composition: id of the composition; no two splits share one.

    Raises:
      ValueError: if a rendition is outside [-1, 1], there are fewer than two, or one has no player.
    """
    renditions = np.asarray(renditions)
    if renditions.ndim != 2 or len(renditions) < 2 or len(players) != len(renditions):
        raise ValueError(
            f"passage {id} has renditions of shape {renditions.shape} by {len(players)} players: expected "
            "[renditions, samples] of two or more renditions, and a player for each"
        )
    return _example(
        {
            "id": id,
            "renditions": [pcm_from_audio(audio) for audio in renditions],
            "players": list(players),
            "composition": composition,
        }
    )


def parse_rendition_example(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Parses the renditions of one passage inside a tf.data pipeline.

    Returns:
      The fields of `rendition_example`: players are string `[renditions]`, renditions are int16 `[renditions, samples]`
      PCM, so that only the renditions that are drawn need converting.
    """
    fields = tf.io.parse_single_example(serialized, _RENDITION_FEATURES)
    count = tf.shape(fields["renditions"])[0]
    checks = [
        tf.debugging.assert_greater_equal(count, 2, "the number of renditions"),
        tf.debugging.assert_equal(tf.shape(fields["players"])[0], count, "the numbers of players and renditions"),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):  # None if it is not in a graph
        return {**fields, "renditions": tf.io.decode_raw(fields["renditions"], tf.int16)}


def _plain(value: tf.Tensor) -> Any:
    value = value.numpy()
    if isinstance(value, bytes):
        return value.decode()
    if value.dtype == object:
        return [item.decode() for item in value]
    return value.item() if value.ndim == 0 else value


def read_audio_records(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields audio records in order: strings as str, lists of strings as list, audio as float32 `[samples]`.

    Raises:
      ValueError: if a record is damaged or of another kind; names the file.
    """
    return _read(paths, parse_audio_example)


def read_token_records(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields token records in order: codes as int64 arrays, strings as str, captions as list of str.

    Raises:
      ValueError: as `read_audio_records`.
    """
    return _read(paths, parse_token_example)


def read_rendition_records(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields passages in order: strings as str, players as list, float32 `[renditions, samples]`.

    Raises:
      ValueError: as `read_audio_records`.
    """
    for fields in _read(paths, parse_rendition_example):
        yield fields | {"renditions": from_pcm16(fields["renditions"])}


def _read(paths: Sequence[str], parse: Callable[[tf.Tensor], dict[str, tf.Tensor]]) -> Iterator[dict[str, Any]]:
    """Yields parsed records in order."""
    for path in paths:
        with _naming(path):
            for serialized in serialized_records(path):
                yield _plain_fields(parse(serialized))


def serialized_records(path: str) -> tf.data.Dataset:
    """Opens a shard.

    Raises:
      ValueError: as `check_whole`.
    """
    if not files.is_url(path):
        check_whole(path)  # a record that claims to be larger than the memory would end the process
    return tf.data.TFRecordDataset(path)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turns errors of TensorFlow about records into a ValueError that names their file."""
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, UnicodeDecodeError) as error:
        reason = str(getattr(error, "message", error)).strip().splitlines()[0]
        reason = re.split(r"}} |::\w+: ", reason)[-1].split(" [Op:")[0]
        raise ValueError(
            f"{path} has a record that is damaged or of another kind ({reason}): write it again"
        ) from error


def _plain_fields(fields: Mapping[str, tf.Tensor]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in fields.items()}


def sample_audio_records(folder: str | os.PathLike, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Draws `count` clips of a split uniformly (reservoir sampling: one pass, at most `count` clips in memory).

    Returns:
      Records like those of `read_audio_records`, in their order on disk; all clips if there are no more than `count`.
    """
    rng = np.random.default_rng(seed)
    kept: list[tuple[int, str, tf.Tensor]] = []  # parsed after the draw: parsing takes most of the time
    index = 0
    for path in shard_paths(folder, split):
        with _naming(path):
            for serialized in serialized_records(path):
                if len(kept) < count:
                    kept.append((index, path, serialized))
                elif (slot := int(rng.integers(0, index + 1))) < count:
                    kept[slot] = (index, path, serialized)
                index += 1
    drawn = []
    for _, path, serialized in sorted(kept, key=lambda item: item[0]):
        with _naming(path):
            drawn.append(_plain_fields(parse_audio_example(serialized)))
    return drawn
