"""Faulty stages are named, by their bits per level and what their conditioning saves."""

import dataclasses

import jax
import miniature
import numpy as np

from musiclm_jax.bundles import Part
from musiclm_jax.evaluation.diagnose import stage_bits
from musiclm_jax.evaluation.diagnose.finding import Finding
from musiclm_jax.stages import layout, transformer
from musiclm_jax.stages.config import StageModelConfig

CODES = miniature.CODES
STAGE = miniature.STAGES["coarse"]
CONFIG = dataclasses.replace(miniature.TRANSFORMER, aligned_condition=True)


def perfect_coarse_stage() -> Part:
    vocabulary = STAGE.vocabulary
    shapes = miniature.random_like(transformer.init_params, CONFIG, vocabulary.rows, jax.random.key(0))
    params = jax.tree.map(np.zeros_like, shapes)
    table = np.zeros((vocabulary.rows, CONFIG.d_model), np.float32)
    for code in range(CODES):
        table[vocabulary.offset("semantic") + code, code] = 8
        for level in range(4):
            table[vocabulary.offset("acoustic", level) + code, (code - level) % CODES] = 8
    params |= {"embedding": table, "condition_gain": np.full(1, 10.0, np.float32)}
    params["final_norm"] = jax.tree.map(np.ones_like, params["final_norm"])
    return Part(StageModelConfig(STAGE, CONFIG), {"params": params})


def coarse_clips(count: int = 8, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    frequencies = 0.7 ** np.arange(CODES)
    clips = []
    for number in range(count):
        semantic_codes = rng.choice(CODES, 50, p=frequencies / frequencies.sum())
        acoustic = (np.repeat(semantic_codes, 2)[:, None] + np.arange(12)) % CODES
        clips.append(
            {
                "semantic": semantic_codes,
                "acoustic": acoustic,
                "mulan": rng.integers(0, CODES, 12),
                "composition": str(number),
            }
        )
    return clips


def stage_findings(clips: list[dict]) -> dict[str, Finding]:
    train = [{name: clip[name] for name in ("semantic", "acoustic", "mulan")} for clip in clips]
    findings = stage_bits.diagnose_stage(perfect_coarse_stage(), clips, train, 0)
    return {f.name: f for f in findings}


def order(found: dict[str, Finding]) -> Finding:
    return next(finding for name, finding in found.items() if "order of the levels" in name)


def test_an_intact_stage_is_not_called_broken():
    found = stage_findings(coarse_clips())
    assert order(found).verdict == "ok"
    for level in range(1, 5):
        finding = found[f"bits per token, level {level}"]
        assert finding.verdict == "ok" and finding.value.value < 0.1
    assert found["condition_bits, semantic tokens"].verdict == "ok"
    assert found["condition_bits, semantic tokens"].value.value > 5
    assert found["condition_bits, mulan tokens"].verdict == "weak"  # this stage has no use for them


def test_a_stage_given_shuffled_semantic_tokens_is_named():
    rng = np.random.default_rng(0)
    clips = [clip | {"semantic": rng.permutation(clip["semantic"])} for clip in coarse_clips(16)]
    found = stage_findings(clips)
    finding = found["condition_bits, semantic tokens"]
    assert finding.verdict == "broken" and "does not read its semantic tokens" in finding.advice
    assert found["bits per token, level 1"].verdict == "broken"
    assert order(found).verdict == "ok"


def test_coarse_levels_out_of_order_are_named():
    clips = [clip | {"acoustic": clip["acoustic"][:, [1, 0, 2, 3, *range(4, 12)]]} for clip in coarse_clips()]
    found = stage_findings(clips)
    finding = order(found)
    assert finding.verdict == "broken" and finding.value == 2
    assert "level 1 predicts the codes of level 2, level 2 predicts the codes of level 1" in finding.advice
    assert [found[f"bits per token, level {level}"].verdict for level in (1, 2, 3, 4)] == [
        "broken",
        "broken",
        "ok",
        "ok",
    ]


def test_untrained_levels_are_not_called_out_of_order():
    rng = np.random.default_rng(0)
    train = rng.choice(CODES, (500, 12), p=np.arange(1, 17) / 136)
    even = np.full((4, CODES), 1 / CODES)
    assert stage_bits.level_order(STAGE, even, train).verdict == "ok"
    alike = rng.integers(0, CODES, (500, 12))  # with equal frequencies, the order of levels cannot be detected
    assert stage_bits.level_order(STAGE, even, alike).verdict == "ok"


def test_condition_bits_are_judged_against_the_saving_and_the_clip_entropy():
    rng = np.random.default_rng(0)

    def verdict(stage, stream, cost, saving=3.0, entropy=8.0):
        return stage_bits.condition_bits(stage, stream, cost + rng.normal(0, 0.01, 64), saving, entropy, 0).verdict

    coarse, semantic_stage = layout.coarse_stage(seconds=4.0), layout.semantic_stage(seconds=10.0)
    assert [verdict(coarse, "semantic", cost) for cost in (0, 0.158, 1.1)] == ["broken", "weak", "ok"]
    assert [verdict(coarse, "mulan", cost) for cost in (-0.1, 0.02)] == ["weak", "ok"]
    # 8 bits over 250 tokens are 0.032 bits per token.
    assert [verdict(semantic_stage, "mulan", cost) for cost in (-0.01, 0.01, 0.1)] == ["broken", "weak", "ok"]


def test_swapping_one_stream_keeps_the_others():
    own = {"semantic": np.zeros(6, int), "acoustic": np.zeros((12, 12), int), "mulan": np.zeros(12, int)}
    other = {name: codes + 1 for name, codes in own.items()}
    mixed = stage_bits.with_condition(layout.coarse_stage(), own, other, ["mulan"])
    assert mixed["mulan"].all() and not mixed["semantic"].any() and not mixed["acoustic"].any()
