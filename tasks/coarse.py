"""Coarse stage: the first acoustic levels given semantic and MuLan tokens (MusicLM section 3.2)."""

from musiclm_jax.data.datasets import TaskSpec
from musiclm_jax.data.tokens import ACOUSTIC, MULAN, SEMANTIC
from musiclm_jax.tasks import streams


def coarse_task(
    data_dir: str | None,
    crop_seconds: float = 10.0,
    crops_per_clip: int = 1,
    caption_share: float = 0.0,
    name: str = "coarse",
) -> TaskSpec:
    """Registers the task with seqio.

    Args:
      data_dir: folder of token records, from `musiclm tokenize`; None if only shapes are needed.
      crop_seconds: length of a crop (the paper's by default), a multiple of 0.04 s.
      crops_per_clip: random crops of each clip per epoch.
      caption_share: probability of MuLan codes from a caption, see `streams.token_task`.
      name: name in seqio's registry.

    Returns:
      A task for `datasets.TaskDataset`. Batches: "acoustic" `[b, 50 s, 12]`, "semantic" `[b, 25 s]`, "mulan" `[b, 12]`.
    """
    used = (MULAN, SEMANTIC, ACOUSTIC)
    return streams.token_task(name, data_dir, used, crop_seconds, crops_per_clip, caption_share)
