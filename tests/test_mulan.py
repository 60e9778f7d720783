"""MuLan's audio tower, loss, learner, embeddings and shared quantizer."""

import dataclasses

import jax
import jax.numpy as jnp
import miniature
import numpy as np
import pytest

from musiclm_jax import bundles
from musiclm_jax.launch import train
from musiclm_jax.tokenizers import mulan
from musiclm_jax.tokenizers.mulan import MulanConfig, MulanLearner, contrastive
from musiclm_jax.tokenizers.mulan.audio_tower import AudioTower, features
from musiclm_jax.tokenizers.mulan.learner import drop_words
from musiclm_jax.training.optimizers import OptimizerConfig

TINY = MulanConfig(
    window_seconds=0.5, stride_seconds=0.25, mel_window=512, mel_hop=480, mel_fft_size=512, num_mels=32, stem_width=8,
    stem_stride=4, stem_pool=False, stage_widths=(8, 16), stage_blocks=(1, 1), bottleneck=False, norm_groups=4,
    vocab_size=13, text_width=24, text_layers=1, text_heads=2, text_mlp=32, text_positions=16, max_text_tokens=8,
    projection_hidden=0, tune_text_encoder=False, embedding_dim=16, num_quantizers=4, codebook_size=8,
)  # fmt: skip
VOCAB = "\n".join(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "low", "high", "tone", "loud", "soft", "a", "of", "the"]
)
ADAM = OptimizerConfig("adamw", 3e-3, "constant", warmup_steps=0)


@pytest.fixture
def vocab(tmp_path):
    (tmp_path / "vocab.txt").write_text(VOCAB)
    return str(tmp_path / "vocab.txt")


def tones(hertz, samples=12_000):
    return np.stack([0.3 * np.sin(2 * np.pi * hz * np.arange(samples) / 24_000) for hz in hertz]).astype(np.float32)


def tone_batch():
    ids, mask = mulan.tokenize_texts(VOCAB.encode(), ["low tone", "high tone", "loud tone", "soft tone"], 6)
    return {"audio": tones([150, 600, 2000, 6000]), "text_ids": ids, "text_mask": mask}


def test_audio_tower_of_the_paper_is_resnet_50():
    config = MulanConfig()
    shapes = jax.eval_shape(AudioTower(config).init, jax.random.key(0), jnp.zeros((1, 1000, config.num_mels)))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    head = sum(leaf.size for name in ("projection", "pooled_norm") for leaf in jax.tree.leaves(shapes[name]))
    # torchvision's resnet50 without its classifier, and with one input channel instead of three.
    assert count - head == 25_557_032 - (2048 * 1000 + 1000) - 2 * 7 * 7 * 64


def test_embeddings_of_a_clip_do_not_depend_on_the_batch():
    tower = AudioTower(TINY)
    mel = features(tones([200, 900, 4000]), TINY)
    variables = jax.jit(tower.init)(jax.random.key(0), mel)
    embed = jax.jit(tower.apply)  # op by op, compiling takes minutes
    together = embed(variables, mel)
    np.testing.assert_allclose(jnp.linalg.norm(together, axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(embed(variables, mel[1:2]), together[1:2], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-2


def test_loss_is_ln_batch_at_chance_and_zero_when_perfect():
    eye = jnp.eye(8)
    same = jnp.eye(8, dtype=bool)
    loss, metrics = contrastive.contrastive_loss(jnp.ones((8, 8)) / 8**0.5, eye, jnp.float32(10.0), same)
    np.testing.assert_allclose([loss, metrics["contrastive/ln_batch"]], np.log(8), rtol=1e-5)
    loss, metrics = contrastive.contrastive_loss(eye, eye, jnp.float32(50.0), same)
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    assert metrics["contrastive/text_to_audio_top_1"] == 1


def test_loss_on_hand_computed_numbers():
    audio = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    text = jnp.array([[1.0, 0.0], [0.6, 0.8]])
    loss, _ = contrastive.contrastive_loss(audio, text, jnp.float32(1.0), jnp.eye(2, dtype=bool))
    rows = [np.log(1 + np.exp(0.6 - 1.0)), np.log(1 + np.exp(0.0 - 0.8))]  # audio to text: logits [[1, .6], [0, .8]]
    columns = [np.log(1 + np.exp(0.0 - 1.0)), np.log(1 + np.exp(0.6 - 0.8))]
    np.testing.assert_allclose(loss, (np.mean(rows) + np.mean(columns)) / 2, rtol=1e-5)


def test_equal_texts_are_positives_of_each_other():
    positives = contrastive.same_text(jnp.array([[2, 5, 3], [2, 6, 3], [2, 5, 3]]))
    np.testing.assert_array_equal(positives, [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    embeddings = jnp.eye(2)[jnp.array([0, 1, 0])]
    loss, metrics = contrastive.contrastive_loss(embeddings, embeddings, jnp.float32(50.0), positives)
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    assert metrics["contrastive/audio_to_text_top_1"] == 1
    diagonal, _ = contrastive.contrastive_loss(embeddings, embeddings, jnp.float32(50.0), jnp.eye(3, dtype=bool))
    np.testing.assert_allclose(diagonal, 2 / 3 * np.log(2), rtol=1e-4)


def test_recall_counts_ties_against_the_positive():
    similarities = jnp.array([[3.0, 2.0, 1.0], [2.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    positives = jnp.eye(3, dtype=bool)
    found = [float(contrastive.recall_at(similarities, positives, k)) for k in (1, 2, 3)]
    np.testing.assert_allclose(found, [1 / 3, 2 / 3, 1.0])


def test_training_learns_pairs_and_does_not_change_the_frozen_encoder():
    learner = MulanLearner(TINY, ADAM, gain_db=1.0, drop_words=0.0, mask_mels=2, mask_frames=2)
    state = start = jax.jit(learner.init)(jax.random.key(0))
    batch = tone_batch()
    step, evaluate = jax.jit(learner.train_step), jax.jit(learner.eval_step)
    before = evaluate(state, batch, jax.random.key(0))["loss"]
    for i in range(60):
        state, metrics = step(state, batch, jax.random.key(i))
    after = evaluate(state, batch, jax.random.key(0))
    assert before > 0.7 and after["loss"] < 0.1 and after["contrastive/text_to_audio_top_1"] == 1
    assert int(state.step) == 60 and np.isfinite(metrics["gradient_norm"])
    assert float(state.params["log_scale"]) != float(start.params["log_scale"])
    jax.tree.map(np.testing.assert_array_equal, start.frozen, state.frozen)
    kernels = sum(leaf.shape == (24, 32) for leaf in jax.tree.leaves(state.opt_state))
    assert kernels == 0, "the optimizer has moments for the frozen encoder"


def test_tuned_encoder_gets_gradients():
    learner = MulanLearner(dataclasses.replace(TINY, tune_text_encoder=True), ADAM)
    state = jax.jit(learner.init)(jax.random.key(0))
    assert not state.frozen
    after, _ = jax.jit(learner.train_step)(state, tone_batch(), jax.random.key(1))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params["text"], after.params["text"])
    assert moved["layer_0"]["query"]["kernel"] > 0 and moved["words"]["embedding"] > 0


@pytest.mark.parametrize("tune", [False, True])
def test_a_run_started_from_a_bundle_has_its_towers(tune):
    bundle = bundles.load(miniature.path())
    config = dataclasses.replace(miniature.MULAN, tune_text_encoder=tune)
    learner = MulanLearner(config, ADAM, initial_scale=5.0)
    state = jax.tree.map(jnp.asarray, miniature.random_like(learner.init, jax.random.key(0)))
    zeros = jax.tree.map(jnp.zeros_like, state).replace(opt_state=state.opt_state)
    variables = train.weights_of(bundle, learner)
    started = learner.start_from(zeros, variables)
    assert jax.tree.structure(started) == jax.tree.structure(state) and bool(started.frozen) is not tune

    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (2, config.window_samples)).astype(np.float32)
    texts = ["a slow piano", "jig"]
    ids, mask = mulan.tokenize_texts(np.asarray(variables["vocab"]).tobytes(), texts, config.max_text_tokens)
    batch = {"audio": audio, "text_ids": ids, "text_mask": mask}
    heard, read = jax.jit(lambda state: learner.embed(state.params, state.frozen, batch, None))(started)
    np.testing.assert_allclose(heard, mulan.embed_audio(*bundle.mulan(), audio), atol=1e-4)
    np.testing.assert_allclose(read, mulan.embed_text(*bundle.mulan(), texts), atol=1e-5)
    # Optimizer and temperature belong to the new run.
    assert float(started.params["log_scale"]) == 0.0 and started.opt_state is state.opt_state


def test_scale_is_clipped():
    learner = MulanLearner(TINY, ADAM, max_scale=20.0)
    state = jax.jit(learner.init)(jax.random.key(0))
    state = state.replace(params=state.params | {"log_scale": jnp.float32(9.0)})
    np.testing.assert_allclose(
        jax.jit(learner.eval_step)(state, tone_batch(), jax.random.key(0))["contrastive/scale"], 20.0, rtol=1e-5
    )


def test_word_dropout_keeps_special_tokens():
    mask = jnp.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]] * 200)
    dropped = np.asarray(drop_words(jax.random.key(0), mask, 0.5))
    np.testing.assert_array_equal(dropped[1::2], mask[1::2])
    np.testing.assert_array_equal(dropped[::2, [0, 3, 4, 5]], mask[::2, [0, 3, 4, 5]])
    assert 0.4 < dropped[::2, 1:3].mean() < 0.6


@pytest.fixture
def variables(vocab):
    learner = MulanLearner(TINY, ADAM, vocab=vocab)
    return learner.variables(jax.jit(learner.init)(jax.random.key(0)))


def test_audio_is_embedded_as_the_mean_of_its_windows(variables):
    audio = np.random.default_rng(0).normal(0, 0.1, (2, 12_000 + 2 * 6_000 + 100)).astype(np.float32)
    audio[:, 9_000:] = tones([400, 3000], audio.shape[1] - 9_000)
    windows = [mulan.embed_audio(TINY, variables, audio[:, s : s + 12_000]) for s in (0, 6_000, 12_000)]
    assert np.abs(windows[0] - windows[2]).max() > 1e-2
    mean = np.mean(windows, axis=0)
    expected = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    np.testing.assert_allclose(mulan.embed_audio(TINY, variables, audio), expected, atol=1e-5)


def test_short_audio_is_repeated(variables):
    audio = tones([500], 5_000)
    repeated = np.tile(audio, (1, 3))[:, :12_000]
    np.testing.assert_allclose(
        mulan.embed_audio(TINY, variables, audio), mulan.embed_audio(TINY, variables, repeated), atol=1e-6
    )
    for shape in ((12_000,), (1, 0)):
        with pytest.raises(ValueError, match="expected \\[batch, samples\\]"):
            mulan.embed_audio(TINY, variables, np.zeros(shape, np.float32))


def test_text_embeddings(variables):
    texts = ["low tone", "a high tone", "soft " * 3000] + ["loud tone"] * 16
    embedded = mulan.embed_text(TINY, variables, texts)
    assert embedded.shape == (19, 16)
    np.testing.assert_allclose(jnp.linalg.norm(embedded, axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(mulan.embed_text(TINY, variables, ["a high tone"]), embedded[1:2], atol=1e-5)
    np.testing.assert_allclose(embedded[18], embedded[3], atol=1e-5)
    for texts, message in (([], "at least one"), ("jig", "sequence"), (["tone", " "], "text 1 is empty")):
        with pytest.raises(ValueError, match=message):
            mulan.embed_text(TINY, variables, texts)


def paired_embeddings(n=600, noise=0.1):
    """Returns unit vectors of two modalities that share 8 topics, but differ in their mean, basis and scale."""
    rng = np.random.default_rng(0)
    topic = rng.normal(size=(8, 6))[rng.integers(0, 8, n)]

    def modality():
        x = (topic + noise * rng.normal(size=(n, 6))) @ rng.normal(size=(6, 16)) + 3 * rng.normal(size=16)
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    return modality(), modality()


def test_text_tokens_match_the_tokens_of_matching_audio(variables):
    audio, text = paired_embeddings()
    with pytest.raises(ValueError, match="call fit_quantizer"):
        mulan.tokens(TINY, variables, audio, "audio")
    fitted = mulan.fit_quantizer(TINY, variables, audio[:400], text[:400], jax.random.key(0))
    codes = {name: mulan.tokens(TINY, fitted, x[400:], name) for name, x in (("audio", audio), ("text", text))}
    assert codes["audio"].shape == (200, 4) and codes["audio"].dtype == jnp.int32
    assert mulan.token_agreement(codes["audio"], codes["text"])[0] > 0.9
    assert np.mean(codes["audio"][:, None, 0] == codes["text"][None, :, 0]) < 0.3, "by chance"
    with pytest.raises(ValueError, match="expected one of"):
        mulan.tokens(TINY, fitted, audio, "melody")


def test_agreement_by_hand():
    audio = jnp.array([[0, 1], [0, 2], [1, 3], [1, 4]])
    text = jnp.array([[0, 5], [0, 5], [1, 5], [0, 4]])
    np.testing.assert_allclose(mulan.token_agreement(audio, text), [0.75, 0.25])
    with pytest.raises(ValueError, match="differ"):
        mulan.token_agreement(audio, text[:3])


def test_relabelled_codes_keep_their_old_numbers():
    rng = np.random.default_rng(0)
    codebooks = rng.normal(size=(2, 4, 3)).astype(np.float32)
    names = np.array([2, 0, 3, 1])
    new = rng.integers(0, 4, (100, 2))
    old = np.stack([names[new[:, 0]], new[:, 1]], axis=1)
    renamed = mulan.relabelled({"codebooks": codebooks, "more": 1}, new, old)
    np.testing.assert_allclose(renamed["codebooks"][0][names], codebooks[0])
    np.testing.assert_allclose(renamed["codebooks"][1], codebooks[1])
    assert renamed["more"] == 1
