"""One worker process of resident.RenderJob: python -m musiclm_jax.corpus.render_worker FOLDER NUMBER."""

import fcntl
import json
import os
import pathlib
import sys

import numpy as np

from musiclm_jax.corpus import compositions, leads, pack, rendering, resident
from musiclm_jax.corpus.clips import Clip, make_clip
from musiclm_jax.corpus.scores import Score
from musiclm_jax.data.samples import to_pcm16

_FURTHER = 1_000_001  # added to the index of a clip that cannot be generated, to draw a replacement
_LEFT_OUT = ("audio", "pitch_class")  # fields of a clip that are not metadata


def claim(folder: pathlib.Path) -> int:
    """Claims the next position in the schedule; no two workers get the same one."""
    with open(folder / "next", "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        place = int(file.read())
        file.seek(0)
        file.write(str(place + 1))
    return place


def make_or_replace(renderer: rendering.Renderer, pool: list[Score], seed: int, split: str, index: int) -> Clip:
    """Makes clip `index`; if that fails, makes another clip and gives it the same id."""
    number = index
    while True:
        try:
            clip = make_clip(renderer, pool, seed, split, number)
        except RuntimeError as error:
            print(f"{error}; replaced by another clip", flush=True)
            number += _FURTHER  # another lead instrument, too
            continue
        clip.fields["id"] = f"{split}-{index:05d}"
        return clip


def work(folder: pathlib.Path, worker: int) -> None:
    """Renders clips until all are rendered."""
    settings = json.loads((folder / resident.SETTINGS).read_text())
    scores, fonts = pack.read_pack(pathlib.Path(settings["pack"]))
    pools, renderer = compositions.split_scores(scores), rendering.Renderer(fonts)
    every = settings["leads_every"]
    arrays = resident.open_arrays(folder, settings["counts"], every, "r+")
    order = resident.schedule(settings["counts"])
    with open(folder / f"metadata-{worker}.jsonl", "w") as file:
        # Stop if the parent process has died: nothing else would end this one.
        while os.getppid() == settings["parent"] and (place := claim(folder)) < len(order):
            split, index = order[place]
            clip = make_or_replace(renderer, pools[split], settings["seed"], split, index)
            fields = clip.fields
            arrays[f"{split}.audio.int16"][index] = to_pcm16(fields["audio"])
            if split == "train" and index % every == 0:
                lead = leads.performed(fields["id"], fields["audio"], fields["pitch_class"])
                arrays[f"{split}.leads.int16"][index // every] = to_pcm16(np.clip(lead, -1.0, 1.0))
            known = {name: value for name, value in fields.items() if name not in _LEFT_OUT}
            file.write(json.dumps(known | clip.extra | {"index": index}) + "\n")
            file.flush()
            arrays[f"{split}.done"][index] = 1  # last, when everything else of the clip is written


if __name__ == "__main__":
    work(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
