"""Causal attention with T5's relative bias as a Pallas kernel for TPUs: scores never leave the chip.

Computes the same function as `block_attention`, with the method of FlashAttention-2 (arXiv 2307.08691): the softmax
is accumulated over blocks of keys with a running maximum and sum per query, and the backward pass recomputes the
scores from the saved log-sum-exp. T5's bias makes one thing easier: it depends on the distance alone and, once the
constant of its last bucket is subtracted, is zero from distance `near` on. So the kernel receives one row of biases
per head, expands it into the few tiles near the diagonal, and sums their gradients back into a row.

The sequence is the last axis, [c, l], and scores are [keys, queries]: with the channels last, 64 head channels would
fill half of the 128 lanes, and sums over keys would cross lanes. One program handles one head of one sequence, which
fits on the chip.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

LANES = 128  # blocks are a multiple of it
MASKED = -1e9  # added to the scores of masked keys; finite, so that a fully masked row does not become NaN
SAVED = ("attended", "log_sums")  # names of the arrays that the backward pass needs, for jax.checkpoint policies
_VMEM_BYTES = 32 * 2**20


def flash_attention(
    qkv: jax.Array, by_distance: jax.Array, valid: jax.Array, block_size: int, interpret: bool = False
) -> jax.Array:
    """Computes causal softmax attention; on a mesh (`partitioning.activation_rules`) rows and heads are sharded.

    Args:
      qkv: queries, keys and values [b, h, 3, c, l]; queries are divided by sqrt(c) here.
      by_distance: bias of distances 0..near, float32 [h, near + 1]; larger distances have the bias of `near`.
      valid: bool [b, l], keys that may be attended to.
      block_size: queries and keys per block, a multiple of 128 on a TPU; l is padded to a multiple of it.
      interpret: run in Pallas's interpreter, which needs no TPU and is very slow.

    Returns:
      [b, h, c, l] in the dtype of qkv.

    Raises:
      ValueError: if the devices are not TPUs or the block size is not a multiple of 128, unless `interpret` is set.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not interpret:
        platform = lowering_platform()
        if platform != "tpu":
            raise ValueError(
                f"TransformerConfig.attention is 'flash', a kernel for TPUs, but the devices are {platform}s: "
                "set it to 'blocks'"
            )
        if block_size % LANES or block_size < LANES:
            raise ValueError(
                f"TransformerConfig.attention_block_size is {block_size}, expected a multiple of {LANES} for 'flash'"
            )

    def of_device(qkv: jax.Array, by_distance: jax.Array, valid: jax.Array) -> jax.Array:
        length = qkv.shape[-1]
        missing = -length % block_size
        qkv = jnp.pad(qkv, ((0, 0), (0, 0), (0, 0), (0, 0), (0, missing)))
        padding = jnp.pad(jnp.where(valid, 0.0, MASKED), ((0, 0), (0, missing)), constant_values=MASKED)[:, None]
        return _attention(qkv, _line(by_distance, block_size), padding, block_size, interpret)[..., :length]

    if mesh.empty:
        return of_device(qkv, by_distance, valid)
    batch, heads = nn.logical_to_mesh_axes(("batch", "heads"))
    return jax.shard_map(
        of_device,
        in_specs=(PartitionSpec(batch, heads), PartitionSpec(heads), PartitionSpec(batch)),
        out_specs=PartitionSpec(batch, heads),
        check_vma=False,
    )(qkv, by_distance, valid)


def lowering_platform() -> str:
    """Returns the platform that traced functions run on: that of the mesh in use, else of the default devices."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _line(by_distance: jax.Array, block: int) -> jax.Array:
    """Returns the bias by distance, [h, 1, (tiles + 1) * block]: distance 0 at `block`, the masked future before it.

    Tile n holds keys that are n blocks before their queries. From tile number `tiles` on, all distances are at least
    `near` and the bias is 0.
    """
    near = by_distance.shape[1] - 1
    tiles = 1 + max(0, -(-(near - 1) // block))
    line = (by_distance - by_distance[:, -1:])[:, : tiles * block]
    line = jnp.pad(line, ((0, 0), (0, tiles * block - line.shape[1])))
    return jnp.pad(line, ((0, 0), (block, 0)), constant_values=MASKED)[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attention(qkv: jax.Array, line: jax.Array, padding: jax.Array, block: int, interpret: bool) -> jax.Array:
    return _forward(qkv, line, padding, block, interpret)[0]


def _forward(
    qkv: jax.Array, line: jax.Array, padding: jax.Array, block: int, interpret: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    rows, heads, _, channels, length = qkv.shape
    attended, log_sums = pl.pallas_call(
        functools.partial(_forward_kernel, block=block),
        grid=(heads, rows),
        in_specs=[_of_head(3, channels, length), _of_line(line), _of_row(length)],
        out_specs=[_of_head(channels, length), _of_head(1, length)],
        out_shape=[
            jax.ShapeDtypeStruct((rows, heads, channels, length), qkv.dtype),
            jax.ShapeDtypeStruct((rows, heads, 1, length), jnp.float32),
        ],
        scratch_shapes=[pltpu.VMEM(_tiles_shape(line, block), jnp.float32)],
        cost_estimate=_cost(qkv, block, products=2, arrays=4),
        compiler_params=_PARAMS,
        interpret=interpret,
        name="flash_attention",
    )(qkv, line, padding)
    attended = checkpoint_name(attended, SAVED[0])
    log_sums = checkpoint_name(log_sums, SAVED[1])
    return attended, (qkv, line, padding, attended, log_sums)


def _backward(
    block: int, interpret: bool, saved: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    qkv, line, padding, attended, log_sums = saved
    rows, heads, _, channels, length = qkv.shape
    d_qkv, d_line = pl.pallas_call(
        functools.partial(_backward_kernel, block=block),
        grid=(heads, rows),
        in_specs=[
            _of_head(3, channels, length),
            _of_line(line),
            _of_row(length),
            _of_head(channels, length),
            _of_head(1, length),
            _of_head(channels, length),
        ],
        out_specs=[_of_head(3, channels, length), _of_line(line)],
        out_shape=[jax.ShapeDtypeStruct(qkv.shape, qkv.dtype), jax.ShapeDtypeStruct(line.shape, jnp.float32)],
        scratch_shapes=[
            pltpu.VMEM(_tiles_shape(line, block), jnp.float32),
            pltpu.VMEM(_tiles_shape(line, block), jnp.float32),
            pltpu.VMEM((channels, length), jnp.float32),
            pltpu.VMEM((1, length), jnp.float32),
        ],
        cost_estimate=_cost(qkv, block, products=5, arrays=8),
        compiler_params=_PARAMS,
        interpret=interpret,
        name="flash_attention_gradient",
    )(qkv, line, padding, attended, log_sums, gradient)
    return d_qkv, d_line, jnp.zeros_like(padding)


_attention.defvjp(_forward, _backward)

# Tiles are built for the first sequence of a head and reused for the others, so a head's sequences run in order.
_PARAMS = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_VMEM_BYTES)


def _of_head(*shape: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, *shape), lambda head, row: (row, head, *(0,) * len(shape)))


def _of_line(line: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec((None, *line.shape[1:]), lambda head, row: (head, 0, 0))


def _of_row(length: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, 1, length), lambda head, row: (row, 0, 0))


def _tiles_shape(line: jax.Array, block: int) -> tuple[int, int, int]:
    return line.shape[-1] // block - 1, block, block


def _cost(qkv: jax.Array, block: int, products: int, arrays: int) -> pl.CostEstimate:
    """Estimates the cost for XLA: `products` per pair of blocks up to the diagonal, `arrays` [c, l] read or written."""
    rows, heads, _, channels, length = qkv.shape
    blocks = length // block
    scores = rows * heads * blocks * (blocks + 1) // 2 * block**2
    moved = rows * heads * arrays * channels * length * qkv.dtype.itemsize
    return pl.CostEstimate(flops=2 * products * scores * channels, transcendentals=scores, bytes_accessed=moved)


def _spread(line_ref, tiles_ref) -> None:
    """Fills tile n [keys, queries] with biases: the distance of key k and query q is n * block + q - k."""
    tiles, block, _ = tiles_ref.shape
    for n in range(tiles):
        window = jnp.broadcast_to(line_ref[:, n * block : (n + 2) * block], (block, 2 * block))
        tiles_ref[n] = _roll_rows(window, 1)[:, block:]


def _gather(tiles_ref, line_ref) -> None:
    """Sums tiles along their diagonals, the transpose of `_spread`."""
    tiles, block, _ = tiles_ref.shape
    line_ref[...] = jnp.zeros_like(line_ref)
    for n in range(tiles):
        window = jnp.concatenate([jnp.zeros((block, block), jnp.float32), tiles_ref[n]], axis=1)
        line_ref[:, n * block : (n + 2) * block] += jnp.sum(_roll_rows(window, -1), axis=0, keepdims=True)


def _roll_rows(x: jax.Array, direction: int) -> jax.Array:
    """Rolls row r of x by r places to the right (direction 1) or left (-1), a power of two at a time."""
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    for bit in range((x.shape[0] - 1).bit_length()):
        rolled = pltpu.roll(x, direction * 2**bit % x.shape[1], 1)
        x = jnp.where((row >> bit) % 2 == 1, rolled, x)
    return x


def _block_of(index: jax.Array, block: int) -> slice | pl.Slice:
    return pl.ds(pl.multiple_of(index * block, block), block)


def _dot(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    dimensions = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _scaled_queries(qkv_ref, place: slice | pl.Slice) -> jax.Array:
    return qkv_ref[0, :, place] * jnp.asarray(qkv_ref.shape[1] ** -0.5, qkv_ref.dtype)


def _forward_kernel(qkv_ref, line_ref, padding_ref, attended_ref, log_sums_ref, tiles_ref, *, block: int) -> None:
    tiles = tiles_ref.shape[0]

    @pl.when(pl.program_id(1) == 0)
    def _():
        _spread(line_ref, tiles_ref)

    def of_queries(i, _):
        queries = _block_of(i, block)
        q = _scaled_queries(qkv_ref, queries)

        def of_keys(j, carry, near: bool):
            top, total, summed = carry
            keys = _block_of(j, block)
            scores = _dot(qkv_ref[1, :, keys], q, 0, 0) + padding_ref[:, keys].T
            if near:
                scores += tiles_ref[i - j]
            new_top = jnp.maximum(top, jnp.max(scores, axis=0, keepdims=True))
            weights, kept = jnp.exp(scores - new_top), jnp.exp(top - new_top)
            total = kept * total + jnp.sum(weights, axis=0, keepdims=True)
            values = qkv_ref[2, :, keys]
            return new_top, total, kept * summed + _dot(values, weights.astype(values.dtype), 1, 0)

        first_near = jnp.maximum(i - (tiles - 1), 0)
        carry = (
            jnp.full((1, block), -jnp.inf, jnp.float32),
            jnp.zeros((1, block), jnp.float32),
            jnp.zeros(q.shape, jnp.float32),
        )
        carry = jax.lax.fori_loop(0, first_near, functools.partial(of_keys, near=False), carry)
        top, total, summed = jax.lax.fori_loop(first_near, i + 1, functools.partial(of_keys, near=True), carry)
        attended_ref[:, queries] = (summed / total).astype(attended_ref.dtype)
        log_sums_ref[:, queries] = top + jnp.log(total)

    jax.lax.fori_loop(0, qkv_ref.shape[2] // block, of_queries, None)


def _backward_kernel(
    qkv_ref, line_ref, padding_ref, attended_ref, log_sums_ref, gradient_ref,
    d_qkv_ref, d_line_ref, tiles_ref, d_tiles_ref, d_queries_ref, products_ref, *, block: int,
) -> None:  # fmt: skip
    tiles, blocks = tiles_ref.shape[0], qkv_ref.shape[2] // block

    @pl.when(pl.program_id(1) == 0)
    def _():
        _spread(line_ref, tiles_ref)
        d_tiles_ref[...] = jnp.zeros_like(d_tiles_ref)

    # The softmax gradient subtracts sum(weights * d_weights), which equals sum(attended * gradient).
    products = attended_ref[...].astype(jnp.float32) * gradient_ref[...].astype(jnp.float32)
    products_ref[...] = jnp.sum(products, axis=0, keepdims=True)
    d_queries_ref[...] = jnp.zeros_like(d_queries_ref)

    def of_keys(j, _):
        keys = _block_of(j, block)
        k, v, padding = qkv_ref[1, :, keys], qkv_ref[2, :, keys], padding_ref[:, keys].T

        def of_queries(i, carry, near: bool):
            d_keys, d_values = carry
            queries = _block_of(i, block)
            q, gradient = _scaled_queries(qkv_ref, queries), gradient_ref[:, queries]
            scores = _dot(k, q, 0, 0) + padding
            if near:
                scores += tiles_ref[i - j]
            weights = jnp.exp(scores - log_sums_ref[:, queries])
            d_values += _dot(gradient, weights.astype(gradient.dtype), 1, 1)
            d_scores = weights * (_dot(v, gradient, 0, 0) - products_ref[:, queries])
            if near:
                d_tiles_ref[i - j] += d_scores
            d_scores = d_scores.astype(q.dtype)
            d_queries_ref[:, queries] += _dot(k, d_scores, 1, 0)
            return d_keys + _dot(q, d_scores, 1, 1), d_values

        zeros = jnp.zeros(k.shape, jnp.float32)
        end_near = jnp.minimum(j + tiles, blocks)
        carry = jax.lax.fori_loop(j, end_near, functools.partial(of_queries, near=True), (zeros, zeros))
        d_keys, d_values = jax.lax.fori_loop(end_near, blocks, functools.partial(of_queries, near=False), carry)
        d_qkv_ref[1, :, keys] = d_keys.astype(d_qkv_ref.dtype)
        d_qkv_ref[2, :, keys] = d_values.astype(d_qkv_ref.dtype)

    jax.lax.fori_loop(0, blocks, of_keys, None)
    d_qkv_ref[0] = (d_queries_ref[...] * qkv_ref.shape[1] ** -0.5).astype(d_qkv_ref.dtype)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        _gather(d_tiles_ref, d_line_ref)
