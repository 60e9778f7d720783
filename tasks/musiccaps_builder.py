"""TFDS builder of MusicCaps: the public captions and the clips that the user has.

The captions are a CSV file with 5,521 rows; the recordings are not public. Clips are found by name: <ytid>.wav, .flac,
.mp3, ..., ten seconds each, at any sample rate. If a clip is missing or broken, its caption stays without audio.
"""

import ast
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from musiclm_jax.data import audio as sound
from musiclm_jax.data import records, text_files
from musiclm_jax.data.files import disk_failed
from musiclm_jax.data.tokens import SAMPLE_RATE

CSV_NAME = "musiccaps-public.csv"
CLIPS_FOLDER = "clips"
REQUIRED_COLUMNS = ("ytid", "caption")
# Optional columns and their defaults.
OPTIONAL_COLUMNS = {
    "start_s": "0",
    "end_s": "10",
    "audioset_positive_labels": "",
    "aspect_list": "[]",
    "author_id": "-1",
    "is_balanced_subset": "False",
    "is_audioset_eval": "False",
}
MISSING = "missing"  # "clip" of a row without a file


def read_captions(path: epath.PathLike) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads the CSV file.

    Args:
      path: file with the columns of the public release; others are ignored.

    Returns:
      Rows, and remarks for readers of the figures: missing columns and rows that were left out.

    Raises:
      ValueError: if the file is not CSV, or has no ids or captions.
    """
    path = epath.Path(path)
    columns, rows = text_files.table(path)
    if lacking := [name for name in REQUIRED_COLUMNS if name not in columns]:
        raise ValueError(
            f"{path} has no column {', '.join(lacking)}: expected {', '.join((*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS))}, "
            f"found {', '.join(sorted(columns)) or 'none'}"
        )
    remarks = []
    if absent := [name for name in OPTIONAL_COLUMNS if name not in columns]:
        remarks.append(f"{path.name} has no column {', '.join(absent)}")
    found: dict[str, dict[str, Any]] = {}
    left_out, unreadable = [], []
    for number, row in enumerate(rows, start=2):
        name, caption = row["ytid"].strip(), row["caption"].strip()
        if not name or not caption or name in found:
            left_out.append(str(number))
            continue
        values = {column: row.get(column) or default for column, default in OPTIONAL_COLUMNS.items()}
        try:
            own = {
                "ytid": name,
                "caption": caption,
                "start_s": int(float(values["start_s"])),
                "end_s": int(float(values["end_s"])),
                "labels": [label for label in values["audioset_positive_labels"].split(",") if label],
                "aspects": [str(aspect) for aspect in ast.literal_eval(values["aspect_list"])],
                "author_id": int(values["author_id"]),
                "is_balanced_subset": text_files.is_true(values["is_balanced_subset"]),
                "is_audioset_eval": text_files.is_true(values["is_audioset_eval"]),
            }
            np.array([own["start_s"], own["end_s"], own["author_id"]], np.int32)  # as TFDS stores them
        # ast raises the last two for text that is nested too deeply, and int() an OverflowError for infinity.
        except (ValueError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError):
            unreadable.append(str(number))
        else:
            found[name] = own
    if left_out:
        remarks.append(
            f"{len(left_out)} rows of {path.name} without id or caption, or with an id twice, were left out: line "
            f"{', '.join(left_out[:5])}"
        )
    if unreadable:
        remarks.append(
            f"{len(unreadable)} rows of {path.name} with values that cannot be read were left out: line "
            f"{', '.join(unreadable[:5])}"
        )
    return list(found.values()), remarks


class MusicCaps(tfds.core.GeneratorBasedBuilder):
    """MusicCaps (Agostinelli et al., arXiv 2301.11325): captions by musicians, with the user's clips at 24 kHz."""

    # TFDS would look for a folder with the module's name, which differs from the source folder's.
    pkg_dir_path = epath.Path(__file__).parent
    VERSION = tfds.core.Version("1.0.1")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.1": "Reads TRUE as Excel writes it; leaves out empty splits.",
        "1.0.0": "First release.",
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Put {CSV_NAME} into manual_dir, and the clips that you have into manual_dir/{CLIPS_FOLDER}, named <ytid>.wav "
        "(or .flac, .mp3, .ogg)."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="MusicCaps: the public captions, and the clips that the user has.",
            features=tfds.features.FeaturesDict(
                {
                    "ytid": tfds.features.Text(),
                    "start_s": np.int32,
                    "end_s": np.int32,
                    "labels": tfds.features.Sequence(tfds.features.Text()),
                    "aspects": tfds.features.Sequence(tfds.features.Text()),
                    "caption": tfds.features.Text(),
                    "author_id": np.int32,
                    "is_balanced_subset": np.bool_,
                    "is_audioset_eval": np.bool_,
                    # "" with audio, MISSING, or the reason why the clip cannot be read.
                    "clip": tfds.features.Text(),
                    "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES),
                }
            ),
            supervised_keys=None,
            homepage="https://arxiv.org/abs/2301.11325",
            license="CC BY-SA 4.0 (captions)",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        """Splits the captions by AudioSet's training and evaluation segments; TFDS refuses an empty split."""
        rows, _ = read_captions(dl_manager.manual_dir / CSV_NAME)
        files = clip_files(dl_manager.manual_dir)
        splits = {
            "train": [row for row in rows if not row["is_audioset_eval"]],
            "test": [row for row in rows if row["is_audioset_eval"]],
        }
        return {name: self._generate_examples(own, files) for name, own in splits.items() if own}

    def _generate_examples(self, rows, files) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the rows under their ids, each with its clip."""
        for row in rows:
            clip, samples = MISSING, np.zeros(0, np.int16)
            if row["ytid"] in files:
                try:
                    audio = sound.load(files[row["ytid"]], SAMPLE_RATE)
                    samples = np.frombuffer(records.pcm_from_audio(np.clip(audio, -1, 1)), np.int16)
                    clip = ""
                except sound.AudioError as error:
                    if disk_failed(error):
                        raise
                    clip = str(error)
            yield row["ytid"], {**row, "clip": clip, "audio": samples}


def clip_files(folder: epath.PathLike) -> dict[str, epath.Path]:
    """Returns the audio files in the clips folder by name without extension; empty if there is no such folder."""
    clips = epath.Path(folder) / CLIPS_FOLDER
    if not clips.is_dir():
        return {}
    return {path.stem: path for path in sorted(clips.iterdir()) if path.suffix.lower() in sound.READABLE}
