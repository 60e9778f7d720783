"""Turns seqio tasks into NumPy batches: a fixed order in each epoch, sharded over hosts, resumable at any batch.

One epoch is one dataset. All its random choices (order of shards, shuffling, crops, captions) are seeded with seed +
epoch, so batch i of epoch e is always the same.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import seqio
import tensorflow as tf

from musiclm_jax.data import records, wordpiece
from musiclm_jax.data.feature_converter import StreamFeatureConverter
from musiclm_jax.data.resident import ResidentDataset
from musiclm_jax.data.tokens import STREAMS

# The order does not depend on the threads, and there are few of them: the model needs the cores.
_OPTIONS = tf.data.Options()
_OPTIONS.deterministic = True
_OPTIONS.threading.private_threadpool_size = 2
_OPTIONS.autotune.ram_budget = 512 * 2**20


@dataclasses.dataclass(frozen=True)
class TextTokens:
    """Turns a batch's captions into WordPiece ids for MuLan's text tower."""

    vocab: str  # the text encoder's vocab.txt, a path or package:path
    max_length: int  # length of the rows, [CLS] and [SEP] included

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Replaces "caption" by "text_ids" and "text_mask", int32 `[batch, max_length]`."""
        texts = [caption.decode() for caption in batch["caption"]]
        ids, mask = wordpiece.tokenize_texts(wordpiece.read_vocab(self.vocab), texts, self.max_length)
        rest = {name: value for name, value in batch.items() if name != "caption"}
        return {**rest, "text_ids": ids, "text_mask": mask}


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """A task in seqio's registry and the shapes of its batches; made by the functions in musiclm_jax.tasks."""

    name: str  # in seqio's registry
    lengths: Mapping[str, int]  # frames or samples of each output feature
    text: TextTokens | None = None  # tokenizes the captions, for tasks that have them
    data_dir: str | None = None  # folder of records (or file of tokens) that `resident` reads
    resident: Callable[..., ResidentDataset] | None = None  # (data_dir, split, batch_size, ...) -> data on the devices


@dataclasses.dataclass(frozen=True)
class TaskDataset:
    """Batches of one split of a task, as `trainer.train` takes them."""

    task: TaskSpec
    split: str  # "train", "validation" or "test"
    batch_size: int  # examples per batch, over all hosts
    seed: int = 0  # epoch e is seeded with seed + e
    shuffle: bool = True  # if False, examples come in the order of the shards (crops are still random)
    host: int | None = None  # index of the part of the data to read; None: the index of this process
    hosts: int | None = None  # number of parts; None: the number of processes

    def __post_init__(self) -> None:
        """Checks that the batch and the shards divide evenly over the hosts, and that this host's shards are complete.

        Raises:
          ValueError: if a check fails, the task or the split does not exist, or the shards hold no records.
        """
        host, hosts = self._part()
        if self.batch_size < 1 or self.batch_size % hosts:
            raise ValueError(
                f"batch size {self.batch_size} does not divide over {hosts} hosts: choose a multiple of {hosts}"
            )
        task = get_task(self.task.name)
        if not task.source.splits:
            raise ValueError(
                f"task {self.task.name!r} has no data: give its data_dir, a folder of records (an .npz file needs "
                "--resident)"
            )
        if self.split not in task.splits:
            raise ValueError(
                f"task {self.task.name!r} has no split {self.split!r}: choose one of {sorted(task.splits)}"
            )
        shards = task.source.list_shards(self.split)
        # With more hosts than shards, seqio would silently let every host read everything.
        if not shards or len(shards) % hosts:
            raise ValueError(
                f"split {self.split!r} of task {self.task.name!r} has {len(shards)} shards, which do not divide over "
                f"{hosts} hosts: write the records with a multiple of {hosts} shards"
            )
        own = shards[host::hosts]
        # In a bucket, checking each record would cost a request; a damaged record there is reported when it is read.
        if not any("://" in file for file in own) and not sum(map(records.check_whole, own)):
            otherwise = "" if self.split == "train" else ", or train without evaluation (--gin.train.eval_split=None)"
            raise ValueError(
                f"split {self.split!r} holds no records ({own[0]}): make it from three songs or more{otherwise}"
            )

    def summary(self) -> dict[str, Any]:
        """Returns shards and bytes of the split, which tell when a resumed run has other data."""
        shards = get_task(self.task.name).source.list_shards(self.split)
        return {"shards": len(shards), "bytes": sum(tf.io.gfile.stat(shard).length for shard in shards)}

    def _part(self) -> tuple[int, int]:
        """Returns the index of the part of the data that this process reads, and the number of parts."""
        host = jax.process_index() if self.host is None else self.host
        return host, jax.process_count() if self.hosts is None else self.hosts

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields this host's batches of an epoch; examples that do not fill the last batch are dropped.

        Args:
          epoch: number of the epoch, from 0.
          skip: examples to skip at the beginning, over all hosts.

        Yields:
          {"semantic": int32 `[b, t]`, "acoustic": int32 `[b, t, q]`, "mulan": int32 `[b, 12]`}: codes, -1 is padding;
          or {"audio": float32 `[b, samples]`}; MuLan's batches also have "text_ids" and "text_mask", int32 `[b, l]`.

        Raises:
          ValueError: if a record is damaged or of the wrong kind.
        """
        host, hosts = self._part()
        batches = (
            self.examples(epoch)
            .skip(skip // hosts)
            .batch(self.batch_size // hosts, drop_remainder=True)
            .prefetch(2)
            .with_options(_OPTIONS)
        )
        try:
            for batch in batches.as_numpy_iterator():
                yield self.task.text(batch) if self.task.text else batch
        except tf.errors.DataLossError as error:
            own = get_task(self.task.name).source.list_shards(self.split)[host::hosts]
            file = next(filter(_is_damaged, own), f"a shard of split {self.split!r} of task {self.task.name!r}")
            raise ValueError(f"{file} has a damaged record ({_first_line(error)}): write it again") from error
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(
                f"split {self.split!r} of task {self.task.name!r} has a record of the wrong kind "
                f"({_first_line(error)}): tokenizers train on audio records (musiclm corpus), stages on token records "
                "(musiclm tokenize)"
            ) from error

    def examples(self, epoch: int) -> tf.data.Dataset:
        """Returns the epoch's examples before batching."""
        task = get_task(self.task.name)
        host, hosts = self._part()
        dataset = task.get_dataset(
            sequence_length=dict(self.task.lengths),
            split=self.split,
            use_cached=False,
            shuffle=self.shuffle,
            seed=self.seed + epoch,
            shard_info=seqio.ShardInfo(index=host, num_shards=hosts),
            num_epochs=1,
            trim_output_features=False,  # seqio would trim silently
            try_in_mem_cache=False,
        )
        return StreamFeatureConverter(task.output_features)(dataset, dict(self.task.lengths))


def fake_batch(task: TaskSpec, rows: int) -> dict[str, np.ndarray]:
    """Makes a batch with a task's shapes and dtypes without reading data: zero codes, noise, a fixed caption."""
    batch: dict[str, np.ndarray] = {}
    for name, length in task.lengths.items():
        if name == "audio":
            batch[name] = np.random.default_rng(0).uniform(-0.5, 0.5, (rows, length)).astype(np.float32)
        elif name == "caption":
            batch[name] = np.full(rows, b"a slow jig on the flute", object)
        else:
            stream = STREAMS[name]
            in_time = stream.frame_rate > 0 and stream.quantizers > 1
            batch[name] = np.zeros((rows, length, stream.quantizers) if in_time else (rows, length), np.int32)
    return task.text(batch) if task.text else batch


def get_task(name: str) -> seqio.Task:
    """Returns a registered task.

    Raises:
      ValueError: if no task has that name.
    """
    if name not in seqio.TaskRegistry.names():
        raise ValueError(f"there is no task {name!r}: registered are {sorted(seqio.TaskRegistry.names())}")
    return seqio.get_mixture_or_task(name)


def _is_damaged(file: str) -> bool:
    """Reads a TFRecord file and returns whether one of its checksums fails."""
    try:
        for _ in tf.data.TFRecordDataset(file):
            pass
    except tf.errors.DataLossError:
        return True
    return False


def _first_line(error: Any) -> str:
    """Returns TensorFlow's reason, without the pipeline's names before it and the operation's name after it."""
    line = str(error.message if hasattr(error, "message") else error).splitlines()[0]
    return re.split(r"}} |::\w+: ", line)[-1].split(" [")[0]
