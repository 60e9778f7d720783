"""w2v-BERT: masks, losses against NumPy, no leakage, frame counts, tokens, learning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.tokenizers.w2v_bert import W2vBert, W2vBertConfig
from musiclm_jax.tokenizers.w2v_bert import model as w2v_bert
from musiclm_jax.tokenizers.w2v_bert.learner import (
    W2vBertLearner,
    contrastive_loss,
    diversity_loss,
    draw_negatives,
    span_mask,
)
from musiclm_jax.training.optimizers import OptimizerConfig

SMALL = W2vBertConfig(
    num_mels=20,
    d_model=32,
    contrastive_layers=1,
    mlm_layers=2,
    num_heads=2,
    ffn_multiplier=2,
    codebook_size=16,
    codebook_dim=8,
    num_negatives=20,
    feature_layer=1,
    num_clusters=6,
    kmeans_iterations=5,
)


def _learner(config: W2vBertConfig = SMALL, **optimizer) -> W2vBertLearner:
    settings = {"name": "adamw", "learning_rate": 3e-3, "schedule": "constant", "warmup_steps": 0} | optimizer
    return W2vBertLearner(config=config, optimizer=OptimizerConfig(**settings))


@pytest.fixture(scope="module")
def params():
    return jax.jit(_learner().init)(jax.random.key(0)).params


@pytest.fixture(scope="module")
def audio():
    """Two seconds of tones that change every 0.2 s, `[3, 48000]`."""
    rng = np.random.default_rng(0)
    hertz = np.repeat(220 * 2 ** (rng.integers(0, 24, (3, 10)) / 12), 4800, axis=1)
    return (0.3 * np.sin(2 * np.pi * np.cumsum(hertz, axis=1) / 24_000)).astype(np.float32)


def test_paper_size():
    state = jax.eval_shape(W2vBertLearner(W2vBertConfig()).init, jax.random.key(0))
    assert 0.57e9 < sum(leaf.size for leaf in jax.tree.leaves(state.params)) < 0.63e9


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("feature_layer", 13, "0..12"),
        ("num_heads", 3, "heads"),
        ("conv_kernel", 4, "even"),
        ("mel_axes", 81, "0..80"),
        ("feature_normalisation", "", "pca"),
    ],
)
def test_config_refuses(field, value, message):
    with pytest.raises(ValueError, match=message):
        W2vBertConfig(**{field: value})


def test_mask_statistics():
    mask = np.asarray(span_mask(jax.random.key(1), 4000, 250, 0.065, 10))
    assert abs(mask[:, 9:].mean() - (1 - 0.935**10)) < 0.01
    assert abs(mask[:, 0].mean() - 0.065) < 0.015
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(int)
    for row in np.diff(padded, axis=1):
        runs = np.flatnonzero(row == -1) - np.flatnonzero(row == 1)
        ends = np.flatnonzero(row == -1)
        assert np.all((runs >= 10) | (ends == 250))  # only the clip's end cuts a span short


def test_depthwise_conv_against_numpy():
    rng = np.random.default_rng(2)
    x, kernel = rng.normal(size=(2, 11, 3)).astype("f"), rng.normal(size=(5, 3)).astype("f")
    got = w2v_bert.depthwise_conv(jnp.asarray(x), jnp.asarray(kernel))
    for b in range(2):
        for c in range(3):
            np.testing.assert_allclose(got[b, :, c], np.correlate(x[b, :, c], kernel[:, c], "same"), atol=1e-5)


def test_rotation_makes_scores_relative():
    query, key = (jnp.broadcast_to(jax.random.normal(jax.random.key(i), (1, 1, 1, 8)), (1, 12, 1, 8)) for i in (0, 1))
    scores = np.asarray(jnp.einsum("bthd,bshd->bts", w2v_bert.rotate(query), w2v_bert.rotate(key))[0])
    np.testing.assert_allclose(scores[2:, 2:], scores[:-2, :-2], atol=1e-4)
    assert np.ptp(scores[0]) > 0.1


def test_masked_latents_are_invisible(params):
    """Every output has zero gradient with respect to masked latents, and non-zero gradient for others on both sides."""
    model = W2vBert(SMALL)
    latents = jax.random.normal(jax.random.key(3), (1, 30, 32))
    mask = jnp.zeros((1, 30), bool).at[0, 10:20].set(True)
    weight = jax.random.normal(jax.random.key(4), (32,))

    def output(latents, frame):
        return model.apply({"params": params}, latents, mask, method=W2vBert.layers)[-1][0, frame] @ weight

    gradient = np.abs(np.asarray(jax.jit(jax.grad(output))(latents, 15)))[0].max(axis=-1)
    assert np.all(gradient[10:20] == 0)
    assert np.all(gradient[:10] > 0) and np.all(gradient[20:] > 0)  # full context on both sides: not causal


def test_negatives_come_from_other_masked_frames():
    mask = np.zeros((2, 12), bool)
    mask[0, [1, 4, 5, 9]] = True
    mask[1, 3] = True
    draws = np.asarray(draw_negatives(jax.random.key(0), jnp.asarray(mask), 3000))
    assert np.all(draws[1] == 0) and np.all(draws[0][~mask[0]] == 0)
    for frame in (1, 4, 5, 9):
        others = [f for f in (1, 4, 5, 9) if f != frame]
        np.testing.assert_allclose(draws[0, frame, others], 1000, atol=130)
        assert draws[0, frame].sum() == 3000 and draws[0, frame, frame] == 0


def test_contrastive_loss_against_numpy():
    rng = np.random.default_rng(5)
    context, targets = rng.normal(size=(2, 9, 6)).astype("f"), rng.normal(size=(2, 9, 6)).astype("f")
    mask = np.zeros((2, 9), bool)
    mask[0, 2:6], mask[1, 5:8] = True, True
    key = jax.random.key(7)
    draws = np.asarray(draw_negatives(key, jnp.asarray(mask), 5)).astype(int)
    losses, correct = [], []
    for b, i in zip(*np.nonzero(mask), strict=True):

        def cosine(j, b=b, i=i):
            return context[b, i] @ targets[b, j] / np.linalg.norm(context[b, i]) / np.linalg.norm(targets[b, j])

        negatives = [j for j in range(9) for _ in range(draws[b, i, j])]
        logits = np.array([cosine(i), *(cosine(j) for j in negatives)]) / 0.1
        losses.append(np.log(np.exp(logits).sum()) - logits[0])
        correct.append(np.all(logits[0] > logits[1:]))
    loss, accuracy = contrastive_loss(key, jnp.asarray(context), jnp.asarray(targets), jnp.asarray(mask), 5, 0.1)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(accuracy, np.mean(correct), rtol=1e-5)


def test_contrastive_gradient_is_finite_without_masks():
    x = jax.random.normal(jax.random.key(0), (1, 8, 4))
    mask = jnp.zeros((1, 8), bool)
    gradient = jax.jit(jax.grad(lambda x: contrastive_loss(jax.random.key(1), x, x + 1, mask, 4, 0.1)[0]))(x)
    assert np.all(np.asarray(gradient) == 0)


def test_diversity_closed_form():
    used = jnp.concatenate([jnp.full((5, 4), 0.25), jnp.zeros((5, 4))], axis=1)
    np.testing.assert_allclose(diversity_loss(used), (0.5, 4.0), rtol=1e-5)
    np.testing.assert_allclose(diversity_loss(jnp.eye(8)), (0.0, 8.0), atol=1e-4)  # confident, uniform use of codes
    np.testing.assert_allclose(diversity_loss(jnp.eye(8)[jnp.zeros(3, int)]), (1 - 1 / 8, 1.0), rtol=1e-5)


@pytest.mark.parametrize("target_gradient", [1.0, 0.0])
def test_quantizer_is_straight_through(params, target_gradient):
    latents = jax.random.normal(jax.random.key(0), (1, 6, 32))
    model = W2vBert(dataclasses.replace(SMALL, target_gradient=target_gradient))

    def quantize(latents):
        return model.apply({"params": params}, latents, None, 1.0, method=W2vBert.quantize)

    out = quantize(latents)
    book = np.asarray(params["codebook"]["kernel"])
    np.testing.assert_allclose(out["vectors"], book[np.asarray(out["codes"])], atol=1e-5)
    # The contrastive path has a gradient only with target_gradient, the diversity loss always.
    gradient = jax.jit(jax.grad(lambda x: quantize(x)["vectors"].sum()))(latents)
    assert (np.abs(gradient).max() > 0) == (target_gradient > 0)
    assert np.abs(jax.jit(jax.grad(lambda x: quantize(x)["probabilities"][0, 0, 0]))(latents)).max() > 0


@pytest.mark.parametrize(("samples", "frames"), [(960, 1), (961, 2), (24_000, 25), (47_999, 50), (200, 1)])
def test_frame_counts(params, samples, frames):
    audio = jnp.asarray(np.random.default_rng(0).normal(size=(2, samples)).astype("f"))
    assert w2v_bert.features(SMALL, {"params": params}, audio).shape == (2, frames, 32)


def test_frames_follow_the_audio_in_time(params):
    """A click at 1.5 s, mel frame 150, mostly changes a latent t whose window (mel frames 4 t to 4 t + 6) has it."""
    quiet = 0.01 * np.random.default_rng(0).normal(size=(1, 72_000)).astype("f")
    loud = quiet.copy()
    loud[0, 24_000 + 12_000] += 0.5

    def latents(audio):
        mel = w2v_bert.mel_frames(SMALL, jnp.asarray(audio))
        return np.asarray(W2vBert(SMALL).apply({"params": params}, mel, method=W2vBert.latents))

    change = np.abs(latents(loud) - latents(quiet)).max(axis=-1)[0]
    assert 36 <= np.argmax(change) <= 37


def test_features_refuse_empty_audio(params):
    with pytest.raises(ValueError, match="non-empty"):
        w2v_bert.features(SMALL, {"params": params}, jnp.zeros((2, 0)))


def test_features_do_not_depend_on_gain(params, audio):
    loud = w2v_bert.features(SMALL, {"params": params}, jnp.asarray(audio))
    soft = w2v_bert.features(SMALL, {"params": params}, jnp.asarray(0.5 * audio))
    assert np.abs(loud - soft).mean() < 0.05 * np.abs(loud).mean()


def test_feature_layer_counts_from_the_mlm_module(params, audio):
    mel = w2v_bert.mel_frames(SMALL, jnp.asarray(audio))
    model = W2vBert(SMALL)
    latents = model.apply({"params": params}, mel, method=W2vBert.latents)
    outputs = model.apply({"params": params}, latents, method=W2vBert.layers)
    for layer in range(3):
        config = dataclasses.replace(SMALL, feature_layer=layer)
        got = w2v_bert.features(config, {"params": w2v_bert.inference_params(config, params)}, jnp.asarray(audio))
        np.testing.assert_allclose(got, outputs[layer], atol=1e-5)  # one contrastive layer comes first


@pytest.mark.parametrize("normalisation", ["dimension", "pca"])
def test_tokens(params, audio, normalisation):
    config = dataclasses.replace(SMALL, feature_normalisation=normalisation, feature_dims=5)
    batch = w2v_bert.features(config, {"params": params}, jnp.asarray(audio))
    variables = w2v_bert.fit_kmeans(config, {"params": params}, [batch[:2], batch[2:]], jax.random.key(0))
    normal = np.asarray(w2v_bert.normalise_features(variables, batch)).reshape(
        -1, 32 if normalisation == "dimension" else 5
    )
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-3)
    if normalisation == "pca":
        np.testing.assert_allclose(normal.T @ normal / len(normal), np.eye(5), atol=0.02)
    else:
        np.testing.assert_allclose(normal.std(0), 1, atol=1e-2)
    tokens = np.asarray(w2v_bert.semantic_tokens(config, variables, jnp.asarray(audio)))
    assert tokens.shape == (3, 50) and tokens.dtype == np.int32
    assert tokens.min() >= 0 and tokens.max() < 6 and len(np.unique(tokens)) > 3
    nearest = np.argmin(((normal[:, None] - np.asarray(variables["centroids"])[None]) ** 2).sum(-1), axis=1)
    assert np.mean(nearest == tokens.reshape(-1)) > 0.99
    again = w2v_bert.fit_kmeans(config, {"params": params}, [batch], jax.random.key(0))
    np.testing.assert_array_equal(variables["centroids"], again["centroids"])


def test_kmeans_refuses_few_frames(params):
    with pytest.raises(ValueError, match="3 feature frames for 6 clusters"):
        w2v_bert.fit_kmeans(SMALL, {"params": params}, [np.zeros((3, 32))], jax.random.key(0))


WHITENED = dataclasses.replace(SMALL, mel_axes=5, target_gradient=0.0)


@pytest.fixture(scope="module")
def warm(audio):
    """A learner, its state before the warm start and its state after it."""
    learner = _learner(WHITENED, warmup_steps=20)
    state = jax.jit(learner.init)(jax.random.key(0))
    return learner, state, jax.jit(learner.warm_start)(state, {"audio": jnp.asarray(audio)}, jax.random.key(1))


def test_warm_start_makes_codes_the_clusters_of_latents(warm, audio):
    _, cold, started = warm

    @jax.jit
    def perplexity(params):
        mel = w2v_bert.mel_frames(WHITENED, jnp.asarray(audio))
        latents = W2vBert(WHITENED).apply({"params": params}, mel, method=W2vBert.latents)
        out = W2vBert(WHITENED).apply({"params": params}, latents, None, 1.0, method=W2vBert.quantize)
        return diversity_loss(jax.nn.one_hot(out["codes"], 16))[1]

    whitened_only = cold.params | {name: started.params[name] for name in ("mel_mean", "mel_rotation")}
    assert perplexity(started.params) > perplexity(whitened_only) + 1
    assert perplexity(started.params) > 8


def test_warm_start_whitens_the_mel_bins(warm, audio):
    started = warm[2].params
    mel = np.asarray(w2v_bert.mel_frames(WHITENED, jnp.asarray(audio))).reshape(-1, 20)
    seen = (mel - started["mel_mean"][None, :]) @ started["mel_rotation"]
    np.testing.assert_allclose(seen.T @ seen / len(seen), np.eye(5), atol=0.01)


def test_learner_overfits_one_batch(warm, audio):
    learner, _, state = warm
    batch, rotation = {"audio": jnp.asarray(audio)}, np.asarray(state.params["mel_rotation"])
    step, evaluate = jax.jit(learner.train_step), jax.jit(learner.eval_step)
    key = jax.random.key(9)  # the same masks and negatives at every step, so that the batch can be memorized
    before = evaluate(state, batch, key)
    first, _ = step(state, batch, key)
    again, _ = step(state, batch, key)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for _ in range(120):
        state, metrics = step(state, batch, key)
    after = evaluate(state, batch, key)
    assert int(state.step) == 120
    np.testing.assert_array_equal(state.params["mel_rotation"], rotation)  # fitted once, then fixed
    assert all(np.isfinite(value) and value.shape == () for value in metrics.values())
    assert after["loss"] < 0.6 * before["loss"]
    assert after["contrastive_loss"] < before["contrastive_loss"] - 1
    assert after["mlm_accuracy"] > 0.7 > 0.3 > before["mlm_accuracy"]
    assert after["code_usage_perplexity"] > 6  # no collapse
    expected = after["contrastive_loss"] + after["mlm_loss"] + 0.1 * after["diversity_loss"]
    np.testing.assert_allclose(after["loss"], expected, rtol=1e-5)


def test_learner_refuses_broken_frames():
    learner = _learner()
    state = jax.eval_shape(learner.init, jax.random.key(0))
    with pytest.raises(ValueError, match="multiple of 960"):
        jax.eval_shape(learner.eval_step, state, {"audio": jnp.zeros((1, 1000))}, jax.random.key(0))


def test_a_batch_too_small_to_start_the_codes_from_is_told_in_the_users_terms():
    learner = _learner(dataclasses.replace(SMALL, codebook_size=50))
    state = jax.eval_shape(learner.init, jax.random.key(0))
    message = r"2 crops with 20 latent frames .*codebook_size = 50 .*raise BATCH_SIZE to 3 or more.*SECONDS"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(learner.warm_start, state, {"audio": jnp.zeros((2, 20 * 960))}, jax.random.key(0))
    jax.eval_shape(learner.warm_start, state, {"audio": jnp.zeros((3, 20 * 960))}, jax.random.key(0))
