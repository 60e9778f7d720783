"""MuLan: does a text find its clip, and does it get the clip's tokens?"""

import numpy as np
import scipy.special

from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.diagnose.finding import Finding, grade

TOP, POOL = 10, 256  # the clip is to be among so many of so many
DRAWS = 40  # pools
ASKED = 10  # times chance
BROKEN = 2  # times chance
SCALES = np.geomspace(0.1, 1000, 60)  # inverse temperatures that are tried


def hits(similarity: np.ndarray, draws: int, pool: int, seed: int, top: int = TOP) -> np.ndarray:
    """For each clip, the share of its draws in which it was among the `top` nearest to its own text.

    Args:
      similarity: `[clips, clips]`, row: text, column: audio; text i describes audio i.
      draws: how often a pool is drawn.
      pool: clips of a pool.
      seed: of the draws.
      top: clips that count as found.

    Returns:
      `[clips]`, without clips that no draw held.

    Raises:
      ValueError: if there are fewer clips than a pool takes.
    """
    if len(similarity) < pool:
        raise ValueError(
            f"{len(similarity)} held-out clips: a pool takes {pool}; build a larger corpus or lower --pool"
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
    """Contrastive loss in nats at its best temperature (bundles do not keep it): at most ln(clips), which is chance.

    Args:
      similarity: `[clips, clips]`, row: text, column: audio; text i describes audio i.
    """

    def loss(scale: float) -> float:
        logits = scale * similarity
        rows, columns = (np.mean(scipy.special.logsumexp(logits, axis=axis) - np.diag(logits)) for axis in (0, 1))
        return float(rows + columns) / 2

    return min(float(np.log(len(similarity))), *(loss(scale) for scale in SCALES))


def judge_retrieval(similarity: np.ndarray, seed: int) -> list[Finding]:
    """Judges the joint embedding.

    Args:
      similarity: `[clips, clips]` of text and audio, row: text, column: audio.
      seed: of pools and intervals.
    """
    pool = min(POOL, len(similarity))
    top = max(1, round(pool * TOP / POOL))
    chance = top / pool
    found = metrics.bootstrap(hits(similarity, DRAWS if pool < len(similarity) else 1, pool, seed, top), seed=seed)
    # In a small pool ten times chance, and twice, may be more than there is.
    asked, broken = min(ASKED * chance, 0.5), min(BROKEN * chance, (1 + chance) / 2)
    advice = (
        "text and audio do not meet: look at the training's contrastive loss (ln(batch) is chance), at the captions of "
        "its records, and whether text_encoder and mulan in the bundle are of one run"
    )
    recall = Finding(
        "mulan",
        f"recall at {top} of {pool} from text to audio",
        found,
        grade(found.value < broken or found.low <= chance, found.value < asked),
        f"broken under {broken:.3f} (chance is {chance:.3f}) or if its interval holds chance, ok from {asked:.3f}",
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
    """Judges whether a text gets the tokens of its clip: stages learn from those of audio and are given those of text.

    Args:
      text_codes: int `[clips, quantizers]`.
      audio_codes: int `[clips, quantizers]`.
      other: int `[clips]`: index of another clip for each.
      levels: that the semantic stage reads.
      seed: of the interval.
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
        "broken if no more than another clip's, weak under 0.5 (most prompts begin with a token of other music)",
        f"another clip's {unrelated[:, 0].mean():.3f}; levels that the stages read: {shares}",
        "fit the quantizer again (musiclm export), with a smaller codebook_size, or train MuLan on",
    )
