"""`MusicLM`, the object that `musiclm_jax.load` returns: a bundle that generates music."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from musiclm_jax.bundles import Bundle
from musiclm_jax.generation.generate import GeneratedMusic, generate
from musiclm_jax.generation.prompts import Prompt


@dataclasses.dataclass(frozen=True)
class MusicLM:
    """Generates music with the models of a bundle.

    Attributes:
      bundle: the opened bundle.
    """

    bundle: Bundle

    def generate(
        self, prompts: Sequence[Prompt] = (), seconds: float = 10.0, seed: int = 0, **options: Any
    ) -> list[GeneratedMusic]:
        """Generates music from texts; see `musiclm_jax.generation.generate.generate` for options and errors."""
        return generate(self.bundle, prompts, seconds=seconds, seed=seed, **options)
