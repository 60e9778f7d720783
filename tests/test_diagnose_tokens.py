"""Faulty token records are named: shuffled, out of order, or from other tokenizers."""

import miniature
import numpy as np
import pytest

from musiclm_jax.evaluation.diagnose import agreement, semantic

CODES = miniature.CODES


def records(count: int = 4, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "semantic": np.repeat(rng.integers(0, 512, 25), 2),
            "acoustic": rng.integers(0, 1024, (100, 12)),
            "mulan": rng.integers(0, 16, 12),
        }
        for _ in range(count)
    ]


def test_records_that_agree_except_for_a_few_codes_pass():
    made = records()
    noisy = [record | {"semantic": np.where(np.arange(50) == 7, 3, record["semantic"])} for record in made]
    assert [f.verdict for f in agreement.judge_records(noisy, made, 0)] == ["ok", "ok", "ok"]
    half = [record | {"semantic": np.where(np.arange(50) % 8 == 7, 3, record["semantic"])} for record in made]
    assert agreement.judge_records(half, made, 0)[0].verdict == "weak"


def test_records_with_acoustic_levels_out_of_order_are_named():
    made = records()
    swapped = [record | {"acoustic": record["acoustic"][:, [0, 2, 1, *range(3, 12)]]} for record in made]
    finding = next(f for f in agreement.judge_records(swapped, made, 0) if "acoustic" in f.name)
    assert "level 2 holds the codes of level 3, level 3 holds the codes of level 2" in finding.advice
    # Swapping two of twelve levels leaves 83 % of the codes equal, and is still broken.
    assert finding.verdict == "broken"
    collapsed = [record | {"acoustic": 0 * record["acoustic"]} for record in made]
    assert agreement.judge_records(collapsed, collapsed, 0)[1].verdict == "ok"  # equal levels count as in order


def test_records_of_other_clips_and_other_tokenizers_are_distinguished():
    made = records()
    moved = made[1:] + made[:1]
    assert "clips were shuffled" in agreement.judge_records(moved, made, 0)[0].advice
    foreign = agreement.judge_records(records(seed=1), made, 0)
    assert [f.verdict for f in foreign] == ["broken"] * 3 and "another w2v-BERT" in foreign[0].advice
    with pytest.raises(ValueError, match="from another tokenizer; tokenize the corpus again"):
        agreement.judge_records([r | {"semantic": r["semantic"][:25]} for r in made], made, 0)


def test_purity_is_the_share_of_frames_labeled_by_other_clips():
    codes = np.array([[0, 0, 1, 1], [0, 0, 1, 2], [0, 1, 1, 1]])
    labels = np.array([[5, 5, 6, 6], [5, 5, 6, 5], [5, 6, 6, semantic.REST]])
    # Cluster 2 occurs only in the second clip: it gets the most common label of the others, 6 to 5 (4 to 3).
    np.testing.assert_allclose(semantic.purity(codes, labels), [1, 3 / 4, 1])


def test_shuffled_semantic_tokens_have_no_purity():
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 12, (24, 25)), 4, axis=1)
    tokens = 5 * labels + rng.integers(0, 5, labels.shape)
    other = np.roll(np.arange(24), 1)

    def verdict(codes, raw=None):
        return semantic.judge_purity("pitch class", codes, labels, other, raw, 0).verdict

    assert verdict(tokens) == "ok"
    assert verdict(rng.permutation(tokens.reshape(-1)).reshape(tokens.shape)) == "broken"
    assert verdict(tokens[rng.permutation(24)]) == "broken"  # whole clips are swapped, so runs are intact
    assert verdict(np.zeros_like(tokens)) == "broken"
    blurred = np.where(rng.random(labels.shape) < 0.5, tokens, rng.integers(0, 60, labels.shape))
    assert verdict(blurred) == "ok" and verdict(blurred, raw=tokens) == "weak" and verdict(tokens, raw=blurred) == "ok"
