"""Judges MuLan: does a text retrieve its clip, and does it get the clip's tokens?"""

import numpy as np
import scipy.special

from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.diagnose.finding import Finding, grade

TOP, POOL = 10, 256  # recall at TOP among POOL clips
DRAWS = 40  # number of pools
ASKED = 10  # times chance
BROKEN = 2  # times chance
SCALES = np.geomspace(0.1, 1000, 60)  # inverse temperatures to try


def hits(similarity: np.ndarray, draws: int, pool: int, seed: int, top: int = TOP) -> np.ndarray:
    """Returns, for each clip, the share of its pools in which it was among the `top` closest to its own text.

    Args:
      similarity: `[texts, clips]`; text i describes clip i.
      draws: number of pools.
      pool: clips per pool.
      seed: for drawing the pools.
      top: rank up to which a clip counts as found.

    Returns:
      `[clips]`, without clips that were in no pool.

    Raises:
      ValueError: if there are fewer clips than a pool needs.
    """
    if len(similarity) < pool:
        raise ValueError(
            f"there are {len(similarity)} held-out clips, a pool needs {pool}: build a larger corpus or lower --pool"
        )
    rng = np.random.default_rng(seed)
    found, tried = np.zeros(len(similarity)), np.zeros(len(similarity))
    for _ in range(draws):
        chosen = rng.choice(len(similarity), pool, replace=False)
        part = similarity[np.ix_(chosen, chosen)]
        nearer = np.sum(part > np.diag(part)[:, None], axis=1)
        ties = np.sum(part == np.diag(part)[:, None], axis=1) - 1  # half of the ties count as nearer
        found[chosen] += nearer + ties / 2 < top
        tried[chosen] += 1
    return found[tried > 0] / tried[tried > 0]


def best_loss(similarity: np.ndarray) -> float:
    """Computes the contrastive loss in nats at the best temperature, which bundles do not store.

    It is at most ln(clips), which is chance.

    Args:
      similarity: `[texts, clips]`; text i describes clip i.
    """

    def loss(scale: float) -> float:
        logits = scale * similarity
        rows, columns = (np.mean(scipy.special.logsumexp(logits, axis=axis) - np.diag(logits)) for axis in (0, 1))
        return float(rows + columns) / 2

    return min(float(np.log(len(similarity))), *(loss(scale) for scale in SCALES))


def judge_retrieval(similarity: np.ndarray, seed: int) -> list[Finding]:
    """Judges the joint embedding.

    Args:
      similarity: `[texts, clips]`; text i describes clip i.
      seed: for pools and bootstrap intervals.
    """
    pool = min(POOL, len(similarity))
    top = max(1, round(pool * TOP / POOL))
    chance = top / pool
    found = metrics.bootstrap(hits(similarity, DRAWS if pool < len(similarity) else 1, pool, seed, top), seed=seed)
    # In a small pool, ten times chance (or even twice) may exceed 1.
    asked, broken = min(ASKED * chance, 0.5), min(BROKEN * chance, (1 + chance) / 2)
    advice = (
        "text and audio embeddings do not match: check the contrastive loss in training (ln(batch) is chance), the "
        "captions of the records, and whether text_encoder and mulan in the bundle come from one run"
    )
    recall = Finding(
        "mulan",
        f"recall at {top} of {pool} from text to audio",
        found,
        grade(found.value < broken or found.low <= chance, found.value < asked),
        f"broken under {broken:.3f} (chance is {chance:.3f}) or if the interval contains chance, ok from {asked:.3f}",
        "",
        advice,
    )
    loss, ceiling = best_loss(similarity), float(np.log(len(similarity)))
    told = 1 - loss / ceiling
    second = Finding(
        "mulan",
        "contrastive loss in nats, at its best temperature",
        loss,
        grade(told < 0.1, told < 0.25),
        f"broken from {0.9 * ceiling:.2f}, weak from {0.75 * ceiling:.2f} (0.9 and 0.75 of chance)",
        f"chance is ln({len(similarity)}) = {ceiling:.2f}",
        advice,
    )
    return [recall, second]


def judge_tokens(text_codes: np.ndarray, audio_codes: np.ndarray, other: np.ndarray, levels: int, seed: int) -> Finding:
    """Judges whether a text gets the tokens of its clip: stages train on audio tokens and generate from text tokens.

    Args:
      text_codes: int `[clips, quantizers]`.
      audio_codes: int `[clips, quantizers]`.
      other: int `[clips]`: for each clip, the index of another.
      levels: number of levels that the semantic stage reads.
      seed: for the bootstrap intervals.
    """
    equal, unrelated = text_codes == audio_codes, text_codes == audio_codes[other]
    first = metrics.bootstrap(equal[:, 0], seed=seed)
    ahead = metrics.bootstrap(equal[:, 0] * 1.0 - unrelated[:, 0], seed=seed)
    shares = " ".join(f"{share:.2f}" for share in equal[:, :levels].mean(axis=0))
    return Finding(
        "mulan",
        "texts with their clip's MuLan token, level 1",
        first,
        grade(ahead.low <= 0, first.value < 0.5),
        "broken if no higher than with another clip's, weak under 0.5 (most prompts begin with another clip's token)",
        f"another clip's {unrelated[:, 0].mean():.3f}; levels that the stages read: {shares}",
        "fit the quantizer again (musiclm export) with a smaller codebook_size, or train MuLan longer",
    )
