"""The expensive operations of decoding on CPUs: weight products for a few tokens, and attention to the KV cache.

Both are bound by memory bandwidth. XLA's own products reach a fraction of it for int8 kernels or for two tokens, and
its attention makes a separate pass over memory for each operation (benchmarks/decode.py --parts kernels). Compiled by
numba, these functions read everything once. Integer sums are exact; float32 sums are added in a different order than
XLA's.

XLA calls them through its foreign function interface, with a frame of C structs (xla/ffi/api/c_api.h in jaxlib's
include folder), which this module reads as 8-byte words. The first import compiles for some seconds; numba caches the
result in __pycache__ ($NUMBA_CACHE_DIR moves it). Later imports take half a second, so import it only where a step is
traced.
"""

import ctypes
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic, overload

from musiclm_jax.kernels.rounding import LARGEST

TILE = 4  # outputs and tokens whose sums are kept in registers together
WIDTH = 16  # numbers per vector; processors with shorter vectors use several
# Layout of the structs of XLA's interface, XLA_FFI_CallFrame and so on: their fields in order, one per 8-byte word. The
# fields of an embedded struct follow its name. tests/test_cpu_decoding.py compares the table with the header.
LAYOUT = {
    "CallFrame": (
        "struct_size extension_start api ctx stage "
        "args.struct_size args.extension_start args.size args.types args.args "
        "rets.struct_size rets.extension_start rets.size rets.types rets.rets "
        "attrs.struct_size attrs.extension_start attrs.size attrs.types attrs.names attrs.attrs"
    ),
    "Buffer": "struct_size extension_start dtype data rank dims",
    "Metadata_Extension": "extension_base.struct_size extension_base.type extension_base.next metadata",
    # The minor version is the upper half of the word of the major version.
    "Metadata": ("struct_size api_version.struct_size api_version.extension_start api_version.major_version traits"),
    "Api": "struct_size extension_start api_version.struct_size api_version.extension_start api_version.major_version",
}


def _word(struct: str, field: str) -> int:
    """Position of a field, in words of 8 bytes."""
    return LAYOUT[struct].split().index(field)


# Numba compiles these as constants.
FRAME_WORDS, BUFFER_WORDS, EXTENSION_WORDS, METADATA_WORDS, API_WORDS = (len(own.split()) for own in LAYOUT.values())
FRAME_SIZE, FRAME_EXTENSION = _word("CallFrame", "struct_size"), _word("CallFrame", "extension_start")
FRAME_API = _word("CallFrame", "api")
FRAME_OPERANDS, FRAME_RESULTS = _word("CallFrame", "args.args"), _word("CallFrame", "rets.rets")
BUFFER_DTYPE, BUFFER_DATA, BUFFER_DIMS = (_word("Buffer", field) for field in ("dtype", "data", "dims"))
EXTENSION_METADATA = _word("Metadata_Extension", "metadata")
METADATA_VERSION, METADATA_TRAITS = _word("Metadata", "api_version.major_version"), _word("Metadata", "traits")
API_VERSION = _word("Api", "api_version.major_version")
FLOAT32 = 11  # XLA_FFI_DataType_F32, in the lower half of a buffer's dtype

_sums = numba.njit(fastmath=True, boundscheck=False, error_model="numpy")
_exact = numba.njit(boundscheck=False, error_model="numpy")
_inline = numba.njit(inline="always")


def transposed_product_numba(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies x float32 [n, d] by a kernel float32 [f, d]: float32 [n, f]."""
    return rows_product_numba(x, kernel, jnp.int32(0), len(kernel))


def rows_product_numba(x: jax.Array, table: jax.Array, first: jax.Array, count: int) -> jax.Array:
    """Multiplies x float32 [n, d] by `count` rows of a float32 table [rows, d], from row `first` on: [n, count]."""
    result = jax.ShapeDtypeStruct((len(x), count), jnp.float32)
    return jax.ffi.ffi_call("musiclm_float_product", result)(table, x, jnp.asarray(first, jnp.int32).reshape(1))


def int8_product_numba(x: jax.Array, kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """Quantizes x float32 [n, d] per row and multiplies it by an int8 kernel [f, d] with scales [f]: float32 [n, f]."""
    result = jax.ShapeDtypeStruct((len(x), len(kernel)), jnp.float32)
    return jax.ffi.ffi_call("musiclm_int8_product", result)(kernel, scale, x)


def attention_to_past_numba(
    q: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array, valid: jax.Array, position: jax.Array
) -> jax.Array:
    """Computes softmax attention of one query to the KV cache; positions after `position` are not read.

    Args:
      q: scaled queries, float32 [b, h, 1, c].
      keys: float32 [b, h, length, c], or bfloat16 as uint16, from `layers.bits16`.
      values: like `keys`.
      bias: float32 [h, length], added to the scores.
      valid: bool [b, length], positions that may be attended to; `position` itself must be valid.
      position: int32 scalar, position of the query.

    Returns:
      float32 [b, h, 1, c].
    """
    call = jax.ffi.ffi_call("musiclm_attention", jax.ShapeDtypeStruct(q.shape, jnp.float32))
    return call(q, keys, values, bias, valid, jnp.asarray(position, jnp.int32).reshape(1))


@intrinsic
def _tile(typing_context: Any, kernel: Any, x: Any, ahead: Any, in_features: Any, out: Any, stride: Any) -> Any:
    """Computes TILE outputs for TILE tokens with vectors, and prefetches weights, which numba would not do.

    Args:
      typing_context: numba's.
      kernel: address of the first of TILE kernel rows.
      x: address of the first of TILE tokens.
      ahead: address of the first of TILE kernel rows to prefetch.
      in_features: number of input features, a multiple of WIDTH.
      out: address of the first result.
      stride: number of output features, the distance between the results of two tokens.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kernel, x, ahead, in_features, out, stride = arguments
        word, byte, flag, single = ir.IntType(64), ir.IntType(8).as_pointer(), ir.IntType(32), ir.FloatType()
        vector, void = ir.VectorType(single, WIDTH), ir.VoidType()
        declare = functools.partial(cgutils.get_or_insert_function, builder.module)
        fetch = declare(ir.FunctionType(void, [byte, flag, flag, flag]), "llvm.prefetch.p0")
        multiply_add = declare(ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{WIDTH}f32")
        add_up = declare(ir.FunctionType(single, [single, vector]), f"llvm.vector.reduce.fadd.v{WIDTH}f32")
        nothing = ir.Constant(vector, [0.0] * WIDTH)
        sums = [[cgutils.alloca_once_value(builder, nothing) for _ in range(TILE)] for _ in range(TILE)]

        def place(base: Any, row: int, length: Any, column: Any, kind: Any) -> Any:
            number = builder.add(builder.mul(word(row), length), column)
            return builder.inttoptr(builder.add(base, builder.mul(word(4), number)), kind.as_pointer())

        with cgutils.for_range_slice(builder, word(0), in_features, word(WIDTH), word) as (j, _):
            for row in range(TILE):
                builder.call(fetch, [place(ahead, row, in_features, j, ir.IntType(8)), flag(0), flag(1), flag(1)])
            given = [[place(base, row, in_features, j, vector) for row in range(TILE)] for base in (kernel, x)]
            weights, inputs = ([builder.load(own, align=4, typ=vector) for own in rows] for rows in given)
            for i, r in itertools.product(range(TILE), range(TILE)):
                more = builder.call(multiply_add, [weights[i], inputs[r], builder.load(sums[i][r], typ=vector)])
                builder.store(more, sums[i][r])
        for i, r in itertools.product(range(TILE), range(TILE)):
            total = builder.call(add_up, [single(-0.0), builder.load(sums[i][r], typ=vector)], fastmath=("reassoc",))
            builder.store(total, place(out, r, stride, word(i), single), align=4)
        return context.get_dummy_value()

    return numba.types.void(*[numba.types.intp] * 6), generate


@_sums
def _float_sums(kernel: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    (tokens, in_features), outputs = x.shape, kernel.shape[0]
    if tokens < TILE or outputs < TILE or in_features % WIDTH:
        for i in range(outputs):
            for r in range(tokens):
                total = np.float32(0)
                for j in range(in_features):
                    total += kernel[i, j] * x[r, j]
                out[r, i] = total
        return
    # If the tiles do not divide the array evenly, the last tile overlaps the one before it.
    for block in range(-(-outputs // TILE)):
        i = min(TILE * block, outputs - TILE)
        following = min(i + TILE, outputs - TILE)
        for group in range(-(-tokens // TILE)):
            r = min(TILE * group, tokens - TILE)
            ahead = following if group == 0 else i
            _tile(
                kernel.ctypes.data + 4 * i * in_features,
                x.ctypes.data + 4 * r * in_features,
                kernel.ctypes.data + 4 * ahead * in_features,
                in_features,
                out.ctypes.data + 4 * (r * outputs + i),
                outputs,
            )


@_exact
def _rounded(x: np.ndarray, values: np.ndarray) -> np.float32:
    """Quantizes x [d] to 8 bits into int16 `values` [d] and returns the scale, like `rounding.rounded`."""
    largest = np.float32(0)
    for j in range(x.size):
        largest = max(largest, abs(x[j]))
    scale = max(largest, np.float32(1e-12)) / np.float32(LARGEST)
    for j in range(x.size):
        values[j] = np.int16(np.rint(x[j] / scale))
    return scale


@_exact
def _int8_sums(kernel: np.ndarray, scale: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    values, scales = np.empty(x.shape, np.int16), np.empty(x.shape[0], np.float32)
    for r in range(x.shape[0]):
        scales[r] = _rounded(x[r], values[r])
    for i in range(kernel.shape[0]):
        for r in range(x.shape[0]):
            total = np.int32(0)
            for j in range(kernel.shape[1]):
                total += np.int32(kernel[i, j]) * np.int32(values[r, j])
            # Numba sums in 64 bits; the cast tells it that 32 are enough, so it multiplies more numbers at once.
            out[r, i] = np.float32(np.int32(total)) * scales[r] * scale[i]


def _wide(number: Any) -> Any:
    """Converts a number of the KV cache to float32; bfloat16 arrives as its 16 bits."""


@overload(_wide, inline="always", strict=False)
def _wide_of(number: Any) -> Any:
    if number == numba.types.uint16:
        return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    return lambda number: number


@numba.njit(inline="always")
def _exponential(x: np.float32) -> np.float32:
    """Computes exp(max(x, -87)) for x <= 0, the range of float32: a power of 2 times a polynomial vectorizes well."""
    x = max(x, np.float32(-87.0))
    power = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    rest = x - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)  # ln 2 in two parts
    series = np.float32(1 / 120) + rest * np.float32(1 / 720)
    for factor in (np.float32(1 / 24), np.float32(1 / 6), np.float32(0.5), np.float32(1), np.float32(1)):
        series = series * rest + factor
    return series * np.int32((np.int32(power) + np.int32(127)) << np.int32(23)).view(np.float32)


@_sums
def _attend(
    q: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    bias: np.ndarray,
    valid: np.ndarray,
    position: int,
    out: np.ndarray,
) -> None:
    weights, count = np.empty(position + 1, np.float32), position + 1
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(count):
                score = np.float32(0)
                for c in range(q.shape[3]):
                    score += q[b, h, 0, c] * _wide(keys[b, h, t, c])
                weights[t] = score
            largest = np.float32(-1e30)
            for t in range(count):
                weights[t] = weights[t] + bias[h, t] if valid[b, t] else np.float32(-1e30)
                largest = max(largest, weights[t])
            total = np.float32(0)
            for t in range(count):
                weights[t] = _exponential(weights[t] - largest)
                total += weights[t]
            own = out[b, h, 0]
            own[:] = 0
            # Four positions per pass, since each pass loads the sums from memory and stores them again.
            for t in range(0, count // 4 * 4, 4):
                w0, w1, w2, w3 = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
                v0, v1, v2, v3 = values[b, h, t], values[b, h, t + 1], values[b, h, t + 2], values[b, h, t + 3]
                for c in range(q.shape[3]):
                    own[c] += w0 * _wide(v0[c]) + w1 * _wide(v1[c]) + w2 * _wide(v2[c]) + w3 * _wide(v3[c])
            for t in range(count // 4 * 4, count):
                for c in range(q.shape[3]):
                    own[c] += weights[t] * _wide(values[b, h, t, c])
            for c in range(q.shape[3]):
                own[c] /= total


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    """Converts an address to a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return numba.types.voidptr(numba.types.intp), generate


@_inline
def _words(address: int, count: int) -> np.ndarray:
    return numba.carray(_pointer(address), (count,), np.int64)


@_inline
def _vector(buffer_address: int, dtype: Any) -> np.ndarray:
    buffer = _words(buffer_address, BUFFER_WORDS)
    return numba.carray(_pointer(buffer[BUFFER_DATA]), (_words(buffer[BUFFER_DIMS], 1)[0],), dtype)


@_inline
def _matrix(buffer_address: int, dtype: Any) -> np.ndarray:
    buffer = _words(buffer_address, BUFFER_WORDS)
    n = _words(buffer[BUFFER_DIMS], 2)
    return numba.carray(_pointer(buffer[BUFFER_DATA]), (n[0], n[1]), dtype)


@_inline
def _array4(buffer_address: int, dtype: Any) -> np.ndarray:
    buffer = _words(buffer_address, BUFFER_WORDS)
    n = _words(buffer[BUFFER_DIMS], 4)
    return numba.carray(_pointer(buffer[BUFFER_DATA]), (n[0], n[1], n[2], n[3]), dtype)


@_inline
def _is_question(frame: np.ndarray) -> bool:
    """Answers XLA's query for the interface version that an operation was built for; returns whether it was a query.

    The answer is XLA's own version, or, if its frames do not have the size that is expected here, one that it refuses.
    """
    if frame[FRAME_EXTENSION] == 0:
        return False
    metadata = _words(_words(frame[FRAME_EXTENSION], EXTENSION_WORDS)[EXTENSION_METADATA], METADATA_WORDS)
    version = _words(frame[FRAME_API], API_WORDS)[API_VERSION]
    metadata[METADATA_VERSION] = version if frame[FRAME_SIZE] == 8 * FRAME_WORDS else -1
    metadata[METADATA_TRAITS] = 0
    return True


@_inline
def _call_attend(given: np.ndarray, made: np.ndarray, dtype: Any) -> None:
    q, keys, values = _array4(given[0], np.float32), _array4(given[1], dtype), _array4(given[2], dtype)
    bias, valid, position = _matrix(given[3], np.float32), _matrix(given[4], np.bool_), _vector(given[5], np.int32)
    _attend(q, keys, values, bias, valid, position[0], _array4(made[0], np.float32))


def _operation(function: Callable[[Any], int]) -> Any:
    """Compiles a function of XLA's call frame and registers it as an operation under the function's name."""
    signature = numba.types.intp(numba.types.CPointer(numba.types.int64))
    try:
        compiled = numba.cfunc(signature, cache=True)(function)
    except RuntimeError:  # neither the folder of this file nor the user's cache folder can be written
        compiled = numba.cfunc(signature)(function)
    entry = ctypes.CFUNCTYPE(ctypes.c_void_p)(compiled.address)
    jax.ffi.register_ffi_target(function.__name__, jax.ffi.pycapsule(entry), platform="cpu")
    return compiled  # to be kept alive: XLA calls it later


@_operation
def musiclm_float_product(pointer: Any) -> int:  # noqa: D103
    frame = numba.carray(pointer, (FRAME_WORDS,))
    if not _is_question(frame):
        given, made = _words(frame[FRAME_OPERANDS], 3), _words(frame[FRAME_RESULTS], 1)
        x, out, first = _matrix(given[1], np.float32), _matrix(made[0], np.float32), _vector(given[2], np.int32)[0]
        _float_sums(_matrix(given[0], np.float32)[first : first + out.shape[1]], x, out)
    return 0


@_operation
def musiclm_int8_product(pointer: Any) -> int:  # noqa: D103
    frame = numba.carray(pointer, (FRAME_WORDS,))
    if not _is_question(frame):
        given, made = _words(frame[FRAME_OPERANDS], 3), _words(frame[FRAME_RESULTS], 1)
        kernel, scale, x = _matrix(given[0], np.int8), _vector(given[1], np.float32), _matrix(given[2], np.float32)
        _int8_sums(kernel, scale, x, _matrix(made[0], np.float32))
    return 0


@_operation
def musiclm_attention(pointer: Any) -> int:  # noqa: D103
    frame = numba.carray(pointer, (FRAME_WORDS,))
    if not _is_question(frame):
        given, made = _words(frame[FRAME_OPERANDS], 6), _words(frame[FRAME_RESULTS], 1)
        if _words(given[1], BUFFER_WORDS)[BUFFER_DTYPE] & 0xFFFFFFFF == FLOAT32:
            _call_attend(given, made, np.float32)
        else:
            _call_attend(given, made, np.uint16)
    return 0
