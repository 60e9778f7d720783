"""Configuration of a stage in a bundle."""

import dataclasses

from musiclm_jax.stages.stage import Stage
from musiclm_jax.stages.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class StageModelConfig:
    """A stage and its Transformer; the variables that belong to it are {"params": stacked parameters}."""

    stage: Stage
    transformer: TransformerConfig
