"""Training on data in the accelerator's memory: compiled steps draw the crops, and one call runs several steps.

Tokens of hundreds of hours, or tens of hours of 16-bit audio, fit into one GPU's memory with a small model. During
training, no data is transferred, no input pipeline runs on the host, and neither TensorFlow nor seqio is needed. A step
depends only on its number, the key and the data, as in `trainer.train`.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.data.samples import from_pcm16
from musiclm_jax.data.tokens import ACOUSTIC, MELODY, MULAN, SAMPLE_RATE, SEMANTIC
from musiclm_jax.stages.stage import Stage
from musiclm_jax.training import partitioning
from musiclm_jax.training.learner import Learner

Data = Mapping[str, jax.Array]
Draw = Callable[[jax.Array, Data], dict[str, jax.Array]]  # (key, data) -> batch
FRAMES_PER_SEMANTIC = ACOUSTIC.frame_rate // SEMANTIC.frame_rate


def draw_audio(key: jax.Array, data: Data, *, batch: int, samples: int) -> dict[str, jax.Array]:
    """Draws random crops of audio.

    Args:
      key: the step's key.
      data: "audio" int16 `[clips, samples]`; "clips" int32 scalar, the number of valid clips.
      batch: number of crops.
      samples: length of a crop.

    Returns:
      {"audio": float32 `[batch, samples]`}.
    """
    row_key, start_key = jax.random.split(key)
    rows = jax.random.randint(row_key, (batch,), 0, data["clips"])
    starts = jax.random.randint(start_key, (batch,), 0, data["audio"].shape[1] - samples + 1)
    return {"audio": _crop_audio(data["audio"], rows, starts, samples)}


def draw_pairs(key: jax.Array, data: Data, *, batch: int, samples: int) -> dict[str, jax.Array]:
    """Draws random crops of audio, each with one of its clip's texts.

    Args:
      key: the step's key.
      data: as in `draw_audio`, plus "text_ids" int `[clips, texts, length]`, 0 in padding, and "text_vectors" float
        `[clips, texts, width]`, the frozen text encoder's output for them.
      batch: number of pairs.
      samples: length of a crop.

    Returns:
      {"audio": float32 `[batch, samples]`, "text_ids": int32 `[batch, length]`, "text_vectors": float32 `[batch,
      width]`}.
    """
    row_key, start_key, text_key = jax.random.split(key, 3)
    rows = jax.random.randint(row_key, (batch,), 0, data["clips"])
    starts = jax.random.randint(start_key, (batch,), 0, data["audio"].shape[1] - samples + 1)
    chosen = jax.random.randint(text_key, (batch,), 0, data["text_ids"].shape[1])
    ids = data["text_ids"][rows, chosen].astype(jnp.int32)
    audio = _crop_audio(data["audio"], rows, starts, samples)
    return {"audio": audio, "text_ids": ids, "text_vectors": data["text_vectors"][rows, chosen].astype(jnp.float32)}


def _crop_audio(audio: jax.Array, rows: jax.Array, starts: jax.Array, samples: int) -> jax.Array:
    def one(row: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(audio, (row, start), (1, samples))[0]

    return from_pcm16(jax.vmap(one)(rows, starts))


def draw_tokens(
    key: jax.Array, data: Data, *, batch: int, stage: Stage, caption_share: float = 0.0
) -> dict[str, jax.Array]:
    """Draws random crops of token streams, aligned in time.

    Args:
      key: the step's key.
      data: the streams that the stage reads, among "semantic" int `[clips, t]`, "acoustic" `[clips, 2 t, q]`, "mulan"
        `[clips, q]` and "melody" `[clips, q]`. If caption_share is not 0, also "caption_mulan" `[clips, captions, q]`,
        the MuLan codes of texts about each clip.
      batch: number of crops.
      stage: the stage to train; sets streams and crop length.
      caption_share: share of rows whose MuLan codes come from a text, as in generation, instead of the clip's audio. 0
        in the paper, whose training music has no texts.

    Returns:
      A batch of raw streams for `stages.assemble`, int32.
    """
    row_key, start_key, share_key, caption_key = jax.random.split(key, 4)
    names = {part.stream for part in (*stage.conditioning, stage.target)}
    in_time = SEMANTIC.name if SEMANTIC.name in data else ACOUSTIC.name
    per_frame = 1 if in_time == SEMANTIC.name else FRAMES_PER_SEMANTIC
    clips, frames = data[in_time].shape[0], data[in_time].shape[1] // per_frame
    length = SEMANTIC.frames(stage.seconds)
    rows = jax.random.randint(row_key, (batch,), 0, clips)
    starts = jax.random.randint(start_key, (batch,), 0, frames - length + 1)
    result = {}
    for name in names & {SEMANTIC.name, ACOUSTIC.name}:
        per_frame = FRAMES_PER_SEMANTIC if name == ACOUSTIC.name else 1

        def crop(row: jax.Array, start: jax.Array, codes: jax.Array = data[name], rate: int = per_frame) -> jax.Array:
            corner = [row, start * rate] + [jnp.int32(0)] * (codes.ndim - 2)
            return jax.lax.dynamic_slice(codes, corner, (1, length * rate, *codes.shape[2:]))[0]

        result[name] = jax.vmap(crop)(rows, starts).astype(jnp.int32)
    if MULAN.name in names:
        codes = data[MULAN.name][rows]
        if caption_share:
            captions = data[f"caption_{MULAN.name}"]
            drawn = captions[rows, jax.random.randint(caption_key, (batch,), 0, captions.shape[1])]
            of_text = jax.random.bernoulli(share_key, caption_share, (batch, 1))
            codes = jnp.where(of_text, drawn, codes)
        result[MULAN.name] = codes.astype(jnp.int32)
    if MELODY.name in names:
        result[MELODY.name] = data[MELODY.name][rows].astype(jnp.int32)
    return result


def scaled(before: Any, after: Any, scale: jax.Array) -> Any:
    """Scales the update from `before` to `after`, as if the learning rate had been `scale` times the schedule's.

    This is exact since the updates of all optimizers in `OptimizerConfig`, including weight decay, are proportional to
    the learning rate.
    """

    def between(old: jax.Array, new: jax.Array) -> jax.Array:
        return old + scale * (new - old)

    names = [name for name in ("params", "discriminator_params") if hasattr(after, name)]
    changed = {name: jax.tree.map(between, getattr(before, name), getattr(after, name)) for name in names}
    return after.replace(**changed)


def steps(
    learner: Learner, draw: Draw, count: int
) -> Callable[[Any, Data, jax.Array, jax.Array, jax.Array], tuple[Any, Mapping[str, jax.Array]]]:
    """Returns a jitted function that runs `count` training steps.

    Args:
      learner: the learner to train.
      draw: draws a step's batch.
      count: steps per call.

    Returns:
      (state, data, key, first, scale) -> the state after steps `first` .. `first + count - 1`, and the means of their
      metrics. `scale` multiplies the learning rate of the learner's schedule, see `scaled`. The state is donated.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state: Any, data: Data, key: jax.Array, first: jax.Array, scale: jax.Array) -> tuple[Any, Any]:
        def one(state: Any, index: jax.Array | int) -> tuple[Any, Any]:
            draw_key, step_key = jax.random.split(jax.random.fold_in(key, first + index))
            after, metrics = learner.train_step(state, draw(draw_key, data), step_key)
            return scaled(state, after, scale), metrics

        if count == 1:  # no scan: inside a loop, XLA's CPU compiler does not use its fast convolutions
            return one(state, 0)
        state, metrics = jax.lax.scan(one, state, jnp.arange(count))
        return state, jax.tree.map(jnp.mean, metrics)

    return run


def evaluation(learner: Learner, draw: Draw, count: int) -> Callable[[Any, Data, jax.Array], Mapping[str, jax.Array]]:
    """Returns a jitted function (state, data, key) -> means of the learner's held-out metrics over `count` batches."""

    @jax.jit
    def run(state: Any, data: Data, key: jax.Array) -> Mapping[str, jax.Array]:
        def one(step_key: jax.Array) -> Mapping[str, jax.Array]:
            draw_key, eval_key = jax.random.split(step_key)
            return learner.eval_step(state, draw(draw_key, data), eval_key)

        return jax.tree.map(jnp.mean, jax.lax.map(one, jax.random.split(key, count)))

    return run


def abstract_state(learner: Learner) -> Any:
    """Returns shapes and dtypes of a learner's state, without logical-axis boxes."""
    return partitioning.unbox(jax.eval_shape(learner.init, jax.random.key(0)))


def unboxed_init(learner: Learner, key: jax.Array) -> Any:
    """Initializes a learner's state, without logical-axis boxes."""
    return partitioning.unbox(learner.init(key))


def train_for(
    run: Callable[..., tuple[Any, Mapping[str, jax.Array]]],
    state: Any,
    data: Iterator[Data],
    key: jax.Array,
    *,
    count: int,
    seconds: float,
    say: Callable[[str], None],
    every: float = 10.0,
    save: Callable[[Any], None] | None = None,
    save_every: float = math.inf,
) -> tuple[Any, int, dict[str, float]]:
    """Trains for a given time instead of a number of steps; the learning rate falls linearly to 0 over that time.

    Args:
      run: from `steps`, compiled or not.
      state: initial state; donated.
      data: data for each call: the same arrays each time, or blocks of a corpus in turn.
      key: random key of the training.
      count: steps per call of `run`.
      seconds: duration of the training; at least one call is made.
      say: called with lines of progress.
      every: seconds between lines.
      save: called with the state during the training; must not keep the state, which is donated.
      save_every: seconds between calls of `save`.

    Returns:
      The state, the number of steps, and the mean metrics of the last call.

    Raises:
      FloatingPointError: if the loss is not finite.
    """
    begin = said = saved = time.monotonic()
    done, fraction = 0, 0.0
    waiting: list[Any] = []
    latest: dict[str, float] = {}
    while True:
        elapsed = time.monotonic() - begin
        per_call = elapsed / max(done // count - len(waiting), 1)
        if done and elapsed + per_call * len(waiting) + 0.5 * per_call > seconds:
            break
        # The time per call is an estimate, too high at first if that call compiled; keep the rate from rising again.
        fraction = max(fraction, min((elapsed + per_call * len(waiting)) / seconds, 1.0))
        state, metrics = run(state, next(data), key, jnp.int32(done), jnp.float32(max(1.0 - fraction, 0.02)))
        done += count
        waiting.append(metrics)
        if len(waiting) == 2:  # one call runs while the next is queued
            latest = _fetched(waiting.pop(0))
        if time.monotonic() - said > every:
            said = time.monotonic()
            rate = (done - count * len(waiting)) / (said - begin)
            say(f"step {done} ({rate:.1f}/s, {100 * fraction:.0f} %): {shown(latest)}")
        if save is not None and time.monotonic() - saved > save_every:
            save(state)
            saved = time.monotonic()
    for metrics in waiting:
        latest = _fetched(metrics)
    say(f"{done} steps in {time.monotonic() - begin:.1f} s: {shown(latest)}")
    return state, done, latest


def _fetched(metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
    if not math.isfinite(values.get("loss", 0.0)):
        raise FloatingPointError(f"the loss is {values['loss']}: lower the learning rate, or train in float32")
    return values


def shown(metrics: Mapping[str, float]) -> str:
    """Formats metrics in one line, without the perplexities of a quantizer's levels."""
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()) if "perplexity_" not in name)


def crop_samples(seconds: float) -> int:
    """Returns the length of a crop in samples, a whole number of semantic frames."""
    return SEMANTIC.frames(seconds) * SAMPLE_RATE // SEMANTIC.frame_rate
