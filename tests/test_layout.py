import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.data.tokens import TokenStream
from musiclm_jax.stages.layout import (
    Stage,
    StreamSlice,
    assemble,
    coarse_stage,
    condition_ids,
    fine_stage,
    semantic_stage,
    slice_codes,
    split,
)

SMALL = {
    "mulan_quantizers": 2,
    "mulan_codebook_size": 10,
    "semantic_codebook_size": 20,
    "acoustic_quantizers": 3,
    "acoustic_codebook_size": 100,
    "full_vocabulary": True,
}
# 0.04 s: one semantic frame, two acoustic frames.
# Ids: mulan 0.. and 10.., semantic 20.., acoustic 40.., 140.., 240..; bos 340.
BATCH = {
    "mulan": np.array([[3, 4]], np.int32),
    "semantic": np.array([[7]], np.int32),
    "acoustic": np.array([[[1, 2, 3], [4, 5, 6]]], np.int32),
}


def ids_of(stage, batch):
    """Returns the whole sequence: decoder inputs without bos, then the last target token."""
    lm = assemble(stage, batch)
    target, size = stage.target, stage.stream(stage.target.stream).codebook_size
    last = stage.vocabulary.offset(target.stream, target.last_level) + lm.target_codes[:, -1, -1:]
    assert size > int(lm.target_codes.max())
    return jnp.concatenate([lm.decoder_input_tokens[:, 1:], last], axis=1)


def test_paper_lengths_and_vocabulary():
    lengths = [(s.condition_length(), s.target_length()) for s in (semantic_stage(), coarse_stage(), fine_stage())]
    assert lengths == [(12, 750), (262, 2000), (600, 1200)]
    for stage in (semantic_stage(), coarse_stage(), fine_stage()):
        assert (stage.vocabulary.bos, stage.vocabulary.rows) == (25_600, 25_728)


def test_semantic_literal():
    lm = assemble(semantic_stage(seconds=0.04, **SMALL), BATCH)
    assert lm.decoder_input_tokens.tolist() == [[340, 3, 14]]
    assert lm.target_codes.tolist() == [[[7]]]
    assert lm.valid.all() and lm.loss_weights.tolist() == [[[1.0]]]


def test_coarse_literal():
    lm = assemble(coarse_stage(seconds=0.04, coarse_quantizers=2, **SMALL), BATCH)
    assert lm.decoder_input_tokens.tolist() == [[340, 3, 14, 27, 41, 142, 44]]
    assert lm.target_codes.tolist() == [[[1, 2], [4, 5]]]


def test_coarse_without_semantic_literal():
    lm = assemble(coarse_stage(seconds=0.04, coarse_quantizers=2, use_semantic=False, **SMALL), BATCH)
    assert lm.decoder_input_tokens.tolist() == [[340, 3, 14, 41, 142, 44]]


def test_fine_literal():
    lm = assemble(fine_stage(seconds=0.04, coarse_quantizers=2, **SMALL), BATCH)
    assert lm.decoder_input_tokens.tolist() == [[340, 41, 142, 44, 145, 243]]
    assert lm.target_codes.tolist() == [[[3], [6]]]


def test_only_the_streams_and_levels_in_use_without_the_full_vocabulary():
    stage = coarse_stage(seconds=0.04, coarse_quantizers=2, **{**SMALL, "full_vocabulary": False})
    assert [(s.name, s.quantizers) for s in stage.streams] == [("mulan", 2), ("semantic", 1), ("acoustic", 2)]
    assert (stage.vocabulary.bos, stage.vocabulary.rows) == (240, 256)
    fine = fine_stage(seconds=0.04, coarse_quantizers=2, **{**SMALL, "full_vocabulary": False})
    assert assemble(fine, BATCH).decoder_input_tokens.tolist() == [[300, 1, 102, 4, 105, 203]]


@pytest.mark.parametrize("make", [semantic_stage, coarse_stage, fine_stage])
def test_split_is_the_inverse(make):
    arguments = {"coarse_quantizers": 2} if make is not semantic_stage else {}
    stage = make(seconds=0.4, **SMALL, **arguments)
    rng = np.random.default_rng(0)
    batch = {
        "mulan": rng.integers(0, 10, (3, 2)),
        "semantic": rng.integers(0, 20, (3, 10)),
        "acoustic": rng.integers(0, 100, (3, 20, 3)),
    }
    batch["acoustic"][1, 5] = -1  # padding
    streams = split(stage, ids_of(stage, batch))
    assert set(streams) == {part.stream for part in (*stage.conditioning, stage.target)}
    for name, codes in streams.items():
        expected = batch[name] if codes.ndim < 3 else batch[name][:, :, : codes.shape[2]]
        np.testing.assert_array_equal(codes, expected)


def test_split_reads_ids_of_another_level_as_padding():
    stage = coarse_stage(seconds=0.04, coarse_quantizers=2, **SMALL)
    streams = split(stage, jnp.array([[3, 14, 27, 41, 142, 41, 41]]))
    assert streams["acoustic"].tolist() == [[[1, 2], [1, -1]]]


def test_padding_has_no_weight_and_is_masked():
    stage = coarse_stage(seconds=0.04, coarse_quantizers=2, **SMALL)
    lm = assemble(stage, BATCH | {"acoustic": np.array([[[1, 2, 3], [-1, -1, -1]]])})
    assert lm.loss_weights.tolist() == [[[1, 1], [0, 0]]]
    assert lm.valid.tolist() == [[True] * 6 + [False]]
    masked = assemble(stage, BATCH | {"acoustic_mask": np.array([[True, False]])})
    jax.tree.map(np.testing.assert_array_equal, masked, lm)
    without_text = assemble(stage, BATCH | {"mulan_mask": np.array([False])})
    assert without_text.valid.tolist() == [[True, False, False, True, True, True, True]]


def test_condition_dropout_replaces_streams_per_clip():
    stage = coarse_stage(seconds=0.04, coarse_quantizers=2, condition_dropout=0.5, **SMALL)
    ids, valid = condition_ids(stage, BATCH, jnp.array([True]))
    assert ids.tolist() == [[340, 340, 27]] and valid.all()
    # Dropped streams become visible even where they were masked; time-varying streams keep their masks.
    masked = BATCH | {"mulan_mask": np.array([False]), "semantic_mask": np.array([[False]])}
    for drop, seen in ((True, [[True, True, False]]), (False, [[False, False, False]])):
        ids, valid = condition_ids(stage, masked, jnp.array([drop]))
        assert ids.tolist() == [[340, 340, 340]] and valid.tolist() == seen
    rows = 2000
    many = {name: np.repeat(codes, rows, 0) for name, codes in BATCH.items()}
    tokens = assemble(stage, many, jax.random.key(0)).decoder_input_tokens
    assert 0.45 < float(jnp.mean(tokens[:, 1] == 340)) < 0.55
    np.testing.assert_array_equal(tokens[:, 1] == 340, tokens[:, 2] == 340)
    assert not (assemble(stage, many).decoder_input_tokens[:, 1] == 340).any()


def test_times_are_in_acoustic_frames():
    stage = coarse_stage(seconds=0.08, coarse_quantizers=2, **SMALL)
    assert stage.times().tolist() == [-1, -1, -1, 0, 2, 0, 0, 1, 1, 2, 2, 3, 3]


def test_spans_say_for_how_many_targets_a_frame_holds():
    stage = coarse_stage(seconds=0.08, coarse_quantizers=2, **SMALL)
    assert stage.spans() == ((1, 2, 8, ()), (2, 1, 4, ()))
    assert stage.spans((1, 4, 8)) == ((1, 2, 16, ()), (4, 1, 4, ()))
    assert fine_stage(seconds=0.04, **SMALL | {"acoustic_quantizers": 12}).spans() == ((2, 4, 8, ()),)
    # Each level lists the codes of the melody's three windows in turn; windows begin 3 s apart.
    melodic = semantic_stage(seconds=10, melody_quantizers=6, melody_codebook_size=8, **SMALL)
    assert melodic.spans() == ((1, 2, 250, ()), (1, 6, 75, ((0, 3), (1, 4), (2, 5), (2, 5))))
    # Here the levels encode consecutive seconds of a window; the fourth is not read.
    melodic = semantic_stage(seconds=10, melody_quantizers=9, melody_codebook_size=8, melody_parts=4, **SMALL)
    firsts = [(0,), (3,), (6,), (1,), (4,), (7,), (2,), (5,), (8,), ()]  # 4 s and a hop of 3: seconds 0 to 9
    assert melodic.spans()[1] == (1, 9, 25, tuple(firsts))
    melodic = semantic_stage(seconds=10, melody_quantizers=15, melody_codebook_size=8, melody_parts=4, **SMALL)
    assert melodic.spans()[1].slots[4] == (4, 13) and melodic.spans()[1].slots[9] == (11, 14)
    longer = dataclasses.replace(melodic, seconds=13.0)  # the last codes apply until the end
    assert longer.spans()[1].slots[9:] == ((11, 14),) * 4
    with pytest.raises(ValueError, match="has 4 levels, expected a multiple of its 3 windows"):
        semantic_stage(melody_quantizers=4)
    reversed_rates = dataclasses.replace(
        stage, conditioning=(StreamSlice("acoustic", 0, 0),), target=stage.conditioning[1]
    )
    with pytest.raises(ValueError, match="'acoustic' has 50 frames a second, expected a divisor of 25"):
        reversed_rates.spans()


def test_json_restores_a_stage():
    stage = coarse_stage(condition_dropout=0.1)
    assert Stage(**json.loads(json.dumps(dataclasses.asdict(stage)))) == stage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"semantic": np.zeros((1, 2), int)}, "2 frames, stage 'coarse' expects 1"),
        ({"acoustic": np.zeros((1, 2, 1), int)}, r"shape \(1, 2, 1\), expected .* more than 1 quantizers"),
    ],
)
def test_wrong_batches_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        assemble(coarse_stage(seconds=0.04, coarse_quantizers=2, **SMALL), BATCH | change)


def test_missing_streams_are_named():
    stage = coarse_stage(seconds=0.04, coarse_quantizers=2, **SMALL)
    with pytest.raises(ValueError, match="needs stream 'acoustic', the batch has"):
        slice_codes(stage, stage.target, {"semantic": BATCH["semantic"]})


def test_wrong_stages_are_named():
    stream = TokenStream("acoustic", 50, 3, 100)
    with pytest.raises(ValueError, match=r"level 3 of stream 'acoustic' does not exist, expected 0\.\.2"):
        Stage("coarse", 1.0, (stream,), (), StreamSlice("acoustic", 0, 3))
    with pytest.raises(ValueError, match="'semantic' is not in the vocabulary"):
        Stage("coarse", 1.0, (stream,), (StreamSlice("semantic", 0, 0),), StreamSlice("acoustic", 0, 1))
    with pytest.raises(ValueError, match="no stream per clip to drop"):
        Stage("fine", 1.0, (stream,), (), StreamSlice("acoustic", 0, 1), condition_dropout=0.1)
