"""Samples codes from logits.

MusicLM samples with temperature 1.0, 0.95 and 0.4 in its three stages (section 4.2, arXiv 2301.11325).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How codes are sampled."""

    temperature: float = 1.0  # divides the logits; 0 takes the most likely code
    top_k: int | None = None  # sample from the k most likely codes only; None or 0 for all
    top_p: float | None = None  # nucleus sampling: the most likely codes with this total probability; None for all
    guidance: float = 1.0  # classifier-free guidance; 1 samples as trained, more follows the conditioning closer

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          ValueError: if a value is not allowed; names the field, its value and what is expected.
        """
        if not 0 <= self.temperature < np.inf:
            raise ValueError(f"temperature is {self.temperature}, expected 0 (the most likely code) or more")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}, expected 1 or more, or 0 for all codes")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected more than 0 and at most 1")
        if not 0 <= self.guidance < np.inf:
            raise ValueError(f"guidance is {self.guidance}, expected 0 or more (1 samples as trained)")


AS_TRAINED = Sampling()


class Drawing(NamedTuple):
    """Numeric settings of `Sampling` for a compiled step. All are floats: an int would compile a second program."""

    temperature: float
    top_p: float | None  # None for all codes
    guidance: float

    @classmethod
    def of(cls, sampling: Sampling) -> "Drawing":
        """Returns the numeric settings of `sampling`."""
        top_p = None if sampling.top_p in (None, 1) else float(sampling.top_p)
        return cls(float(sampling.temperature), top_p, float(sampling.guidance))


def choose(
    logits: jax.Array,
    noise: jax.Array,
    temperature: jax.Array | float,
    top_k: int | None,
    top_p: jax.Array | float | None,
) -> jax.Array:
    """Samples a code.

    Args:
      logits: float32 [k].
      noise: float32 [k] from a Gumbel distribution; the code with the largest sum of logit and noise is taken.
      temperature: scalar, 0 for the most likely code.
      top_k: static; None for all codes.
      top_p: scalar; None for all codes.

    Returns:
      int32 scalar in [0, k).
    """
    scaled = logits / jnp.maximum(temperature, 1e-6)
    if top_k is not None:
        scaled = jnp.where(scaled < jax.lax.top_k(scaled, top_k)[0][-1], -jnp.inf, scaled)
    if top_p is not None:
        likeliest = jnp.sort(scaled)[::-1]
        before = jnp.cumsum(jax.nn.softmax(likeliest)) - jax.nn.softmax(likeliest)
        # No probability comes before the most likely code, so it is always kept.
        lowest = jnp.min(jnp.where(before < top_p, likeliest, jnp.inf))
        scaled = jnp.where(scaled < lowest, -jnp.inf, scaled)
    return jnp.argmax(jnp.where(temperature > 0, scaled + noise, logits)).astype(jnp.int32)
