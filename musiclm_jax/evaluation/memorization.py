"""Does the semantic stage repeat clips instead of making music? (MusicLM, section "Memorization", arXiv 2301.11325)

The stage is given the MuLan tokens of a clip's audio and the clip's first semantic tokens, and goes on with the
likeliest tokens for 5 s. `Continuations` holds what it made beside what the clip has there:

* exact match: all tokens are equal;
* approximate match: moving one histogram of tokens onto the other costs less than `calibrate` says; the cost of moving
  a token to another is the Euclidean distance of their k-means centroids.

A prompt longer than half a window slides as generation does: the stage then sees the last half window of it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.spatial.distance
import scipy.stats

from musiclm_jax.bundles import Part
from musiclm_jax.data.tokens import MULAN, SEMANTIC
from musiclm_jax.evaluation.metrics import Estimate, entropy_bits
from musiclm_jax.generation import windows
from musiclm_jax.generation.request import Request
from musiclm_jax.generation.windows import Conditions
from musiclm_jax.stages import decoding

CONTINUED = 125  # tokens that are compared, 5 s
REGULARISATION = 0.02  # of the transport, as a share of the mean distance of two centroids (the paper leaves it open)
MARGINAL_ERROR = 1e-3  # share of the mass that may be out of place when the iteration ends; it is then put right
MAX_ITERATIONS = 2000
FALSE_MATCHES = 1e-4  # share of permuted pairs that stays above the matches (the paper's "under 0.01 %")
PAIRS_AT_ONCE = 64
SHARE_LEVEL = 0.95  # of the intervals of shares


@dataclasses.dataclass(frozen=True)
class Continuations:
    """What was made of one length of prompt, and what the clips have there.

    Attributes:
      prompt: semantic tokens of the prompt.
      made: int `[clips, tokens]`.
      true: int `[clips, tokens]`.
      groups: `[clips]`: clips of a group (one composition) may be alike, and are no negative pair.
    """

    prompt: int
    made: np.ndarray
    true: np.ndarray
    groups: np.ndarray

    @property
    def exact(self) -> np.ndarray:
        """bool `[clips]`: every token is the clip's own."""
        return (self.made == self.true).all(axis=1)

    @property
    def entropy(self) -> np.ndarray:
        """Entropy in bits of the tokens of each continuation, `[clips]`."""
        return np.array([entropy_bits(codes) for codes in self.made])

    def costs(self, distances: np.ndarray) -> np.ndarray:
        """`transport_costs` from each continuation to its clip, `[clips]`."""
        return transport_costs(self.made, self.true, distances)


def continue_clips(
    part: Part,
    clips: Sequence[Mapping[str, Any]],
    prompt: int,
    continued: int = CONTINUED,
    batch_size: int = 64,
    progress: windows.Progress = windows.silent,
) -> Continuations:
    """Goes on from the beginning of clips, always with the likeliest token.

    Args:
      part: the semantic stage.
      clips: token records: "mulan" `[12]`, of the audio, "semantic" `[t]`, "composition".
      prompt: semantic tokens that are given, 0 or more.
      continued: tokens that are made.
      batch_size: clips at once.
      progress: called while the stage works.

    Raises:
      ValueError: if a clip is shorter than prompt and continuation.
    """
    if short := [len(clip[SEMANTIC.name]) for clip in clips if len(clip[SEMANTIC.name]) < prompt + continued]:
        raise ValueError(
            f"a prompt of {prompt} tokens and {continued} to compare: {len(short)} of {len(clips)} clips are shorter, "
            f"the shortest has {min(short)}: give prompts of at most {max(0, min(short) - continued)} tokens"
        )
    part = Part(part.config, {"params": decoding.unstacked(part.variables["params"])})
    semantic = np.stack([clip[SEMANTIC.name][: prompt + continued] for clip in clips]).astype(np.int32)
    mulan = np.stack([clip[MULAN.name] for clip in clips]).astype(np.int32)
    request = Request(temperature=(0.0, 0.0, 0.0))  # the likeliest token; keys play no role
    made = []
    for start in range(0, len(clips), batch_size):
        # The last batch is filled up, so that one program fits all.
        rows = np.minimum(np.arange(start, start + batch_size), len(clips) - 1)[: len(clips)]
        keys = jax.random.split(jax.random.key(0), len(rows))
        pieces = windows.generate_semantic(
            part,
            Conditions((0,), mulan[rows][None]),
            semantic[rows, :prompt, None],
            prompt + continued,
            request,
            keys,
            windows.silent,
        )
        made.append(np.concatenate(list(pieces), axis=1)[: len(clips) - start, :, 0])
        progress("continuations", min(start + batch_size, len(clips)), len(clips))
    groups = np.array([clip["composition"] for clip in clips])
    return Continuations(prompt, np.concatenate(made), semantic[:, prompt:], groups)


def centroid_distances(centroids: np.ndarray) -> np.ndarray:
    """Euclidean distances `[k, k]` of the k-means centroids `[k, d]` of semantic tokens."""
    return scipy.spatial.distance.cdist(np.asarray(centroids, np.float64), np.asarray(centroids, np.float64))


def mean_distance(distances: np.ndarray) -> float:
    """Mean distance of two different centroids: the scale in which costs are to be read."""
    return float(distances.sum() / (len(distances) * (len(distances) - 1)))


def transport_costs(
    first: np.ndarray, second: np.ndarray, distances: np.ndarray, regularisation: float = REGULARISATION
) -> np.ndarray:
    """Costs of moving one histogram of codes onto another, by Sinkhorn's iteration (Cuturi, arXiv 1306.0895).

    Only codes that occur take part. The iteration runs on logarithms; what is left out of place is moved by the rule of
    Altschuler et al. (arXiv 1705.09634), so that every plan is a real one: no cost is below the optimum.

    Args:
      first: int `[pairs, tokens]`.
      second: int `[pairs, tokens]`.
      distances: `[k, k]` of the codes.
      regularisation: entropy's weight, as a share of `mean_distance`; the cost itself is without the entropy.

    Returns:
      float64 `[pairs]`, in the unit of the distances.
    """
    scale = regularisation * mean_distance(distances)
    costs = np.zeros(len(first))
    # Pairs of like numbers of codes lie together, so that little is padded.
    order = np.argsort([len(np.unique(codes)) for codes in first], kind="stable")
    for start in range(0, len(order), PAIRS_AT_ONCE):
        pairs = order[start : start + PAIRS_AT_ONCE]
        sources, source_shares = _histograms(first[pairs])
        sinks, sink_shares = _histograms(second[pairs])
        of_codes = distances[sources[:, :, None], sinks[:, None, :]]
        plans = _plans(source_shares, sink_shares, of_codes, scale)
        costs[pairs] = np.sum(plans * of_codes, axis=(1, 2))
    return costs


def _histograms(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes that occur in each row and their shares, `[rows, most]`; a row of fewer is filled with shares of 0."""
    found = [np.unique(row, return_counts=True) for row in codes]
    most = max(len(values) for values, _ in found)
    values = np.stack([np.pad(values, (0, most - len(values))) for values, _ in found])
    counts = np.stack([np.pad(counts, (0, most - len(counts))) for _, counts in found])
    return values, counts / codes.shape[1]


def _plans(sources: np.ndarray, sinks: np.ndarray, costs: np.ndarray, scale: float) -> np.ndarray:
    """Transport plans `[pairs, m, n]` of shares `[pairs, m]` and `[pairs, n]` under costs `[pairs, m, n]`."""
    with np.errstate(divide="ignore"):  # the logarithm of filled up shares is -inf, and they get nothing
        log_sources, log_sinks = np.log(sources), np.log(sinks)
    kernel = -costs / scale
    columns = np.where(np.isfinite(log_sinks), 0.0, -np.inf)
    for iteration in range(MAX_ITERATIONS):
        rows = log_sources - _log_sum(kernel + columns[:, None, :], axis=2)
        columns = log_sinks - _log_sum(kernel + rows[:, :, None], axis=1)
        if iteration % 20 == 19 or iteration == MAX_ITERATIONS - 1:
            plans = np.exp(kernel + rows[:, :, None] + columns[:, None, :])
            if np.abs(plans.sum(axis=2) - sources).sum(axis=1).max() < MARGINAL_ERROR:
                break
    with np.errstate(invalid="ignore"):
        plans *= np.minimum(1, np.nan_to_num(sources / plans.sum(axis=2)))[:, :, None]
        plans *= np.minimum(1, np.nan_to_num(sinks / plans.sum(axis=1)))[:, None, :]
    missing_rows, missing_columns = sources - plans.sum(axis=2), sinks - plans.sum(axis=1)
    missing = np.maximum(missing_rows.sum(axis=1), 1e-300)[:, None, None]
    return plans + missing_rows[:, :, None] * missing_columns[:, None, :] / missing


def _log_sum(values: np.ndarray, axis: int) -> np.ndarray:
    """Logarithm of the sum of exponentials; SciPy's does the same with more care for what cannot be here."""
    highest = values.max(axis=axis, keepdims=True)
    return np.log(np.exp(values - highest).sum(axis=axis)) + np.squeeze(highest, axis)


def lower_bounds(first: np.ndarray, second: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """What moving costs at least, for every two histograms: every token goes to the nearest code that the other has.

    This takes two matrix products for all pairs (Kusner et al., "relaxed word mover's distance", ICML 2015).

    Args:
      first: int `[m, tokens]`.
      second: int `[n, tokens]`.
      distances: `[k, k]` of the codes.

    Returns:
      float64 `[m, n]`.
    """

    def shares(codes: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(row, minlength=len(distances)) for row in codes]) / codes.shape[1]

    def nearest(codes: np.ndarray) -> np.ndarray:
        return np.stack([distances[:, np.unique(row)].min(axis=1) for row in codes])

    return np.maximum(shares(first) @ nearest(second).T, (shares(second) @ nearest(first).T).T)


class Threshold(NamedTuple):
    """Where approximate matches begin.

    Attributes:
      cost: pairs under it match.
      pairs: permuted pairs that it was set by.
      matching: how many of them match.
    """

    cost: float
    pairs: int
    matching: int


def calibrate(
    continuations: Sequence[Continuations], distances: np.ndarray, false_matches: float = FALSE_MATCHES
) -> Threshold:
    """The highest cost under which less than a share of permuted pairs match.

    A permuted pair is a continuation and what another clip has at that place; both are of different groups. Costs are
    worked out from the lowest `lower_bounds` on, only as far as they can change the result.

    Args:
      continuations: of all lengths of prompts; pairs are of the same length.
      distances: `[k, k]` of the codes.
      false_matches: share of permuted pairs, more than 0.

    Raises:
      ValueError: if there is no permuted pair.
    """
    bounds, places = [], []
    for index, own in enumerate(continuations):
        rows, columns = np.nonzero(own.groups[:, None] != own.groups[None, :])
        bounds.append(lower_bounds(own.made, own.true, distances)[rows, columns])
        places.append(np.stack([np.full(len(rows), index), rows, columns], axis=1))
    bound, place = np.concatenate(bounds), np.concatenate(places)
    if not len(bound):
        raise ValueError("no two clips are of different compositions: there are no permuted pairs to set tau by")
    allowed = math.ceil(false_matches * len(bound)) - 1  # matches, strictly less than the share
    order = np.argsort(bound, kind="stable")
    costs = np.zeros(0)
    for start in range(0, len(order), PAIRS_AT_ONCE):
        chosen = order[start : start + PAIRS_AT_ONCE]
        if len(costs) > allowed and np.partition(costs, allowed)[allowed] <= bound[chosen[0]]:
            break
        made = np.stack([continuations[index].made[row] for index, row, _ in place[chosen]])
        true = np.stack([continuations[index].true[column] for index, _, column in place[chosen]])
        costs = np.append(costs, transport_costs(made, true, distances))
    tau = float(np.partition(costs, allowed)[allowed])
    return Threshold(tau, len(bound), int(np.sum(costs < tau)))


def share(matches: np.ndarray) -> Estimate:
    """Share of matches bool `[clips]` with its exact binomial interval (Clopper-Pearson), which also holds at 0."""
    found = scipy.stats.binomtest(int(np.sum(matches)), len(matches))
    interval = found.proportion_ci(SHARE_LEVEL, method="exact")
    return Estimate(float(np.mean(matches)), float(interval.low), float(interval.high))
