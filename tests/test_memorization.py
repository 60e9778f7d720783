"""Memorization: transport costs against a linear program, tau against all pairs, prompts as in generation."""

import argparse

import matplotlib.image
import miniature
import numpy as np
import pytest
import scipy.optimize

from benchmarks import memorization_study as study
from musiclm_jax import bundles
from musiclm_jax.evaluation import memorization
from musiclm_jax.evaluation.memorization import Continuations
from musiclm_jax.generation import windows

CODES = 12
RNG = np.random.default_rng(0)
DISTANCES = memorization.centroid_distances(RNG.normal(size=(CODES, 3)))


def drawn(rows, tokens=20, codes=CODES, rng=RNG):
    return rng.integers(0, codes, (rows, tokens))


def optimum(first, second):
    """Computes the optimal cost by linear programming over the codes that occur."""
    (sources, given), (sinks, taken) = (np.unique(codes, return_counts=True) for codes in (first, second))
    m, n = len(sources), len(sinks)
    sums = np.concatenate([np.kron(np.eye(m), np.ones(n)), np.kron(np.ones(m), np.eye(n))])
    shares = np.concatenate([given / len(first), taken / len(second)])
    return scipy.optimize.linprog(DISTANCES[np.ix_(sources, sinks)].ravel(), A_eq=sums, b_eq=shares).fun


def test_distances_of_centroids():
    distances = memorization.centroid_distances(np.array([[0.0, 0], [3, 4], [0, 4]]))
    np.testing.assert_allclose(distances, [[0, 5, 4], [5, 0, 3], [4, 3, 0]])
    assert memorization.mean_distance(distances) == pytest.approx(4)


def test_transport_cost_matches_the_linear_program_up_to_regularization():
    first, second = drawn(30), drawn(30)
    first[:10] %= 3  # histograms of few codes among those of many
    best = np.array([optimum(*pair) for pair in zip(first, second, strict=True)])
    costs = memorization.transport_costs(first, second, DISTANCES)
    assert (costs >= best - 1e-9).all(), "no feasible plan costs less than the optimum"
    assert (costs <= 1.02 * best).all()
    loose = memorization.transport_costs(first, second, DISTANCES, regularisation=0.2)
    assert (loose > costs).mean() > 0.9
    bounds = memorization.lower_bounds(first, second, DISTANCES)
    assert (np.diag(bounds) <= best + 1e-9).all() and np.diag(bounds).mean() > 0.4 * best.mean()


def test_transport_of_known_cost():
    one, other = np.full((1, 8), 2), np.full((1, 8), 5)
    assert memorization.transport_costs(one, other, DISTANCES) == pytest.approx(DISTANCES[2, 5])
    assert memorization.lower_bounds(one, other, DISTANCES) == pytest.approx(DISTANCES[2, 5])
    half = other.copy()
    half[0, ::2] = 2  # half of the mass stays
    assert memorization.transport_costs(one, half, DISTANCES) == pytest.approx(DISTANCES[2, 5] / 2)
    row = drawn(1)
    assert memorization.transport_costs(row, row[:, ::-1], DISTANCES) == pytest.approx(0, abs=1e-4), "order is ignored"


def continuations(seed, prompt=0, groups=None, repeat=0, clips=40):
    """Returns clips with few distinct codes; the first `repeat` continuations are the clips' own tokens."""
    rng = np.random.default_rng(seed)

    def tokens():
        return np.stack([rng.choice(rng.choice(CODES, 3, replace=False), 20) for _ in range(clips)])

    made, true = tokens(), tokens()
    made[:repeat] = true[:repeat]
    return Continuations(prompt, made, true, np.arange(clips) if groups is None else groups)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.2])
def test_tau_matches_all_permuted_pairs(share):
    own = [continuations(1, clips=16), continuations(2, prompt=25, clips=16)]
    costs = np.concatenate(
        [
            memorization.transport_costs(c.made[rows], c.true[columns], DISTANCES)
            for c in own
            for rows, columns in [np.nonzero(~np.eye(16, dtype=bool))]
        ]
    )
    found = memorization.calibrate(own, DISTANCES, share)
    assert found.pairs == len(costs) == 2 * 16 * 15
    assert found.cost == pytest.approx(np.sort(costs)[int(np.ceil(share * len(costs))) - 1])
    assert found.matching == np.sum(costs < found.cost * (1 - 1e-9)) < share * len(costs)


def test_clips_of_one_composition_are_not_a_permuted_pair():
    pairs, alone, one = (
        continuations(3, groups=groups, clips=10) for groups in (np.arange(10) // 2, None, np.ones(10))
    )
    for own in (pairs, alone, one):
        own.made[0] = own.true[1]  # identical
    found = memorization.calibrate([pairs], DISTANCES)
    assert found.pairs == 10 * 8 and found.cost > 0.05
    found = memorization.calibrate([alone], DISTANCES)
    assert found.pairs == 10 * 9 and found.cost < 1e-3
    with pytest.raises(ValueError, match="all clips come from one composition"):
        memorization.calibrate([one], DISTANCES)


def test_exact_matches_and_entropies():
    made = np.array([[0, 0, 1, 1], [2, 2, 2, 2], [0, 1, 2, 3]])
    true = np.array([[0, 0, 1, 1], [2, 2, 2, 3], [3, 2, 1, 0]])
    own = Continuations(0, made, true, np.arange(3))
    assert own.exact.tolist() == [True, False, False]
    np.testing.assert_allclose(own.entropy, [1, 0, 2])
    costs = own.costs(DISTANCES)
    assert costs[[0, 2]] == pytest.approx(0, abs=1e-4) and costs[1] == pytest.approx(DISTANCES[2, 3] / 4)


def test_the_interval_without_matches_is_the_binomial_one():
    none, all_of_them = memorization.share(np.zeros(100, bool)), memorization.share(np.ones(100, bool))
    assert none[:2] == (0, 0) and none.high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert all_of_them[::2] == (1, 1) and all_of_them.low == pytest.approx(0.025 ** (1 / 100))


@pytest.fixture
def part():
    return bundles.load(miniature.path()).part("semantic")  # windows of 1.6 s: 40 tokens


def clips_of(count, tokens=90):
    return [
        {
            "semantic": np.arange(tokens) + 1000 * number,
            "mulan": np.full(12, number),
            "composition": f"tune {number // 2}",
        }
        for number in range(count)
    ]


def test_clips_are_continued_greedily_from_their_own_tokens(part, monkeypatch):
    calls = []

    def count_on(part, conditioning, prefix, frames, keys, sampling):
        calls.append((prefix[..., 0], frames, sampling))
        first = prefix[:, :1, 0] if prefix.shape[1] else 1000 * np.asarray(conditioning["mulan"])[:, :1]
        yield (first + np.arange(frames))[:, prefix.shape[1] :, None]

    monkeypatch.setattr(windows, "sample_window", count_on)
    # Windows slide if the prompt is longer than half a window, or prompt and continuation are longer than a window.
    for prompt, continued, windows_ in (
        (0, 30, [(0, 30)]),
        (15, 20, [(15, 35)]),
        (60, 20, [(20, 40)]),
        (0, 50, [(0, 40), (20, 30)]),
    ):
        calls.clear()
        own = memorization.continue_clips(part, clips_of(5), prompt, continued, batch_size=2)
        assert own.exact.all() and own.prompt == prompt and own.made.shape == (5, continued)
        assert own.true[:, 0].tolist() == [prompt + 1000 * number for number in range(5)]
        assert own.groups.tolist() == ["tune 0", "tune 0", "tune 1", "tune 1", "tune 2"]
        assert [(prefix.shape, frames) for prefix, frames, _ in calls] == [
            ((2, known), frames) for _ in range(3) for known, frames in windows_
        ], "the last batch, with one clip, is padded"
        assert {sampling.temperature for _, _, sampling in calls} == {0.0}


def test_prompts_longer_than_the_clips_are_refused(part):
    with pytest.raises(ValueError, match=r"3 of 3 clips are shorter, the shortest has 90: give prompts of at most 65"):
        memorization.continue_clips(part, clips_of(3), 70, continued=25)


def test_memorized_clips_show_against_held_out_clips(tmp_path):
    own = {"train": [continuations(4, 0, repeat=10)], "test": [continuations(5, 0)]}
    costs = {split: [made.costs(DISTANCES) for made in of_split] for split, of_split in own.items()}
    lines, curves = study.figures(own, costs, tau=0.1, seed=0)
    by_name = {line.name: line for line in lines}
    assert by_name["exact matches, training clips, prompt of 0 s"].value.value == 0.25
    assert by_name["exact matches, held-out clips, prompt of 0 s"].value.value == 0
    ahead = by_name["approximate matches of all prompts, training less held-out clips"].value
    assert ahead.value == pytest.approx(0.25, abs=0.03) and ahead.low > 0
    assert by_name["entropy in bits of matches under tau, training clips"].note == "10 matches"
    assert curves["train"]["seconds"] == [0] and curves["train"]["approximate"][0].value >= 0.25
    study.plot(curves, tmp_path / "plot.png")
    assert matplotlib.image.imread(tmp_path / "plot.png").shape[:2] == (630, 1050)


def test_the_whole_study(monkeypatch, tmp_path, capsys):
    seen = []

    def choose(tokens, split, count, seed):
        return [{"split": split}] * count

    def continue_clips(part, clips, prompt, batch_size):
        seen.append((clips[0]["split"], prompt, len(clips), batch_size))
        return continuations(prompt, prompt, repeat=40 if clips[0]["split"] == "train" else 0)

    monkeypatch.setattr(study, "choose", choose)
    monkeypatch.setattr(memorization, "continue_clips", continue_clips)
    arguments = ["--bundle", str(miniature.path()), "--tokens", "-", "--clips", "40", "--prompts", "0", "2", "2"]
    study.main(
        [*arguments, "--batch_size", "8", "--output", str(tmp_path / "o.json"), "--plot", str(tmp_path / "p.png")]
    )
    assert seen == [(split, prompt, 40, 8) for split in ("train", "test") for prompt in (0, 50)]
    out = capsys.readouterr().out
    assert "| exact matches, training clips, prompt of 2 s (40 of 40) | 1.000 [0.912, 1.000]" in out
    assert "| exact matches, held-out clips, prompt of 2 s (0 of 40) | 0.000 [0.000, 0.088]" in out
    assert (tmp_path / "o.json").exists() and (tmp_path / "p.png").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"clips": 1}, "--clips 1"),
        ({"prompts": [-1]}, "--prompts -1"),
        ({"prompts": [0.03]}, "choose a multiple"),
        ({"plot": "/nowhere/p.png"}, "there is no such folder"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    usable = {"clips": 2, "batch_size": 1, "prompts": [0], "plot": ""}
    with pytest.raises(ValueError, match=message):
        study.checked_prompts(argparse.Namespace(**usable | change))
