"""Fine stage: the last acoustic levels given the first ones (MusicLM section 3.2; 3 s crops as in AudioLM)."""

from musiclm_jax.data.datasets import TaskSpec
from musiclm_jax.data.tokens import ACOUSTIC
from musiclm_jax.tasks import streams


def fine_task(data_dir: str | None, crop_seconds: float = 3.0, crops_per_clip: int = 1, name: str = "fine") -> TaskSpec:
    """Registers the task with seqio.

    Args:
      data_dir: folder of token records, from `musiclm tokenize`; None if only shapes are needed.
      crop_seconds: length of a crop (the paper's by default), a multiple of 0.04 s.
      crops_per_clip: random crops of each clip per epoch.
      name: name in seqio's registry.

    Returns:
      A task for `datasets.TaskDataset`. Batches: "acoustic" `[b, 50 s, 12]`.
    """
    return streams.token_task(name, data_dir, (ACOUSTIC,), crop_seconds, crops_per_clip)
