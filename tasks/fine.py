"""Fine stage: the last acoustic levels under the first ones (MusicLM section 3.2; 3 s crops as in AudioLM)."""

from musiclm_jax.data.datasets import TaskSpec
from musiclm_jax.data.tokens import ACOUSTIC
from musiclm_jax.tasks import streams


def fine_task(data_dir: str | None, crop_seconds: float = 3.0, crops_per_clip: int = 1, name: str = "fine") -> TaskSpec:
    """Registers the task with seqio.

    Args:
      data_dir: folder of token records, from `musiclm tokenize`; None for shapes alone.
      crop_seconds: length of a crop (the paper's by default), a multiple of 0.04 s.
      crops_per_clip: random crops of each clip in an epoch.
      name: in seqio's registry.

    Returns:
      What `datasets.TaskDataset` takes. Batches: "acoustic" `[b, 50 s, 12]`.
    """
    return TaskSpec(name, streams.token_task(name, data_dir, (ACOUSTIC,), crop_seconds, crops_per_clip))
