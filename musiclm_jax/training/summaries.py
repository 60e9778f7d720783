"""Writes the TensorBoard events of a run, in process 0 only, without TensorFlow.

An events file is a TFRecord file of tensorflow.Event messages (protocol buffers).
"""

import contextlib
import itertools
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from musiclm_jax.data import tfrecord
from musiclm_jax.training.checkpoints import reason

FLUSH_SECONDS = 30.0  # between writes, in a run that has no checkpoints; in a bucket, each one uploads the file
_numbers = itertools.count()  # two runs of a process may start in the same second


class SummaryWriter:
    """Writes scalars by step to the run's folder. All methods raise a ValueError of one line if writing fails."""

    def __init__(self, folder: epath.Path) -> None:
        self.folder = folder
        self._file: Any = None
        if jax.process_index() == 0:
            name = f"{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
            with self._clear_errors():
                self._file = (folder / f"events.out.tfevents.{name}").open("wb")
                self._file.write(tfrecord.frame(_double(1, time.time()) + _chunk(3, b"brain.Event:2")))
                self.flush()

    def write(self, step: int, scalars: Mapping[str, float], prefix: str = "") -> None:
        """Adds scalars, with a prefix such as "train/" before their names."""
        if self._file is None:
            return
        values = b"".join(_chunk(1, _scalar(prefix + name, value)) for name, value in scalars.items())
        event = _double(1, time.time()) + _integer(2, step) + _chunk(5, values)
        with self._clear_errors():
            self._file.write(tfrecord.frame(event))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes to the disk what is left."""
        self._flushed = time.monotonic()
        if self._file is not None:
            with self._clear_errors():
                self._file.flush()

    def close(self) -> None:
        """Writes what is left; nothing can be added afterwards."""
        if self._file is not None:
            with self._clear_errors():
                self._file.close()

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the libraries for each kind of bucket
            raise ValueError(
                f"cannot write TensorBoard events to {self.folder} ({reason(error)}): make room or repair the disk, "
                "then run the same command again, which resumes from the last checkpoint"
            ) from error


def _scalar(tag: str, value: float) -> bytes:
    """Encodes a tensorflow.Summary.Value as tf.summary.scalar does: a tensor for TensorBoard's plugin "scalars"."""
    shape = _chunk(2, b"")
    tensor = _integer(1, 1) + shape + _chunk(5, np.asarray(value, "<f4").tobytes())  # type 1 is float32
    metadata = _chunk(1, _chunk(1, b"scalars")) + _integer(4, 1)  # class 1 is a scalar
    return _chunk(1, tag.encode()) + _chunk(8, tensor) + _chunk(9, metadata)


# Fields of protocol buffers: a tag (the field's number and its type), then the value.


def _varint(value: int) -> bytes:
    """Encodes an integer of 0 or more, 7 bits a byte."""
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _double(number: int, value: float) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _chunk(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value
