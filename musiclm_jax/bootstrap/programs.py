"""Compiles all programs of a bootstrap in background threads while the accelerator trains; all shapes are known."""

import concurrent.futures
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax.bootstrap import resident
from musiclm_jax.bootstrap.sizes import CLIP_SAMPLES, CLIP_SECONDS, Sizes
from musiclm_jax.data.samples import from_pcm16
from musiclm_jax.data.tokens import ACOUSTIC, MELODY, SEMANTIC
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.tokenizers import melody, mulan, soundstream, w2v_bert
from musiclm_jax.tokenizers.mulan.text_tower import BertEncoder, Projection, pool

EVALUATED = 4  # batches per held-out evaluation
TEXTS = 8  # texts encoded at once, per clip that is encoded at once
KEYS = "rbg"  # PRNG implementation: programs that draw many arrays compile in half the time of the default
Shape = jax.ShapeDtypeStruct


def in_parts(function: Callable[[Any, jax.Array], jax.Array], at_once: int) -> Callable[[Any, Any], jax.Array]:
    """Extends `function(variables, rows [at_once, ...])` to any number of rows; the last part is padded.

    The loop is in Python: inside an XLA loop, the CPU compiler does not use its fast matrix products.
    """

    def run(variables: Any, rows: Any) -> jax.Array:
        results = []
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            if len(part) < at_once:
                part = jnp.concatenate([part, jnp.zeros((at_once - len(part), *part.shape[1:]), part.dtype)])
            results.append(function(variables, part))
        return jnp.concatenate(results)[: len(rows)]

    return run


def of_clips(function: Callable[[Any, jax.Array], jax.Array]) -> Callable[[Any, jax.Array], jax.Array]:
    """Wraps `function(variables, float32 audio)` in a jitted function of 16-bit audio."""
    return jax.jit(lambda variables, clips: function(variables, from_pcm16(clips)))


def sentence_vectors(config: Any) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns a jitted function from encoder and ids, int `[texts, length]`, to float16 `[texts, text_width]`."""

    @jax.jit
    def run(encoder: Any, ids: jax.Array) -> jax.Array:
        ids = ids.astype(jnp.int32)
        mask = (ids > 0).astype(jnp.int32)
        return pool(BertEncoder(config).apply({"params": encoder}, ids, mask), mask).astype(jnp.float16)

    return run


@functools.partial(jax.jit, static_argnums=0)
def project(config: Any, projection: Any, vectors: jax.Array) -> jax.Array:
    """Projects sentence vectors `[..., text_width]` to MuLan embeddings, float32 `[..., dim]`."""
    return Projection(config).apply({"params": projection}, vectors.astype(jnp.float32))


class Programs:
    """Compiles programs in the order of requests; `get` waits for one."""

    def __init__(self, sizes: Sizes, learners: dict[str, Any], draws: dict[str, Any], say: Callable[[str], None]):
        self._sizes, self._learners, self._draws, self._say = sizes, learners, draws, say
        self._states = {name: resident.abstract_state(learner) for name, learner in learners.items()}
        self._threads = concurrent.futures.ThreadPoolExecutor(sizes.compilers)
        self._compiled: dict[str, concurrent.futures.Future] = {}
        self._key = jax.eval_shape(lambda: jax.random.key(0, impl=KEYS))

    def ahead(self, name: str, function: Any, *shapes: Any) -> None:
        """Starts compiling a jitted function for the given argument shapes."""

        def work() -> Any:
            begin = time.monotonic()
            compiled = function.lower(*shapes).compile()
            self._say(f"compiled {name} in {time.monotonic() - begin:.1f} s")
            return compiled

        self._compiled[name] = self._threads.submit(work)

    def get(self, name: str) -> Any:
        """Waits for a compiled program and returns it; logs the waiting time."""
        begin = time.monotonic()
        program = self._compiled[name].result()
        if time.monotonic() - begin > 0.5:
            self._say(f"waited {time.monotonic() - begin:.1f} s for the program {name}")
        return program

    def over(self, name: str) -> Callable[[Any, Any], jax.Array]:
        """Returns a compiled program on clips or texts, extended to any number of them."""
        at_once = self._sizes.at_once * (TEXTS if name == "sentences" else 1)
        return in_parts(self.get(name), at_once)

    def training(self, name: str) -> None:
        """Compiles a training's initialization and steps."""
        learner, shapes = self._learners[name], self.data(name)
        first = jax.jit(lambda key: resident.unboxed_init(learner, key))
        self.ahead(f"{name} init", first, self._key)
        if name in ("soundstream", "w2v_bert"):
            batch = jax.eval_shape(self._draws[name], self._key, shapes)
            self.ahead(f"{name} warm start", jax.jit(learner.warm_start), self._states[name], batch, self._key)
        run = resident.steps(learner, self._draws[name], self._sizes.steps[name])
        number, scale = Shape((), jnp.int32), Shape((), jnp.float32)
        self.ahead(name, run, self._states[name], shapes, self._key, number, scale)

    def evaluation(self, name: str) -> None:
        """Compiles a stage's held-out evaluation."""
        run = resident.evaluation(self._learners[name], self._draws[name], EVALUATED)
        shapes = {
            key: Shape((self._sizes.validation, *value.shape[1:]), value.dtype)
            for key, value in self.data(name).items()
        }
        self.ahead(f"{name} evaluation", run, self._states[name], shapes, self._key)

    def features(self) -> None:
        """Compiles the features that are clustered into semantic tokens."""
        config = self._learners["w2v_bert"].config
        run = of_clips(lambda params, audio: w2v_bert.features(config, {"params": params}, audio).astype(jnp.float16))
        self.ahead("features", run, self._states["w2v_bert"].params, self._clips())

    def joint(self) -> None:
        """Compiles MuLan's embeddings of clips."""
        state, config = self._states["mulan"], self._learners["mulan"].config
        heard = of_clips(lambda params, audio: mulan.embed_audio(config, {"audio": params}, audio))
        self.ahead("embed_audio", heard, state.params["audio"], self._clips())

    def sentences(self) -> None:
        """Compiles sentence vectors of texts."""
        sizes, state = self._sizes, self._states["mulan"]
        ids = Shape((TEXTS * sizes.at_once, sizes.text_length), jnp.int16)
        self.ahead("sentences", sentence_vectors(self._learners["mulan"].config), state.frozen["text"], ids)

    def tokenizers(self) -> None:
        """Compiles acoustic and semantic codes of clips."""
        codec, semantic = self._learners["soundstream"].config, self._learners["w2v_bert"].config
        acoustic = of_clips(lambda v, audio: soundstream.encode(codec, v, audio).astype(jnp.int16))
        exported = jax.eval_shape(self._learners["soundstream"].variables, self._states["soundstream"])
        self.ahead("acoustic", acoustic, exported, self._clips())
        codes = of_clips(lambda v, audio: w2v_bert.semantic_tokens(semantic, v, audio).astype(jnp.int16))
        width = semantic.d_model
        dims = (semantic.feature_dims or width) if semantic.feature_normalisation == "pca" else width
        fitted = {
            "params": w2v_bert.inference_params(semantic, self._states["w2v_bert"].params),
            "feature_mean": Shape((width,), jnp.float32),
            "feature_std": Shape((width,), jnp.float32),
            "centroids": Shape((semantic.num_clusters, dims), jnp.float32),
        }
        if semantic.feature_normalisation == "pca":
            fitted["feature_projection"] = Shape((width, dims), jnp.float32)
        self.ahead("semantic codes", codes, fitted, self._clips())

    def melodies(self, part: Any) -> None:
        """Compiles melody codes of clips."""
        encode = of_clips(lambda v, audio: melody.tokens(part.config, v, audio).astype(jnp.int16))
        shapes = jax.tree.map(lambda leaf: Shape(leaf.shape, leaf.dtype), part.variables)
        self.ahead("melodies", encode, shapes, self._clips())

    @property
    def _text_width(self) -> int:
        return self._learners["mulan"].config.text_width

    def _clips(self) -> Shape:
        return Shape((self._sizes.at_once, CLIP_SAMPLES), jnp.int16)

    def data(self, name: str) -> dict[str, Shape]:
        """Returns the shapes of the data that a training draws from."""
        sizes, learner = self._sizes, self._learners[name]
        if not isinstance(learner, StageLearner):
            texts = {
                "text_ids": Shape((sizes.block, sizes.texts, sizes.text_length), jnp.int16),
                "text_vectors": Shape((sizes.block, sizes.texts, self._text_width), jnp.float16),
            }
            audio = Shape((sizes.block, CLIP_SAMPLES), jnp.int16)
            return {"audio": audio, "clips": Shape((), jnp.int32)} | (texts if name == "mulan" else {})
        clips = sizes.blocks * sizes.block // (sizes.leads_every if name == "semantic_melody" else 1)
        quantizers = self._learners["mulan"].config.num_quantizers
        levels = self._learners["soundstream"].config.num_quantizers
        own = {
            "semantic": Shape((clips, SEMANTIC.frame_rate * CLIP_SECONDS), jnp.int16),
            "acoustic": Shape((clips, ACOUSTIC.frame_rate * CLIP_SECONDS, levels), jnp.int16),
            "mulan": Shape((clips, quantizers), jnp.int16),
            "caption_mulan": Shape((clips, sizes.texts, quantizers), jnp.int16),
            "melody": Shape((clips, MELODY.quantizers), jnp.int16),
        }
        names = {part.stream for part in (*learner.stage.conditioning, learner.stage.target)}
        return {key: value for key, value in own.items() if key.removeprefix("caption_") in names}
