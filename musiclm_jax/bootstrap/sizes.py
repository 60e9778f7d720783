"""Sizes of a bootstrap: amount of data, batch sizes, shares of the time."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from musiclm_jax.data.tokens import SAMPLE_RATE

CLIP_SECONDS = 10
CLIP_SAMPLES = CLIP_SECONDS * SAMPLE_RATE
TRAININGS = ("soundstream", "w2v_bert", "mulan", "coarse", "semantic", "fine", "semantic_melody", "decoder")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Amount of data and training settings; the defaults suit one GPU with 80 GB."""

    blocks: int = 16  # number of blocks; each is one array in the accelerator's memory, rendered one after another
    block: int = 2048  # clips of 10 s per block
    leads_every: int = 4  # one in this many clips has its lead performed by a voice, for melody conditioning
    validation: int = 192  # held-out clips, of compositions that are never trained on; at most a block
    workers: int = 12  # rendering processes
    compilers: int = 3  # compiling threads
    at_once: int = 64  # clips encoded at once
    texts: int = 10  # per clip
    text_length: int = 48  # word pieces per text, including [CLS] and [SEP]
    human_texts: int = 2  # at most this many of them are people's sentences about other music with the same facts
    caption_share: float = 0.75  # of the stages' rows, see `resident.draw_tokens`
    dtype: str = "bfloat16"  # of activations, where it is safe
    scan_layers: bool = True  # TransformerConfig.scan_layers in training
    round_products: bool = False  # TransformerConfig.round_products in training
    keep_tokens: bool = False  # keep the tokens in the work folder, for later runs that train stages further
    save_every: float = math.inf  # seconds after which an unfinished stage is saved again
    discriminators: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"discriminator_channels": 16, "discriminator_windows": (2048, 1024, 512)}
    )  # fields of SoundStreamConfig
    batch: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {
            "soundstream": 64, "w2v_bert": 128, "mulan": 384, "semantic": 192, "coarse": 64, "fine": 96,
            "semantic_melody": 128, "decoder": 48,
        }
    )  # fmt: skip
    seconds: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"soundstream": 2.0, "w2v_bert": 3.2, "mulan": 5.0, "decoder": 1.0}
    )  # of a crop of audio
    steps: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {
            "soundstream": 10, "w2v_bert": 10, "mulan": 10, "semantic": 10, "coarse": 10, "fine": 10,
            "semantic_melody": 10, "decoder": 8,
        }
    )  # fmt: skip
    # In order of training: a part gets the remaining time times its share, divided by the shares of all parts left.
    share: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {
            "soundstream": 0.23, "w2v_bert": 0.07, "mulan": 0.09, "coarse": 0.20, "semantic": 0.10, "fine": 0.09,
            "semantic_melody": 0.06, "decoder": 0.16,
        }
    )  # fmt: skip


def multiplies_bfloat16() -> bool:
    """Returns whether this machine's CPU has instructions for products of bfloat16 (as Linux tells)."""
    try:
        words = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(words))


def cpu() -> Sizes:
    """Returns sizes for two CPU cores and 16 GB of memory."""
    batch = {"soundstream": 6, "w2v_bert": 32, "mulan": 64, "semantic": 16, "coarse": 8, "fine": 8}
    return Sizes(
        blocks=2,
        workers=2,
        compilers=1,
        at_once=16,
        texts=5,
        human_texts=1,
        dtype="float32",
        scan_layers=False,
        round_products=multiplies_bfloat16(),
        keep_tokens=True,
        save_every=300.0,
        discriminators={},
        batch=batch | {"semantic_melody": 16, "decoder": 4},
        seconds={"soundstream": 1.0, "w2v_bert": 3.2, "mulan": 5.0, "decoder": 1.0},
        steps=dict.fromkeys(TRAININGS, 1),
    )


def rehearsal() -> Sizes:
    """Returns toy sizes, with which all parts run in minutes on two cores."""
    names = TRAININGS
    return Sizes(
        blocks=2,
        block=32,
        validation=8,
        workers=2,
        compilers=2,
        keep_tokens=True,
        save_every=1.0,
        discriminators={},
        at_once=8,
        texts=4,
        human_texts=1,
        dtype="float32",
        batch=dict.fromkeys(names, 4) | {"mulan": 8, "w2v_bert": 8},
        steps=dict.fromkeys(names, 1),
    )
