"""The ablation without the semantic stage: its configuration, and music from MuLan tokens alone."""

import gin
import jax
import numpy as np
import pytest

from musiclm_jax.bundles import Part
from musiclm_jax.generation import windows
from musiclm_jax.generation.request import Request
from musiclm_jax.generation.windows import Conditions, Frames
from musiclm_jax.launch import train
from musiclm_jax.stages import layout, transformer
from musiclm_jax.stages.config import StageModelConfig


@pytest.fixture
def learners():
    found = {}
    for name in ("coarse_tiny.gin", "coarse_tiny_without_semantic.gin"):
        train.parse_gin([name], ["DATA_DIR = 'nowhere'"])
        with gin.unlock_config():
            gin.bind_parameter("coarse_task.data_dir", None)
        found[name] = gin.get_bindings("train")["learner"]
        gin.clear_config()
    return found


def test_the_configuration_removes_only_the_semantic_tokens(learners):
    full, without = learners.values()
    assert [part.stream for part in full.stage.conditioning] == ["mulan", "semantic"]
    assert [part.stream for part in without.stage.conditioning] == ["mulan"]
    assert without.stage.target == full.stage.target and without.stage.seconds == full.stage.seconds
    assert [stream.name for stream in without.stage.streams] == ["mulan", "acoustic"]
    assert without.config == full.config and without.optimizer.name == full.optimizer.name
    assert without.stage.condition_length() == full.stage.condition_length() - 100


def test_semantic_tokens_make_no_difference(monkeypatch):
    """Whatever the semantic tokens are, the stage is conditioned on the MuLan tokens only."""
    stage = layout.coarse_stage(seconds=0.8, mulan_codebook_size=16, use_semantic=False, full_vocabulary=False)
    part = Part(StageModelConfig(stage, transformer.TransformerConfig()), {"params": {}})
    given = []

    def sample_window(part, conditioning, prefix, frames, keys, sampling):
        ids, valid = layout.condition_ids(part.config.stage, conditioning)
        given.append(np.asarray(ids))
        assert np.asarray(valid).all()
        yield np.zeros((1, frames - prefix.shape[1], 4), np.int32)

    monkeypatch.setattr(windows, "sample_window", sample_window)
    keys, nothing = jax.random.split(jax.random.key(0), 1), np.zeros((1, 0, 4), np.int32)
    conditions = Conditions((0,), np.arange(12)[None, None])
    for code in (3, 5):
        semantic = Frames(np.full((1, 30, 1), code))
        list(windows.generate_coarse(part, conditions, semantic, nothing, 30, Request(), keys, windows.silent))
    assert len(given) == 4
    for ids in given:
        np.testing.assert_array_equal(ids, np.arange(12)[None] + 16 * np.arange(12))
