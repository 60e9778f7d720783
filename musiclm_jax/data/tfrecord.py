"""Reads TFRecord files and tf.train.Example messages, and frames records, without TensorFlow.

A TFRecord file is a sequence of records: the length (8 bytes, little-endian), a checksum of the length, the data, and a
checksum of the data. Checksums are masked CRC-32C. A tf.train.Example is a protocol buffer: a map from names to lists
of bytes, floats or 64-bit integers.
"""

import functools
import os
import struct
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from musiclm_jax.data import files

Values = np.ndarray | list[bytes]  # int64 `[n]`, float32 `[n]`, or byte strings
_HEADER, _FOOTER = 12, 4  # bytes before and after the data of a record
_POLYNOMIAL = 0x82F63B78  # of CRC-32C, lowest bit first
_SHORT = 4096  # bytes below which Python is fast enough: numba takes a second to load
_VARINT, _EIGHT_BYTES, _CHUNK, _FOUR_BYTES = 0, 1, 2, 5  # wire types of protocol buffers
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3  # fields of tf.train.Feature


def read(path: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
    """Yields the position of each record of a file, in bytes, and its data.

    Raises:
      ValueError: if a record is damaged or cut off; names the file and the position.
    """
    in_bucket = files.is_url(path)
    opened = files.bucket(path).open("rb") if in_bucket else open(path, "rb")
    with opened as file:
        size = None if in_bucket else os.fstat(file.fileno()).st_size
        position = 0
        while header := file.read(_HEADER):
            length = int.from_bytes(header[:8], "little")
            end = position + _HEADER + length + _FOOTER
            if len(header) == _HEADER and masked_crc(header[:8]) != int.from_bytes(header[8:], "little"):
                raise _damaged(path, position, "the checksum of its length does not match")
            if len(header) < _HEADER or (size is not None and end > size):
                raise _damaged(path, position, "it is cut off")
            data, footer = file.read(length), file.read(_FOOTER)
            if len(data) < length or len(footer) < _FOOTER:
                raise _damaged(path, position, "it is cut off")
            if masked_crc(data) != int.from_bytes(footer, "little"):
                raise _damaged(path, position, "its checksum does not match")
            yield position, data
            position = end


def _damaged(path: str | os.PathLike, position: int, reason: str) -> ValueError:
    return ValueError(f"{path} has a damaged record at byte {position} ({reason}): write it again")


def frame(data: bytes) -> bytes:
    """Returns a record as it is in a file: with its length and checksums."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


def masked_crc(data: bytes) -> int:
    """Returns the CRC-32C of data, rotated and shifted as in TFRecord files."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """Returns the CRC-32C (Castagnoli) of data."""
    if len(data) >= _SHORT:
        return int(_compiled(_crc_of)(np.frombuffer(data, np.uint8), _tables()))
    table, crc = _first_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@functools.cache
def _tables() -> np.ndarray:
    """Returns the checksums of a byte followed by 0 .. 7 bytes of zeros, uint32 `[8, 256]`."""
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, (crc >> 1) ^ np.uint32(_POLYNOMIAL), crc >> 1)
    tables = [crc]
    for _ in range(7):
        tables.append(crc[tables[-1] & 0xFF] ^ (tables[-1] >> 8))
    return np.stack(tables)


@functools.cache
def _first_table() -> list[int]:
    return _tables()[0].tolist()


def _crc_of(data: np.ndarray, tables: np.ndarray) -> Any:
    """Computes a CRC eight bytes at a time; numba compiles it."""
    crc = np.uint64(0xFFFFFFFF)
    whole = len(data) // 8 * 8
    low = np.uint64(0xFF)
    for i in range(0, whole, 8):
        crc = np.uint64(
            tables[7, (crc ^ data[i]) & low]
            ^ tables[6, ((crc >> np.uint64(8)) ^ data[i + 1]) & low]
            ^ tables[5, ((crc >> np.uint64(16)) ^ data[i + 2]) & low]
            ^ tables[4, ((crc >> np.uint64(24)) ^ data[i + 3]) & low]
            ^ tables[3, data[i + 4]]
            ^ tables[2, data[i + 5]]
            ^ tables[1, data[i + 6]]
            ^ tables[0, data[i + 7]]
        )
    for i in range(whole, len(data)):
        crc = np.uint64(tables[0, (crc ^ data[i]) & low]) ^ (crc >> np.uint64(8))
    return crc ^ np.uint64(0xFFFFFFFF)


def _varints_of(data: np.ndarray, values: np.ndarray) -> int:
    """Decodes packed integers into `values`; numba compiles it.

    Returns:
      Their number; -1 if one has more than 64 bits or is cut off.
    """
    count, shift = 0, 0
    value = np.uint64(0)
    for i in range(len(data)):
        if shift > 63:
            return -1
        value |= np.uint64(data[i] & 0x7F) << np.uint64(shift)
        shift += 7
        if data[i] < 0x80:
            values[count] = value
            count += 1
            shift = 0
            value = np.uint64(0)
    return -1 if shift else count


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import numba  # here, since it takes a second

    return numba.njit(cache=True, boundscheck=False)(function)


def parse_example(data: bytes, names: Collection[str]) -> dict[str, Values]:
    """Parses some features of a tf.train.Example.

    Args:
      data: the message.
      names: features to read; others are skipped.

    Returns:
      The values of the features that the message has: int64 `[n]`, float32 `[n]` or a list of bytes. A feature without
      values may have any of these types.

    Raises:
      ValueError: if the data is no such message.
    """
    found: dict[str, Values] = {}
    try:
        for _, features in _chunks(data, 1):
            for _, entry in _chunks(features, 1):
                pair = {number: value for number, _, value in _fields(entry)}
                name = pair.get(1, b"").decode()
                if name in names:
                    found[name] = _feature(pair.get(2, b""))
    except (IndexError, struct.error, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"it is no tf.train.Example: {error}") from error
    return found


def _feature(message: bytes) -> Values:
    """Parses a tf.train.Feature; a later list replaces an earlier one."""
    values: Values = np.zeros(0, np.int64)
    for kind, content in _chunks(message, _BYTES_LIST, _FLOAT_LIST, _INT64_LIST):
        items = [(wire, value) for number, wire, value in _fields(content) if number == 1]
        if kind == _BYTES_LIST:
            if any(wire != _CHUNK for wire, _ in items):
                raise ValueError("a list of bytes holds something else")
            values = [value for _, value in items]
        elif kind == _FLOAT_LIST:
            values = np.frombuffer(b"".join(value for _, value in items), "<f4")
        else:
            parts = [_varints(value) if wire == _CHUNK else np.array([value], np.uint64) for wire, value in items]
            values = np.concatenate(parts).view(np.int64) if parts else np.zeros(0, np.int64)
    return values


def _chunks(message: bytes, *numbers: int) -> Iterator[tuple[int, bytes]]:
    """Yields the messages in some fields of a message, each with its field's number."""
    for number, wire, value in _fields(message):
        if number in numbers:
            if wire != _CHUNK:
                raise ValueError(f"field {number} has wire type {wire}")
            yield number, value


def _fields(message: bytes) -> Iterator[tuple[int, int, Any]]:
    """Yields number, wire type and value of each field: an integer for varints, bytes for all others."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        wire = tag & 7
        if wire == _VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, wire, value
            continue
        if wire == _CHUNK:
            length, position = _varint(message, position)
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if wire == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"there is no wire type {wire}")
        if position + length > len(message):
            raise ValueError("a field is cut off")
        yield tag >> 3, wire, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """Returns the integer at a position, 7 bits a byte, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
    raise ValueError("an integer has more than 64 bits")


def _varints(packed: bytes) -> np.ndarray:
    """Returns packed integers, uint64 `[n]`."""
    data = np.frombuffer(packed, np.uint8)
    values = np.empty(len(data), np.uint64)
    count = _compiled(_varints_of)(data, values)
    if count < 0:
        raise ValueError("a list of integers is cut off, or an integer has more than 64 bits")
    return values[:count]
