"""Fuzzes bundles: config.json and the other tables, and files of weights whose hashes are right."""

import hashlib
import json
import shutil
import struct

import fuzzing
import jax
import miniature
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from musiclm_jax import bundles
from musiclm_jax.data import wordpiece
from musiclm_jax.generation import describe, generate

CONFIG = json.loads((miniature.path() / "config.json").read_text())
PLACES = fuzzing.places(CONFIG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle whose files the tests replace."""
    return miniature.copy(tmp_path_factory.mktemp("bundles") / "strange")


def sealed(config):
    """Sets the hashes of the parts' configurations, as whoever hands over a bundle would."""
    for entry in config["parts"].values() if isinstance(config.get("parts"), dict) else ():
        if isinstance(entry, dict) and "config" in entry:
            text = json.dumps(entry["config"], sort_keys=True)
            entry["config_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return config


def read(folder, part=None):
    """Reads a bundle, and a part of it."""
    bundle = bundles.load(folder)
    generate.request_for(bundle, seconds=1.0)
    if part in bundle.config["parts"]:
        bundle.part(part)
    return bundle


@fuzzing.examples(40)
@given(st.sampled_from(PLACES), fuzzing.VALUES)
def test_any_value_in_a_configuration_is_refused_or_fits(folder, place, value):
    config = sealed(fuzzing.changed(json.loads(json.dumps(CONFIG)), place, value))
    (folder / "config.json").write_text(json.dumps(config))
    fuzzing.outcome(read, folder, place[1] if len(place) > 1 else None)


@fuzzing.examples(30)
@given(fuzzing.damaged([(miniature.path() / "config.json").read_bytes()]))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"\xff\xfe{}")
def test_a_damaged_configuration_is_refused_or_fits(folder, content):
    (folder / "config.json").write_bytes(content)
    fuzzing.outcome(read, folder, named=folder)


def weights(header, data=b""):
    """Returns a file of weights with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SIZES = st.integers(0, 40) | st.sampled_from([2**31, 2**40, 2**62, 2**63, 2**64 - 1, -1])
DTYPES = st.sampled_from("BOOL I8 U8 I16 U16 F16 BF16 I32 U32 F32 F64 I64 U64 F8_E4M3 F8_E5M2 C64 F4 X".split())
NAMES = st.sampled_from(["params", "params/a", "params/a/b", "params/a:scale", "", "/", ":scale"]) | st.text(max_size=5)
HEADERS = st.dictionaries(
    NAMES | st.just("__metadata__"),
    st.builds(tensor, DTYPES, st.lists(SIZES, max_size=3), SIZES, SIZES) | fuzzing.VALUES,
    max_size=3,
)


@st.composite
def consistent(draw):
    """Draws a file of weights whose tensors fill its data, so that it is read to its end."""
    header, data = {}, b""
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        dtype, size = draw(st.sampled_from([("F16", 2), ("F32", 4), ("I8", 1), ("U8", 1), ("BOOL", 1), ("I64", 8)]))
        shape = draw(st.lists(st.integers(0, 6), max_size=3) | st.sampled_from([[1, 9], [9, 1], [0, 2**62]]))
        count = 1
        for length in shape:
            count *= length
        header[name] = tensor(dtype, shape, len(data), len(data) + size * count)
        data += draw(st.binary(min_size=1, max_size=4)) * (size * count)
        data = data[: header[name]["data_offsets"][1]]
    return weights(header, data)


@fuzzing.examples(40)
@given(
    st.builds(weights, HEADERS | st.binary(max_size=50), st.binary(max_size=100))
    | consistent()
    | fuzzing.damaged([(miniature.path() / "fine.safetensors").read_bytes()])
)
@example(struct.pack("<Q", 2**63))
@example(weights({"a": tensor("F32", [2**40], 0, 2**42)}))
@example(weights({"a": tensor("F32", [2**62, 2**62], 0, 16)}, bytes(16)))
def test_weights_whose_header_makes_no_sense_are_refused(folder, content):
    config = json.loads(json.dumps(CONFIG))
    config["parts"]["fine"]["sha256"] = hashlib.sha256(content).hexdigest()
    config["parts"]["fine"]["bytes"] = len(content)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "fine.safetensors").write_bytes(content)

    def variables():
        return jax.block_until_ready(bundles.load(folder).part("fine").variables)

    found = fuzzing.outcome(variables, named=folder)
    if isinstance(found, dict):
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(found))
        assert size <= 4 * len(content), f"{size} bytes of a file of {len(content)}"


@fuzzing.examples(25)
@given(fuzzing.VALUES | st.fixed_dictionaries({"tags": fuzzing.VALUES, "captions": fuzzing.VALUES}))
@example({"tags": "ab", "captions": []})
def test_candidates_of_any_kind_are_refused_or_fit(folder, content):
    shutil.copy(miniature.path() / "config.json", folder)
    (folder / "tags.json").write_text(json.dumps(content))
    found = fuzzing.outcome(describe.read_candidates, bundles.load(folder), named=folder)
    if not isinstance(found, Exception):
        assert isinstance(found["tags"], list) and isinstance(found["captions"], list)


@fuzzing.examples(15)
@given(fuzzing.damaged([(miniature.path() / "vocab.txt").read_bytes()]))
@example(b"")
@example(b"\xff")
def test_a_damaged_vocabulary_is_refused_or_fits(folder, content):
    shutil.copy(miniature.path() / "config.json", folder)
    shutil.copy(miniature.path() / "fine.safetensors", folder)
    (folder / "vocab.txt").write_bytes(content)

    found = fuzzing.outcome(bundles.load(folder).mulan, named=folder)
    if not isinstance(found, Exception):
        vocabulary = np.asarray(found.variables["vocab"]).tobytes()
        # A text whose words were lost is an error of the text.
        ids = fuzzing.outcome(wordpiece.tokenize_texts, vocabulary, ["a jig on the fiddle"], 16)
        assert isinstance(ids, Exception) or ids[0].max() < found.config.vocab_size
