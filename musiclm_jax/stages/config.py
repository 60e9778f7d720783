"""The config of a stage's part of a bundle."""

import dataclasses

from musiclm_jax.stages.layout import Stage
from musiclm_jax.stages.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class StageModelConfig:
    """What a stage models, and with which Transformer; the variables beside it are {"params": stacked parameters}."""

    stage: Stage
    transformer: TransformerConfig
