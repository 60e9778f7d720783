"""Small folders of records for tests of tasks, datasets and gin files."""

import pathlib

import numpy as np
import tensorflow as tf

from musiclm_jax.data import records

CLIPS = 6  # per split
SHARDS = 2
SEMANTIC_FRAMES = 50  # 2 s


def clip_codes(number: int) -> dict[str, np.ndarray]:
    """Returns codes that identify clip, frame and level.

    Semantic codes are t; acoustic codes are 100 + t / 2 at level 0, and the level at the others.
    """
    acoustic = np.tile(np.arange(12), (2 * SEMANTIC_FRAMES, 1))
    acoustic[:, 0] = np.arange(2 * SEMANTIC_FRAMES) // 2
    return {"semantic": np.arange(SEMANTIC_FRAMES), "acoustic": acoustic, "mulan": np.full(12, number)}


def caption_codes(number: int) -> np.ndarray:
    """Returns MuLan codes `[2, 12]` of two texts about a clip; they identify clip and text."""
    return np.stack([np.full(12, 100 * text + number) for text in (1, 2)])


def silent_codes(tokenizers, clips: list[dict], *unused) -> dict[str, np.ndarray]:
    """Stands in for `tokenize.tokenize_batch` with clips of 1 s: all codes are 0."""
    shapes = {"semantic": (25,), "acoustic": (50, 12), "mulan": (12,)}
    return {name: np.zeros((len(clips), *shape), np.int32) for name, shape in shapes.items()}


def clip_audio(number: int) -> np.ndarray:
    """Returns a ramp of 2 s within [-1, 1] whose first sample identifies the clip."""
    return np.linspace(0.1 * number, 0.1 * number + 0.2, 48_000).astype(np.float32)


def _write(folder: pathlib.Path, make) -> pathlib.Path:
    folder.mkdir(parents=True)
    for split in records.SPLITS:
        for shard in range(SHARDS):
            with tf.io.TFRecordWriter(str(records.shard_path(folder, split, shard, SHARDS))) as writer:
                for number in range(shard, CLIPS, SHARDS):
                    writer.write(make(f"{split}{number}", number))
    return folder


def token_folder(folder: pathlib.Path, texts: bool = True) -> pathlib.Path:
    """Writes token records; clip n has MuLan and melody codes n and, with `texts`, `caption_codes`."""

    def make(name: str, number: int) -> bytes:
        codes = clip_codes(number)
        return records.token_example(
            id=name,
            caption=["x"],
            instrument="flute",
            composition=name,
            held_out_pair=0,
            melody=np.full(72, number),
            caption_mulan=caption_codes(number) if texts else None,
            **codes,
        )

    return _write(folder, make)


def audio_folder(folder: pathlib.Path) -> pathlib.Path:
    """Writes audio records with two captions and three aspects each."""

    def make(name: str, number: int) -> bytes:
        return records.audio_example(
            id=name,
            audio=clip_audio(number),
            caption=[f"first caption {number}", f"second caption {number}"],
            aspects=["jig", "flute", "fast"],
            composition=name,
            kind="jig",
            instrument="flute",
            texture="solo",
            key="G major",
            bpm=120.0,
            held_out_pair=0,
            pitch_class=np.zeros(SEMANTIC_FRAMES, np.int64),
            gain_db=0.0,
        )

    return _write(folder, make)


def rendition_folder(folder: pathlib.Path, samples: int = 96_000) -> pathlib.Path:
    """Writes passages of four renditions; sample 0 identifies the passage, sample 1 the rendition, the rest is noise.

    Passages 0 and 1 come from one composition.
    """

    def make(name: str, number: int) -> bytes:
        audio = np.random.default_rng(number).uniform(-0.5, 0.5, (4, samples)).astype(np.float32)
        audio[:, 0], audio[:, 1] = 0.1 * number, 0.1 * np.arange(4)
        players = ["instrument", "sung", "whistled", "instrument"]
        return records.rendition_example(
            id=name, renditions=audio, players=players, composition=f"tune {max(number, 1)}"
        )

    return _write(folder, make)


def vocabulary(file: pathlib.Path) -> pathlib.Path:
    """Writes a vocab.txt for the captions above."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "first", "second", "caption", "jig", "flute", "fast", ","]
    file.write_text("\n".join(words + [str(digit) for digit in range(10)]) + "\n")
    return file
