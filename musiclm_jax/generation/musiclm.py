"""`MusicLM`, the object that `musiclm_jax.load` returns: a bundle that generates music."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from musiclm_jax.bundles import Bundle
from musiclm_jax.generation.generate import GeneratedMusic, generate, request_for, stream
from musiclm_jax.generation.prompts import Prompt, Story
from musiclm_jax.generation.windows import Progress


@dataclasses.dataclass(frozen=True)
class MusicLM:
    """Generates music with the models of a bundle.

    Attributes:
      bundle: the opened bundle.
    """

    bundle: Bundle

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] = (),
        seconds: float = 10.0,
        seed: int = 0,
        on_progress: Progress | None = None,
        **options: Any,
    ) -> list[GeneratedMusic]:
        """Generates music from texts.

        Args:
          prompts: one text or story, or several; empty if a recording is the prompt.
          seconds: length of each piece.
          seed: the same seed gives the same music.
          on_progress: called while the stages run, with the name of the current task, the amount done and the total.
          **options: other fields of `musiclm_jax.generation.request.Request`.

        Returns:
          All pieces for the first prompt, then all for the second, and so on.

        Raises:
          ValueError: if a prompt or option is invalid.
          BundleError: if a model is missing or damaged.
        """
        return generate(self.bundle, _listed(prompts), on_progress, seconds=seconds, seed=seed, **options)

    def stream(
        self,
        prompt: Prompt | Sequence[Prompt] = (),
        seconds: float = 10.0,
        seed: int = 0,
        on_progress: Progress | None = None,
        **options: Any,
    ) -> Iterator[np.ndarray]:
        """Yields the audio of one piece while it is generated, float32 `[samples]`, a second at a time.

        Args:
          prompt: one text or story; empty if a recording is the prompt.
          seconds: length of the piece.
          seed: as for `generate`, and gives the same music.
          on_progress: called with "audio", the seconds that are finished, and the total.
          **options: as for `generate`.

        Raises:
          ValueError: if the prompt or an option is invalid, or asks for more than one piece.
          BundleError: if a model is missing or damaged.
        """
        request = request_for(self.bundle, seconds=seconds, seed=seed, **options)
        return stream(self.bundle, _listed(prompt), request, on_progress)


def _listed(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    return [prompts] if isinstance(prompts, str | Story) else prompts
