"""Causal attention with T5's relative bias in blocks of queries, as XLA computes it on any device."""

import jax
import jax.numpy as jnp

from musiclm_jax.kernels.flash_attention import MASKED
from musiclm_jax.kernels.rounded_products import rounded_einsum


def causal_bias(by_distance: jax.Array, rows: int, offset: int) -> jax.Array:
    """Returns the bias [h, rows, offset + rows], whose entry (i, j) is the bias of distance i + offset - j.

    The future is masked. Instead of a gather, one row is repeated and read with a stride that is one shorter, which
    shifts each row by one.

    Args:
      by_distance: bias of each distance, [h, n] with n >= offset + rows.
      rows: number of queries.
      offset: number of keys before the first query.
    """
    heads, columns = by_distance.shape[0], offset + rows
    future = jnp.full((heads, rows), MASKED, by_distance.dtype)
    # line[m] is the bias of distance columns - 1 - m; row i of the result starts at m = rows - 1 - i.
    line = jnp.concatenate([by_distance[:, columns - 1 :: -1], future], axis=1)
    width = columns + rows
    repeated = jnp.broadcast_to(line[:, None, :], (heads, rows, width)).reshape(heads, rows * width)
    shifted = repeated[:, rows - 1 : rows - 1 + rows * (width - 1)].reshape(heads, rows, width - 1)
    return shifted[:, :, :columns]


def block_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    by_distance: jax.Array,
    valid: jax.Array,
    block_size: int,
    remat: bool = False,
    rounded: bool = False,
) -> jax.Array:
    """Computes causal softmax attention, one block of queries at a time.

    Each block is multiplied only by the keys up to its end, which saves half of the work and never materializes a
    [b, h, l, l] array. From the distance of the last bucket on, the bias is constant (`by_distance[:, -1]`). Softmax is
    invariant to a constant, so it is subtracted from all biases: then only keys near the diagonal need a bias and a
    causal mask, one [h, block, block + near] array for all blocks.

    Args:
      q: queries [b, h, l, c], already scaled.
      k: keys [b, h, l, c].
      v: values [b, h, l, c].
      by_distance: bias of distances 0..near, float32 [h, near + 1]; larger distances have the bias of `near`.
      valid: bool [b, l], keys that may be attended to.
      block_size: queries per block; 0 for a single block.
      remat: recompute each block's scores in the backward pass, so that only one block's scores exist at a time.
      rounded: round the operands of the products to bfloat16, see `rounded_einsum`.

    Returns:
      [b, h, l, c] in the dtype of v.
    """
    length, near = q.shape[2], by_distance.shape[1] - 1
    block = min(block_size or length, length)
    near = -(-near // 8) * 8 if near < length else length
    table = by_distance - by_distance[:, -1:]
    table = jnp.pad(table, ((0, 0), (0, max(0, near + block - table.shape[1]))))
    diagonal = causal_bias(table, block, near)  # [h, block, near + block]
    padding = jnp.where(valid, 0.0, MASKED)[:, None, None, :]
    outputs = []
    for start in range(0, length, block):
        end = min(start + block, length)
        first = max(0, start - near)  # earlier keys are more than `near` away from every query of the block
        bias = diagonal[:, : end - start, near - (start - first) : near + end - start]
        attend = jax.checkpoint(_attend, static_argnums=(5, 6)) if remat else _attend
        own = (q[:, :, start:end], k[:, :, :end], v[:, :, :end], bias, padding[..., :end])
        outputs.append(attend(*own, first, rounded))
    return jnp.concatenate(outputs, axis=2)


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, padding: jax.Array, first: int, rounded: bool
) -> jax.Array:
    """Attends in one block: adds `bias` [h, rows, keys - first] from key `first` on and `padding` [b, 1, 1, keys]."""
    of_keys, of_values = "bhqc,bhkc->bhqk", "bhqk,bhkc->bhqc"
    if rounded:
        scores = rounded_einsum(of_keys, q, k)
    else:
        scores = jnp.einsum(of_keys, q, k, preferred_element_type=jnp.float32)
    scores = _add_bias(scores + padding, jnp.pad(bias, ((0, 0), (0, 0), (first, 0))))
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return rounded_einsum(of_values, weights, v) if rounded else jnp.einsum(of_values, weights, v)


@jax.custom_vjp
def _add_bias(scores: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds bias [h, rows, keys] to scores [b, h, rows, keys].

    The gradient of the bias is a product with ones: on CPUs, XLA's sum over the leading axis takes 70 times as long,
    a fifth of the time of attention.
    """
    return scores + bias[None]


def _add_bias_forward(scores: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
    return scores + bias[None], None


def _add_bias_backward(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    ones = jnp.ones(gradient.shape[0], gradient.dtype)
    return gradient, jnp.einsum("b,bhqk->hqk", ones, gradient, precision=jax.lax.Precision.HIGHEST)


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)
