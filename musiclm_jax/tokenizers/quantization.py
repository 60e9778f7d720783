"""Residual vector quantization (RVQ) with moving-average codebooks, and k-means.

A vector is quantized level by level: each level quantizes the residual of the levels before it. Codebooks are not
trained by gradient descent: they follow an exponential moving average of the vectors assigned to them. Rarely used
codes are replaced by vectors of the batch (SoundStream, arXiv 2107.03312, section III-C).
Shape letters: n vectors, q quantizers, k entries, d dims.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class RVQConfig:
    """A residual vector quantizer; defaults are SoundStream's in MusicLM."""

    num_quantizers: int = 12  # number of levels
    codebook_size: int = 1024  # entries per level
    dim: int = 256  # dimensions of the vectors
    ema_decay: float = 0.99  # decay of counts and sums per training step
    dead_code_threshold: float = 2.0  # a code with fewer vectors per step (moving average) is replaced
    quantizer_dropout: bool = True  # train some samples with only the first n levels, n uniform in 1..num_quantizers
    dropout_share: float = 1.0  # share of the samples that quantizer dropout applies to


class RVQState(flax.struct.PyTreeNode):
    """Codebooks and their moving averages: float32 `[q, k, d]`, `[q, k]`, `[q, k, d]`."""

    codebooks: jax.Array
    ema_counts: jax.Array
    ema_sums: jax.Array

    @classmethod
    def from_codebooks(cls, codebooks: jax.Array, config: RVQConfig) -> "RVQState":
        """Returns the state in which every code has been used twice as often as the dead-code threshold."""
        counts = jnp.full(codebooks.shape[:2], _fresh_count(config), jnp.float32)
        return cls(codebooks, counts, codebooks * counts[..., None])

    @classmethod
    def init(cls, key: jax.Array, config: RVQConfig) -> "RVQState":
        """Returns random normal codebooks, to be replaced by `fit_rvq`."""
        shape = (config.num_quantizers, config.codebook_size, config.dim)
        return cls.from_codebooks(jax.random.normal(key, shape), config)


def _fresh_count(config: RVQConfig) -> float:
    # Twice the threshold: a new code survives log(2) / (1 - decay) = 69 steps without use.
    return max(2 * config.dead_code_threshold, 1e-3)


def _squared_distances(x: jax.Array, centroids: jax.Array) -> jax.Array:
    """Returns squared distances `[n, k]` up to a term that depends only on x, without an array `[n, k, d]`."""
    return jnp.sum(centroids**2, axis=-1)[None, :] - 2 * x @ centroids.T


def _assign(x: jax.Array, centroids: jax.Array) -> jax.Array:
    return jnp.argmin(_squared_distances(x, centroids), axis=-1).astype(jnp.int32)


def _check_dim(x: jax.Array, codebooks: jax.Array, name: str) -> None:
    if x.shape[-1] != codebooks.shape[-1]:
        raise ValueError(
            f"{name}: vectors of shape {x.shape} have {x.shape[-1]} dimensions but the codebooks {codebooks.shape} "
            f"have {codebooks.shape[-1]}: pass the codebooks of the model that made the vectors"
        )


def encode(codebooks: jax.Array, x: jax.Array) -> jax.Array:
    """Quantizes `x`.

    Args:
      codebooks: float32 `[quantizers, codebook_size, dim]`.
      x: float32 `[..., dim]`.

    Returns:
      int32 `[..., quantizers]`, each in 0..codebook_size-1.

    Raises:
      ValueError: if the dimensions differ.
    """
    _check_dim(x, codebooks, "encode")
    return _encode(codebooks, x)


@jax.jit
def _encode(codebooks: jax.Array, x: jax.Array) -> jax.Array:
    def level(residual: jax.Array, codebook: jax.Array) -> tuple[jax.Array, jax.Array]:
        codes = _assign(residual, codebook)
        return residual - codebook[codes], codes

    _, codes = jax.lax.scan(level, x.reshape(-1, x.shape[-1]), codebooks)
    return codes.T.reshape(*x.shape[:-1], codebooks.shape[0])


def decode(codebooks: jax.Array, codes: jax.Array) -> jax.Array:
    """Returns the sum of the codebook entries of `codes`.

    Args:
      codebooks: float32 `[quantizers, codebook_size, dim]`.
      codes: codes of the first q levels, int `[..., q]`, q <= quantizers.

    Returns:
      float32 `[..., dim]`.

    Raises:
      ValueError: if there are more levels of codes than codebooks.
    """
    levels = codes.shape[-1]
    if levels > codebooks.shape[0]:
        raise ValueError(
            f"decode: codes of shape {codes.shape} have {levels} levels but there are {codebooks.shape[0]} codebooks: "
            "pass at most that many levels on the last axis"
        )
    vectors = codebooks[0][codes[..., 0]]
    for i in range(1, levels):
        vectors = vectors + codebooks[i][codes[..., i]]
    return vectors


def quantize_train(
    config: RVQConfig, state: RVQState, x: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array], RVQState]:
    """Quantizes with a straight-through gradient and updates the codebooks.

    Quantizer dropout acts on the first axis: sample b keeps its first n_b levels. The codebooks of all levels are
    updated from all samples, since the encoder's output does not depend on the dropout.

    Args:
      config: the quantizer.
      state: codebooks and averages before the step.
      x: float32 `[batch, ..., dim]`.
      key: PRNG key for dropout and the replacement of dead codes.

    Returns:
      The quantized vectors, float32 `[batch, ..., dim]`, whose gradient is passed to `x` unchanged; the codes of all
      levels, int32 `[batch, ..., quantizers]`; scalars {"commitment_loss", "perplexity_00", ...}, with the perplexity
      of each level in this batch; and the new state.

    Raises:
      ValueError: if the dimensions differ.
    """
    _check_dim(x, state.codebooks, "quantize_train")
    dropout_key, share_key, dead_key = jax.random.split(key, 3)
    batch, d, q = x.shape[0], x.shape[-1], config.num_quantizers
    if config.quantizer_dropout:
        drawn = jax.random.randint(dropout_key, (batch,), 1, q + 1)
        kept = jnp.where(jax.random.uniform(share_key, (batch,)) < config.dropout_share, drawn, q)
    else:
        kept = jnp.full((batch,), q)
    flat = x.reshape(-1, d)
    kept = jnp.repeat(kept, flat.shape[0] // batch, total_repeat_length=flat.shape[0])

    def level(carry, inputs):
        residual, quantized, commitment = carry
        level_state, index, level_key = inputs
        codes = _assign(residual, level_state.codebooks)
        entries = level_state.codebooks[codes]
        active = (index < kept).astype(x.dtype)[:, None]
        commitment += jnp.sum(active * (flat - jax.lax.stop_gradient(quantized + entries)) ** 2)
        new_state, perplexity = _ema_update(config, level_state, residual, codes, level_key)
        carry = (residual - entries, quantized + active * entries, commitment)
        return carry, (codes, perplexity, new_state)

    # Entries and residuals are constants; the gradient reaches the encoder only through `flat` in the commitment loss.
    start = (jax.lax.stop_gradient(flat), jnp.zeros_like(flat), jnp.zeros(()))
    inputs = (jax.lax.stop_gradient(state), jnp.arange(q), jax.random.split(dead_key, q))
    (_, quantized, commitment), (codes, perplexity, new_state) = jax.lax.scan(level, start, inputs)
    straight_through = flat + jax.lax.stop_gradient(quantized - flat)
    losses = {"commitment_loss": commitment / (jnp.sum(kept) * d)}
    losses |= {f"perplexity_{i:02d}": perplexity[i] for i in range(q)}
    return straight_through.reshape(x.shape), codes.T.reshape(*x.shape[:-1], q), losses, new_state


def _ema_update(
    config: RVQConfig, state: RVQState, x: jax.Array, codes: jax.Array, key: jax.Array
) -> tuple[RVQState, jax.Array]:
    """Updates one level's codebook (`state` without the axis q) with the vectors `x` `[n, d]` assigned to it."""
    k = config.codebook_size
    counts_now = jnp.zeros(k).at[codes].add(1.0)
    sums_now = jnp.zeros_like(state.ema_sums).at[codes].add(x)
    counts = config.ema_decay * state.ema_counts + (1 - config.ema_decay) * counts_now
    sums = config.ema_decay * state.ema_sums + (1 - config.ema_decay) * sums_now
    dead = counts < config.dead_code_threshold
    strangers = x[jax.random.randint(key, (k,), 0, x.shape[0])]
    fresh = _fresh_count(config)
    counts = jnp.where(dead, fresh, counts)
    sums = jnp.where(dead[:, None], strangers * fresh, sums)
    share = counts_now / x.shape[0]
    perplexity = jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12))))
    return RVQState(sums / counts[:, None], counts, sums), perplexity


def kmeans_assign(centroids: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the index of the nearest centroid `[k, d]` for each vector of `x` `[..., d]`: int32 `[...]`.

    Raises:
      ValueError: if the dimensions differ.
    """
    _check_dim(x, centroids, "kmeans_assign")
    nearest = functools.partial(_nearest, centroids)
    flat = x.reshape(-1, x.shape[-1])
    # In blocks, since [n, k] of a whole corpus does not fit in memory.
    return jax.lax.map(nearest, flat, batch_size=8192).reshape(x.shape[:-1])


def _nearest(centroids: jax.Array, row: jax.Array) -> jax.Array:
    return jnp.argmin(jnp.sum(centroids**2, axis=-1) - 2 * centroids @ row).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("num_clusters", "iterations", "batch_size"))
def kmeans(
    key: jax.Array, x: jax.Array, num_clusters: int, iterations: int, batch_size: int | None = None
) -> jax.Array:
    """Fits centroids by Lloyd's algorithm, or with minibatches (Sculley, Web-Scale K-Means Clustering, 2010).

    The centroids are initialised by k-means++ on at most 16 vectors per cluster. In Lloyd's algorithm, a cluster that
    loses all its vectors moves to a random vector; with minibatches, a centroid without vectors does not move.

    Args:
      key: PRNG key for the initialisation, the replacements and the minibatches.
      x: float32 `[n, d]`, n >= num_clusters.
      num_clusters: number of clusters k.
      iterations: number of passes over `x`, or of minibatches.
      batch_size: vectors per minibatch; None for Lloyd's algorithm on all of `x`.

    Returns:
      float32 `[k, d]`.

    Raises:
      ValueError: if there are fewer vectors than clusters.
    """
    n, d = x.shape
    if n < num_clusters:
        raise ValueError(f"kmeans: {n} vectors cannot fill {num_clusters} clusters: give more data or fewer clusters")
    subset_key, start_key, loop_key = jax.random.split(key, 3)
    subset = jax.random.choice(subset_key, n, (min(n, 16 * num_clusters),), replace=False)
    centroids = _kmeans_plus_plus(start_key, x[subset], num_clusters)

    def sums_and_counts(points: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
        assigned = kmeans_assign(centroids, points)
        counts = jnp.zeros(num_clusters).at[assigned].add(1.0)
        return jnp.zeros((num_clusters, d)).at[assigned].add(points), counts

    def lloyd(i: jax.Array, centroids: jax.Array) -> jax.Array:
        sums, counts = sums_and_counts(x, centroids)
        strangers = x[jax.random.randint(jax.random.fold_in(loop_key, i), (num_clusters,), 0, n)]
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], strangers)

    def minibatch(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centroids, seen = carry
        points = x[jax.random.randint(jax.random.fold_in(loop_key, i), (batch_size or n,), 0, n)]
        sums, counts = sums_and_counts(points, centroids)
        seen += counts
        # Each centroid is the mean of all vectors ever assigned to it.
        return centroids + (sums - counts[:, None] * centroids) / jnp.maximum(seen, 1)[:, None], seen

    if batch_size is None:
        return jax.lax.fori_loop(0, iterations, lloyd, centroids)
    return jax.lax.fori_loop(0, iterations, minibatch, (centroids, jnp.zeros(num_clusters)))[0]


def _kmeans_plus_plus(key: jax.Array, x: jax.Array, num_clusters: int) -> jax.Array:
    """Draws each centroid with a probability proportional to its squared distance from the nearest earlier one."""
    first_key, key = jax.random.split(key)
    first = x[jax.random.randint(first_key, (), 0, x.shape[0])]
    squares = jnp.sum(x**2, axis=-1)

    def distance(centroid: jax.Array) -> jax.Array:
        return jnp.maximum(squares - 2 * x @ centroid + jnp.sum(centroid**2), 0.0)

    def add(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centroids, nearest = carry
        chosen = jax.random.categorical(jax.random.fold_in(key, i), jnp.log(nearest + 1e-20))
        return centroids.at[i].set(x[chosen]), jnp.minimum(nearest, distance(x[chosen]))

    centroids = jnp.zeros((num_clusters, x.shape[1]), x.dtype).at[0].set(first)
    return jax.lax.fori_loop(1, num_clusters, add, (centroids, distance(first)))[0]


def fit_rvq(key: jax.Array, x: jax.Array, config: RVQConfig, iterations: int) -> jax.Array:
    """Fits codebooks by residual k-means: each level is fitted to the residual of the levels before it.

    Args:
      key: PRNG key.
      x: float32 `[n, dim]`, n >= config.codebook_size.
      config: number of levels and entries.
      iterations: iterations of Lloyd's algorithm per level.

    Returns:
      float32 `[quantizers, codebook_size, dim]`.

    Raises:
      ValueError: if the dimensions differ from `config.dim` or there are too few vectors.
    """
    if x.shape[-1] != config.dim:
        raise ValueError(f"fit_rvq: vectors of shape {x.shape} do not have config.dim = {config.dim} dimensions")
    codebooks = []
    residual = x
    for level_key in jax.random.split(key, config.num_quantizers):
        centroids = kmeans(level_key, residual, config.codebook_size, iterations)
        residual = residual - centroids[kmeans_assign(centroids, residual)]
        codebooks.append(centroids)
    return jnp.stack(codebooks)
