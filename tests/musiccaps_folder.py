"""A small MusicCaps folder, as users have it: a CSV file with the public columns, and some of the clips."""

import csv
import pathlib

import numpy as np
import soundfile

COLUMNS = (
    "ytid",
    "start_s",
    "end_s",
    "audioset_positive_labels",
    "aspect_list",
    "caption",
    "author_id",
    "is_balanced_subset",
    "is_audioset_eval",
)
IDS = [f"-{number}_vid{number:06d}" for number in range(7)]  # 11 characters, as YouTube's are
RATE = 16_000
BROKEN, MISSING = IDS[5], IDS[6]


def clip(number: int) -> np.ndarray:
    """Returns one second of a tone whose pitch identifies the clip."""
    return 0.5 * np.sin(2 * np.pi * (300 + 200 * number) * np.arange(RATE) / RATE)


def rows() -> list[dict[str, str]]:
    return [
        {
            "ytid": name,
            "start_s": "30",
            "end_s": "40",
            "audioset_positive_labels": "/m/0140xf,/m/02cjck",
            "aspect_list": "['slow', 'piano']" if number % 2 else "['fast', \"fiddle's jig\"]",
            "caption": f"A slow piano, number {number}" if number % 2 else f"The fiddle, on number {number}",
            "author_id": str(number),
            "is_balanced_subset": str(number in (0, 2)),
            "is_audioset_eval": str(number % 3 == 0),
        }
        for number, name in enumerate(IDS)
    ]


def write(folder: pathlib.Path, lines=None, columns=COLUMNS) -> pathlib.Path:
    """Writes clips 0 to 4 in different formats and a broken clip 5; clip 6 is missing."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    with (folder / "musiccaps-public.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows() if lines is None else lines)
    for number, name in enumerate(IDS[:5]):
        soundfile.write(folder / "clips" / f"{name}.{'flac' if number == 1 else 'wav'}", clip(number), RATE)
    (folder / "clips" / f"{BROKEN}.wav").write_bytes(b"RIFF")
    return folder
