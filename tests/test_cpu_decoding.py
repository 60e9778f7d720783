"""Operations compiled by numba, against XLA's and against NumPy in float64."""

import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.kernels import cpu_decoding, int8
from musiclm_jax.stages import layers, transformer


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 11])
@pytest.mark.parametrize(("outputs", "inward"), [(1, 250), (8, 256), (131, 64), (131, 250)])
def test_a_product_in_float32_is_close_to_float64(tokens, outputs, inward):
    x, kernel = normal(tokens, tokens, inward), normal(outputs, outputs, inward)
    found = jax.jit(cpu_decoding.transposed_product_numba)(x, kernel)
    assert found.shape == (tokens, outputs) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, x.astype(float) @ kernel.T.astype(float), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 4, 6])
def test_rows_of_a_table_are_multiplied_in_place(tokens):
    x, table = normal(1, tokens, 32), normal(2, 100, 32)
    product = jax.jit(cpu_decoding.rows_product_numba, static_argnums=3)
    for first in (0, 7, 90):
        np.testing.assert_allclose(product(x, table, first, 10), x @ table[first : first + 10].T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("inward", [20, 1024])
def test_a_product_in_8_bits_has_exact_sums(tokens, inward):
    x = normal(3, tokens, inward) * 10.0 ** np.arange(-2, tokens - 2)[:, None].astype(np.float32)
    kernel, scale = int8.rounded(normal(4, 33, inward))
    values, own = int8.rounded(x)
    whole = np.asarray(values, np.int64) @ np.asarray(kernel, np.int64).T
    expected = (whole.astype(np.float32) * np.asarray(own)[:, None]) * np.asarray(scale)
    np.testing.assert_allclose(cpu_decoding.int8_product_numba(x, kernel, scale), expected, rtol=5e-7, atol=1e-9)


def test_the_largest_sum_in_8_bits_does_not_overflow():
    kernel, x = np.full((2, 4096), -127, np.int8), np.full((1, 4096), 127, np.float32)
    found = cpu_decoding.int8_product_numba(x, kernel, np.ones(2, np.float32))
    np.testing.assert_allclose(found, -(127.0**2) * 4096, rtol=1e-6)


def test_zeros_in_8_bits_stay_zero():
    kernel, scale = int8.rounded(normal(5, 8, 16))
    assert not np.asarray(cpu_decoding.int8_product_numba(np.zeros((1, 16), np.float32), kernel, scale)).any()


@pytest.mark.parametrize("kept", [jnp.asarray, layers.bits16])
@pytest.mark.parametrize(("rows", "position"), [(1, 0), (1, 17), (3, 40), (2, 63)])
def test_attention_is_a_softmax_over_the_cache(rows, position, kept):
    q, keys, values = normal(6, rows, 2, 1, 24), normal(7, rows, 2, 64, 24), normal(8, rows, 2, 64, 24)
    bias, valid = 5 * normal(9, 2, 64), np.random.default_rng(10).random((rows, 64)) < 0.7
    valid[:, position] = True
    future = np.arange(64) > position
    bias[:, future] = layers.MASKED
    keys[:, :, future], values[:, :, future] = np.nan, np.nan  # must not be read
    past = [kept(jnp.asarray(own)) for own in (keys, values)]
    found = jax.jit(cpu_decoding.attention_to_past_numba)(q, *past, bias, valid, position)
    keys, values = (np.asarray(layers.wide(own, jnp.float32)) for own in past)
    scores = np.einsum("bhqc,bhkc->bhqk", q.astype(float), np.nan_to_num(keys)) + bias[:, None]
    scores = np.where(valid[:, None, None] & ~future, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found, weights @ np.nan_to_num(values), rtol=1e-4, atol=1e-5)


def test_attention_and_logits_match_other_platforms():
    q, keys, values = normal(11, 2, 2, 1, 8), normal(12, 2, 2, 20, 8), normal(13, 2, 2, 20, 8)
    bias = np.where(np.arange(20) > 9, layers.MASKED, normal(14, 2, 20))
    operands = (q, keys, values, bias, np.ones((2, 20), bool), jnp.int32(9))
    np.testing.assert_allclose(
        layers.attention_to_past(*operands), layers.attention_to_past_xla(*operands), rtol=1e-5, atol=1e-6
    )
    params, hidden = {"embedding": normal(15, 50, 8)}, normal(16, 2, 8)
    expected = transformer.level_logits(params, hidden[:, None, None], 20, 1, 16)[:, 0, 0]
    np.testing.assert_allclose(transformer.step_logits(params, hidden, 20, 16), expected, rtol=1e-5, atol=1e-5)


PROGRAM = """
import jax
from musiclm_jax.kernels import cpu_decoding
names = ("float_product", "int8_product", "attention")
ones = jax.numpy.ones((1, 3))
hits = [getattr(cpu_decoding, "musiclm_" + name).cache_hits for name in names]
print(sum(hits), cpu_decoding.transposed_product_numba(ones, ones)[0, 0])
"""


@pytest.mark.parametrize("folder", ["cache", pytest.param("/proc/cannot_be_written", marks=pytest.mark.slow)])
def test_compiled_operations_are_cached_if_possible(tmp_path, folder):
    environment = os.environ | {
        "PYTHONPATH": str(pathlib.Path(cpu_decoding.__file__).parents[2]),
        "NUMBA_CACHE_DIR": str(tmp_path / folder),
        "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator",
    }
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    hits = ["0", "3"] if folder == "cache" else ["0"]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True, env=environment) for _ in hits]
    assert [run.stdout.split() for run in runs] == [[count, "3.0"] for count in hits]


def test_exponentials_match_float64():
    x = np.concatenate([np.linspace(-86.9, 0, 5000), [-1e30, -100]]).astype(np.float32)
    found = np.array([cpu_decoding._exponential(value) for value in x])
    np.testing.assert_allclose(found[:-2], np.exp(x[:-2].astype(float)), rtol=1e-6)
    assert (found[-2:] < 1e-37).all()


def test_the_layout_of_xlas_structs_matches_its_header():
    header = pathlib.Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text()
    header = re.sub(r"//.*", "", header)
    structs = dict(re.findall(r"struct XLA_FFI_(\w+) \{(.*?)\}", header, re.DOTALL))

    def words(struct):
        for kind, name in re.findall(r"([^;]+?)\s*\b(\w+);", structs[struct]):
            if name == "minor_version":  # shares a word with major_version
                continue
            inner = kind.strip().removeprefix("struct ").removeprefix("XLA_FFI_")
            yield from [f"{name}.{own}" for own in words(inner)] if inner in structs else [name]

    for struct, fields in cpu_decoding.LAYOUT.items():
        known = fields.split()
        assert known == list(words(struct))[: len(known)], struct
    # Call frames end with their attributes; later versions append fields.
    assert "XLA_FFI_DEFINE_STRUCT_TRAITS(XLA_FFI_CallFrame, attrs)" in header
    assert cpu_decoding.LAYOUT["CallFrame"].endswith("attrs.attrs")
    assert int(re.search(r"XLA_FFI_DataType_F32 = (\d+)", header)[1]) == cpu_decoding.FLOAT32
