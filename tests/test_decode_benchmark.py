"""The arithmetic of benchmarks/decode.py and decode_plan.py."""

import pytest

from benchmarks import decode, decode_plan
from musiclm_jax.data.tokens import SEMANTIC, STAGES
from musiclm_jax.stages import layout
from musiclm_jax.stages.transformer import TransformerConfig

SMALL = TransformerConfig(num_layers=1, num_heads=2, d_model=16, d_ff=24, dropout=0.0)


@pytest.mark.parametrize(
    ("name", "steps", "windows"), [("semantic", 750, 1), ("coarse", 30 * 200, 1), ("fine", 1200, 10)]
)
def test_decoding_steps_for_half_a_minute(name, steps, windows):
    stage = getattr(layout, f"{name}_stage")()
    assert decode_plan.steps_of(stage, SEMANTIC.frames(stage.seconds), 30.0) == (steps, windows)


def test_a_pieces_time_is_the_sum_of_its_stages():
    rows = [decode_plan.Row(name, "v5e:2x2", 4, 1e9, 1e9, 0.5, 2.0, "HBM", 500) for name in STAGES]
    lines = decode_plan.table(rows).splitlines()
    assert lines[2] == "| semantic, v5e:2x2 | 4 | 50% | 1.00 | 1.00e+09 | 2.00 (HBM) | 500 | 1.0 |"
    assert lines[-1].startswith("| all stages, v5e:2x2: 4 pieces a chip |") and lines[-1].endswith("| 3.0 |")
    assert len(decode_plan.table(rows[:2]).splitlines()) == 4  # no sum if a stage is missing


def test_bytes_per_step():
    params = decode.random_params(SMALL, 64, 0)
    kernels = 16 * 48 + 16 * 16 + 3 * 16 * 24
    floats = kernels + 3 * 16 + 32 * 2 + 1024 * 16 + 2 * 3 * 256 * 16
    assert decode.step_bytes(SMALL, params, 256, 3) == 4 * floats


def test_parties_take_turns():
    calls = []
    times = {"a": iter([9.0, 1.0, 2.0]), "b": iter([3.0, 3.0, 3.0])}
    parties = {name: lambda name=name: calls.append(name) or next(times[name]) for name in times}
    assert decode.turns(parties, 3) == {"a": 2.0, "b": 3.0}
    assert calls == ["a", "b"] * 3


def test_a_step_of_the_stage_is_timed_again_and_again():
    params = decode.random_params(SMALL, layout.coarse_stage().vocabulary.rows, 0)
    run = decode.stage_step(SMALL, params, 512, 1)
    assert all(0 < run() < 1 for _ in range(3))
