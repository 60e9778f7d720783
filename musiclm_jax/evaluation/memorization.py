"""Tests whether the semantic stage has memorized training clips (MusicLM, section "Memorization", arXiv 2301.11325).

The stage is given the MuLan tokens of a clip's audio and the clip's first semantic tokens, and continues them greedily
for 5 s. `Continuations` holds the generated tokens and the clip's own:

* exact match: all tokens are equal;
* approximate match: the transport cost between the two token histograms is below the threshold from `calibrate`. The
  cost of moving a token to another is the Euclidean distance between their k-means centroids.

Long prompts use the same sliding window as generation: the stage sees only the last half window of the prompt.
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

CONTINUED = 125  # tokens to compare: 5 s
REGULARISATION = 0.02  # entropic; as a share of the mean distance between centroids (not given in the paper)
MARGINAL_ERROR = 1e-3  # largest share of misplaced mass at which the iteration may stop; the rest is corrected
MAX_ITERATIONS = 2000
FALSE_MATCHES = 1e-4  # the share of permuted pairs that match stays below this (the paper's "under 0.01 %")
PAIRS_AT_ONCE = 64
SHARE_LEVEL = 0.95  # coverage of the intervals of shares


@dataclasses.dataclass(frozen=True)
class Continuations:
    """Generated and true continuations for one prompt length.

    Attributes:
      prompt: number of semantic tokens in the prompt.
      made: generated tokens, int `[clips, tokens]`.
      true: the clips' own tokens, int `[clips, tokens]`.
      groups: `[clips]`, the composition of each clip. Clips of one group may be alike and are not negative pairs.
    """

    prompt: int
    made: np.ndarray
    true: np.ndarray
    groups: np.ndarray

    @property
    def exact(self) -> np.ndarray:
        """Exact matches, bool `[clips]`: all tokens equal the clip's own."""
        return (self.made == self.true).all(axis=1)

    @property
    def entropy(self) -> np.ndarray:
        """Entropy in bits of the token histogram of each continuation, `[clips]`."""
        return np.array([entropy_bits(codes) for codes in self.made])

    def costs(self, distances: np.ndarray) -> np.ndarray:
        """Computes `transport_costs` from each continuation to its clip, `[clips]`."""
        return transport_costs(self.made, self.true, distances)


def continue_clips(
    part: Part,
    clips: Sequence[Mapping[str, Any]],
    prompt: int,
    continued: int = CONTINUED,
    batch_size: int = 64,
    progress: windows.Progress = windows.silent,
) -> Continuations:
    """Continues the beginnings of clips with greedy decoding.

    Args:
      part: the semantic stage.
      clips: token records: "mulan" `[12]` of the audio, "semantic" `[t]`, "composition".
      prompt: number of given semantic tokens, 0 or more.
      continued: number of tokens to generate.
      batch_size: clips per batch.
      progress: called while the stage runs.

    Raises:
      ValueError: if a clip is shorter than the prompt and the continuation together.
    """
    if short := [len(clip[SEMANTIC.name]) for clip in clips if len(clip[SEMANTIC.name]) < prompt + continued]:
        raise ValueError(
            f"prompt and continuation need {prompt} + {continued} tokens: {len(short)} of {len(clips)} clips are "
            f"shorter, the shortest has {min(short)}: give prompts of at most {max(0, min(short) - continued)} tokens"
        )
    part = Part(part.config, {"params": decoding.unstacked(part.variables["params"])})
    semantic = np.stack([clip[SEMANTIC.name][: prompt + continued] for clip in clips]).astype(np.int32)
    mulan = np.stack([clip[MULAN.name] for clip in clips]).astype(np.int32)
    request = Request(temperature=(0.0, 0.0, 0.0))  # greedy decoding: the keys have no effect
    made = []
    for start in range(0, len(clips), batch_size):
        # The last batch is padded, so that one compiled program fits all.
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
    """Computes the Euclidean distances `[k, k]` between the k-means centroids `[k, d]` of semantic tokens."""
    return scipy.spatial.distance.cdist(np.asarray(centroids, np.float64), np.asarray(centroids, np.float64))


def mean_distance(distances: np.ndarray) -> float:
    """Computes the mean distance between two different centroids, the scale for reading costs."""
    return float(distances.sum() / (len(distances) * (len(distances) - 1)))


def transport_costs(
    first: np.ndarray, second: np.ndarray, distances: np.ndarray, regularisation: float = REGULARISATION
) -> np.ndarray:
    """Computes the optimal transport cost between code histograms by Sinkhorn iteration (Cuturi, arXiv 1306.0895).

    Only codes that occur are included. The iteration runs in the log domain. The plan is then rounded to a feasible one
    (Altschuler et al., arXiv 1705.09634), so no cost is below the optimum.

    Args:
      first: int `[pairs, tokens]`.
      second: int `[pairs, tokens]`.
      distances: `[k, k]` between codes.
      regularisation: weight of the entropy as a share of `mean_distance`; the cost excludes the entropy term.

    Returns:
      float64 `[pairs]`, in the unit of the distances.
    """
    scale = regularisation * mean_distance(distances)
    costs = np.zeros(len(first))
    # Sort by the number of distinct codes, to reduce padding within a batch.
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
    """Returns the distinct codes of each row and their shares, both `[rows, most]`; padding has a share of 0."""
    found = [np.unique(row, return_counts=True) for row in codes]
    most = max(len(values) for values, _ in found)
    values = np.stack([np.pad(values, (0, most - len(values))) for values, _ in found])
    counts = np.stack([np.pad(counts, (0, most - len(counts))) for _, counts in found])
    return values, counts / codes.shape[1]


def _plans(sources: np.ndarray, sinks: np.ndarray, costs: np.ndarray, scale: float) -> np.ndarray:
    """Computes transport plans `[pairs, m, n]` for shares `[pairs, m]`, `[pairs, n]` and costs `[pairs, m, n]`."""
    with np.errstate(divide="ignore"):  # the logarithm of padded shares is -inf, so they get no mass
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
    """Computes logsumexp; faster than SciPy's, which handles cases that cannot occur here."""
    highest = values.max(axis=axis, keepdims=True)
    return np.log(np.exp(values - highest).sum(axis=axis)) + np.squeeze(highest, axis)


def lower_bounds(first: np.ndarray, second: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Computes a lower bound of the transport cost for every pair of histograms.

    Every token moves to the nearest code that occurs in the other histogram ("relaxed word mover's distance", Kusner et
    al., ICML 2015). Two matrix products cover all pairs.

    Args:
      first: int `[m, tokens]`.
      second: int `[n, tokens]`.
      distances: `[k, k]` between codes.

    Returns:
      float64 `[m, n]`.
    """

    def shares(codes: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(row, minlength=len(distances)) for row in codes]) / codes.shape[1]

    def nearest(codes: np.ndarray) -> np.ndarray:
        return np.stack([distances[:, np.unique(row)].min(axis=1) for row in codes])

    return np.maximum(shares(first) @ nearest(second).T, (shares(second) @ nearest(first).T).T)


class Threshold(NamedTuple):
    """Threshold for approximate matches.

    Attributes:
      cost: pairs below this cost match.
      pairs: number of permuted pairs used for calibration.
      matching: number of them that match.
    """

    cost: float
    pairs: int
    matching: int


def calibrate(
    continuations: Sequence[Continuations], distances: np.ndarray, false_matches: float = FALSE_MATCHES
) -> Threshold:
    """Finds the highest threshold at which less than a given share of permuted pairs match.

    A permuted pair is a continuation and the true tokens of a clip from another group, for the same prompt length.
    Costs are computed in order of their `lower_bounds`, and only as far as they can change the result.

    Args:
      continuations: one for each prompt length.
      distances: `[k, k]` between codes.
      false_matches: share of permuted pairs, above 0.

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
        raise ValueError("all clips come from one composition: there are no permuted pairs for calibrating tau")
    allowed = math.ceil(false_matches * len(bound)) - 1  # number of matches, strictly less than the share
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
    """Computes the share of matches, bool `[clips]`, with its exact (Clopper-Pearson) interval, valid even at 0."""
    found = scipy.stats.binomtest(int(np.sum(matches)), len(matches))
    interval = found.proportion_ci(SHARE_LEVEL, method="exact")
    return Estimate(float(np.mean(matches)), float(interval.low), float(interval.high))
