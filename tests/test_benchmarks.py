"""The arithmetic of benchmarks/, on literals; test_judges.py tests the judges."""

import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest

from benchmarks import generation, mulan_retrieval, paraphrases, report
from musiclm_jax.data.samples import level_db
from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.diagnose import codec, instruments, stage_bits
from musiclm_jax.evaluation.metrics import Estimate
from musiclm_jax.stages import layout

RATE = 24_000


def test_hits_is_one_for_a_perfect_match_and_chance_for_none():
    assert mulan_retrieval.hits(np.eye(40), draws=3, pool=20, seed=0).mean() == 1
    noise = np.random.default_rng(0).normal(size=(200, 200))
    assert mulan_retrieval.hits(noise, draws=40, pool=100, seed=0).mean() == pytest.approx(0.1, abs=0.03)


def test_hits_counts_ties_as_half_nearer():
    assert mulan_retrieval.hits(np.zeros((20, 20)), draws=2, pool=20, seed=0).mean() == 1  # 9.5 nearer: within ten
    assert mulan_retrieval.hits(np.zeros((24, 24)), draws=2, pool=24, seed=0).mean() == 0
    with pytest.raises(ValueError, match="there are 24 held-out clips, a pool needs 256"):
        mulan_retrieval.hits(np.zeros((24, 24)), draws=2, pool=256, seed=0)


RECORD = {
    "id": "test-00042", "instrument": "flute", "kind": "reel", "texture": "with drums",
    "aspects": ["flute", "fast tempo", "minor key", "drums"],
}  # fmt: skip


def test_a_paraphrase_states_the_clips_facts():
    text = paraphrases.paraphrase(RECORD)
    for part in (paraphrases.KINDS["reel"], "gloomy", "racing along", "snares"):
        assert part in text
    assert any(words in text for words in paraphrases.INSTRUMENTS["flute"])
    assert "sunny" not in text
    with pytest.raises(ValueError, match="kind 'tango' has no wording"):
        paraphrases.paraphrase(RECORD | {"kind": "tango"})


def test_paraphrases_cover_the_corpus():
    instruments = pytest.importorskip("musiclm_jax.corpus.instruments")
    arrangement = pytest.importorskip("musiclm_jax.corpus.arrangement")
    assert {lead.name for lead in instruments.LEADS} == set(paraphrases.INSTRUMENTS)
    assert set(arrangement.TEXTURES) == set(paraphrases.TEXTURES)


def test_repeated_words_are_found_by_stem(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"caption": ["A piper rang the gong."], "aspects": ["sails"]}\n')
    used = paraphrases.corpus_words(str(tmp_path))
    assert paraphrases.repeated_words(used) == {"piper", "gong"}
    with pytest.raises(ValueError, match="the corpus is not complete"):
        paraphrases.corpus_words(str(tmp_path / "nowhere"))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_opus_gets_better_with_more_bits():
    time = np.arange(3 * RATE) / RATE
    audio = sum(0.1 * np.sin(2 * np.pi * hz * time) for hz in (220, 277, 330, 1500)).astype(np.float32)
    few, few_rate = codec.opus(audio, 6)
    more, more_rate = codec.opus(audio, 48)
    assert 3 < few_rate < 12 < more_rate
    assert codec.distances(audio, more)[0] < codec.distances(audio, few)[0]
    assert codec.distances(audio, more)[1] > codec.distances(audio, few)[1] > 0
    assert codec.distances(audio, np.roll(audio, 300))[1] > 10  # a pure delay costs little after alignment


def test_with_condition_swaps_only_the_condition():
    own = {"semantic": np.zeros(6, int), "acoustic": np.zeros((12, 12), int), "mulan": np.zeros(12, int)}
    other = {name: codes + 1 for name, codes in own.items()}
    mixed = stage_bits.with_condition(layout.coarse_stage(), own, other)
    assert mixed["mulan"].all() and mixed["semantic"].all() and not mixed["acoustic"].any()
    mixed = stage_bits.with_condition(layout.fine_stage(), own, other)
    assert mixed["acoustic"][:, :4].all() and not mixed["acoustic"][:, 4:].any()
    assert not own["acoustic"].any()


def test_crops_are_aligned():
    record = {
        "semantic": np.arange(250),
        "acoustic": np.repeat(np.arange(500)[:, None], 12, axis=1),
        "mulan": np.arange(12),
    }
    crop = stage_bits.crop(record, layout.coarse_stage(seconds=4.0), np.random.default_rng(0))
    assert crop["semantic"].shape == (100,) and crop["acoustic"].shape == (200, 12)
    np.testing.assert_array_equal(crop["acoustic"][::2, 0], 2 * crop["semantic"])


def test_strangers_come_from_another_composition():
    names = ["a", "a", "b", "c", "c"]
    found = stage_bits.strangers(names, np.random.default_rng(0))
    assert all(names[i] != names[j] for i, j in enumerate(found))
    with pytest.raises(ValueError, match="one composition"):
        stage_bits.strangers(["a", "a"], np.random.default_rng(0))


def test_prompts_are_drawn_in_turns():
    facts = [(f"{name}{i}", name, 0) for name, count in (("piano", 9), ("flute", 2), ("harp", 1)) for i in range(count)]
    chosen = generation._in_turns(facts, 6)
    assert [name.rstrip("0123456789") for name in chosen] == ["flute", "harp", "piano", "flute", "piano", "piano"]
    assert len(generation._in_turns(facts, 99)) == 12


def test_level_and_clipping():
    tone = 0.5 * np.sin(2 * np.pi * 100 * np.arange(RATE) / RATE)
    assert level_db(tone) == pytest.approx(-9.03, abs=0.01)
    assert level_db(np.zeros(100)) < -100
    assert generation.clipped_share(np.clip(3 * tone, -0.9, 0.9)) > 0.3
    assert generation.clipped_share(np.random.default_rng(0).normal(0, 0.1, RATE)) == 0
    assert generation.clipped_share(np.zeros(100)) == 0


def test_figures_survive_the_file(tmp_path, capsys):
    figures = [
        report.Figure("key fit", Estimate(0.9, 0.85, 0.95), "> 0.53", True),
        report.Figure("silent clips", 3.0, "0", False, "of 128"),
    ]
    report.publish("demo", figures, str(tmp_path / "demo.json"), {"clips": np.int64(128)})
    assert report.read_published(tmp_path / "demo.json") == figures
    assert "| silent clips (of 128) | 3.000 | 0 | NO |" in capsys.readouterr().out


def test_clips_are_sampled_evenly_and_repeatably(tmp_path):
    records = pytest.importorskip("musiclm_jax.data.records")
    tf = pytest.importorskip("tensorflow")
    silence = np.zeros(10, np.float32)
    facts = {"caption": ["x"], "aspects": ["a"], "composition": "c", "kind": "k", "instrument": "i", "texture": "solo"}
    facts |= {"key": "", "bpm": 100.0, "held_out_pair": 0, "pitch_class": np.full(3, -1), "gain_db": 0.0}
    with tf.io.TFRecordWriter(str(records.shard_path(tmp_path, "test", 0, 1))) as writer:
        for index in range(30):
            writer.write(records.audio_example(id=f"test-{index:05d}", audio=silence, **facts))
    drawn = [r["id"] for r in report.sample_clips(str(tmp_path), "test", 8, seed=1)]
    assert len(set(drawn)) == 8 and drawn == sorted(drawn)
    assert drawn == [r["id"] for r in report.sample_clips(str(tmp_path), "test", 8, seed=1)]
    assert max(int(name[-5:]) for name in drawn) > 15
    assert len(report.sample_clips(str(tmp_path), "test", 99, seed=1)) == 30


def test_instrument_auc_with_hearings(monkeypatch):
    monkeypatch.setattr(instruments, "TAG_GROUPS", {"piano": ("piano",), "flute": ("flute",)})
    heard, asked = [], []
    for index in range(20):
        name = ("piano", "flute")[index % 2]
        tags = np.random.default_rng(index).uniform(0, 0.1, len(generation.judges.TAGS))
        tags[generation.judges.TAGS.index(name)] = 0.9
        heard.append(generation.judges.Hearing(tags, {"music": 1.0}, np.ones(12)))
        asked.append(name)
    overall, each = generation.instrument_auc(heard, asked, seed=0)
    assert overall == metrics.Estimate(1.0, 1.0, 1.0) and each == {"flute": 1.0, "piano": 1.0}
    overall, _ = generation.instrument_auc(heard, asked[::-1], seed=0)
    assert overall.value == 0


@pytest.mark.parametrize("name", ["semantic", "coarse", "fine"])
def test_clip_bits_are_the_learners(name):
    from musiclm_jax.stages.learner import StageLearner
    from musiclm_jax.stages.transformer import TransformerConfig
    from musiclm_jax.training.optimizers import OptimizerConfig

    sizes = {
        "mulan_codebook_size": 8,
        "semantic_codebook_size": 8,
        "acoustic_codebook_size": 8,
        "full_vocabulary": False,
    }
    stage = getattr(layout, f"{name}_stage")(seconds=0.4, **sizes)
    config = TransformerConfig(
        num_layers=1, num_heads=2, d_model=16, d_ff=16, attention_block_size=0, time_embedding=True
    )
    learner = StageLearner(stage, config, OptimizerConfig())
    state = nn.meta.unbox(learner.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    crops = [
        {"semantic": rng.integers(0, 8, 10), "acoustic": rng.integers(0, 8, (20, 12)), "mulan": rng.integers(0, 8, 12)}
        for _ in range(stage_bits.BATCH)
    ]
    found = stage_bits.measure(stage, config, state.params, crops)
    batch = {key: np.stack([c[key] for c in crops]).astype(np.int32) for key in crops[0]}
    expected = learner.eval_step(state, batch, jax.random.key(1))
    assert found.shape == (stage_bits.BATCH, stage.target.levels)
    assert found.mean() == pytest.approx(float(expected["bits"]), rel=1e-5)
    first = f"loss/level_{stage.target.first_level:02d}"
    assert found[:, 0].mean() * np.log(2) == pytest.approx(float(expected[first]), rel=1e-5)
    ragged = stage_bits.measure(stage, config, state.params, crops[:3])  # an incomplete batch
    np.testing.assert_allclose(ragged, found[:3], rtol=1e-5)
