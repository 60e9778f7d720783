"""SoundStream: random crops of audio."""

from musiclm_jax.data.datasets import TaskSpec
from musiclm_jax.tasks import streams


def soundstream_task(
    data_dir: str | None, crop_seconds: float = 1.0, crops_per_clip: int = 1, name: str = "soundstream"
) -> TaskSpec:
    """Registers the task with seqio.

    Args:
      data_dir: folder of audio records, from `musiclm corpus`; None if only shapes are needed.
      crop_seconds: length of a crop.
      crops_per_clip: random crops of each clip per epoch.
      name: name in seqio's registry.

    Returns:
      A task for `datasets.TaskDataset`. Batches: "audio" float32 `[b, samples]` in [-1, 1].
    """
    return streams.audio_task(name, data_dir, crop_seconds, crops_per_clip)
