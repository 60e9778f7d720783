"""3 x 3 convolutions on CPUs with fewer multiplications: Winograd's F(2 x 2, 3 x 3) (Lavin and Gray, arXiv 1509.09308).

A tile of 2 x 2 outputs takes 16 products over channels instead of 36. All arithmetic is float32, as in the plain
convolution; the transforms of input and output only add and subtract. In VGGish, 2 x 2 max pooling follows most
layers, and its window is a tile: outputs need not be rearranged before pooling.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# B^T, G and A^T in the paper.
INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))
Tiles = list[list[jax.Array]]


def transformed(kernel: jax.Array) -> jax.Array:
    """Transforms a kernel from `[3, 3, in_channels, out_channels]` to float32 `[4, 4, in_channels, out_channels]`."""
    matrix = np.array(KERNEL, np.float32)
    return jnp.einsum("ai,bj,ijcd->abcd", matrix, matrix, kernel)


def _sum(factors: Sequence[int], terms: Sequence[jax.Array]) -> jax.Array:
    parts = (factor * term if factor != 1 else term for factor, term in zip(factors, terms, strict=True) if factor)
    return functools.reduce(operator.add, parts)


def tiles(x: jax.Array, kernel: jax.Array) -> Tiles:
    """Convolves with "SAME" zero padding.

    Args:
      x: float32 `[batch, rows, columns, in_channels]`, with even rows and columns.
      kernel: from `transformed`.

    Returns:
      Outputs by parity, `[row parity][column parity]`, each float32 `[batch, rows / 2, columns / 2, out_channels]`.
    """
    batch, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = [padded[:, i : i + height - 1 : 2] for i in range(4)]
    products = []
    for i in range(4):
        mixed = _sum(INPUT[i], rows)
        columns = [mixed[:, :, j : j + width - 1 : 2] for j in range(4)]
        products.append([_sum(INPUT[j], columns).reshape(-1, channels) @ kernel[i, j] for j in range(4)])
    shape = (batch, height // 2, width // 2, kernel.shape[-1])
    by_row = [[_sum(OUTPUT[p], [row[j] for row in products]) for j in range(4)] for p in range(2)]
    return [[_sum(OUTPUT[q], row).reshape(shape) for q in range(2)] for row in by_row]


def tiles_of_one_channel(image: jax.Array, kernel: jax.Array) -> Tiles:
    """Computes `tiles` for an image `[batch, rows, columns]` and a plain kernel `[3, 3, 1, out_channels]`.

    It sums nine products directly: a matrix product over only nine values would be memory-bound.
    """
    _, height, width = image.shape
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1)))

    def output(row: int, column: int) -> jax.Array:
        shifted = ((i, j, padded[:, row + i :: 2, column + j :: 2]) for i in range(3) for j in range(3))
        parts = (part[:, : height // 2, : width // 2, None] * kernel[None, None, i, j] for i, j, part in shifted)
        return functools.reduce(operator.add, parts)

    return [[output(row, column) for column in range(2)] for row in range(2)]


def maximum(outputs: Tiles) -> jax.Array:
    """Applies 2 x 2 max pooling to the outputs: `[batch, rows / 2, columns / 2, out_channels]`."""
    (a, b), (c, d) = outputs
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def image(outputs: Tiles) -> jax.Array:
    """Rearranges the outputs to `[batch, rows, columns, out_channels]`."""
    joined = jnp.stack([jnp.stack(row, axis=3) for row in outputs], axis=2)  # [batch, rows / 2, 2, columns / 2, 2, out]
    batch, height, _, width, _, channels = joined.shape
    return joined.reshape(batch, 2 * height, 2 * width, channels)
