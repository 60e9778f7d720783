"""`musiclm bootstrap`: sizes, clips of a corpus that grows, programs compiled ahead, and what the pack holds."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time

import gin
import jax
import jax.numpy as jnp
import miniature
import numpy as np
import pytest

from musiclm_jax import bootstrap, bundles
from musiclm_jax.bootstrap import corpus as bootstrap_corpus
from musiclm_jax.bootstrap import kept_tokens, programs, resident
from musiclm_jax.bootstrap.learners import constant
from musiclm_jax.bootstrap.sizes import TRAININGS, Sizes, cpu, rehearsal
from musiclm_jax.corpus import human_captions
from musiclm_jax.corpus import pack as corpus_pack
from musiclm_jax.corpus.human_captions import HumanCaption
from musiclm_jax.data import audio
from musiclm_jax.launch import bootstrap as launch_bootstrap
from musiclm_jax.launch import main
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.tokenizers import mulan
from musiclm_jax.tokenizers.mulan import MulanLearner
from musiclm_jax.tokenizers.soundstream.learner import SoundStreamLearner
from musiclm_jax.tokenizers.w2v_bert.learner import W2vBertLearner
from musiclm_jax.training.optimizers import OptimizerConfig

ROOT = pathlib.Path(__file__).parent.parent
SAMPLES = bootstrap.CLIP_SAMPLES
TEXTS = ["a slow piano", "the piano", "a jig on the fiddle", "slow", "organ", "the fiddle"]
SMALL = Sizes(
    blocks=2, block=4, leads_every=2, validation=2, workers=1, compilers=1, at_once=2, texts=3, text_length=12
)  # fmt: skip


def vocab() -> bytes:
    return bundles.load(miniature.path()).file("vocab.txt").read_bytes()


@pytest.mark.parametrize("sizes", [Sizes(), cpu(), rehearsal()], ids=["gpu", "cpu", "rehearsal"])
def test_sizes_cover_all_trainings_and_fit_together(sizes):
    for field in (sizes.share, sizes.batch, sizes.steps):
        assert set(field) == set(TRAININGS) and min(field.values()) > 0
    assert tuple(sizes.share) == TRAININGS, "the order of training"
    assert sum(sizes.share.values()) == pytest.approx(1.0, abs=0.01)
    assert set(sizes.seconds) == {"soundstream", "decoder", "w2v_bert", "mulan"}
    assert max(sizes.seconds.values()) <= SAMPLES / 24_000
    assert sizes.validation <= sizes.block and sizes.block % sizes.leads_every == 0
    assert sizes.human_texts + 2 < sizes.texts, "captions have a place, too"


@pytest.mark.parametrize("count", [3, 8, 11])
def test_programs_of_clips_take_any_number_of_them(count):
    clips = np.random.default_rng(0).integers(-32768, 32768, (count, 50)).astype(np.int16)

    def function(scale, sound):
        assert sound.shape == (4, 50)
        return scale * jnp.stack([sound.sum(-1), sound.max(-1)], -1)

    found = programs.in_parts(programs.of_clips(function), 4)(jnp.float32(3), clips)
    sound = clips / 32_767
    np.testing.assert_allclose(found, 3 * np.stack([sound.sum(-1), sound.max(-1)], -1), rtol=1e-4, atol=1e-4)


def test_projected_sentence_vectors_are_mulans_embeddings_of_the_texts():
    config, variables = bundles.load(miniature.path()).mulan()
    ids, _ = mulan.tokenize_texts(vocab(), TEXTS, 12)
    read = programs.in_parts(programs.sentence_vectors(config), 4)  # of 6 texts: two rows are padding
    vectors = read(variables["text"], ids.astype(np.int16))
    assert vectors.shape == (6, config.text_width) and vectors.dtype == jnp.float16
    found = programs.project(config, variables["projection"], vectors.reshape(3, 2, -1))
    expected = np.asarray(mulan.embed_text(config, variables, TEXTS)).reshape(3, 2, -1)
    np.testing.assert_allclose(found, expected, atol=3e-3)  # the vectors have 16 bits


def test_constant_keeps_the_peak_rate_and_all_else():
    optimizer = OptimizerConfig(name="adamw", learning_rate=3e-3, schedule="cosine", warmup_steps=5, total_steps=50)
    changed = constant(optimizer)
    assert dataclasses.replace(changed, schedule="cosine") == optimizer
    rates = [float(changed.make_schedule()(step)) for step in (0, 4, 5, 49, 10_000)]
    np.testing.assert_allclose(rates, [6e-4, 3e-3, 3e-3, 3e-3, 3e-3], rtol=1e-5)


def learners() -> dict:
    adam = OptimizerConfig(name="adamw", learning_rate=1e-3, schedule="constant", warmup_steps=0)
    found = {
        "soundstream": SoundStreamLearner(miniature.SOUNDSTREAM),
        "w2v_bert": W2vBertLearner(miniature.W2V_BERT),
        "mulan": MulanLearner(miniature.MULAN),
        "semantic_melody": StageLearner(miniature.MELODIC, miniature.TRANSFORMER, adam),
    }
    return found | {n: StageLearner(stage, miniature.TRANSFORMER, adam) for n, stage in miniature.STAGES.items()}


def test_programs_know_the_shapes_of_what_a_training_draws_from():
    made = programs.Programs(SMALL, learners(), {}, print)
    shapes = {name: {key: value.shape for key, value in made.data(name).items()} for name in learners()}
    assert shapes["soundstream"] == shapes["w2v_bert"] == {"audio": (4, SAMPLES), "clips": ()}
    texts = {"text_ids": (4, 3, 12), "text_vectors": (4, 3, miniature.MULAN.text_width)}
    assert shapes["mulan"] == {"audio": (4, SAMPLES), "clips": ()} | texts
    stage = {"semantic": (8, 250), "mulan": (8, 12), "caption_mulan": (8, 3, 12)}
    assert shapes["semantic"] == stage
    assert shapes["coarse"] == stage | {"acoustic": (8, 500, 12)}
    assert shapes["fine"] == {"acoustic": (8, 500, 12)}
    # One clip in two has a lead that is sung.
    assert shapes["semantic_melody"] == {name: (4, *size[1:]) for name, size in stage.items()} | {"melody": (4, 72)}


def test_a_training_compiled_ahead_takes_its_steps():
    lines: list[str] = []

    def draw(key, data):
        return resident.draw_tokens(key, data, batch=2, stage=miniature.STAGES["fine"])

    made = programs.Programs(SMALL, learners(), {"fine": draw}, lines.append)
    made.training("fine")
    state = made.get("fine init")(jax.random.key(0, impl=programs.KEYS))
    data = {"acoustic": jnp.zeros((8, 500, 12), jnp.int16)}
    state, metrics = made.get("fine")(state, data, jax.random.key(1, impl=programs.KEYS), jnp.int32(0), jnp.float32(1))
    assert int(state.step) == SMALL.steps["fine"] and np.isfinite(float(metrics["loss"]))
    assert any(line.startswith("compiled fine in ") for line in lines)


def test_a_program_that_cannot_be_compiled_says_so_where_it_is_asked_for():
    made = programs.Programs(SMALL, {}, {}, print)
    made.ahead("sum", jax.jit(lambda a, b: a + b), *[jax.ShapeDtypeStruct((size,), jnp.float32) for size in (2, 3)])
    with pytest.raises(TypeError, match="shapes"):
        made.get("sum")


class Rendered:
    """Stands for RenderJob: clip n is full of n, and all are there at once."""

    def __init__(self, pack, work, seed, counts, workers, leads_every):
        def clips(numbers):
            return np.repeat(np.array(numbers, np.int16)[:, None], SAMPLES, axis=1)

        train = range(counts["train"])
        self.arrays = {
            "train.audio.int16": clips(train),
            "train.leads.int16": clips([100 + number for number in train[::leads_every]]),
            "validation.audio.int16": clips([50 + number for number in range(counts["validation"])]),
        }
        self.stopped = False

    def available(self, split):
        return len(self.arrays[f"{split}.audio.int16"])

    def metadata(self, split, n):
        facts = {"tempo": "slow", "mode": "major", "texture": "solo", "drums": False, "kind": "jig"}
        leads = ["fiddle", "piano"]
        return [
            facts | {"instrument": leads[i % 2], "caption": [f"a {leads[i % 2]}"], "aspects": ["slow"]}
            for i in range(n)
        ]

    def failed(self):
        pass

    def stop(self):
        self.stopped = True


@pytest.fixture
def grown(tmp_path, monkeypatch):
    """A corpus whose clips are rendered, with a sentence about pianos and a recording."""
    monkeypatch.setattr(bootstrap_corpus, "RenderJob", Rendered)
    sentence = HumanCaption("organ", "id", "train", "sentence", ("piano",), "slow")
    human_captions.save([sentence], tmp_path / bootstrap.HUMAN_FILE)
    tone = miniature.tone(10.0)
    audio.write_opus(tmp_path / bootstrap.MUSIC_FILE, [tone, 0.5 * tone])
    corpus = bootstrap_corpus.Corpus(SMALL, tmp_path, tmp_path / "work", 0, vocab(), lambda line: None)
    corpus.wait(SMALL.blocks)
    return corpus


def test_blocks_of_a_corpus_are_its_clips_and_texts_in_turn(grown):
    words = vocab().decode().split("\n")
    # Whoever reads the texts makes their vectors; blocks without them are not there yet.
    blocks, drawn = grown.blocks(texts=True), []
    grown.text_vectors.append(jnp.zeros((4, 3, 8)))
    first = [int(next(blocks)["audio"][0, 0]) for _ in range(2)]
    grown.text_vectors.append(jnp.ones((4, 3, 8)))
    assert first == [0, 0]
    for _ in range(4):
        block = next(blocks)
        assert block["audio"].dtype == jnp.int16 and int(block["clips"]) == 4
        drawn.append(np.asarray(block["audio"][:, 0]))
        assert (block["text_vectors"] == (drawn[-1][0] == 4)).all()
        texts = [
            [" ".join(words[i] for i in text[text > 0][1:-1]) for text in clip]
            for clip in np.asarray(block["text_ids"])
        ]
        # Sentences of people come first, for clips of which they are true; then aspects.
        assert [clip[0] for clip in texts] == ["slow", "organ", "slow", "organ"]
        assert all(set(clip) <= {"slow", "organ", "a fiddle", "a piano"} for clip in texts)
    np.testing.assert_array_equal(drawn, [[0, 1, 2, 3], [4, 5, 6, 7]] * 2)
    assert set(next(grown.blocks())) == {"audio", "clips"}
    np.testing.assert_array_equal(grown.leads()[:, 0], [100, 102, 104, 106])
    grown.close()
    assert grown.closed and grown._job.stopped


def test_blocks_wait_until_the_first_is_rendered(tmp_path, monkeypatch):
    class Slow(Rendered):
        def metadata(self, *arguments):
            time.sleep(0.5)
            return super().metadata(*arguments)

    monkeypatch.setattr(bootstrap_corpus, "RenderJob", Slow)
    human_captions.save([], tmp_path / bootstrap.HUMAN_FILE)
    corpus = bootstrap_corpus.Corpus(SMALL, tmp_path, tmp_path / "work", 0, vocab(), lambda line: None)
    assert not corpus.text_ids
    assert int(next(corpus.sounds())["clips"]) == 4


def test_the_codec_hears_recordings_every_eighth_time(grown):
    sounds = grown.sounds()
    first = [int(jnp.abs(next(sounds)["audio"]).max()) for _ in range(16)]
    assert [i for i, peak in enumerate(first) if peak > 100] == [7, 15]
    assert grown.music.shape == (4, SAMPLES)


def test_held_out_clips_have_texts(grown):
    sound, ids = grown.held_out()
    np.testing.assert_array_equal(sound[:, 0], [50, 51])
    assert ids.shape == (2, 3, 12) and (ids[:, :, 0] > 0).all()


def test_a_worker_that_fails_ends_the_run_with_its_text(tmp_path):
    human_captions.save([], tmp_path / bootstrap.HUMAN_FILE)  # but there is neither a score nor a sound font
    corpus = bootstrap_corpus.Corpus(SMALL, tmp_path, tmp_path / "work", 0, vocab(), print)
    try:
        with pytest.raises(RuntimeError, match=r"(?s)the corpus cannot be rendered: render worker 0 ended.*scores.npz"):
            corpus.wait(1)
        with pytest.raises(RuntimeError, match="wait for all blocks first"):
            corpus.held_out()
    finally:
        corpus.close()


def alike(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.astype(np.float64), other.astype(np.float64))[0, 1])


def test_recordings_fill_a_block(tmp_path):
    excerpts = [0.4 * np.sin(2 * np.pi * hz * np.arange(SAMPLES) / 24_000).astype(np.float32) for hz in (220, 700)]
    audio.write_opus(tmp_path / "music.ogg", excerpts)
    assert (tmp_path / "music.ogg").stat().st_size < 20 * 24_000
    found = bootstrap_corpus.recordings(tmp_path / "music.ogg", 5)
    assert found.shape == (5, SAMPLES) and found.dtype == np.int16
    for row, clip in enumerate(found):
        assert alike(clip, excerpts[row % 2]) > 0.95
        assert np.percentile(np.abs(clip), 99) == pytest.approx(0.4 * 32_768, rel=0.1)


def test_excerpts_of_recordings_are_packed(tmp_path, capsys):
    songs, rng = tmp_path / "songs", np.random.default_rng(0)
    (songs / "deep").mkdir(parents=True)
    audio.write(songs / "long.wav", 0.3 * rng.normal(size=24 * 24_000).clip(-3, 3))
    audio.write(songs / "deep" / "silent.flac", np.full(22 * 24_000, 1e-4, np.float32))
    audio.write(songs / "short.wav", miniature.tone(12.0))
    (songs / "broken.mp3").write_text("no sound")
    launch_bootstrap.pack_music(songs, tmp_path / "music.ogg", clips=4)
    out = capsys.readouterr().out
    assert "broken.mp3 cannot be read" in out and "excerpts of 2 recordings" in out
    found = bootstrap_corpus.recordings(tmp_path / "music.ogg", 1)
    assert np.sqrt(np.mean((found / 32_768) ** 2)) > 0.1, "what is silent is left out"
    assert 10 <= audio.seconds_of(tmp_path / "music.ogg") <= 40

    (songs / "long.wav").unlink()
    with pytest.raises(ValueError, match="songs holds only silence"):
        launch_bootstrap.pack_music(songs, tmp_path / "none.ogg", clips=4)
    (songs / "deep" / "silent.flac").unlink()
    with pytest.raises(ValueError, match="songs holds no recording of 20 s or more"):
        launch_bootstrap.pack_music(songs, tmp_path / "none.ogg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "/nowhere"], "--from needs --output, the folder for the bundle"),
        ([], "one of the arguments --pack --from is required"),
        (["--pack", "a", "--from", "b"], "not allowed with argument --pack"),
        (["--from", "/nowhere", "--output", "OUT"], "neither a folder with a config.json"),
        (["--from", "/nowhere", "--output", "OUT", "--parts", "coarse", "jazz"], "unknown parts jazz: choose from"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(arguments, message, tmp_path, capsys):
    arguments = [str(tmp_path / "out") if argument == "OUT" else argument for argument in arguments]
    try:
        code = main.main(["bootstrap", *arguments])
    except SystemExit as end:  # argparse ends the process
        code = end.code
    assert code == 2 and message in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def packed(tmp_path, monkeypatch, capsys):
    """What `musiclm bootstrap --pack` makes, but for scores and sound fonts, with the miniature text encoder."""
    monkeypatch.setattr(corpus_pack, "pack", lambda folder: folder.mkdir())
    bundle = miniature.melodic(tmp_path / "melodic")
    assert main.main(["bootstrap", "--pack", str(tmp_path / "pack"), "--bundle", str(bundle)]) == 0
    gin.clear_config()
    assert "pack: " in capsys.readouterr().out
    return tmp_path / "pack"


def test_a_pack_holds_configurations_text_encoder_and_melody(packed, tmp_path):
    names = {path.name for path in packed.iterdir()}
    assert names == {"learners.json", "bundle", "corpus", "human_captions.json"}
    assert human_captions.load(packed / bootstrap.HUMAN_FILE) == []
    seed = bundles.load(packed / bootstrap.SEED_BUNDLE)
    assert set(seed.config["parts"]) == {"text_encoder", "melody"}
    mine = bundles.load(miniature.path()).part("text_encoder").variables
    jax.tree.map(np.testing.assert_array_equal, seed.part("text_encoder").variables, mine)
    assert set(json.loads((packed / bootstrap.LEARNERS_FILE).read_text())) == set(TRAININGS)

    with pytest.raises(ValueError, match="has no mulan, semantic, soundstream, w2v_bert, required by semantic_melody"):
        bootstrap.Bootstrap(packed, tmp_path / "none", 1.0, SMALL, parts=["semantic_melody"])
    with pytest.raises(ValueError, match="has no soundstream, required by decoder"):
        bootstrap.Bootstrap(packed, tmp_path / "none", 1.0, SMALL, parts=["decoder"])

    made = bootstrap.Bootstrap(packed, tmp_path / "out", 1.0, dataclasses.replace(SMALL, dtype="bfloat16"))
    assert (tmp_path / "out" / "bootstrap.log").exists()
    for name in TRAININGS:
        assert made.learners[name].optimizer.schedule == "constant"
    coarse, decoder, joint = (made.learners[name] for name in ("coarse", "decoder", "mulan"))
    assert coarse.stage.name == "coarse" and coarse.config.dtype == "bfloat16" and coarse.config.scan_layers
    assert not decoder.train_encoder and decoder.adversarial and decoder.config.discriminator_channels == 16
    assert decoder.discriminator_optimizer.schedule == "constant"
    vectors = made.sizes.batch["decoder"] * made.sizes.seconds["decoder"] * 50
    assert decoder.config.dead_code_threshold == pytest.approx(0.2 * vectors / decoder.config.codebook_size)
    assert joint.text_weights is None and joint.vocab == str(packed / "bundle" / "vocab.txt")
    shares = {name: made.draws[name].keywords.get("caption_share") for name in ("coarse", "semantic_melody", "fine")}
    assert shares == {"coarse": 0.75, "semantic_melody": 0.75, "fine": 0.0}
    assert made.draws["mulan"].keywords == {"batch": 384, "samples": 120_000}
    assert made.key("a").dtype == made.key("b").dtype and not np.array_equal(
        *map(jax.random.key_data, map(made.key, "ab"))
    )


def test_an_interrupted_stage_continues_and_a_finished_one_replaces_it(packed, tmp_path):
    made = bootstrap.Bootstrap(packed, tmp_path / "out", 1.0, SMALL)
    made.learners["fine"] = learner = learners()["fine"]
    initial = resident.unboxed_init(learner, jax.random.key(0))
    assert made._begun("fine", initial) is initial, "nothing is there yet"

    def state(value: float):
        return initial.replace(params=jax.tree.map(lambda leaf: jnp.full_like(leaf, value), initial.params))

    def begun() -> set[float]:
        return {float(leaf.ravel()[0]) for leaf in jax.tree.leaves(made._begun("fine", initial).params)}

    made._save_stage("fine", state(1.0))
    assert begun() == {1.0}
    made._save_unfinished("fine", state(2.0))
    assert begun() == {2.0} and not made._has("coarse", made.unfinished)
    made._save_stage("fine", state(3.0))
    assert begun() == {3.0} and not made.unfinished.exists()
    stored = bundles.load(made.bundle).part("fine").config.transformer
    assert stored.dtype == "float32" and not stored.round_products


def test_tokens_are_kept_for_the_same_clips_and_tokenizers(tmp_path):
    bundle = bundles.load(miniature.path())
    own = kept_tokens.settings(SMALL, 0, bundle)
    path = tmp_path / kept_tokens.FILE
    assert kept_tokens.load(path, own) is None
    codes = {"semantic": jnp.arange(8, dtype=jnp.int16).reshape(2, 4), "mulan": jnp.ones((2, 12), jnp.int16)}
    held_out = {"semantic": jnp.zeros((1, 4), jnp.int16)}
    kept_tokens.save(path, own, codes, held_out)
    found = kept_tokens.load(path, own)
    for one, other in zip(found, (codes, held_out), strict=True):
        assert {name: value.dtype for name, value in one.items()} == dict.fromkeys(other, np.int16)
        jax.tree.map(np.testing.assert_array_equal, one, other)

    assert kept_tokens.load(path, kept_tokens.settings(SMALL, 1, bundle)) is None, "other clips"
    fewer = dataclasses.replace(SMALL, texts=2)
    assert kept_tokens.load(path, kept_tokens.settings(fewer, 0, bundle)) is None, "other texts"
    for part, depends in (("w2v_bert", True), ("mulan", True), ("coarse", False)):
        other = bundles.load(miniature.copy(tmp_path / part))
        other.config["parts"][part]["sha256"] = "0"
        assert (kept_tokens.load(path, kept_tokens.settings(SMALL, 0, other)) is None) is depends

    for place, depends in (("decoder", False), ("encoder", True)):
        folder = miniature.copy(tmp_path / place)
        config, variables = bundles.load(folder).part("soundstream")
        variables["params"][place] = jax.tree.map(lambda leaf: leaf + 1, variables["params"][place])
        bundles.save_part(folder, "soundstream", config, variables)
        found = kept_tokens.load(path, kept_tokens.settings(SMALL, 0, bundles.load(folder)))
        assert (found is None) is depends, place

    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"tokens.npz is damaged .*: delete it"):
        kept_tokens.load(path, own)


def test_a_bootstrap_needs_no_tensorflow_no_gin_and_no_sound_libraries():
    code = """
import sys
class Blocked:
    names = {"tensorflow", "seqio", "gin", "librosa", "soundfile", "music21", "pretty_midi"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import launch.bootstrap
from musiclm_jax import bootstrap
print("imported", *sorted(Blocked.names & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "imported\n", done.stderr
