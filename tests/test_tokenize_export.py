"""`musiclm tokenize` and `musiclm export` on miniature models and a corpus of noise."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import miniature
import numpy as np
import pytest
import record_folders
import tensorflow as tf

from musiclm_jax import bundles
from musiclm_jax.bundles import encode
from musiclm_jax.bundles.encode import Tokenizers
from musiclm_jax.corpus import leads
from musiclm_jax.data import audio, clip_arrays, records
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.launch import export, main, tokenize, train
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.tokenizers import melody, mulan, quantization, w2v_bert
from musiclm_jax.tokenizers.melody import MelodyLearner
from musiclm_jax.tokenizers.mulan import MulanLearner
from musiclm_jax.tokenizers.soundstream.learner import SoundStreamLearner
from musiclm_jax.tokenizers.w2v_bert.learner import W2vBertLearner
from musiclm_jax.training import checkpoints
from musiclm_jax.training.optimizers import OptimizerConfig

CLIPS = {"train": 18, "validation": 2, "test": 1}


def noise(seed, seconds=1.0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(24_000 * seconds)).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for split, count in CLIPS.items():
        for shard in range(2):
            with tf.io.TFRecordWriter(str(records.shard_path(folder, split, shard, 2))) as writer:
                for index in range(shard, count, 2):
                    example = records.audio_example(
                        id=f"{split}/{index}",
                        audio=noise(index),
                        caption=["a slow piano", "the piano", "a jig"],
                        aspects=["piano", "slow" if index % 2 else "jig"],
                        composition=f"piece {index}",
                        kind="jig",
                        instrument="piano",
                        texture="solo",
                        key="G major",
                        bpm=100.0,
                        held_out_pair=0,
                        pitch_class=np.full(25, -1),
                        gain_db=0.0,
                    )
                    writer.write(example)
    return folder


def run(capsys, *arguments):
    code = main.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_token_records_hold_the_streams_of_the_clips(corpus, tmp_path, capsys):
    options = ["tokenize", "--bundle", miniature.path(), "--corpus", corpus, "--output", tmp_path, "--batch_size", "4"]
    code, _, err = run(capsys, *options)
    assert code == 0 and "tokenize (21 clips): done" in err, err
    tokenizers = Tokenizers.from_bundle(bundles.load(miniature.path()))
    for split, count in CLIPS.items():
        tokens = list(records.read_token_records(records.shard_paths(tmp_path, split)))
        assert len(tokens) == count
        for record in tokens:
            index = int(record["id"].split("/")[1])
            assert record["caption"] == ["a slow piano", "the piano", "a jig"] and record["instrument"] == "piano"
            if index < 2:
                streams = tokenizers.tokenize(np.round(noise(index)[None] * 32767).astype(np.float32) / 32767)
                for name, codes in streams.items():
                    np.testing.assert_array_equal(record[name], codes[0])

    # Running the command again only fills in what is missing.
    shards = sorted(tmp_path.glob("*.tfrecord"))
    times = {path: path.stat().st_mtime_ns for path in shards}
    shards[0].unlink()
    code, _, err = run(capsys, *options)
    assert code == 0 and "6 shards, 5 of them done already" in err
    assert [path.stat().st_mtime_ns == times[path] for path in shards] == [False] + [True] * 5

    # All tokens in one file.
    code, _, err = run(capsys, *options, "--npz", tmp_path / "all.npz")
    assert code == 0 and "all.npz: 18 clips of train, 2 clips of validation, 1 clips of test" in err
    tokens = list(records.read_token_records(records.shard_paths(tmp_path, "train")))
    found = clip_arrays.tokens(tmp_path / "all.npz", "train")
    np.testing.assert_array_equal(found["acoustic"], np.stack([record["acoustic"] for record in tokens]))
    code, _, err = run(capsys, *options, "--npz", tmp_path / "all.zip")
    assert code == 2 and "the name of the file must end with .npz" in err


def test_tokens_of_captions_match_their_texts(corpus, tmp_path, capsys):
    options = ["tokenize", "--bundle", miniature.path(), "--corpus", corpus, "--output", tmp_path, "--batch_size", "4"]
    code, _, err = run(capsys, *options, "--captions", "4")
    assert code == 0, err
    part = bundles.load(miniature.path()).mulan()
    texts = ["a slow piano", "the piano", "a jig", "a slow piano"]  # there are three, so the first is repeated
    expected = mulan.tokens(*part, mulan.embed_text(*part, texts), "text")
    for split, count in CLIPS.items():
        tokens = list(records.read_token_records(records.shard_paths(tmp_path, split)))
        assert len(tokens) == count
        for record in tokens:
            np.testing.assert_array_equal(record["caption_mulan"], expected)


def test_empty_captions_have_no_codes():
    made = Tokenizers.from_bundle(bundles.load(miniature.path()))
    clips = [{"caption": captions} for captions in ([""], ["a jig", " "], [], ["the piano"])]
    codes = tokenize.caption_codes(made, clips, 2)
    assert [len(own) for own in codes] == [0, 1, 0, 2] and all(own.shape[1:] == (12,) for own in codes)
    np.testing.assert_array_equal(codes[1], made.caption_codes(["a jig"]))
    np.testing.assert_array_equal(codes[3], made.caption_codes(["the piano"] * 2))
    assert [own.shape for own in tokenize.caption_codes(made, clips[:1], 3)] == [(0, 12)]


def test_tokens_of_two_tokenizers_are_not_mixed(corpus, tmp_path, capsys):
    other = miniature.copy(tmp_path / "other")
    config, variables = bundles.load(other).part("w2v_bert")
    bundles.save_part(other, "w2v_bert", config, variables | {"centroids": 2 * variables["centroids"]})
    (tmp_path / "tokens").mkdir()
    mine = {
        part: bundles.load(miniature.path()).config["parts"][part]["sha256"]
        for part in ("soundstream", "w2v_bert", "mulan")
    }
    (tmp_path / "tokens" / "tokenizers.json").write_text(json.dumps(mine))
    code, _, err = run(capsys, "tokenize", "--bundle", other, "--corpus", corpus, "--output", tmp_path / "tokens")
    assert code == 2 and "another w2v_bert than" in err and err.count("\n") == 1


def test_a_melody_model_adds_its_tokens_and_the_others_can_be_reused(corpus, tmp_path, capsys, monkeypatch):
    first, second = tmp_path / "tokens", tmp_path / "with_melody"
    assert run(capsys, "tokenize", "--bundle", miniature.path(), "--corpus", corpus, "--output", first)[0] == 0
    bundle = miniature.melodic(tmp_path / "melodic")
    for name in ("encode_semantic", "encode_acoustic", "encode_mulan"):
        monkeypatch.setattr(encode, name, lambda *_: pytest.fail("made again"))
    command = ["tokenize", "--bundle", bundle, "--corpus", corpus, "--output", second, "--reuse", first]
    code, _, err = run(capsys, *command)
    assert code == 0 and "kept from" in err and "semantic, acoustic, mulan" in err, err
    part = bundles.load(bundle).part("melody")
    sound = {clip["id"]: clip["audio"] for clip in records.read_audio_records(records.shard_paths(corpus, "test"))}
    before, after = (list(records.read_token_records(records.shard_paths(f, "test"))) for f in (first, second))
    for old, new in zip(before, after, strict=True):
        for name in ("semantic", "acoustic", "mulan"):
            np.testing.assert_array_equal(new[name], old[name])
        assert len(old["melody"]) == 0
        np.testing.assert_array_equal(new["melody"], melody.tokens(*part, sound[new["id"]][None])[0])


def test_melody_tokens_can_come_from_the_lead_alone(corpus, tmp_path, capsys, monkeypatch):
    heard, tune = {}, 0.5 * np.sin(np.arange(SAMPLE_RATE) / 20).astype(np.float32)

    def performed(clip_id, audio, pitch_class):
        heard[clip_id] = pitch_class
        return tune

    monkeypatch.setattr(leads, "performed", performed)
    bundle = miniature.melodic(tmp_path / "melodic")
    options = ["tokenize", "--bundle", bundle, "--corpus", corpus, "--output", tmp_path / "tokens"]
    assert run(capsys, *options, "--sung")[0] == 0
    made = Tokenizers.from_bundle(bundles.load(bundle))
    sound = {clip["id"]: clip["audio"] for clip in records.read_audio_records(records.shard_paths(corpus, "test"))}
    for record in records.read_token_records(records.shard_paths(tmp_path / "tokens", "test")):
        audio = sound[record["id"]]
        own, sung = made.tokenize(audio[None]), made.tokenize(tune[None])
        np.testing.assert_array_equal(record["melody"], sung["melody"][0])
        assert (sung["melody"] != own["melody"]).any()
        for name in ("semantic", "acoustic", "mulan"):
            np.testing.assert_array_equal(record[name], own[name][0])
        np.testing.assert_array_equal(heard[record["id"]], np.full(25, -1))
    # Tokens of other audio are neither mixed with them nor mistaken for them.
    code, _, err = run(capsys, *options)
    assert code == 2 and "another melody than" in err
    code, _, err = run(capsys, *options[:-1], tmp_path / "own", "--reuse", tmp_path / "tokens")
    assert code == 0 and "semantic, acoustic, mulan\n" in err
    [record] = records.read_token_records(records.shard_paths(tmp_path / "own", "test"))
    np.testing.assert_array_equal(record["melody"], made.tokenize(sound[record["id"]][None])["melody"][0])


def test_an_unknown_lead_is_not_sung(corpus, tmp_path, capsys):
    code, _, err = run(
        capsys, "tokenize", "--bundle", miniature.path(), "--corpus", corpus, "--output", tmp_path / "a", "--sung"
    )
    assert code == 2 and "has no melody model" in err
    (tmp_path / "songs").mkdir()
    audio.write(tmp_path / "songs" / "a.wav", noise(0, 1.0))
    options = ["--corpus", tmp_path / "songs", "--clip_seconds", "1", "--shards", "1", "--output", tmp_path / "b"]
    bundle = miniature.melodic(tmp_path / "melodic")
    code, _, err = run(capsys, "tokenize", "--bundle", bundle, *options, "--sung")
    assert code == 2 and "clip a.wav@0 has no pitch classes of a lead" in err


def test_tokens_of_other_clips_are_not_reused(corpus, tmp_path, capsys):
    (tmp_path / "songs").mkdir()
    audio.write(tmp_path / "songs" / "a.wav", noise(0, 1.0))
    options = ["--corpus", tmp_path / "songs", "--clip_seconds", "1", "--shards", "1", "--bundle", miniature.path()]
    assert run(capsys, "tokenize", *options, "--output", tmp_path / "old")[0] == 0
    (tmp_path / "songs" / "a.wav").rename(tmp_path / "songs" / "b.wav")
    command = ["tokenize", *options, "--output", tmp_path / "new", "--reuse"]
    code, _, err = run(capsys, *command, tmp_path / "old")
    assert code == 2 and "has no clip b.wav@0: give tokens of the same corpus" in err
    code, _, err = run(capsys, *command, tmp_path / "nothing")
    assert code == 2 and "tokenizers.json is damaged or cannot be read" in err


def test_a_folder_of_sound_files_becomes_records(tmp_path, capsys):
    (tmp_path / "songs" / "deep").mkdir(parents=True)
    audio.write(tmp_path / "songs" / "a.wav", noise(0, 2.5))
    audio.write(tmp_path / "songs" / "deep" / "b.flac", noise(1, 1.0))
    audio.write(tmp_path / "songs" / "short.ogg", noise(2, 0.5))
    (tmp_path / "songs" / "broken.mp3").write_text("no sound")
    (tmp_path / "songs" / "a.txt").write_text("a slow piano\n\nthe piano\n")
    options = ["--corpus", tmp_path / "songs", "--output", tmp_path / "tokens", "--clip_seconds", "1", "--shards", "1"]
    code, _, err = run(capsys, "tokenize", "--bundle", miniature.path(), *options)
    assert code == 0, err
    assert "short.ogg is shorter" in err and "broken.mp3: not a sound file" in err
    clips = {}
    for split in records.SPLITS:
        for record in records.read_token_records(records.shard_paths(tmp_path / "tokens", split)):
            clips[record["id"]] = record
    assert sorted(clips) == ["a.wav@0", "a.wav@1", "deep/b.flac@0"]
    assert clips["a.wav@1"]["caption"] == ["a slow piano", "the piano"] and clips["deep/b.flac@0"]["caption"] == [""]
    assert clips["a.wav@0"]["composition"] == "a.wav" and clips["a.wav@0"]["semantic"].shape == (25,)


@pytest.mark.parametrize(
    "content, message", [(None, "no such folder"), ([], "neither .tfrecord files nor audio files")]
)
def test_tokenize_refuses_a_folder_without_music(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "c").mkdir()
    options = ["--corpus", tmp_path / "c", "--output", tmp_path / "tokens"]
    code, _, err = run(capsys, "tokenize", "--bundle", miniature.path(), *options)
    assert code == 2 and message in err and err.count("\n") == 1


def training_run(folder, learner):
    """Writes a run's folder like `musiclm train`, with random parameters; returns the state."""
    state = jax.tree.map(jnp.asarray, miniature.random_like(learner.init, jax.random.key(0)))
    folder.mkdir(parents=True)
    for name, content in train.config_files(learner).items():
        (folder / name).write_text(content, encoding="utf-8")
    with checkpoints.open_manager(folder) as manager:
        checkpoints.save(manager, 7, state, checkpoints.Position())
        manager.wait_until_finished()
    return state


def close(loaded, expected):
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


def test_export_of_a_stage(tmp_path, capsys):
    on_tpus = dataclasses.replace(miniature.TRANSFORMER, attention="flash")  # but bundles run on any machine
    learner = StageLearner(miniature.STAGES["coarse"], on_tpus, OptimizerConfig())
    state = training_run(tmp_path / "run", learner)
    options = ["--model_dir", tmp_path / "run", "--bundle", tmp_path / "b"]
    code, out, err = run(capsys, "export", "--family", "coarse", *options)
    assert code == 0 and "checkpoint of step 7" in err and "coarse 0.0" in out and "in all" in out
    config, variables = bundles.load(tmp_path / "b").part("coarse")
    assert config.stage == learner.stage and config.transformer == miniature.TRANSFORMER
    close(variables["params"], state.params)

    code, _, err = run(capsys, "export", "--family", "fine", *options)
    assert code == 2 and "trained the coarse stage, not the fine one" in err
    code, _, err = run(capsys, "export", "--family", "soundstream", *options)
    assert code == 2 and "a training run of stage, not of soundstream" in err


def test_export_of_soundstream_takes_the_averaged_parameters(tmp_path, capsys):
    state = training_run(tmp_path / "run", SoundStreamLearner(miniature.SOUNDSTREAM))
    options = ["--model_dir", tmp_path / "run", "--bundle", tmp_path / "b", "--max_seconds", "12"]
    options += ["--guidance", "2", "3", "--temperature", "1", "0.7", "0.4"]
    assert run(capsys, "export", "--family", "soundstream", *options)[0] == 0
    bundle = bundles.load(tmp_path / "b")
    assert bundle.part("soundstream").config == miniature.SOUNDSTREAM and bundle.generation.max_seconds == 12
    assert bundle.generation.guidance == (2, 3) and bundle.generation.temperature == (1, 0.7, 0.4)
    assert bundle.generation.top_p == 1  # options that are not given are unchanged
    close(bundle.part("soundstream").variables, {"params": state.ema_params, "codebooks": state.rvq.codebooks})


def test_export_of_w2v_bert_fits_the_clusters(corpus, tmp_path, capsys):
    training_run(tmp_path / "run", W2vBertLearner(miniature.W2V_BERT))
    options = ["--model_dir", tmp_path / "run", "--bundle", tmp_path / "b", "--corpus", corpus, "--clips", "9"]
    assert run(capsys, "export", "--family", "w2v_bert", *options)[0] == 0
    part = bundles.load(tmp_path / "b").part("w2v_bert")
    codes = jax.jit(w2v_bert.semantic_tokens, static_argnums=0)(*part, np.stack([noise(0), noise(2)]))
    assert len(np.unique(codes)) > miniature.CODES // 2


def test_clips_of_a_fit_are_drawn_at_random(corpus):
    """A fixed stride would skip instruments, since the corpus cycles through them."""

    def drawn(clips, seed):
        return [clip["id"] for *_, batch in export.corpus_batches(str(corpus), clips, seed) for clip in batch]

    everything = drawn(0, 0)
    assert len(set(everything)) == CLIPS["train"] and everything == drawn(99, 1)
    half = drawn(9, 0)
    assert len(set(half)) == 9 and half == drawn(9, 0) != drawn(9, 1)
    places = np.array([everything.index(name) for name in half])
    assert len(set(np.diff(places))) > 1


def test_export_of_mulan_fits_the_quantizer_and_writes_candidates(corpus, tmp_path, capsys):
    vocab = miniature.write_vocab(tmp_path / "words.txt")
    training_run(tmp_path / "run", MulanLearner(miniature.MULAN, vocab=str(vocab)))
    options = ["--model_dir", tmp_path / "run", "--bundle", tmp_path / "b", "--corpus", corpus]
    code, out, _ = run(capsys, "export", "--family", "mulan", *options)
    assert code == 0 and "text_encoder" in out and "tokens of text equal to those of audio" in out
    bundle = bundles.load(tmp_path / "b")
    assert bundle.file("vocab.txt").read_bytes() == vocab.read_bytes()
    part = bundle.mulan()
    codes = mulan.tokens(*part, mulan.embed_text(*part, ["a slow piano"]), "text")
    assert codes.shape == (1, 12)
    assert json.loads((tmp_path / "b" / "tags.json").read_text())["tags"] == ["jig", "piano", "slow"]


def test_export_of_a_melody_model_fits_its_pitch_classes(tmp_path, capsys):
    """16 codes are fitted to the 96 parts of 24 renditions: close to their pitch classes, and not all from one."""
    folder = record_folders.rendition_folder(tmp_path / "renditions")
    config = dataclasses.replace(
        miniature.MELODY, semitones=True, lowest_pitch=48, mel_window=2048, mel_floor=1e-3, chroma_parts=4
    )
    training_run(tmp_path / "run", MelodyLearner(config))
    options = ["--model_dir", tmp_path / "run", "--bundle", tmp_path / "b", "--corpus", folder, "--family", "melody"]
    assert run(capsys, "export", *options)[0] == 0
    config, variables = bundles.load(tmp_path / "b").part("melody")
    assert variables["codebooks"].shape == (20, 16, 8)
    audio = np.concatenate(
        [row["renditions"] for row in records.read_rendition_records(records.shard_paths(folder, "train"))]
    )
    heard = np.asarray(melody.chroma(config, audio)).reshape(-1, 12)
    codebook = variables["chroma_codebook"][None]
    codes = quantization.encode(codebook, heard)
    assert len(heard) == 96 and len(np.unique(codes)) > 8
    assert np.mean((quantization.decode(codebook, codes) - heard) ** 2) < 0.5 * np.var(heard)


def test_export_of_the_melody_model_fits_the_quantizer(tmp_path, capsys):
    folder = record_folders.rendition_folder(tmp_path / "renditions")
    learner = MelodyLearner(miniature.MELODY)
    state = training_run(tmp_path / "run", learner)
    options = ["--model_dir", tmp_path / "run", "--bundle", tmp_path / "b", "--corpus", folder]
    code, out, _ = run(capsys, "export", "--family", "melody", *options)
    assert code == 0 and "melody 0.0" in out
    config, variables = bundles.load(tmp_path / "b").part("melody")
    assert config == miniature.MELODY
    close(variables["params"], state.params)
    # The codebooks are fitted to all 24 renditions of the training split, with 16 codes at each level.
    audio = np.concatenate(
        [row["renditions"] for row in records.read_rendition_records(records.shard_paths(folder, "train"))]
    )
    vectors = melody.embed(config, variables, audio)[:, 0]
    decoded = quantization.decode(variables["codebooks"], quantization.encode(variables["codebooks"], vectors))
    assert np.mean((decoded - vectors) ** 2) < 0.01 * np.var(vectors)

    code, _, err = run(capsys, "export", "--family", "melody", *options, "--clips", "3")
    assert code == 2 and "12 windows of renditions for codebooks of 16 entries: give more renditions" in err
    short = record_folders.rendition_folder(tmp_path / "short", samples=2400)
    code, _, err = run(capsys, "export", "--family", "melody", *options[:-1], short)
    assert code == 2 and "holds renditions of 2400 samples, the model's window is 96000" in err


def test_export_recognizes_a_semantic_stage_that_follows_a_melody(tmp_path, capsys):
    learner = StageLearner(miniature.MELODIC, miniature.TRANSFORMER, OptimizerConfig())
    state = training_run(tmp_path / "run", learner)
    options = ["--model_dir", tmp_path / "run", "--bundle", tmp_path / "b"]
    code, _, err = run(capsys, "export", "--family", "semantic", *options)
    assert code == 2 and "trained the semantic_melody stage, not the semantic one: give --family semantic_melody" in err
    assert run(capsys, "export", "--family", "semantic_melody", *options)[0] == 0
    bundle = bundles.load(tmp_path / "b")
    assert list(bundle.config["parts"]) == ["semantic_melody"]
    close(bundle.part("semantic_melody").variables["params"], state.params)
    training_run(
        tmp_path / "plain", StageLearner(miniature.STAGES["semantic"], miniature.TRANSFORMER, OptimizerConfig())
    )
    code, _, err = run(capsys, "export", "--family", "semantic_melody", "--model_dir", tmp_path / "plain", *options[2:])
    assert code == 2 and "trained the semantic stage, not the semantic_melody one" in err


def test_export_refuses_bad_runs(tmp_path, capsys):
    options = ["--model_dir", tmp_path / "run", "--bundle", tmp_path / "b"]
    code, _, err = run(capsys, "export", "--family", "coarse", *options)
    assert code == 2 and "give the model_dir of a `musiclm train` run" in err and err.count("\n") == 1
    code, _, err = run(capsys, "export", "--family", "mulan", *options)
    assert code == 2 and "give --corpus" in err
    assert not (tmp_path / "b").exists()
