"""Optimisers and learning rate schedules as one flat config.

The papers give neither optimiser nor rate for the three stages (open). The default is Adafactor (Shazeer & Stern,
arXiv 1804.04235) with the settings of T5X: no momentum, second moments factored for sides of 128 and more, decay
1 - step^-0.8, updates clipped to a root mean square of 1 and scaled by that of their parameter, and the rate
1 / sqrt(max(step, 10,000)) after a linear warm-up, whose peak is 0.01. "muon" is Muon (optax.contrib) for the kernels
of the Transformer's layers and NAdam for the rest, for short trainings of small models.
"""

import dataclasses

import jax
import optax
import optax.contrib

NAMES = ("adafactor", "adamw", "muon")
SCHEDULES = ("constant", "rsqrt", "cosine")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser, its schedule and its clipping."""

    name: str = "adafactor"  # one of NAMES
    learning_rate: float = 0.01  # peak rate, reached when the warm-up ends, whatever the schedule
    schedule: str = "rsqrt"  # one of SCHEDULES: what follows the warm-up
    warmup_steps: int = 10_000  # steps of linear warm-up from 0; 0 means none
    total_steps: int = 1_000_000  # where the cosine ends; other schedules do not read it
    final_fraction: float = 0.0  # the cosine ends at this fraction of learning_rate
    weight_decay: float = (
        0.0  # decoupled decay per unit of learning rate, of matrices, not biases and norms; Muon: of its kernels alone
    )
    clip_norm: float | None = 1.0  # global norm of the gradient; None for no clipping
    b1: float = 0.9  # AdamW's decay of the mean; Adafactor keeps none, Muon's own is 0.95
    b2: float = 0.999  # AdamW's decay of the variance; Adafactor's decay follows the step
    eps: float = 1e-8  # AdamW's floor of the denominator
    min_dim_size_to_factor: int = 128  # Adafactor: smallest side of a matrix whose second moments are factored

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          ValueError: with the field at fault, its value and what is expected.
        """
        for field, allowed in (("name", NAMES), ("schedule", SCHEDULES)):
            if getattr(self, field) not in allowed:
                raise ValueError(f"OptimizerConfig.{field} is {getattr(self, field)!r}, expected one of {allowed}")
        if self.learning_rate <= 0:
            raise ValueError(f"OptimizerConfig.learning_rate is {self.learning_rate}, expected more than 0")
        if self.warmup_steps < 0:
            raise ValueError(f"OptimizerConfig.warmup_steps is {self.warmup_steps}, expected 0 or more")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"OptimizerConfig.clip_norm is {self.clip_norm}, expected more than 0, or None for none")
        if self.schedule == "cosine" and self.total_steps <= self.warmup_steps:
            raise ValueError(
                f"OptimizerConfig.total_steps is {self.total_steps}, expected more than warmup_steps "
                f"({self.warmup_steps}), for the cosine to have room"
            )

    def make_schedule(self) -> optax.Schedule:
        """Returns the rate as a function of the step (0 for the first update)."""
        peak = self.learning_rate
        if self.schedule == "constant":
            after = optax.constant_schedule(peak)
        elif self.schedule == "rsqrt":
            start = max(self.warmup_steps, 1)

            def after(count: jax.typing.ArrayLike) -> jax.Array:
                return peak * jax.lax.rsqrt((count + start) / start)

        else:
            after = optax.cosine_decay_schedule(peak, self.total_steps - self.warmup_steps, alpha=self.final_fraction)
        if self.warmup_steps == 0:
            return after
        # The first update is not wasted on a rate of 0: step s of the warm-up has (s + 1) / warmup_steps of the peak.
        warmup = optax.linear_schedule(peak / self.warmup_steps, peak, max(self.warmup_steps - 1, 1))
        return optax.join_schedules([warmup, after], [self.warmup_steps])

    def make(self) -> optax.GradientTransformation:
        """Returns the gradient transformation: clipping, then the optimiser with its schedule and decay."""
        schedule = self.make_schedule()
        if self.name == "adafactor":
            optimizer = optax.chain(
                optax.adafactor(learning_rate=None, min_dim_size_to_factor=self.min_dim_size_to_factor),
                # optax.adafactor already ends in a change of sign where it is given no rate.
                optax.add_decayed_weights(-self.weight_decay, mask=_is_matrix) if self.weight_decay else _NOTHING,
                optax.scale_by_schedule(schedule),
            )
        elif self.name == "muon":
            optimizer = optax.contrib.muon(
                schedule,
                weight_decay=self.weight_decay,
                adam_b1=self.b1,
                adam_b2=self.b2,
                muon_weight_dimension_numbers=_muon_dimensions,
                consistent_rms=0.2,  # updates as large as AdamW's, so that one rate suits both
            )
        else:
            optimizer = optax.adamw(
                schedule, b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.weight_decay, mask=_is_matrix
            )
        return optax.chain(optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else _NOTHING, optimizer)


_NOTHING = optax.identity()


# Kernels of the Transformer's stacked layers, [layers, ...]: axes that a product sums over, and those of its result.
# Queries, keys and values ([layers, d, heads, 3, channels]) are three matrices.
_KERNELS = {
    "qkv": ((1,), (2, 4)),
    "out": ((1, 2), (3,)),
    "gate": ((1,), (2,)),
    "up": ((1,), (2,)),
    "down": ((1,), (2,)),
}


def _names(path: jax.tree_util.KeyPath) -> set[str]:
    return {str(getattr(key, "key", "")) for key in path}


def _is_matrix(params: optax.Params) -> optax.Params:
    """Mask of the parameters that decay: matrices and kernels, not biases and norms' scales (also if stacked)."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.ndim >= 2 and "scale" not in _names(path), params)


def _muon_dimensions(params: optax.Params) -> optax.Params:
    """For each parameter the axes of its matrices, or None where NAdam takes it.

    Raises:
      ValueError: if the model has no kernels that Muon knows.
    """

    def of_leaf(path: jax.tree_util.KeyPath, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        kernel = next((axes for name, axes in _KERNELS.items() if {name, "layers"} <= _names(path)), None)
        return optax.contrib.MuonDimensionNumbers(*kernel) if kernel else None

    dimensions = jax.tree_util.tree_map_with_path(of_leaf, params)
    if not jax.tree.leaves(dimensions):
        raise ValueError("OptimizerConfig.name is 'muon', which is for the stages' Transformer: choose 'adamw' here")
    return dimensions
