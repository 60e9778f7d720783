import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import miniature
import numpy as np
import pytest

from musiclm_jax.bundles import config_from_json
from musiclm_jax.data import spectrogram
from musiclm_jax.tokenizers.quantization import RVQState
from musiclm_jax.tokenizers.soundstream import discriminator, losses, model, spectral
from musiclm_jax.tokenizers.soundstream.learner import SoundStreamLearner
from musiclm_jax.tokenizers.soundstream.model import SoundStreamConfig
from musiclm_jax.tokenizers.soundstream.spectral import SpectralConfig
from musiclm_jax.training.optimizers import OptimizerConfig

SMALL = SoundStreamConfig(
    embedding_dim=6,
    num_quantizers=3,
    codebook_size=16,
    dead_code_threshold=0.01,
    discriminator_channels=2,
    wave_discriminators=False,
    discriminator_windows=(512, 256),
    spectral=SpectralConfig(
        encoder_width=16,
        encoder_hop_blocks=1,
        encoder_frame_blocks=1,
        width=16,
        decoder_frame_blocks=1,
        decoder_width=16,
        decoder_hop_blocks=2,
        kernel_size=3,
        expansion=2,
    ),
)
FRAME = SMALL.total_stride  # 480


def compiled(function):
    """Compiles quickly to slow code, for functions that run once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def noise(batch: int, samples: int, seed: int = 0) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).normal(size=(batch, samples))).astype(np.float32)


def tones(batch: int, samples: int, seed: int = 7) -> np.ndarray:
    hz = np.random.default_rng(seed).uniform(200, 2000, size=(batch, 1))
    return (0.4 * np.sin(2 * np.pi * hz * np.arange(samples) / 24_000)).astype(np.float32)


def random_params(init) -> dict:
    """Returns parameters as initialized, without compiling the initialization."""

    def leaf(path, value):
        of_branch = path[-1].key == "scale" and "block" in path[-2].key
        return jnp.asarray(SMALL.spectral.layer_scale * value if of_branch else value)

    return jax.tree_util.tree_map_with_path(leaf, miniature.random_like(init, SMALL, jax.random.key(0)))


@pytest.fixture(scope="module")
def variables():
    # Non-zero biases: silence has non-zero activations.
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), random_params(model.init_params)
    )
    return {"params": params, "codebooks": jnp.asarray(rng.normal(size=(3, 16, 6)), jnp.float32)}


def test_size_by_shapes():
    config = SoundStreamConfig(embedding_dim=64, spectral=SpectralConfig())
    assert config.total_stride == 480
    assert config.spectral.lookahead == 480
    params = jax.eval_shape(lambda key: model.init_params(config, key), jax.random.key(0))

    # By hand: depthwise convolution, norm, two linear layers and the layer scale.
    def block(c):
        return 7 * c + 2 * c + (c + 1) * 3 * c + (3 * c + 1) * c + c

    # Decoder: convolution, 4 blocks per frame, unfolding, 5 blocks per hop, head, three norms.
    decoder = (7 * 64 + 1) * 320 + 4 * block(320) + 321 * 768 + 5 * block(256) + 257 * 2 * 321
    decoder += 2 * (320 + 320 + 256)
    assert sum(leaf.size for leaf in jax.tree.leaves(params["decoder"])) == decoder
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) < 7.5e6
    variables = {"params": params, "codebooks": jax.ShapeDtypeStruct((12, 1024, 64), jnp.float32)}
    audio = jax.ShapeDtypeStruct((2, 24_000), jnp.float32)
    codes = jax.eval_shape(lambda v, a: model.encode(config, v, a), variables, audio)
    assert (codes.shape, codes.dtype) == ((2, 50, 12), jnp.int32)
    assert jax.eval_shape(lambda v, c: model.decode(config, v, c), variables, codes).shape == (2, 24_000)


def test_a_config_without_spectral_is_unchanged():
    old = {"patch_size": 4, "channels": 4, "strides": [3, 4], "embedding_dim": 6, "num_quantizers": 3}
    config = config_from_json(SoundStreamConfig, old, "test")
    assert config.spectral is None
    assert (config.dtype, config.discriminator_windows, config.wave_discriminators) == ("float32", (1024,), True)
    assert config.total_stride == 48
    params = jax.eval_shape(lambda key: model.init_params(config, key), jax.random.key(0))
    assert {"conv_in", "block0_up", "conv_out"} <= set(params["decoder"])
    judges = jax.eval_shape(lambda key: discriminator.init_params(config, key), jax.random.key(0))
    assert set(judges) == {"stft", "wave0", "wave1", "wave2"}


def test_the_nested_config_is_restored_from_json_and_from_a_mapping():
    stored = json.loads(json.dumps(dataclasses.asdict(SMALL)))
    config = config_from_json(SoundStreamConfig, stored, "test")
    assert config == SMALL
    assert hash(config) == hash(SMALL)
    assert SoundStreamConfig(spectral={}).spectral == SpectralConfig()  # as gin files have it
    assert SoundStreamConfig(spectral={"width": 64}).spectral == SpectralConfig(width=64)


def test_broken_configs_are_refused():
    with pytest.raises(ValueError, match="multiple of hop 150"):
        SpectralConfig(hop=150)
    with pytest.raises(ValueError, match="float16"):
        SoundStreamConfig(dtype="float16")
    with pytest.raises(ValueError, match="no discriminator"):
        SoundStreamConfig(discriminator_windows=(), wave_discriminators=False)


def test_overlap_add_of_unchanged_spectra_restores_the_audio():
    audio = noise(2, 20 * 160)
    spectrum = jnp.concatenate(spectrogram.stft(audio, 640, 160), axis=-1)
    segments = spectrum @ spectral.inverse_basis(640, 160)
    back, _ = spectral.overlap_add(segments, None, 160)
    # 17 windows; the first three hops have fewer than four windows, and the last hops need later segments.
    assert back.shape == (2, 17 * 160)
    np.testing.assert_allclose(back[:, 480:], audio[:, 480 : 17 * 160], atol=2e-6)


def test_streaming_decode_equals_whole_decode(variables):
    codes = np.random.default_rng(0).integers(0, SMALL.codebook_size, (2, 12, 3))
    stream = compiled(lambda block, context: model.decode_streaming(SMALL, variables, block, context))
    context, blocks, start = model.initial_decoder_context(SMALL, variables["params"], 2), [], 0
    for frames in (1, 4, 1, 4, 1, 1):
        block, context = stream(codes[:, start : start + frames], context)
        assert block.shape == (2, frames * FRAME)
        blocks.append(block)
        start += frames
    whole = compiled(lambda codes: model.decode(SMALL, variables, codes))(codes)
    assert np.abs(whole).max() > 1e-3
    np.testing.assert_allclose(jnp.concatenate(blocks, axis=1), whole, atol=1e-6)
    # The test can fail: without the context, blocks would not match.
    alone, _ = stream(codes[:, 1:5], model.initial_decoder_context(SMALL, variables["params"], 2))
    assert np.abs(alone - blocks[1]).max() > 1e-3


def test_the_decoder_is_causal_by_gradient(variables):
    embeddings = jax.random.normal(jax.random.key(0), (1, 6, 6))
    rows = compiled(jax.jacrev(lambda e: model.synthesize(SMALL, variables["params"], e)[0, 3 * FRAME : 4 * FRAME]))
    gradient = np.abs(rows(embeddings)[:, 0]).max(axis=(0, 2))
    assert (gradient[4:] == 0).all()
    assert (gradient[:4] > 0).all()


def test_the_encoder_looks_one_frame_ahead_by_gradient(variables):
    audio, frame = noise(1, 8 * FRAME), 3
    square = compiled(jax.grad(lambda a: jnp.sum(model.embed(SMALL, variables["params"], a)[0, frame] ** 2)))
    gradient = np.abs(square(audio)[0])
    end = (frame + 2) * FRAME
    assert (gradient[end:] == 0).all()
    # A Hann window falls to 0 at its end.
    assert gradient[end - 16 : end].max() > 0
    assert gradient[end - FRAME : end - 16].min() > 0


def test_the_encoder_assumes_silence_after_the_end(variables):
    audio = noise(1, 6 * FRAME)
    longer = np.pad(audio, ((0, 0), (0, 2 * FRAME)))
    embed = compiled(lambda audio: model.embed(SMALL, variables["params"], audio))
    np.testing.assert_allclose(embed(longer)[:, :6], embed(audio), atol=1e-5)


def test_bfloat16_is_close_to_float32_and_codes_do_not_depend_on_it(variables):
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    audio, params = tones(2, 10 * FRAME), variables["params"]
    embedded = compiled(lambda audio: [model.embed(c, params, audio) for c in (SMALL, half)])(audio)
    assert embedded[1].dtype == jnp.float32
    difference = np.abs(embedded[1] - embedded[0])
    assert 0 < difference.max() < 0.2 * np.std(embedded[0])
    synthesized = compiled(lambda vectors: [model.synthesize(c, params, vectors) for c in (SMALL, half)])(embedded[0])
    assert synthesized[1].dtype == jnp.float32
    assert float(losses.batch_si_sdr(*synthesized).min()) > 20
    # The same programs.
    codes = np.zeros((2, 10, 3), np.int32)
    for function, given in ((model.encode, audio), (model.decode, codes)):
        one, other = (str(jax.make_jaxpr(functools.partial(function, c))(variables, given)) for c in (SMALL, half))
        assert one == other and "bf16" not in one
    assert "bf16" in str(jax.make_jaxpr(functools.partial(model.embed, half))(params, audio)), "the test can fail"


def test_discriminators_on_spectra_of_several_windows():
    audio = noise(2, 4800)
    outputs, params = {}, random_params(discriminator.init_params)
    assert set(params) == {"stft", "stft1"}
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(SMALL, dtype=dtype)
        judge = compiled(lambda params, config=config: discriminator.discriminate(config, params, audio))
        logits, features = judge(params)
        # 34 and 72 frames, halved three times.
        assert [(x.shape, x.dtype) for x in logits] == [((2, 5, 1), jnp.float32), ((2, 9, 1), jnp.float32)]
        assert [layers[-1].shape[2] for layers in features] == [4, 2]
        assert {layer.dtype for layers in features for layer in layers} == {jnp.dtype(dtype)}
        assert jax.eval_shape(losses.feature_matching, features, features).dtype == jnp.float32
        outputs[dtype] = np.concatenate([np.ravel(x) for x in logits])
    np.testing.assert_allclose(outputs["bfloat16"], outputs["float32"], atol=0.05 * np.abs(outputs["float32"]).max())


def test_stft_loss_distinguishes_phase_from_magnitude():
    audio = noise(2, 4096)
    assert float(losses.stft_loss(audio, audio)) < 1e-5
    # Opposite sign: magnitudes are equal, complex spectra differ by twice the magnitude.
    magnitude = np.mean([
        np.mean(spectrogram.magnitude(np.pad(audio, ((0, 0), (w // 2, w // 2))), w, w // 4)) / np.sqrt(3 / 8 * w)
        for w in losses.STFT_WINDOWS
    ])  # fmt: skip
    np.testing.assert_allclose(losses.stft_loss(audio, -audio), 2 * magnitude, rtol=1e-4)
    np.testing.assert_allclose(losses.stft_loss(audio, 0.5 * audio), 0.5 * magnitude + 0.1 * np.log(2), rtol=1e-2)


ADAM = OptimizerConfig(name="adamw", learning_rate=3e-3, schedule="constant", warmup_steps=0, clip_norm=1.0)
LEARNER = SoundStreamLearner(
    config=SMALL,
    optimizer=ADAM,
    discriminator_optimizer=ADAM,
    adversarial=False,
    mel_weight=0.01,
    waveform_weight=1.0,
    stft_weight=1.0,
    kmeans_iterations=3,
)


@pytest.fixture
def start():
    """LEARNER's state at step 0."""
    params, judges = random_params(model.init_params), random_params(discriminator.init_params)
    state = jax.tree.map(jnp.asarray, miniature.random_like(LEARNER.init, jax.random.key(0)))
    codebooks = jnp.asarray(np.random.default_rng(3).normal(size=(3, 16, 6)), jnp.float32)
    return state.replace(
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=ADAM.make().init(params),
        discriminator_params=judges,
        discriminator_opt_state=ADAM.make().init(judges),
        rvq=RVQState.from_codebooks(codebooks, SMALL.rvq),
    )


def test_training_in_a_scan_lowers_the_loss_after_a_warm_start(start):
    batch = {"audio": tones(2, 20 * FRAME)}
    start = compiled(LEARNER.warm_start)(start, batch, jax.random.key(1))

    def steps(state):
        def step(state, key):
            return LEARNER.train_step(state, batch, key)

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(2), 40))

    state, metrics = compiled(steps)(start)
    assert int(state.step) == 40
    assert np.mean(metrics["loss"][-5:]) < 0.8 * metrics["loss"][0]
    assert float(jnp.abs(metrics["reconstruction/stft"]).min()) > 0


def test_one_adversarial_step_of_the_decoder_in_bfloat16(start):
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    alone = dataclasses.replace(LEARNER, config=config, adversarial=True, train_encoder=False, stft_weight=0.0)
    new, metrics = compiled(alone.train_step)(start, {"audio": tones(1, 8 * FRAME)}, jax.random.key(1))
    assert all(np.isfinite(value) for value in metrics.values())

    def differs(a, b):
        return any((np.asarray(x) != np.asarray(y)).any() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))

    assert not differs(new.params["encoder"], start.params["encoder"])
    assert not differs(new.rvq, start.rvq)
    assert differs(new.params["decoder"], start.params["decoder"])
    assert differs(new.discriminator_params, start.discriminator_params)
    assert {leaf.dtype for leaf in jax.tree.leaves(new.params)} == {jnp.dtype("float32")}
