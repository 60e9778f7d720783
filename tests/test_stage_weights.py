"""Initializing a stage with the weights of another stage that has a different vocabulary."""

import miniature
import numpy as np
import pytest

from musiclm_jax import bundles
from musiclm_jax.launch import train
from musiclm_jax.stages import layout
from musiclm_jax.stages import weights as stage_weights
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.tokenizers import melody
from musiclm_jax.training.optimizers import OptimizerConfig

SIZES = miniature.STAGE_SIZES
SEMANTIC = layout.semantic_stage(seconds=1.6, mulan_quantizers=2, **SIZES)
MELODIC = layout.semantic_stage(
    seconds=1.6, mulan_quantizers=2, melody_quantizers=6, melody_codebook_size=miniature.CODES, **SIZES
)
COARSE = layout.coarse_stage(seconds=0.8, **SIZES)
WITHOUT_SEMANTIC = layout.coarse_stage(seconds=0.8, use_semantic=False, **SIZES)


def table(stage, width=64):
    return np.random.default_rng(0).normal(size=(stage.vocabulary.rows, width)).astype(np.float32)


def rows(params, stage, stream, level):
    first = stage.vocabulary.offset(stream, level)
    return params["embedding"][first : first + stage.stream(stream).codebook_size]


@pytest.mark.parametrize(
    "old, new, shared",
    [
        (SEMANTIC, MELODIC, [("mulan", 0), ("mulan", 1), ("semantic", 0)]),
        (COARSE, WITHOUT_SEMANTIC, [("mulan", 0), ("mulan", 11), ("acoustic", 0), ("acoustic", 3)]),
        (WITHOUT_SEMANTIC, COARSE, [("mulan", 11), ("acoustic", 3)]),
    ],
)
def test_streams_that_both_stages_know_keep_their_rows(old, new, shared):
    params = {"embedding": table(old), "other": np.ones(3)}
    carried = stage_weights.carried_over(params, old, new, {})
    assert carried["embedding"].shape == (new.vocabulary.rows, 64)
    for stream, level in shared:
        np.testing.assert_array_equal(rows(carried, new, stream, level), rows(params, old, stream, level))
    np.testing.assert_array_equal(carried["embedding"][new.vocabulary.bos], params["embedding"][old.vocabulary.bos])
    assert carried["other"] is params["other"]


def test_the_same_vocabulary_changes_nothing():
    params = {"embedding": table(SEMANTIC)}
    assert stage_weights.carried_over(params, SEMANTIC, SEMANTIC, {}) is params


def test_similar_melodies_start_with_similar_rows():
    """Distances between rows of a window's codes match the codebook's; windows differ by a constant vector."""
    rng = np.random.default_rng(1)
    codebooks = rng.normal(size=(24, miniature.CODES, 48)).astype(np.float32)
    codebooks[0, 1] = codebooks[0, 0] + 1e-3  # two entries that are almost equal
    params = {"embedding": table(SEMANTIC, width=2048)}
    carried = stage_weights.carried_over(params, SEMANTIC, MELODIC, {"melody": codebooks})
    size = np.sqrt(np.mean(params["embedding"] ** 2))
    of_level = [rows(carried, MELODIC, "melody", level) for level in range(6)]  # two RVQ levels of three windows
    for level, own in enumerate(of_level):
        entries = codebooks[level // 3] - codebooks[level // 3].mean(axis=0)
        centred, wanted = own - own.mean(axis=0), entries @ entries.T
        np.testing.assert_allclose(centred @ centred.T / 2048, size**2 * wanted, atol=0.12 * 48)
        assert np.corrcoef((centred @ centred.T).ravel(), wanted.ravel())[0, 1] > 0.99
    first, second = of_level[0], of_level[1]
    assert np.abs(first[0] - first[1]).max() < 0.02 * np.abs(first[0]).max()
    apart = second - first
    np.testing.assert_allclose(apart, np.broadcast_to(apart[:1], apart.shape), atol=1e-4)
    assert np.std(apart[0]) == pytest.approx(size * stage_weights.WINDOW_SHARE * 2**0.5, rel=0.1)
    np.testing.assert_allclose(of_level[4] - of_level[3], apart, atol=1e-4)


@pytest.mark.parametrize("gain, strength", [(0.3, 1), (-0.06, 5), (0.001, stage_weights.MOST_STRENGTH)])
def test_the_melody_has_the_same_strength_as_in_a_new_stage(gain, strength):
    codebooks = {"melody": np.random.default_rng(1).normal(size=(24, miniature.CODES, 8)).astype(np.float32)}
    params = {"embedding": table(SEMANTIC)}
    plain = stage_weights.carried_over(params, SEMANTIC, MELODIC, codebooks)
    params["condition_gain"] = np.array([gain], np.float32)
    carried = stage_weights.carried_over(params, SEMANTIC, MELODIC, codebooks)
    for level in range(6):
        expected = strength * rows(plain, MELODIC, "melody", level)
        np.testing.assert_allclose(rows(carried, MELODIC, "melody", level), expected, rtol=1e-5)
    np.testing.assert_array_equal(rows(carried, MELODIC, "mulan", 0), rows(plain, MELODIC, "mulan", 0))


def test_without_codebooks_the_melodys_rows_are_drawn_with_the_others_scale():
    params = {"embedding": 3.0 * table(SEMANTIC)}
    carried = stage_weights.carried_over(params, SEMANTIC, MELODIC, {})
    own = np.concatenate([rows(carried, MELODIC, "melody", level) for level in range(6)])
    assert np.std(own) == pytest.approx(3.0, rel=0.05)


def test_a_run_with_melodies_starts_from_the_bundles_semantic_stage(tmp_path):
    """`--start_from`: all weights except the table are the bundle's; the melody's rows come from its codebooks."""
    bundle = bundles.load(miniature.melodic(tmp_path / "bundle"))
    learner = StageLearner(miniature.MELODIC, miniature.TRANSFORMER, OptimizerConfig())
    own = bundle.part("semantic").variables["params"]
    params = train.weights_of(bundle, learner)["params"]
    assert params["layers"] is own["layers"]
    semantic = miniature.STAGES["semantic"]
    np.testing.assert_array_equal(rows(params, miniature.MELODIC, "mulan", 11), rows(own, semantic, "mulan", 11))
    codebooks = melody.entries(*bundle.part("melody"))
    expected = stage_weights.carried_over(own, semantic, miniature.MELODIC, {"melody": codebooks})
    np.testing.assert_array_equal(params["embedding"], expected["embedding"])
    without = stage_weights.carried_over(own, semantic, miniature.MELODIC, {})
    assert (params["embedding"] != without["embedding"]).any()


def test_new_codes_have_the_meaning_of_the_old_ones():
    rng = np.random.default_rng(0)
    params = {"embedding": table(SEMANTIC), "other": np.ones(3)}
    before = rng.integers(0, miniature.CODES - 1, (4000, 2))  # the last code is never seen
    renamed = rng.permutation(miniature.CODES - 1)
    after = np.stack([renamed[before[:, 0]], before[:, 1]], axis=1)
    new = stage_weights.with_new_codes(params, SEMANTIC, "mulan", before, after)

    def meaning(parameters, codes):
        return sum(rows(parameters, SEMANTIC, "mulan", level)[codes[:, level]] for level in range(2))

    wanted, got = meaning(params, before), meaning(new, after)
    assert np.mean((got - wanted) ** 2) < 0.01 * np.mean((meaning(params, after) - wanted) ** 2)
    # Rows of other streams are unchanged, and so are rows of unseen codes.
    np.testing.assert_array_equal(rows(new, SEMANTIC, "semantic", 0), rows(params, SEMANTIC, "semantic", 0))
    np.testing.assert_allclose(rows(new, SEMANTIC, "mulan", 1)[-1], rows(params, SEMANTIC, "mulan", 1)[-1], atol=1e-5)
    assert new["other"] is params["other"]
    with pytest.raises(ValueError, match="same n examples"):
        stage_weights.with_new_codes(params, SEMANTIC, "mulan", before, after[:5])
