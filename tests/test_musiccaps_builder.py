"""The TFDS builder for MusicCaps: TFDS's own test on fake data, and users' files."""

import pathlib
import tempfile
from typing import ClassVar

import musiccaps_folder
import pytest
import tensorflow_datasets as tfds

from musiclm_jax.tasks import musiccaps_builder
from musiclm_jax.tasks.musiccaps_builder import read_captions


class MusicCapsTest(tfds.testing.DatasetBuilderTestCase):
    """TFDS's checks of a builder: it prepares, examples match the features, splits do not overlap."""

    DATASET_CLASS = musiccaps_builder.MusicCaps
    SPLITS: ClassVar[dict[str, int]] = {"train": 4, "test": 3}
    EXAMPLE_DIR = str(musiccaps_folder.write(pathlib.Path(tempfile.mkdtemp(prefix="musiccaps_"))))


def test_the_public_columns_are_read(tmp_path):
    rows, remarks = read_captions(musiccaps_folder.write(tmp_path) / "musiccaps-public.csv")
    assert remarks == [] and [row["ytid"] for row in rows] == musiccaps_folder.IDS
    assert rows[0]["aspects"] == ["fast", "fiddle's jig"] and rows[0]["labels"] == ["/m/0140xf", "/m/02cjck"]
    assert rows[0] | {"aspects": 0, "labels": 0} == {
        "ytid": musiccaps_folder.IDS[0],
        "caption": "The fiddle, on number 0",
        "start_s": 30,
        "end_s": 40,
        "labels": 0,
        "aspects": 0,
        "author_id": 0,
        "is_balanced_subset": True,
        "is_audioset_eval": True,
    }


def test_missing_or_unknown_columns_and_invalid_rows(tmp_path):
    lines = musiccaps_folder.rows()
    lines[1]["caption"] = " "
    lines[2]["ytid"] = lines[0]["ytid"]
    lines[3]["aspect_list"] = "['open"
    columns = [name for name in musiccaps_folder.COLUMNS if name not in ("author_id", "is_balanced_subset")]
    rows, remarks = read_captions(musiccaps_folder.write(tmp_path, lines, [*columns, "mood"]) / "musiccaps-public.csv")
    assert [row["ytid"] for row in rows] == [musiccaps_folder.IDS[i] for i in (0, 4, 5, 6)]
    assert remarks == [
        "musiccaps-public.csv has no column author_id, is_balanced_subset",
        "2 rows of musiccaps-public.csv without id or caption, or with an id twice, were left out: line 3, 4",
        "1 rows of musiccaps-public.csv with values that cannot be read were left out: line 5",
    ]
    assert rows[0]["author_id"] == -1 and rows[0]["is_balanced_subset"] is False


def test_another_file_is_refused(tmp_path):
    path = musiccaps_folder.write(tmp_path, columns=("aspect_list", "start_s")) / "musiccaps-public.csv"
    with pytest.raises(ValueError, match=r"has no column ytid, caption: expected ytid, .* found aspect_list, start_s"):
        read_captions(path)
    path.write_bytes(b"\xffbinary\x00")
    with pytest.raises(ValueError, match="cannot be read as text"):
        read_captions(path)
