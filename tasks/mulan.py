"""MuLan: pairs of audio and one of its captions, redrawn every epoch."""

import functools

from musiclm_jax.data import records, resident
from musiclm_jax.data.datasets import TaskSpec, TextTokens
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.tasks import streams


def mulan_task(
    data_dir: str | None,
    vocab: str,
    max_text_tokens: int = 128,
    crop_seconds: float = 10.0,
    aspect_probability: float = 0.25,
    name: str = "mulan",
) -> TaskSpec:
    """Registers the task with seqio.

    Args:
      data_dir: folder of audio records, from `musiclm corpus`; None if only shapes are needed.
      vocab: the text encoder's vocab.txt, a path or package:path.
      max_text_tokens: length of text rows; longer texts are truncated.
      crop_seconds: length of a crop.
      aspect_probability: probability that the text is a random list of aspects instead of a caption.
      name: name in seqio's registry.

    Returns:
      A task for `datasets.TaskDataset`. Batches: "audio" float32 `[b, samples]`, "text_ids" and "text_mask" int32
      `[b, l]`.
    """
    streams.check_crops(crop_seconds, 1)
    samples = round(crop_seconds * SAMPLE_RATE)
    streams.register(
        name,
        streams.source(data_dir, records.parse_audio_example),
        [
            functools.partial(streams.keep, names=("audio", "caption", "aspects")),
            functools.partial(streams.crop_audio, seconds=crop_seconds),
            functools.partial(streams.choose_caption, aspect_probability=aspect_probability),
        ],
        {"audio": streams.audio_feature(), "caption": streams.caption_feature()},
        example_bytes=4 * samples,
    )
    read = functools.partial(
        resident.pairs,
        seconds=crop_seconds,
        vocab=vocab,
        max_text_tokens=max_text_tokens,
        aspect_probability=aspect_probability,
    )
    return TaskSpec(name, {"audio": samples, "caption": 1}, TextTokens(vocab, max_text_tokens), data_dir, read)
