"""The clips of a bootstrap: worker processes render them; a thread moves them to the accelerator during training."""

import itertools
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.bootstrap import resident
from musiclm_jax.bootstrap.sizes import CLIP_SAMPLES, Sizes
from musiclm_jax.corpus import human_captions
from musiclm_jax.corpus.resident import RenderJob
from musiclm_jax.tokenizers import mulan

HUMAN_FILE = "human_captions.json"  # in the pack: sentences written by people
MUSIC_FILE = "music.ogg"  # in the pack, optional: excerpts of recordings for the codec; requires soundfile
CORPUS_FOLDER = "corpus"  # in the pack: scores and sound fonts


class Corpus:
    """Clips and their texts, in blocks in the accelerator's memory that become available as clips are rendered."""

    def __init__(
        self, sizes: Sizes, pack: pathlib.Path, work: pathlib.Path, seed: int, vocab: bytes, say: Callable[[str], None]
    ):
        """Starts rendering, and a thread that moves finished blocks to the accelerator."""
        self._sizes, self._vocab, self._say = sizes, vocab, say
        self._human, self._music = human_captions.load(pack / HUMAN_FILE), pack / MUSIC_FILE
        self._rng = np.random.default_rng(seed)
        self._count = sizes.blocks * sizes.block
        self._job = RenderJob(
            pack / CORPUS_FOLDER,
            work,
            seed,
            {"train": self._count, "validation": sizes.validation},
            sizes.workers,
            sizes.leads_every,
        )
        self.audio: list[jax.Array] = []  # int16 [block, samples] each
        self._validation: tuple[np.ndarray, np.ndarray] | None = None  # audio and text ids
        self.text_ids: list[jax.Array] = []  # int16 [block, texts, length] each
        self.text_vectors: list[jax.Array] = []  # float16 [block, texts, width] each; the caller appends them
        self.music: jax.Array | None = None  # a block of recordings for the codec, if the pack has any
        self.closed = False
        self.trouble: BaseException | None = None
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        try:
            if self._music.exists():
                self.music = jax.device_put(recordings(self._music, self._sizes.block))
                self._say("recordings for the codec are loaded")
            block = self._sizes.block
            for index in range(self._sizes.blocks):
                while self._job.available("train") < (index + 1) * block:
                    self._job.failed()
                    if self.closed:
                        return
                    time.sleep(0.2)
                rows = self._job.arrays["train.audio.int16"][index * block : (index + 1) * block]
                self.audio.append(jax.device_put(np.ascontiguousarray(rows)))
                clips = self._job.metadata("train", (index + 1) * block)[index * block :]
                self.text_ids.append(jax.device_put(self._texts(clips)))
                self._say(f"clips: {(index + 1) * block} of {self._count}")
            texts = self._texts(self._job.metadata("validation", self._sizes.validation))
            self._validation = self._job.arrays["validation.audio.int16"], texts
        except BaseException as error:  # `wait` raises it
            self.trouble = error

    def _texts(self, clips: list[dict]) -> np.ndarray:
        """Draws texts for clips (captions, aspect lists, matching sentences by people) and returns their token ids."""
        sizes, rng = self._sizes, self._rng
        texts: list[str] = []
        for clip in clips:
            fitting = human_captions.match(self._human, clip)
            drawn: list[int] = rng.permutation(fitting)[: sizes.human_texts].tolist() if fitting else []
            own = [self._human[i].text for i in drawn]
            own += [mulan.training_text(clip["caption"], clip["aspects"], rng, 1.0) for _ in range(2)]
            own += list(clip["caption"])
            own += [mulan.training_text(clip["caption"], clip["aspects"], rng) for _ in range(sizes.texts)]
            texts += own[: sizes.texts]
        ids, _ = mulan.tokenize_texts(self._vocab, texts, sizes.text_length)
        return ids.reshape(len(clips), sizes.texts, sizes.text_length).astype(np.int16)

    def wait(self, blocks: int) -> None:
        """Waits until the first `blocks` blocks are available.

        Raises:
          RuntimeError: if they cannot be rendered.
        """
        while len(self.text_ids) < blocks or (blocks == self._sizes.blocks and self._validation is None):
            if self.trouble is not None:
                raise RuntimeError(f"the corpus cannot be rendered: {self.trouble}") from self.trouble
            time.sleep(0.1)

    def blocks(self, texts: bool = False) -> Iterator[resident.Data]:
        """Cycles through the available blocks without end; with `texts`, through those that have sentence vectors."""
        self.wait(1)
        for turn in itertools.count():
            index = turn % len(self.text_vectors if texts else self.text_ids)
            data = {"audio": self.audio[index], "clips": jnp.int32(self._sizes.block)}
            about = {"text_ids": self.text_ids[index], "text_vectors": self.text_vectors[index]} if texts else {}
            yield data | about

    def sounds(self) -> Iterator[resident.Data]:
        """Cycles through the available blocks for the codec; every eighth one is recordings, if there are any."""
        for turn, data in enumerate(self.blocks()):
            with_music = turn % 8 == 7
            yield {**data, "audio": self.music} if with_music and self.music is not None else data

    def leads(self) -> np.ndarray:
        """Returns the leads of every `leads_every`-th clip, performed by a voice: int16 `[n, samples]`."""
        return self._job.arrays["train.leads.int16"]

    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns audio and text ids of the validation split.

        Raises:
          RuntimeError: if it is not rendered yet.
        """
        if self._validation is None:
            raise RuntimeError("the validation split is not rendered: wait for all blocks first")
        return self._validation

    def close(self) -> None:
        """Stops rendering."""
        self.closed = True
        self._job.stop()


def recordings(path: pathlib.Path, clips: int) -> np.ndarray:
    """Reads excerpts of 10 s from a sound file, repeated to fill a block: int16 `[clips, samples]`."""
    from musiclm_jax.data import audio  # here, since soundfile is only needed for packs with recordings

    sound = audio.read_pcm(path)
    excerpts = sound[: len(sound) // CLIP_SAMPLES * CLIP_SAMPLES].reshape(-1, CLIP_SAMPLES)
    return np.resize(excerpts, (clips, CLIP_SAMPLES))
