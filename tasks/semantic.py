"""Semantic stage: semantic tokens given MuLan tokens (MusicLM section 3.2)."""

from musiclm_jax.data.datasets import TaskSpec
from musiclm_jax.data.tokens import MELODY, MULAN, SEMANTIC
from musiclm_jax.tasks import streams


def semantic_task(
    data_dir: str | None,
    crop_seconds: float = 30.0,
    crops_per_clip: int = 1,
    melody: bool = False,
    caption_share: float = 0.0,
    name: str = "semantic",
) -> TaskSpec:
    """Registers the task with seqio.

    Args:
      data_dir: folder of token records, from `musiclm tokenize`; None if only shapes are needed.
      crop_seconds: length of a crop (the paper's by default), a multiple of 0.04 s.
      crops_per_clip: random crops of each clip per epoch.
      melody: include melody tokens as a condition, those of a clip's first 10 s.
      caption_share: probability of MuLan codes from a caption, see `streams.token_task`.
      name: name in seqio's registry.

    Returns:
      A task for `datasets.TaskDataset`. Batches: "semantic" `[b, 25 s]`, "mulan" `[b, 12]`, "melody" `[b, 72]`.

    Raises:
      ValueError: if `melody` is set and the records have no melody tokens.
    """
    used = (MULAN, MELODY, SEMANTIC) if melody else (MULAN, SEMANTIC)
    return streams.token_task(name, data_dir, used, crop_seconds, crops_per_clip, caption_share)
