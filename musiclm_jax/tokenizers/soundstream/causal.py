"""Building blocks of SoundStream's networks: causal convolutions that carry their left context from block to block."""

import flax.linen as nn
import jax
import jax.numpy as jnp

Context = tuple[jax.Array, ...]  # the left context of each convolution, in the order of evaluation


def fold(x: jax.Array, factor: int) -> jax.Array:
    """Folds frames into channels: `[b, t, c]` -> `[b, t // factor, factor * c]`."""
    b, t, c = x.shape
    return x.reshape(b, t // factor, factor * c)


def unfold(x: jax.Array, factor: int) -> jax.Array:
    """Inverts `fold`: `[b, t, factor * c]` -> `[b, t * factor, c]`."""
    b, t, c = x.shape
    return x.reshape(b, t * factor, c // factor)


def extend(x: jax.Array, context: jax.Array | None, reach: int) -> jax.Array:
    """Prepends the `reach` frames before `x` `[b, t, c]`, zeros if `context` is None: `[b, reach + t, c]`."""
    b, _, c = x.shape
    return jnp.concatenate([jnp.zeros((b, reach, c), x.dtype) if context is None else context, x], axis=1)


class CausalConv(nn.Module):
    """Convolution over `[b, t, c]` that reads the current frame and `(kernel_size - 1) * dilation` frames before it."""

    features: int
    kernel_size: int
    dilation: int = 1
    init_gain: float = 1.0  # initial variance of the kernel, relative to one that preserves the input's variance

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns `[b, t, features]` and the context for the next block; a `context` of None is silence."""
        reach = (self.kernel_size - 1) * self.dilation
        _, t, c = x.shape
        initializer = (
            nn.initializers.variance_scaling(self.init_gain, "fan_in", "truncated_normal")
            if self.init_gain
            else nn.initializers.zeros
        )
        kernel = self.param("kernel", initializer, (self.kernel_size, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        extended = extend(x, context, reach)
        # Padding by the convolution itself saves a copy if there is no context; XLA then removes `extended`.
        y = jax.lax.conv_general_dilated(
            x if context is None else extended,
            kernel,
            window_strides=(1,),
            padding=((reach if context is None else 0, 0),),
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return y + bias[None, None, :], extended[:, t:]


class Chain:
    """Passes the contexts of a network's convolutions through its forward pass."""

    def __init__(self, context: Context | None):
        """Starts with the `context` that the previous block returned; None is silence."""
        self._old = context
        self.new: list[jax.Array] = []

    def __call__(self, conv: nn.Module, x: jax.Array) -> jax.Array:
        """Applies the next convolution to `x` `[b, t, c]`."""
        y, following = conv(x, None if self._old is None else self._old[len(self.new)])
        self.new.append(following)
        return y
