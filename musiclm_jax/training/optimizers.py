"""Optimisers and learning rate schedules as one flat config.

The papers give neither an optimiser nor a learning rate for the three stages. The default is Adafactor (Shazeer and
Stern, arXiv 1804.04235) with the settings of T5X: no momentum, second moments factored for sides of 128 or more, decay
1 - step^-0.8, updates clipped to an RMS of 1 and scaled by the RMS of their parameter, and the rate
1 / sqrt(max(step, 10,000)) after a linear warm-up to 0.01. "muon" is Muon (optax.contrib) for the kernels of the
Transformer's layers and NAdam for all other parameters; it suits short trainings of small models.
"""

import dataclasses

import jax
import optax
import optax.contrib

NAMES = ("adafactor", "adamw", "muon")
SCHEDULES = ("constant", "rsqrt", "cosine")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser with its schedule and gradient clipping."""

    name: str = "adafactor"  # one of NAMES
    learning_rate: float = 0.01  # peak rate, reached at the end of the warm-up with every schedule
    schedule: str = "rsqrt"  # one of SCHEDULES: what follows the warm-up
    warmup_steps: int = 10_000  # steps of linear warm-up from 0; 0 means none
    total_steps: int = 1_000_000  # step at which the cosine ends; not used by other schedules
    final_fraction: float = 0.0  # the cosine ends at this fraction of learning_rate
    weight_decay: float = (
        0.0  # decoupled, per unit of learning rate; for matrices, not biases and norms; with Muon only for its kernels
    )
    clip_norm: float | None = 1.0  # global norm of the gradient; None for no clipping
    b1: float = 0.9  # AdamW's decay of the first moment; Adafactor has none, Muon's own is 0.95
    b2: float = 0.999  # AdamW's decay of the second moment; Adafactor's depends on the step
    eps: float = 1e-8  # AdamW's term in the denominator
    min_dim_size_to_factor: int = 128  # Adafactor factors second moments of matrices with sides of this size or more

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          ValueError: if a value is not allowed; names the field, its value and what is expected.
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
                f"({self.warmup_steps}), so that steps remain for the cosine: for a short run, also give "
                f"--gin.OptimizerConfig.warmup_steps={max(self.total_steps, 1) // 10}"
            )

    def make_schedule(self) -> optax.Schedule:
        """Returns the learning rate as a function of the step (0 for the first update)."""
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
        # Step s of the warm-up has (s + 1) / warmup_steps of the peak: a first update with rate 0 would be wasted.
        warmup = optax.linear_schedule(peak / self.warmup_steps, peak, max(self.warmup_steps - 1, 1))
        return optax.join_schedules([warmup, after], [self.warmup_steps])

    def make(self) -> optax.GradientTransformation:
        """Returns the gradient transformation: clipping, then the optimiser with its schedule and decay."""
        schedule = self.make_schedule()
        if self.name == "adafactor":
            optimizer = optax.chain(
                optax.adafactor(learning_rate=None, min_dim_size_to_factor=self.min_dim_size_to_factor),
                # Without a learning rate, optax.adafactor already flips the sign of its updates.
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


# Kernels of the Transformer's stacked layers, [layers, ...]: their input axes and their output axes.
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
    """Returns the mask for weight decay: matrices and kernels, but no biases or norm scales (stacked or not)."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.ndim >= 2 and "scale" not in _names(path), params)


def _muon_dimensions(params: optax.Params) -> optax.Params:
    """Returns the matrix axes of each parameter, or None for parameters that NAdam optimises.

    Raises:
      ValueError: if the model has no kernels for Muon.
    """

    def of_leaf(path: jax.tree_util.KeyPath, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        kernel = next((axes for name, axes in _KERNELS.items() if {name, "layers"} <= _names(path)), None)
        return optax.contrib.MuonDimensionNumbers(*kernel) if kernel else None

    dimensions = jax.tree_util.tree_map_with_path(of_leaf, params)
    if not jax.tree.leaves(dimensions):
        raise ValueError("OptimizerConfig.name is 'muon', which only the stages' Transformer supports: choose 'adamw'")
    return dimensions
