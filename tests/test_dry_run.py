"""Dry run: two steps on synthetic data, their report, and errors if memory is too small."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
from toy_run import ToyLearner, WarmLearner

from musiclm_jax.planning import dry_run
from musiclm_jax.training import partitioning

BATCH = {"x": np.ones((4, 8), np.float32)}


def test_reports_parameters_time_rate_and_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = list(dry_run.report(WarmLearner(), BATCH, partitioning.make_mesh()))
    assert lines[0] == "dry run of toy: 8 parameters, mesh {'data': 1, 'fsdp': 1, 'tensor': 1}"
    assert re.fullmatch(r"first step: [\d.]+ s with compilation", lines[1])
    assert re.fullmatch(r"second step: \S+ s, \S+ steps/s, \S+ examples/s", lines[2]), "no MFU of a CPU"
    pattern = r"memory of a device: (\S+) GiB by the compiler: state and batch (\S+) GiB, temporaries (\S+) GiB; the "
    total, held, _ = (float(x) for x in re.match(pattern, lines[3]).groups())
    # The vector, its two moments, counters, the key, the batch.
    assert 4 * (3 * 8 + 4 * 8) < held * 2**30 < 2 * 4 * (3 * 8 + 4 * 8) and total >= held
    assert not list(tmp_path.iterdir())


@dataclasses.dataclass(frozen=True)
class Greedy(ToyLearner):
    """Needs more memory than available."""

    def train_step(self, state, batch, key):
        state, metrics = super().train_step(state, batch, key)
        big = jnp.sort(jnp.sin(jnp.arange(2**46, dtype=jnp.float32) * metrics["loss"]))
        return state, {"loss": big[3] + big[-1]}


def test_too_little_memory_has_a_clear_error():
    with pytest.raises(ValueError, match=r"a step does not fit into the devices' memory: .*microbatches"):
        list(dry_run.report(Greedy(), BATCH, partitioning.make_mesh()))
