"""Runs the parts of a bootstrap in order: codec, semantic tokens, MuLan, tokenization, stages, the codec's decoder.

Each part gets a share of the time that is left when it starts, and is saved to the bundle when it is done.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
import shutil
import time
import zlib
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import bundles
from musiclm_jax.bootstrap import kept_tokens, learners, resident
from musiclm_jax.bootstrap.corpus import Corpus
from musiclm_jax.bootstrap.log import Log
from musiclm_jax.bootstrap.programs import KEYS, Programs, project
from musiclm_jax.bootstrap.sizes import TRAININGS, Sizes
from musiclm_jax.data.tokens import MELODY
from musiclm_jax.stages import weights as stage_weights
from musiclm_jax.stages.config import StageModelConfig
from musiclm_jax.tokenizers import melody, mulan, w2v_bert
from musiclm_jax.training.learner import check_fits

LEARNERS_FILE, SEED_BUNDLE = "learners.json", "bundle"  # in the pack: configurations; text encoder and melody model
STAGES = ("coarse", "semantic", "fine")
FITTED_BLOCKS = 4  # number of blocks for fitting the clusters


class Bootstrap:
    """One bootstrap; `run` trains the parts in order."""

    def __init__(
        self,
        pack: pathlib.Path,
        output: pathlib.Path,
        minutes: float,
        sizes: Sizes,
        seed: int = 0,
        work: pathlib.Path | None = None,
        parts: Collection[str] = TRAININGS,
    ):
        """Reads the pack.

        Args:
          pack: folder from `musiclm bootstrap --pack`.
          output: folder for the bundle and the log.
          minutes: total time.
          sizes: amount of data and training settings.
          seed: for the corpus and all trainings.
          work: folder for rendered audio, 0.6 MB per clip; a folder in memory is best. None uses one in `output`.
          parts: names from TRAININGS to train. A part that is already in the output's bundle continues training; parts
            that are not trained are read from there.

        Raises:
          ValueError: if a part is unknown, or a part that is needed but not trained is missing in the output's bundle.
        """
        if unknown := sorted(set(parts) - set(TRAININGS)):
            raise ValueError(f"unknown parts {', '.join(unknown)}: choose from {', '.join(TRAININGS)}")
        output.mkdir(parents=True, exist_ok=True)
        self.pack, self.sizes, self.seed, self.parts = pack, sizes, seed, [name for name in TRAININGS if name in parts]
        self.deadline = time.monotonic() + 60 * minutes
        self.say = Log(output / "bootstrap.log")
        self.seed_bundle = bundles.load(pack / SEED_BUNDLE)
        self.bundle, self.work = output / "bundle", work or output / "work"
        self.unfinished = output / "unfinished"  # a bundle with the stage that an interrupted run was training
        self.work.mkdir(parents=True, exist_ok=True)
        self.learners = learners.read(pack / LEARNERS_FILE, sizes, self.seed_bundle.file("vocab.txt"))
        self.draws = {name: learners.draw(name, learner, sizes) for name, learner in self.learners.items()}
        if missing := sorted(name for name in self._needed() if name not in self.parts and not self._has(name)):
            raise ValueError(
                f"{self.bundle} has no {', '.join(missing)}, required by {', '.join(self.parts)}: train them, too"
            )
        self.made: dict[str, Any] = {}  # variables of the tokenizers, trained or read
        self.embedded: list[tuple[np.ndarray, np.ndarray]] = []  # MuLan embeddings of clips and texts, by block
        self.programs = Programs(sizes, self.learners, self.draws, self.say)

    def _needed(self) -> set[str]:
        """Returns the parts that the trained parts depend on or start from."""
        stages = {name for name in self.parts if learners.is_stage(name)}
        needed = {"soundstream", "w2v_bert", "mulan"} if stages else set()
        needed |= {"semantic"} if "semantic_melody" in stages else set()
        return needed | ({"soundstream"} if "decoder" in self.parts else set())

    def run(self) -> None:
        """Renders and trains all parts.

        Raises:
          RuntimeError: if the corpus cannot be rendered.
          FloatingPointError: if a training diverges.
        """
        sizes = self.sizes
        vocab = self.seed_bundle.file("vocab.txt").read_bytes()
        self.say(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {sizes.blocks * sizes.block} clips")
        self.kept = self._kept_tokens()
        if self.kept is None:
            self.corpus = Corpus(sizes, self.pack, self.work, self.seed, vocab, self.say)
        self._compile_ahead()
        for name, train in (
            ("soundstream", self._train_codec),
            ("w2v_bert", self._train_w2v_bert),
            ("mulan", self._train_mulan),
        ):
            if name in self.parts:
                self.made[name] = train()
            elif name in self._needed():
                self.made[name] = self._made(name)
        if any(learners.is_stage(name) for name in self.parts):
            tokens = self._tokens()
            for name in self.parts:
                if name in STAGES:
                    self._train_stage(name, tokens)
            if "semantic_melody" in self.parts:
                self._train_melody_stage(tokens)
        if "decoder" in self.parts:
            self._train_decoder(self.made["soundstream"])
        if self.kept is None:
            self.corpus.close()
        self.say("done")

    def _kept_tokens(self) -> tuple[kept_tokens.Tokens, kept_tokens.Tokens] | None:
        """Returns the tokens that an earlier run left in `work`, if they are all that this one needs."""
        if not all(learners.is_stage(name) for name in self.parts):
            return None
        kept = kept_tokens.load(self.work / kept_tokens.FILE, self._token_settings())
        return None if kept is None or ("semantic_melody" in self.parts and MELODY.name not in kept[0]) else kept

    def _token_settings(self) -> dict[str, Any]:
        return kept_tokens.settings(self.sizes, self.seed, bundles.load(self.bundle), self.seed_bundle)

    def _made(self, name: str, folder: pathlib.Path | None = None) -> Any:
        """Reads a part's variables from the output's bundle, or from that in `folder`.

        Raises:
          BundleError: if the part is missing.
        """
        bundle = bundles.load(folder or self.bundle)
        return (bundle.mulan() if name == "mulan" else bundle.part(name)).variables

    def _has(self, part: str, folder: pathlib.Path | None = None) -> bool:
        """Returns whether the output's bundle, or that in `folder`, has a part."""
        folder = folder or self.bundle
        return (folder / "config.json").exists() and bundles.load(folder).has(part)

    def _begun(self, name: str, state: Any) -> Any:
        """Returns the state with the weights of an interrupted run or of the output's bundle, or unchanged without any.

        Raises:
          ValueError: if the weights have another configuration.
        """
        folder = self.unfinished if self._has(name, self.unfinished) else self.bundle
        if not self._has(name, folder):
            return state
        self.say(f"{name}: continues from {folder}")
        begun = self.learners[name].start_from(state, self._made(name, folder))
        check_fits("the bundle's model", begun, state)
        return begun

    def _compile_ahead(self) -> None:
        """Starts compiling all programs, in order of use."""
        programs, parts = self.programs, self.parts
        stages = [name for name in parts if learners.is_stage(name)]
        for name in parts:
            if name == "mulan":
                programs.sentences()
            if name not in stages and name != "decoder":
                programs.training(name)
            if name == "w2v_bert":
                programs.features()
        if self.kept is None and (stages or "mulan" in parts):
            programs.joint()
        if stages and self.kept is None:
            programs.tokenizers()
            if "mulan" not in parts:
                programs.sentences()
        for name in stages:
            programs.training(name)
        if "semantic_melody" in stages and self.kept is None:
            programs.melodies(self.seed_bundle.part("melody"))
        if "decoder" in parts:
            programs.training("decoder")
        for name in stages:
            if name in STAGES:
                programs.evaluation(name)

    def key(self, purpose: str) -> jax.Array:
        """Derives a key for `purpose` from the run's seed."""
        return jax.random.fold_in(jax.random.key(self.seed, impl=KEYS), zlib.crc32(purpose.encode()))

    def _initial(self, name: str) -> Any:
        return self.programs.get(f"{name} init")(self.key(f"{name} init"))

    def _warm(self, name: str, state: Any) -> Any:
        self.corpus.wait(1)
        batch = self.draws[name](self.key(f"{name} batch"), next(self.corpus.blocks()))
        return self.programs.get(f"{name} warm start")(state, batch, self.key(f"{name} warm start"))

    def _trained(self, name: str, state: Any, data: Iterator[resident.Data]) -> Any:
        """Trains a part for its share of the remaining time."""
        run = self.programs.get(name)
        after = self.parts[self.parts.index(name) :]
        left = self.deadline - time.monotonic()
        seconds = max(left * self.sizes.share[name] / sum(self.sizes.share[other] for other in after), 0.1)
        self.say(f"{name}: training for {seconds:.1f} s")
        state, _, _ = resident.train_for(
            run,
            state,
            data,
            self.key(name),
            count=self.sizes.steps[name],
            seconds=seconds,
            say=lambda line: self.say(f"{name}: {line}"),
            save=functools.partial(self._save_unfinished, name) if learners.is_stage(name) else None,
            save_every=self.sizes.save_every,
        )
        return state

    def _train_codec(self) -> Any:
        """Trains the codec without discriminators; returns its variables, which determine the tokens."""
        state = self._begun("soundstream", self._warm("soundstream", self._initial("soundstream")))
        state = self._trained("soundstream", state, self.corpus.sounds())
        return self._save_codec("soundstream", state)

    def _train_decoder(self, codec: Any) -> None:
        """Trains only the codec's decoder against discriminators; encoder and codebooks are fixed."""
        state = self.learners["decoder"].start_from(self._initial("decoder"), jax.tree.map(jnp.copy, codec))
        self._save_codec("decoder", self._trained("decoder", state, self.corpus.sounds()))

    def _save_codec(self, name: str, state: Any) -> Any:
        learner = self.learners[name]
        # The learning rate has fallen to 0, so the parameters need no averaging.
        variables = learner.variables(state.replace(ema_params=state.params))
        self._save("soundstream", dataclasses.replace(learner.config, dtype="float32"), variables)
        return variables

    def _train_w2v_bert(self) -> Any:
        learner = self.learners["w2v_bert"]
        state = self._warm("w2v_bert", self._initial("w2v_bert"))
        state = self._trained("w2v_bert", state, self.corpus.blocks())
        begin, features = time.monotonic(), self.programs.over("features")
        fitted = (features(state.params, block)[::4] for block in self.corpus.audio[:FITTED_BLOCKS])
        variables = w2v_bert.fit_kmeans(learner.config, learner.variables(state), fitted, self.key("clusters"))
        self.say(f"w2v_bert: clusters fitted in {time.monotonic() - begin:.1f} s")
        self._save("w2v_bert", learner.config, variables)
        return variables

    def _train_mulan(self) -> Any:
        learner, state = self.learners["mulan"], self._initial("mulan")
        # A copy, since training donates its state and the encoder is needed afterwards.
        state = self._begun("mulan", state.replace(frozen={"text": jax.tree.map(jnp.copy, self._encoder)}))
        self.corpus.wait(1)
        self._read_texts()
        state = self._trained("mulan", state, self._pairs())
        variables, begin = learner.variables(state), time.monotonic()
        self._read_texts()
        count = len(self.corpus.text_vectors)
        heard, read = zip(*[self._embedded(variables, i) for i in range(count)], strict=True)
        self.embedded = list(zip(heard, read, strict=True))
        audio, texts = np.concatenate(heard), np.concatenate(read)
        chosen = range(0, self.sizes.texts, 3)
        pairs = np.concatenate([audio for _ in chosen]), np.concatenate([texts[:, text] for text in chosen])
        variables = mulan.fit_quantizer(learner.config, variables, *pairs, self.key("quantizer"))
        if self._has("mulan"):
            variables = self._with_known_codes(variables, texts)
        codes = [
            mulan.tokens(learner.config, variables, vectors, kind)
            for vectors, kind in ((audio, "audio"), (texts[:, -1], "text"))
        ]
        agreement = np.round(np.asarray(mulan.token_agreement(*codes)), 3).tolist()
        self.say(f"mulan: quantizer fitted in {time.monotonic() - begin:.1f} s, agreement by level {agreement}")
        self.bundle.mkdir(exist_ok=True)
        for name, size in bundles.save_mulan(self.bundle, learner.config, variables).items():
            self.say(f"saved {name}, {size / 1e6:.2f} MB")
        return variables

    def _with_known_codes(self, variables: Any, texts: np.ndarray) -> Any:
        """Renumbers MuLan's codes to match the output bundle's MuLan, by the codes for texts `[clips, texts, dim]`.

        It also saves the bundle's stages with embedding rows for the new codes, even if they are not trained further.
        """
        config, before = self.learners["mulan"].config, self._made("mulan")
        read = np.asarray(project(config, before["projection"], jnp.concatenate(self.corpus.text_vectors)))
        now, then = texts.reshape(-1, texts.shape[-1]), read.reshape(-1, read.shape[-1])
        old = np.asarray(mulan.tokens(config, before, then, "text"))
        named = mulan.relabelled(variables, mulan.tokens(config, variables, now, "text"), old)
        new = np.asarray(mulan.tokens(config, named, now, "text"))
        same = np.round(np.mean(new == old, axis=0), 2).tolist()
        self.say(f"mulan: share of texts whose code is unchanged, by level: {same}")
        for name in (*STAGES, "semantic_melody"):
            if self._has(name) and learners.caption_share(self.learners[name], self.sizes):
                part = bundles.load(self.bundle).part(name)
                params = stage_weights.with_new_codes(part.variables["params"], part.config.stage, "mulan", old, new)
                self._save(name, part.config, {"params": params}, "int8" if name == "semantic_melody" else "float16")
        return named

    @property
    def _encoder(self) -> Any:
        """Parameters of the frozen text encoder."""
        return self.seed_bundle.part("text_encoder").variables["text"]

    def _sentences(self, ids: Any) -> jax.Array:
        """Computes sentence vectors `[clips, texts, width]` from ids `[clips, texts, length]`."""
        vectors = self.programs.over("sentences")(self._encoder, ids.reshape(-1, ids.shape[-1]))
        return vectors.reshape(*ids.shape[:2], -1)

    def _read_texts(self) -> None:
        """Computes the sentence vectors for all blocks that are available."""
        begin = time.monotonic()
        vectors = self.corpus.text_vectors
        before = len(vectors)
        while len(vectors) < len(self.corpus.text_ids):
            vectors.append(self._sentences(self.corpus.text_ids[len(vectors)]))
        if len(vectors) > before:
            jax.block_until_ready(vectors)
            self.say(f"texts of {len(vectors) - before} blocks encoded in {time.monotonic() - begin:.1f} s")

    def _pairs(self) -> Iterator[resident.Data]:
        """Cycles through the blocks with sentence vectors, those that arrive during the training included."""
        for data in self.corpus.blocks(texts=True):
            self._read_texts()
            yield data

    def _embedded(self, variables: Any, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Computes a block's MuLan embeddings of clips, `[clips, dim]`, and their texts, `[clips, texts, dim]`."""
        return self._embeddings(variables, self.corpus.audio[block], self.corpus.text_vectors[block])

    def _embeddings(self, variables: Any, audio: Any, vectors: Any) -> tuple[np.ndarray, np.ndarray]:
        heard = self.programs.over("embed_audio")(variables["audio"], audio)
        read = project(self.learners["mulan"].config, variables["projection"], vectors)
        return np.asarray(heard), np.asarray(read)

    def _tokens(self) -> dict[str, jax.Array]:
        """Returns the token streams of all clips, from an earlier run if it left them; sets `held_out`."""
        if self.kept is not None:
            self.say(f"tokens: from {self.work / kept_tokens.FILE}")
            tokens, self.held_out = self.kept
            return tokens
        tokens = self._tokenize(*(self.made[name] for name in ("soundstream", "w2v_bert", "mulan")))
        self._keep(tokens)
        return tokens

    def _keep(self, tokens: dict[str, jax.Array]) -> None:
        """Keeps tokens for later runs, on machines where rendering and encoding take a large part of a run."""
        if self.sizes.keep_tokens:
            kept_tokens.save(self.work / kept_tokens.FILE, self._token_settings(), tokens, self.held_out)

    def _tokenize(self, codec: Any, semantic: Any, joint: Any) -> dict[str, jax.Array]:
        """Computes the token streams of all clips on the accelerator; sets `held_out` to the validation split's."""
        begin, sizes = time.monotonic(), self.sizes
        self.corpus.wait(sizes.blocks)
        self.say(f"tokens: waited {time.monotonic() - begin:.1f} s for the last clips")
        begin = time.monotonic()
        self._read_texts()
        for block in range(len(self.embedded), sizes.blocks):  # blocks rendered since MuLan was trained
            self.embedded.append(self._embedded(joint, block))

        def streams(audio: Any, heard: np.ndarray, read: np.ndarray) -> dict[str, jax.Array]:
            config = self.learners["mulan"].config
            of_text = mulan.tokens(config, joint, read.reshape(-1, read.shape[-1]), "text")
            return {
                "acoustic": self.programs.over("acoustic")(codec, audio),
                "semantic": self.programs.over("semantic codes")(semantic, audio),
                "mulan": mulan.tokens(config, joint, heard, "audio").astype(jnp.int16),
                "caption_mulan": of_text.reshape(*read.shape[:2], -1).astype(jnp.int16),
            }

        blocks = [streams(audio, *own) for audio, own in zip(self.corpus.audio, self.embedded, strict=True)]
        tokens = {name: jnp.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        audio, ids = self.corpus.held_out()
        vectors = self._sentences(ids)
        self.held_out = streams(audio, *self._embeddings(joint, audio, vectors))
        used = [len(np.unique(np.asarray(tokens["acoustic"][::16, ::8, level]))) for level in range(4)]
        distinct = len(np.unique(np.asarray(tokens["semantic"][::4])))
        self.say(f"tokens: computed in {time.monotonic() - begin:.1f} s; codes in use {used}, semantic {distinct}")
        return tokens

    def _train_stage(self, name: str, tokens: dict[str, jax.Array]) -> None:
        data = {key: tokens[key] for key in self.programs.data(name)}
        state = self._trained(name, self._begun(name, self._initial(name)), itertools.repeat(data))
        self._save_stage(name, state)
        evaluate = self.programs.get(f"{name} evaluation")
        figures = evaluate(state, {key: self.held_out[key] for key in data}, self.key("evaluation"))
        self.say(f"{name}: held out {resident.shown(jax.device_get(figures))}")

    def _train_melody_stage(self, tokens: dict[str, jax.Array]) -> None:
        """Trains the semantic stage with melody conditioning, starting from the weights of the plain semantic stage."""
        name, every, begin = "semantic_melody", self.sizes.leads_every, time.monotonic()
        part, learner = self.seed_bundle.part("melody"), self.learners[name]
        if MELODY.name not in tokens:
            leads = self.corpus.leads()
            tokens[MELODY.name] = self.programs.over("melodies")(part.variables, leads)
            self.say(f"{name}: melodies of {len(leads)} leads in {time.monotonic() - begin:.1f} s")
            self._keep(tokens)
        data = {key: tokens[key][::every] for key in self.programs.data(name) if key != MELODY.name}
        data[MELODY.name] = tokens[MELODY.name]
        codebooks, old = {MELODY.name: melody.entries(*part)}, self.learners["semantic"].stage
        begun = stage_weights.carried_over(self._made("semantic")["params"], old, learner.stage, codebooks)
        state = self._initial(name).replace(params=jax.tree.map(jnp.asarray, dict(begun)))
        state = self._trained(name, self._begun(name, state), itertools.repeat(data))
        self._save_stage(name, state, "int8")

    def _save_unfinished(self, name: str, state: Any) -> None:
        bundles.save_part(self.unfinished, name, *self._stage(name, state), "float16")
        self.say(f"{name}: saved in {self.unfinished}")

    def _save_stage(self, name: str, state: Any, storage: str = "float16") -> None:
        self._save(name, *self._stage(name, state), storage)
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def _stage(self, name: str, state: Any) -> tuple[StageModelConfig, Any]:
        """Returns a stage's configuration for bundles, which run on any machine, and its variables."""
        learner = self.learners[name]
        config = dataclasses.replace(learner.config, dtype="float32", scan_layers=False, round_products=False)
        return StageModelConfig(learner.stage, config), jax.device_get(learner.variables(state))

    def _save(self, name: str, config: Any, variables: Any, storage: str = "float16") -> None:
        size = bundles.save_part(self.bundle, name, config, jax.device_get(variables), storage)
        self.say(f"saved {name}, {size / 1e6:.2f} MB")
