import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import bundles
from musiclm_jax.tokenizers import quantization
from musiclm_jax.tokenizers.quantization import RVQState
from musiclm_jax.tokenizers.soundstream import discriminator, losses, model
from musiclm_jax.tokenizers.soundstream.learner import SoundStreamLearner
from musiclm_jax.tokenizers.soundstream.model import SoundStreamConfig
from musiclm_jax.training.optimizers import OptimizerConfig

SMALL = SoundStreamConfig(
    patch_size=4,
    channels=4,
    strides=(3, 4),
    dilations=(1, 3),
    kernel_size=3,
    embedding_dim=6,
    num_quantizers=3,
    codebook_size=16,
    dead_code_threshold=0.01,
    discriminator_channels=2,
    wave_discriminator_channels=2,
    wave_discriminator_max_channels=8,
    wave_discriminator_groups=2,
)
STRIDE = SMALL.total_stride  # 48


def compiled(function):
    """Compiles quickly to slow code, for functions that run once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def quick_key(seed: int) -> jax.Array:
    """Returns a key whose draws compile quickly: initialization needs sixty."""
    return jax.random.key(seed, impl="rbg")


@pytest.fixture(scope="module")
def variables():
    params = compiled(lambda key: model.init_params(SMALL, key))(quick_key(0))
    # Not the zeros of the initialization: residual units have an effect, and silence has non-zero activations.
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)
    embed = compiled(lambda audio: model.embed(SMALL, params, audio))
    x = np.asarray(embed(noise(8, 20 * STRIDE))).reshape(-1, 6)
    levels = [(x[:16] - x.mean(0)) * 0.5**i + (x.mean(0) if i == 0 else 0) for i in range(3)]
    return {"params": params, "codebooks": np.stack(levels)}


@pytest.fixture(scope="module")
def start():
    return compiled(LEARNER.init)(quick_key(0))


def noise(batch: int, samples: int, seed: int = 0) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).normal(size=(batch, samples))).astype(np.float32)


def test_paper_size_by_shapes():
    config = SoundStreamConfig()
    assert config.total_stride == 480
    assert config.rvq == quantization.RVQConfig(12, 1024, 256, 0.99, 2.0, True, 1.0)
    params = jax.eval_shape(lambda key: model.init_params(config, key), jax.random.key(0))

    # By hand: the blocks' widths, and strided convolutions of kernel size 2s between them.
    def units(c):
        return 3 * ((7 * c + 1) * c + (c + 1) * c)

    encoder = (7 + 1) * 32 + sum(units(c) for c in (32, 64, 128, 256)) + (3 * 512 + 1) * 256
    encoder += sum((2 * s * c + 1) * 2 * c for c, s in ((32, 3), (64, 4), (128, 5), (256, 8)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params["encoder"])) == encoder
    state = jax.eval_shape(SoundStreamLearner().init, jax.random.key(0))
    assert state.rvq.codebooks.shape == (12, 1024, 256)
    audio = jax.ShapeDtypeStruct((2, 24_000), jnp.float32)
    variables = {"params": params, "codebooks": state.rvq.codebooks}
    codes = jax.eval_shape(lambda v, a: model.encode(config, v, a), variables, audio)
    assert (codes.shape, codes.dtype) == ((2, 50, 12), jnp.int32)
    assert jax.eval_shape(lambda v, c: model.decode(config, v, c), variables, codes).shape == (2, 24_000)


def test_the_shipped_weights_have_the_names_and_shapes_of_the_modules():
    config, variables = bundles.load("tiny").part("soundstream")
    params = jax.eval_shape(lambda key: model.init_params(config, key), jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, variables["params"])
    assert {"windows_in", "hop_block2", "fold", "frame_block1", "out"} <= set(params["encoder"])


def test_strided_and_transposed_convolutions_equal_their_definitions():
    x = noise(1, 24)[..., None]
    conv = model.CausalConv(features=1, kernel_size=2)
    params = conv.init(jax.random.key(0), model.fold(x, 3), None)
    kernel = np.asarray(params["params"]["kernel"]).reshape(6)  # stride 3, kernel size 6
    padded = np.concatenate([np.zeros(3), x[0, :, 0]])
    expected = [kernel @ padded[3 * i : 3 * i + 6] for i in range(8)]
    np.testing.assert_allclose(conv.apply(params, model.fold(x, 3), None)[0][0, :, 0], expected, rtol=1e-4, atol=1e-6)

    up = model.CausalConv(features=3, kernel_size=2)
    params = up.init(jax.random.key(1), x, None)
    kernel = np.asarray(params["params"]["kernel"])[:, 0]  # [2, 3]: for the previous frame and this frame
    impulse_response = np.concatenate([kernel[1], kernel[0]])
    expected = np.zeros(24 * 3 + 3)
    for i, value in enumerate(x[0, :, 0]):
        expected[3 * i : 3 * i + 6] += value * impulse_response
    actual = model.unfold(up.apply(params, x, None)[0], 3)[0, :, 0]
    np.testing.assert_allclose(actual, expected[:72], rtol=1e-4, atol=1e-6)


def test_codes_and_audio_have_the_promised_shapes(variables):
    audio = noise(2, 10 * STRIDE)
    codes = model.encode(SMALL, variables, audio)
    assert codes.shape == (2, 10, 3)
    assert codes.dtype == jnp.int32
    assert len(np.unique(codes)) > 8
    for levels in (3, 1):
        decoded = model.decode(SMALL, variables, codes[..., :levels])
        assert decoded.shape == audio.shape
        quantized = quantization.decode(variables["codebooks"], codes[..., :levels])
        np.testing.assert_allclose(decoded, model.synthesize(SMALL, variables["params"], quantized), atol=1e-5)


@pytest.mark.parametrize("shape", [(STRIDE,), (1, STRIDE + 1), (1, 0)])
def test_audio_of_a_broken_shape_is_refused(variables, shape):
    with pytest.raises(ValueError, match=r"multiple of 48"):
        model.encode(SMALL, variables, np.zeros(shape, np.float32))


def test_encoder_and_decoder_are_causal_by_gradient(variables):
    frames, frame = 8, 4
    audio = noise(1, frames * STRIDE)
    gradient = compiled(jax.grad(lambda a: jnp.sum(model.embed(SMALL, variables["params"], a)[0, frame] ** 2)))(audio)[
        0
    ]
    assert np.abs(gradient[(frame + 1) * STRIDE :]).max() == 0
    assert np.abs(gradient[frame * STRIDE : (frame + 1) * STRIDE]).min() > 0

    embeddings = jax.random.normal(jax.random.key(0), (1, frames, 6))
    sample = frame * STRIDE  # first sample of the frame
    square = compiled(jax.grad(lambda e: model.synthesize(SMALL, variables["params"], e)[0, sample] ** 2))
    gradient = square(embeddings)[0]
    assert np.abs(gradient[frame + 1 :]).max() == 0
    assert np.abs(gradient[frame]).max() > 0
    assert np.abs(gradient[frame - 1]).max() > 0


def test_streaming_decode_equals_whole_decode(variables):
    codes = np.random.default_rng(0).integers(0, SMALL.codebook_size, (2, 12, 3))
    stream = compiled(lambda variables, block, context: model.decode_streaming(SMALL, variables, block, context))
    context, blocks = model.initial_decoder_context(SMALL, variables["params"], 2), []
    for start in range(0, 12, 4):
        block, context = stream(variables, codes[:, start : start + 4], context)
        blocks.append(block)
    whole = compiled(lambda variables: model.decode(SMALL, variables, codes))(variables)
    assert np.abs(whole).max() > 1e-3
    np.testing.assert_allclose(jnp.concatenate(blocks, axis=1), whole, atol=1e-6)


def test_mel_loss_is_the_sum_over_windows():
    audio, decoded = noise(2, 4096), noise(2, 4096, seed=1)
    assert float(losses.mel_loss(audio, audio, 24_000)) < 1e-3
    separate = [float(losses.mel_loss(audio, decoded, 24_000, [window])) for window in losses.MEL_WINDOWS]
    np.testing.assert_allclose(float(losses.mel_loss(audio, decoded, 24_000)), sum(separate), rtol=1e-5)

    # Twice the amplitude: |S - 2S|_1 = |S|_1, and log 2 in each non-empty filter.
    window = 512
    filters = losses.spectrogram.mel_filterbank(24_000, window, losses.NUM_MELS, 0.0, 12_000.0)
    padded = np.pad(audio, ((0, 0), (window // 2, window // 2)))
    mel = np.asarray(losses.spectrogram.magnitude(padded, window, window // 4) @ filters)
    expected = mel.sum(-1).mean() + np.sqrt(window / 2) * np.log(2) * np.sqrt((filters.sum(0) > 0).sum())
    np.testing.assert_allclose(losses.mel_loss(audio, 2 * audio, 24_000, [window]), expected, rtol=5e-3)


def test_log_mel_distance_of_half_the_amplitude_is_log_2():
    audio = noise(2, 4096)
    np.testing.assert_allclose(
        losses.natural_log_mel_distance(audio, 0.5 * audio, 24_000, [256, 1024]), np.log(2), rtol=0.02
    )


def test_si_sdr_ignores_the_scale_and_measures_noise():
    audio = noise(3, 4800)
    error = noise(3, 4800, seed=1)
    error -= (error * audio).sum(-1, keepdims=True) / (audio**2).sum(-1, keepdims=True) * audio
    error *= np.linalg.norm(audio, axis=-1, keepdims=True) / np.linalg.norm(error, axis=-1, keepdims=True) / 10
    np.testing.assert_allclose(losses.batch_si_sdr(audio, 0.3 * (audio + error)), 20.0, atol=0.1)


def test_hinge_and_feature_matching_on_literals():
    real = [jnp.array([[2.0], [0.5]]), jnp.array([[-1.0], [3.0]])]
    fake = [jnp.array([[-2.0], [0.0]]), jnp.array([[1.0], [-0.5]])]
    # (0, .5) and (0, 1) -> .25 + .5; (2, 0) and (2, .5) -> 1 + 1.25; mean of two.
    np.testing.assert_allclose(losses.discriminator_hinge(real, fake), (0.75 + 2.25) / 2)
    # (3, 1) -> 2; (0, 1.5) -> 0.75.
    np.testing.assert_allclose(losses.generator_hinge(fake), (2 + 0.75) / 2)
    matching = losses.feature_matching(
        [[jnp.ones(3), jnp.zeros(2)], [jnp.ones(4)]], [[jnp.zeros(3), jnp.ones(2) * 2], [jnp.ones(4)]]
    )
    np.testing.assert_allclose(matching, (1 + 2 + 0) / 3)


def test_discriminators_judge_at_four_resolutions(start):
    audio = noise(2, 4800)

    def judge(audio):
        return discriminator.discriminate(SMALL, start.discriminator_params, audio)

    logits, features = compiled(judge)(audio)
    # STFT: 15 frames, halved three times. Waveforms: rates 1, 1/2, 1/4, each divided by 4^4.
    assert [x.shape for x in logits] == [(2, 2, 1), (2, 19, 1), (2, 10, 1), (2, 5, 1)]
    assert features[0][-1].shape[2] == 8  # 512 bins halved six times
    assert [len(layers) for layers in features] == [7, 6, 6, 6]
    assert [layer.shape[-1] for layer in features[1]] == [2, 8, 8, 8, 8, 8]
    gradient = compiled(jax.grad(lambda audio: sum(jnp.sum(x) for x in judge(audio)[0])))(audio)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


ADAM = OptimizerConfig(name="adamw", learning_rate=3e-3, schedule="constant", warmup_steps=0, clip_norm=1.0)
LEARNER = SoundStreamLearner(
    config=SMALL, optimizer=ADAM, discriminator_optimizer=ADAM, feature_weight=1.0, mel_weight=0.01, kmeans_iterations=3
)


def tones(batch: int, samples: int, seed: int = 7) -> np.ndarray:
    hz = np.random.default_rng(seed).uniform(200, 2000, size=(batch, 1))
    return (0.4 * np.sin(2 * np.pi * hz * np.arange(samples) / 24_000)).astype(np.float32)


def differs(a, b) -> bool:
    return any((np.asarray(x) != np.asarray(y)).any() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize("codes", [16, 128])  # for 200 vectors: enough for each code, or fewer than 4 per code
def test_warm_start_gives_every_level_codes_that_new_audio_uses(codes, start):
    warm = dataclasses.replace(LEARNER, config=dataclasses.replace(SMALL, codebook_size=codes))
    start = start.replace(rvq=RVQState.init(jax.random.key(2), warm.config.rvq))
    state = compiled(warm.warm_start)(start, {"audio": noise(4, 50 * STRIDE)}, jax.random.key(1))
    assert state.rvq.codebooks.shape == (3, codes, 6)
    x = model.embed(warm.config, start.params, noise(4, 50 * STRIDE, seed=1)).reshape(-1, 6)
    found = quantization.encode(state.rvq.codebooks, x)
    assert min(len(np.unique(level)) for level in found.T) > min(codes, 40) / 2
    error = jnp.mean((quantization.decode(state.rvq.codebooks, found) - x) ** 2)
    untrained = jnp.mean(
        (quantization.decode(start.rvq.codebooks, quantization.encode(start.rvq.codebooks, x)) - x) ** 2
    )
    assert error < 0.2 * jnp.var(x)
    assert error < 0.5 * untrained


def test_training_lowers_the_loss_after_a_warm_start(start):
    reconstruction = dataclasses.replace(LEARNER, adversarial=False)
    batch = {"audio": tones(2, 50 * STRIDE)}
    state = compiled(reconstruction.warm_start)(start, batch, jax.random.key(1))
    step = compiled(reconstruction.train_step)
    history = []
    for i in range(40):
        state, metrics = step(state, batch, jax.random.key(i))
        history.append({name: float(value) for name, value in metrics.items()})
    assert int(state.step) == 40
    assert set(history[0]) == {
        "loss", "gradient_norm/generator", "reconstruction/mel", "reconstruction/waveform", "vq/commitment_loss",
        "vq/perplexity_00", "vq/perplexity_01", "vq/perplexity_02",
    }  # fmt: skip
    assert np.mean([m["loss"] for m in history[-5:]]) < 0.8 * history[0]["loss"]
    assert not differs(state.discriminator_params, start.discriminator_params)
    evaluated = compiled(reconstruction.eval_step)(state, batch, jax.random.key(0))
    variables = reconstruction.variables(state)
    recode = compiled(lambda audio: model.decode(SMALL, variables, model.encode(SMALL, variables, audio)))
    decoded = recode(batch["audio"])
    np.testing.assert_allclose(evaluated["loss"], losses.mel_loss(batch["audio"], decoded, 24_000), rtol=1e-3)


def test_one_adversarial_step_trains_generator_and_discriminators_in_turn(start):
    batch = {"audio": tones(2, 50 * STRIDE)}
    state = start
    new, metrics = compiled(LEARNER.train_step)(state, batch, jax.random.key(1))
    assert differs(new.params, state.params)
    assert differs(new.ema_params, state.ema_params)
    assert differs(new.discriminator_params, state.discriminator_params)
    assert differs(new.rvq.codebooks, state.rvq.codebooks)
    total = (
        0.01 * metrics["reconstruction/mel"]
        + metrics["vq/commitment_loss"]
        + metrics["adversarial/generator"]
        + metrics["adversarial/feature_matching"]
    )
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)

    # The generator's update uses the old discriminators; their update uses the audio decoded before it.
    @compiled
    def judge_as_before(audio):
        x = model.embed(SMALL, state.params, audio)
        quantized = quantization.quantize_train(SMALL.rvq, state.rvq, x, jax.random.key(1))[0]
        decoded = model.synthesize(SMALL, state.params, quantized)
        return [discriminator.discriminate(SMALL, state.discriminator_params, a)[0] for a in (audio, decoded)]

    logits = judge_as_before(batch["audio"])
    np.testing.assert_allclose(metrics["adversarial/generator"], losses.generator_hinge(logits[1]), rtol=1e-3)
    np.testing.assert_allclose(metrics["adversarial/discriminator"], losses.discriminator_hinge(*logits), rtol=1e-3)


def test_the_decoder_can_be_trained_alone_from_a_bundles_weights(start):
    alone = dataclasses.replace(LEARNER, adversarial=False, train_encoder=False)
    exported = alone.variables(start.replace(ema_params=jax.tree.map(lambda leaf: leaf + 0.01, start.params)))
    state = alone.start_from(start, exported)
    assert not differs(alone.variables(state), exported)
    new, _ = compiled(alone.train_step)(state, {"audio": tones(2, 50 * STRIDE)}, jax.random.key(1))
    assert not differs(new.params["encoder"], state.params["encoder"])
    assert not differs(new.rvq, state.rvq)
    assert differs(new.params["decoder"], state.params["decoder"])


def test_discriminators_learn_to_distinguish_noise_from_tones(start):
    params = start.discriminator_params
    tx = ADAM.make()
    opt_state = tx.init(params)
    real, fake = tones(4, 2400), noise(4, 2400)

    @compiled
    def step(params, opt_state):
        loss, gradients = jax.value_and_grad(LEARNER._discriminator_loss)(params, real, fake)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return jax.tree.map(jnp.add, params, updates), opt_state, loss

    history = []
    for _ in range(40):
        params, opt_state, loss = step(params, opt_state)
        history.append(float(loss))
    assert 1.0 < history[0] < 4.0
    assert history[-1] < 0.3 * history[0]


def test_exported_variables_are_the_averaged_ones(start):
    state = start.replace(ema_params=jax.tree.map(lambda leaf: leaf + 1, start.ema_params))
    variables = LEARNER.variables(state)
    assert set(variables) == {"params", "codebooks"}
    np.testing.assert_array_equal(
        variables["params"]["encoder"]["conv_in"]["bias"], np.asarray(state.params["encoder"]["conv_in"]["bias"]) + 1
    )
    np.testing.assert_array_equal(variables["codebooks"], state.rvq.codebooks)
