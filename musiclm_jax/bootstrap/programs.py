"""All programs of a bootstrap, compiled ahead in threads while the accelerator is at work: their shapes are known."""

import concurrent.futures
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax import melody, mulan, resident, soundstream, w2v_bert
from musiclm_jax.bootstrap.sizes import CLIP_SAMPLES, CLIP_SECONDS, Sizes
from musiclm_jax.mulan.text_tower import BertEncoder, Projection, pool
from musiclm_jax.soundstream.learner import export as exported_codec
from musiclm_jax.stage_learner import StageLearner
from musiclm_jax.tokens import ACOUSTIC, MELODY, SEMANTIC

EVALUATED = 4  # batches of a held-out figure
Shape = jax.ShapeDtypeStruct


def over_clips(function: Callable[[Any, jax.Array], jax.Array], at_once: int) -> Callable[[Any, jax.Array], jax.Array]:
    """`function(variables, audio float32 [n, samples])` for int16 clips `[m n, samples]`, n = `at_once` at a time."""

    @jax.jit
    def run(variables: Any, clips: jax.Array) -> jax.Array:
        parts = clips.reshape(-1, at_once, clips.shape[-1])
        result = jax.lax.map(lambda part: function(variables, part.astype(jnp.float32) / resident.FULL_SCALE), parts)
        return result.reshape(-1, *result.shape[2:])

    return run


def over_texts(config: Any, at_once: int) -> Callable[[Any, jax.Array], jax.Array]:
    """Embeddings float32 `[clips, texts, dim]` of ids int `[clips, texts, length]`, by {"text", "projection"}."""

    @jax.jit
    def run(variables: Any, ids: jax.Array) -> jax.Array:
        flat = ids.reshape(-1, ids.shape[-1])
        padded = jnp.pad(flat, ((0, -len(flat) % at_once), (0, 0))).reshape(-1, at_once, ids.shape[-1])

        def one(part: jax.Array) -> jax.Array:
            part = part.astype(jnp.int32)
            mask = (part > 0).astype(jnp.int32)
            pooled = pool(BertEncoder(config).apply({"params": variables["text"]}, part, mask), mask)
            return Projection(config).apply({"params": variables["projection"]}, pooled)

        embedded = jax.lax.map(one, padded).reshape(-1, config.embedding_dim)
        return embedded[: len(flat)].reshape(*ids.shape[:2], -1)

    return run


class Programs:
    """Compiles in the order in which programs are asked for; `get` waits for one."""

    def __init__(self, sizes: Sizes, learners: dict[str, Any], draws: dict[str, Any], say: Callable[[str], None]):
        self._sizes, self._learners, self._draws, self._say = sizes, learners, draws, say
        self._states = {name: resident.abstract_state(learner) for name, learner in learners.items()}
        self._threads = concurrent.futures.ThreadPoolExecutor(sizes.compilers)
        self._compiled: dict[str, concurrent.futures.Future] = {}
        self._key = jax.eval_shape(lambda: jax.random.key(0))

    def ahead(self, name: str, function: Any, *shapes: Any) -> None:
        """Begins to compile a jitted function for arguments of given shapes."""

        def work() -> Any:
            begin = time.monotonic()
            compiled = function.lower(*shapes).compile()
            self._say(f"compiled {name} in {time.monotonic() - begin:.1f} s")
            return compiled

        self._compiled[name] = self._threads.submit(work)

    def get(self, name: str) -> Any:
        """A compiled program; says how long it was waited for."""
        begin = time.monotonic()
        program = self._compiled[name].result()
        if time.monotonic() - begin > 0.5:
            self._say(f"waited {time.monotonic() - begin:.1f} s for the program {name}")
        return program

    def training(self, name: str) -> None:
        """Initialisation and steps of a training."""
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
        """Held-out figures of a stage."""
        run = resident.evaluation(self._learners[name], self._draws[name], EVALUATED)
        shapes = {
            key: Shape((self._sizes.validation, *value.shape[1:]), value.dtype)
            for key, value in self.data(name).items()
        }
        self.ahead(f"{name} evaluation", run, self._states[name], shapes, self._key)

    def features(self) -> None:
        """Features that semantic tokens are clusters of."""
        config = self._learners["w2v_bert"].config
        run = over_clips(
            lambda params, audio: w2v_bert.features(config, {"params": params}, audio).astype(jnp.float16),
            self._sizes.at_once,
        )
        self.ahead("features", run, self._states["w2v_bert"].params, self._clips())

    def joint(self) -> None:
        """MuLan's embeddings of clips and of texts."""
        sizes, state = self._sizes, self._states["mulan"]
        config = self._learners["mulan"].config
        heard = over_clips(lambda params, audio: mulan.embed_audio(config, {"audio": params}, audio), sizes.at_once)
        self.ahead("embed_audio", heard, state.params["audio"], self._clips())
        towers = {"text": state.frozen["text"], "projection": state.params["projection"]}
        ids = Shape((sizes.block, sizes.texts, sizes.text_length), jnp.int16)
        self.ahead("embed_texts", over_texts(config, 8 * sizes.at_once), towers, ids)

    def tokenizers(self) -> None:
        """Acoustic and semantic codes of clips."""
        codec, semantic = self._learners["soundstream"].config, self._learners["w2v_bert"].config
        acoustic = over_clips(
            lambda v, audio: soundstream.encode(codec, v, audio).astype(jnp.int16), self._sizes.at_once
        )
        exported = jax.eval_shape(functools.partial(exported_codec, codec), self._states["soundstream"])
        self.ahead("acoustic", acoustic, exported, self._clips())
        codes = over_clips(
            lambda v, audio: w2v_bert.semantic_tokens(semantic, v, audio).astype(jnp.int16), self._sizes.at_once
        )
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

    def melodies(self, part: Any, clips: int) -> None:
        """Melody codes of so many clips."""
        encode = over_clips(
            lambda v, audio: melody.tokens(part.config, v, audio).astype(jnp.int16), self._sizes.at_once
        )
        shapes = jax.tree.map(lambda leaf: Shape(leaf.shape, leaf.dtype), part.variables)
        self.ahead("melodies", encode, shapes, Shape((clips, CLIP_SAMPLES), jnp.int16))

    def _clips(self) -> Shape:
        return Shape((self._sizes.block, CLIP_SAMPLES), jnp.int16)

    def data(self, name: str) -> dict[str, Shape]:
        """Shapes of what a training draws from."""
        sizes, learner = self._sizes, self._learners[name]
        if not isinstance(learner, StageLearner):
            texts = {"text_ids": Shape((sizes.block, sizes.texts, sizes.text_length), jnp.int16)}
            return {"audio": self._clips(), "clips": Shape((), jnp.int32)} | (texts if name == "mulan" else {})
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
