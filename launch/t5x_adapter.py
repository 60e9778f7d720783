"""The stages as T5X models: `t5x.train`, `t5x.eval` and `t5x.infer` run them on our seqio tasks (docs/t5x.md).

T5X owns the loop, the optimiser, the partitioner and the checkpoints; loss, sequence and sampling come from the stage's
learner and from decoding.py. Only gin files name this module (t5x_semantic.gin, t5x_coarse.gin, t5x_fine.gin); nothing
else imports it, because t5x is not a dependency of the project.
"""

from collections.abc import Mapping
from typing import Any

import clu.metrics
import flax.linen as nn
import jax
import jax.numpy as jnp
import seqio
from flax.linen import partitioning as flax_partitioning
from flax.traverse_util import flatten_dict, unflatten_dict
from t5x import metrics as t5x_metrics
from t5x import models

from musiclm_jax.data.datasets import TaskSpec, get_task
from musiclm_jax.data.feature_converter import StreamFeatureConverter
from musiclm_jax.stages import decoding
from musiclm_jax.stages.layout import assemble
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.stages.losses import weighted_mean
from musiclm_jax.stages.stage import Stage
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training.optimizers import OptimizerConfig
from musiclm_jax.training.partitioning import unbox

# T5X's rules for partitioning and for Adafactor need a name for every axis of a parameter.
_NAMES = {"relative_bias": ("relpos_buckets", "heads"), "qkv": ("layers", "embed", "heads", "stack", "kv")}
_UNNAMED = "stack"  # neither sharded nor factored


class StageModel(models.BaseModel):
    """A stage for T5X; its parameters are those of `transformer.init_params`, stacked."""

    def __init__(
        self,
        stage: Stage,
        config: TransformerConfig,
        task: TaskSpec,
        optimizer_def: Any,
        sampling: decoding.Sampling,
        z_loss: float = 1e-4,
        label_smoothing: float = 0.0,
    ):
        """Wraps a stage.

        Args:
          stage: conditioning and target streams.
          config: configuration of the Transformer.
          task: the task named by `MIXTURE_OR_TASK_NAME`, from musiclm_jax.tasks.
          optimizer_def: T5X's optimiser; `Trainer.learning_rate_fn` sets its learning rate.
          sampling: sampling options of `t5x.infer`.
          z_loss: as in `StageLearner`.
          label_smoothing: as in `StageLearner`.
        """
        super().__init__(optimizer_def)
        # T5X updates the parameters; the learner's own optimiser is unused.
        self.learner = StageLearner(stage, config, OptimizerConfig(), z_loss, label_smoothing)
        self.sampling = sampling
        features = get_task(task.name).output_features
        # T5X checks that these match the task's vocabularies, as for text.
        self.input_vocabulary = self.output_vocabulary = features[stage.target.stream].vocabulary

        def converter(pack: bool = False, use_custom_packing_ops: bool = False) -> seqio.FeatureConverter:
            if pack or use_custom_packing_ops:
                raise ValueError("a stage's crops have equal length and are not packed: set DatasetConfig.pack = False")
            return StreamFeatureConverter(features)

        self.FEATURE_CONVERTER_CLS = converter

    def get_initial_variables(
        self, rng: jax.Array, input_shapes: Mapping[str, Any], input_types: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Returns parameters and their axis names for T5X's train state; input shapes are ignored."""
        del input_shapes, input_types
        boxed = self.learner.init(rng).params
        return {"params": unbox(boxed), "params_axes": axis_metadata(boxed)}

    def loss_fn(
        self, params: Any, batch: Mapping[str, jax.Array], dropout_rng: jax.Array | None
    ) -> tuple[jax.Array, dict[str, clu.metrics.Metric]]:
        """Computes the learner's loss for a batch of raw streams, with dropout if there is a key, and T5X metrics."""
        objective, found = self.learner.loss(params, batch, dropout_rng)
        weights = assemble(self.learner.stage, batch).loss_weights
        count = jnp.sum(weights)  # number of real target tokens: weights the average over microbatches and hosts
        metrics = {name: clu.metrics.Average(total=value * count, count=count) for name, value in found.items()}
        metrics["timing/steps_per_second"] = t5x_metrics.StepsPerTime.from_model_output()
        metrics["timing/target_tokens_per_second"] = t5x_metrics.TimeRate.from_model_output(jnp.array(weights.size))
        return objective, metrics

    def predict_batch_with_aux(
        self, params: Any, batch: Mapping[str, jax.Array], rng: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Samples the target under the batch's conditioning: raw codes, int32 `[batch, frames, levels]`."""
        stage = self.learner.stage
        rows = next(iter(batch.values())).shape[0]
        key = jax.random.key(0) if rng is None else rng
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.wrap_key_data(key)
        conditioning = {part.stream: batch[part.stream] for part in stage.conditioning}
        frames, keys = stage.frames(stage.target), jax.random.split(key, rows)
        codes = decoding.sample(self.learner.config, stage, params, conditioning, None, frames, keys, self.sampling)
        return codes, {}

    def score_batch(self, params: Any, batch: Mapping[str, jax.Array], return_intermediates: bool = False) -> jax.Array:
        """Computes the mean log-likelihood of each row's target codes, float32 `[batch]` in nats.

        Raises:
          ValueError: if `return_intermediates` is set; stages do not keep intermediates.
        """
        if return_intermediates:
            raise ValueError("the stages keep no intermediates: leave return_intermediates False")
        lm = assemble(self.learner.stage, batch)
        losses = self.learner.token_losses(params, lm, None)
        return -weighted_mean(losses.cross_entropy, lm.loss_weights, axis=(1, 2))


def feature_lengths(task: TaskSpec) -> dict[str, int]:
    """Returns the length of each feature of a task, T5X's `TASK_FEATURE_LENGTHS`."""
    return dict(task.lengths)


def axis_metadata(boxed: Any) -> dict[str, Any]:
    """Builds T5X's "params_axes" from boxed parameters: for each `name`, `name_axes` with the names of all axes."""
    axes = {}
    for path, leaf in flatten_dict(boxed, is_leaf=lambda _, value: isinstance(value, nn.Partitioned)).items():
        names = leaf.names if isinstance(leaf, nn.Partitioned) else (None,) * leaf.ndim
        names = _NAMES.get(path[-1], tuple(name or _UNNAMED for name in names))
        axes[(*path[:-1], f"{path[-1]}_axes")] = flax_partitioning.AxisMetadata(names)
    return unflatten_dict(axes)
