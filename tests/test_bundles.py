"""Bundles: written, read back, and one clear line for each kind of damage."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from musiclm_jax import bundles


@dataclasses.dataclass(frozen=True)
class Inner:
    rates: tuple[tuple[int, ...], ...] = ((1, 2), (3,))


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    width: int = 4
    name: str | None = None
    inner: Inner = dataclasses.field(default_factory=Inner)


CONFIG = ToyConfig(width=7, inner=Inner(((5, 6),)))


@pytest.fixture(autouse=True)
def toy_part(monkeypatch):
    monkeypatch.setitem(bundles.PART_CONFIGS, "soundstream", f"{__name__}:ToyConfig")


def variables(rows=300, columns=256):
    rng = np.random.default_rng(0)
    return {
        "params": {
            "layer": {"kernel": rng.normal(size=(rows, columns)).astype(np.float32), "bias": np.float32([1 / 3])}
        },
        "steps": np.int32([2_000_000]),
    }


@pytest.fixture
def bundle(tmp_path):
    bundles.save_part(tmp_path / "b", "soundstream", CONFIG, variables())
    return tmp_path / "b"


def test_part_comes_back_with_its_config(bundle):
    part = bundles.load(bundle).part("soundstream")
    assert part.config == CONFIG
    expected = variables()
    np.testing.assert_allclose(
        part.variables["params"]["layer"]["kernel"], expected["params"]["layer"]["kernel"], rtol=1e-3, atol=1e-7
    )
    assert part.variables["params"]["layer"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(part.variables["params"]["layer"]["bias"], np.float32([1 / 3]))  # vectors are exact
    np.testing.assert_array_equal(part.variables["steps"], [2_000_000])


def test_int8_halves_the_file_and_bounds_the_error_per_row(tmp_path, bundle):
    tree = variables()
    kernel = tree["params"]["layer"]["kernel"]
    kernel[0] *= 1000  # a row of large values must not reduce the precision of the others
    size = bundles.save_part(tmp_path / "c", "soundstream", CONFIG, tree, storage="int8")
    assert size < 0.53 * (bundle / "soundstream.safetensors").stat().st_size
    loaded = bundles.load(tmp_path / "c").part("soundstream").variables["params"]["layer"]["kernel"]
    error = np.abs(loaded - kernel).max(axis=1)
    assert (error <= np.abs(kernel).max(axis=1) / 127 * 0.501).all()


def test_the_hash_of_a_bundle_follows_its_weights(bundle):
    first = bundles.load(bundle).sha256
    assert bundles.load(bundle).sha256 == first and len(first) == 64
    changed = variables()
    changed["params"]["layer"]["kernel"][0, 0] += 1
    bundles.save_part(bundle, "soundstream", CONFIG, changed)
    assert bundles.load(bundle).sha256 != first


def test_values_beyond_float16_survive():
    packed = bundles.pack({"big": np.full((2, 2), 1e6, np.float32)})
    np.testing.assert_array_equal(bundles.unpack(packed)["big"], np.full((2, 2), 1e6))


def test_pack_refuses_nan_and_ambiguous_names():
    with pytest.raises(ValueError, match="a/b holds NaN"):
        bundles.pack({"a": {"b": np.full((2, 2), np.nan)}})
    with pytest.raises(ValueError, match="must not contain"):
        bundles.pack({"a/b": np.ones(1)})


def test_parts_are_added_and_replaced(monkeypatch, bundle):
    monkeypatch.setitem(bundles.PART_CONFIGS, "fine", f"{__name__}:ToyConfig")
    bundles.save_part(bundle, "fine", ToyConfig(1), {"x": np.ones((2, 2))})
    bundles.save_part(bundle, "soundstream", ToyConfig(2), {"x": np.zeros((2, 2))})
    opened = bundles.load(bundle)
    assert opened.has("fine") and not opened.has("coarse")
    assert opened.part("fine").config.width == 1 and opened.part("soundstream").config.width == 2
    assert opened.part("fine") is opened.part("fine")  # read once
    bundles.save_generation(bundle, bundles.GenerationConfig(max_seconds=12))
    assert bundles.load(bundle).generation.max_seconds == 12 and bundles.load(bundle).has("fine")


def damaged(bundle, message):
    with pytest.raises(bundles.BundleError, match=message) as raised:
        bundles.load(bundle).part("soundstream")
    assert "\n" not in str(raised.value) and str(bundle) in str(raised.value)


def edit(bundle, change):
    config = json.loads((bundle / "config.json").read_text())
    change(config["parts"]["soundstream"]["config"])
    (bundle / "config.json").write_text(json.dumps(config))


def test_missing_bundle_lists_what_there_is():
    with pytest.raises(bundles.BundleError, match="'nonesuch': neither a folder"):
        bundles.load("nonesuch")


def test_missing_part(bundle):
    with pytest.raises(bundles.BundleError, match="part coarse is not in the bundle, which holds soundstream"):
        bundles.load(bundle).part("coarse")


def test_missing_file(bundle):
    (bundle / "soundstream.safetensors").unlink()
    damaged(bundle, "soundstream.safetensors is missing")


def test_truncated_file(bundle):
    path = bundle / "soundstream.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    damaged(bundle, "damaged.*1000 bytes")


def test_wrong_shape(bundle):
    tensors = safetensors.numpy.load_file(bundle / "soundstream.safetensors")
    tensors["params/layer/kernel"] = tensors["params/layer/kernel"][:-1]
    safetensors.numpy.save_file(tensors, bundle / "soundstream.safetensors")
    damaged(bundle, "damaged or from another export")


def test_unknown_field(bundle):
    edit(bundle, lambda config: config.update(depth=3))
    damaged(bundle, "ToyConfig has no field depth")


def test_changed_config(bundle):
    edit(bundle, lambda config: config.update(width=8))
    damaged(bundle, "changed after the export")


@pytest.mark.parametrize(
    "text, message",
    [("{", "config.json is damaged"), ("[]", "no table of parts"), ('{"parts": {}, "format_version": 9}', "is 9")],
)
def test_bad_config_json(bundle, text, message):
    (bundle / "config.json").write_text(text)
    damaged(bundle, message)


def test_save_part_refuses_the_wrong_config(tmp_path):
    with pytest.raises(ValueError, match="part soundstream takes a ToyConfig, got a Inner"):
        bundles.save_part(tmp_path, "soundstream", Inner(), {})
    with pytest.raises(ValueError, match="unknown part 'flute'"):
        bundles.save_part(tmp_path, "flute", CONFIG, {})
