"""How much a bootstrap renders and how it is trained."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from musiclm_jax.data.tokens import SAMPLE_RATE

CLIP_SECONDS = 10
CLIP_SAMPLES = CLIP_SECONDS * SAMPLE_RATE
TRAININGS = ("soundstream", "w2v_bert", "mulan", "coarse", "semantic", "fine", "semantic_melody", "decoder")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is rendered and how it is trained; the defaults are for one GPU of 80 GB."""

    blocks: int = 16  # of clips; a block is one array in the accelerator's memory, rendered in turn
    block: int = 2048  # clips of 10 s
    leads_every: int = 4  # of so many clips one has its lead sung, for the melody
    validation: int = 192  # clips of compositions that are never trained on, for held-out figures; a block at most
    workers: int = 12  # processes that render
    compilers: int = 3  # threads that compile
    at_once: int = 64  # clips that are encoded at once
    texts: int = 10  # of a clip
    text_length: int = 48  # pieces of a text, [CLS] and [SEP] included
    human_texts: int = 2  # of them at most, sentences of people about other music with the same facts
    caption_share: float = 0.75  # of the stages' rows, see `resident.draw_tokens`
    dtype: str = "bfloat16"  # of activations where it is safe
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
    # of the time, in the order of training; what is left at a part's beginning is shared among it and those after it
    share: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {
            "soundstream": 0.23, "w2v_bert": 0.07, "mulan": 0.09, "coarse": 0.20, "semantic": 0.10, "fine": 0.09,
            "semantic_melody": 0.06, "decoder": 0.16,
        }
    )  # fmt: skip


def cpu() -> Sizes:
    """For two CPU cores and 16 GB of memory."""
    batch = {"soundstream": 6, "w2v_bert": 32, "mulan": 64, "semantic": 16, "coarse": 8, "fine": 8}
    return Sizes(
        blocks=2,
        workers=2,
        compilers=1,
        at_once=16,
        texts=5,
        human_texts=1,
        dtype="float32",
        discriminators={},
        batch=batch | {"semantic_melody": 16, "decoder": 4},
        seconds={"soundstream": 1.0, "w2v_bert": 3.2, "mulan": 5.0, "decoder": 1.0},
        steps=dict.fromkeys(TRAININGS, 1),
    )


def rehearsal() -> Sizes:
    """Toy sizes: the whole chain in minutes on two cores."""
    names = TRAININGS
    return Sizes(
        blocks=2,
        block=32,
        validation=8,
        workers=2,
        compilers=2,
        discriminators={},
        at_once=8,
        texts=4,
        human_texts=1,
        dtype="float32",
        batch=dict.fromkeys(names, 4) | {"mulan": 8, "w2v_bert": 8},
        steps=dict.fromkeys(names, 1),
    )
