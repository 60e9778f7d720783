"""Bundles: folders with the configs and weights of all models that turn text into audio.

    config.json              format_version, generation settings, and per part: config, sha256 of its file, size
    <part>.safetensors       the variables of a part; names are paths such as "params/encoder/kernel"
    vocab.txt                WordPiece vocabulary of the text encoder
    tags.json                candidate tags and captions for `musiclm describe`
    MODEL_CARD.md

A bundle holds only data (no pickle, no code) and may lack parts: for tokenizing, the tokenizers are enough. Matrices
are stored in float16, or in int8 with a float32 scale per row; vectors stay float32. Loading converts everything to
float32.
"""

import dataclasses
import functools
import hashlib
import importlib
import json
import os
import pathlib
import sys
import types
import typing
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from musiclm_jax.bundles import hub
from musiclm_jax.data import files, wordpiece
from musiclm_jax.kernels.rounding import rounded

FORMAT_VERSION = 1
SHIPPED = pathlib.Path(__file__).parent  # bundles in the package are folders next to this file
# The config dataclass of each part, imported only when the part is loaded.
PART_CONFIGS = {
    "soundstream": "musiclm_jax.tokenizers.soundstream:SoundStreamConfig",
    "w2v_bert": "musiclm_jax.tokenizers.w2v_bert:W2vBertConfig",
    "mulan": "musiclm_jax.tokenizers.mulan:MulanConfig",
    "text_encoder": "musiclm_jax.tokenizers.mulan:MulanConfig",
    "melody": "musiclm_jax.tokenizers.melody:MelodyConfig",
    "semantic": "musiclm_jax.stages.config:StageModelConfig",
    "semantic_melody": "musiclm_jax.stages.config:StageModelConfig",
    "coarse": "musiclm_jax.stages.config:StageModelConfig",
    "fine": "musiclm_jax.stages.config:StageModelConfig",
}
SCALE_SUFFIX = ":scale"  # an int8 tensor "x" comes with a float32 tensor "x:scale"
INT8_MIN_SIZE = 65_536  # for smaller matrices, the saved space is not worth the rounding


class BundleError(ValueError):
    """Raised if a bundle is missing, damaged or of another version; the message is one line for the user."""


class Part(NamedTuple):
    """Config (a frozen dataclass) and variables (nested dicts of float32 arrays) of one model."""

    config: Any
    variables: dict


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Default settings for generation. The stages' windows are not among them: each stage's config has its seconds."""

    max_seconds: float = 30.0  # longest music the bundle is meant for; longer music may drift
    temperature: tuple[float, float, float] = (1.0, 0.95, 0.4)  # semantic, coarse, fine (MusicLM section 4.2)
    top_p: float = 1.0  # total probability of nucleus sampling; 1 samples from all codes (not in the paper)
    guidance: tuple[float, float] = (1.0, 1.0)  # semantic, coarse; 1 samples as trained (not in the paper)
    weights: str = "float32"  # precision of the stages' kernels: that of `Request.weights`
    sample_rate: int = 24_000  # Hz


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An open bundle; parts are read on first use.

    Attributes:
      path: the folder.
      config: contents of config.json.
    """

    path: pathlib.Path
    config: dict
    _parts: dict = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @functools.cached_property
    def generation(self) -> GenerationConfig:
        """Settings for generation."""
        return config_from_json(GenerationConfig, self.config.get("generation", {}), f"{self.path}: generation")

    @property
    def sha256(self) -> str:
        """Hash of config.json, which has the hashes of all weights: equal for bundles that generate the same music."""
        return _json_sha256(self.config)

    def has(self, part: str) -> bool:
        """Returns whether the bundle holds `part`."""
        return part in self.config["parts"]

    def part(self, part: str) -> Part:
        """Returns the config and variables of a part.

        Raises:
          BundleError: if the bundle lacks the part, or its file or config is damaged.
        """
        if part not in self._parts:
            self._parts[part] = _load_part(self, part)
        return self._parts[part]

    def file(self, name: str) -> pathlib.Path:
        """Returns the path of another file of the bundle, such as "vocab.txt".

        Raises:
          BundleError: if it is missing.
        """
        path = self.path / name
        if not path.is_file():
            raise BundleError(f"bundle {self.path}: {name} is missing: export or install the bundle again")
        return path

    def mulan(self) -> Part:
        """Returns MuLan, joined from "mulan" (audio tower, projection, quantizer) and "text_encoder" (BERT).

        Raises:
          BundleError: as `part` and `file`.
        """
        if "mulan with text" not in self._parts:
            config, variables = self.part("mulan")
            path = self.file("vocab.txt")
            content = files.read(path)
            try:
                wordpiece.check(content, config.vocab_size)
            except ValueError as error:
                raise BundleError(f"bundle {self.path}: {path.name} is damaged ({error})") from error
            vocab = np.frombuffer(content, np.uint8)
            variables = variables | {"text": self.part("text_encoder").variables["text"], "vocab": vocab}
            self._parts["mulan with text"] = Part(config, variables)
        return self._parts["mulan with text"]


def shipped() -> list[str]:
    """Returns the names of the bundles in the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def load(bundle: str | os.PathLike = "tiny") -> Bundle:
    """Opens a bundle.

    Args:
      bundle: a folder, the name of a bundle shipped in the package, or hf://OWNER/NAME on the Hugging Face Hub. The
        name means the package's, whatever the current folder holds: a folder of that name is ./tiny.

    Raises:
      BundleError: if there is no such bundle, or its config.json is damaged or of another version.
    """
    if str(bundle).startswith(hub.SCHEME):
        try:
            bundle = hub.downloaded(str(bundle))
        except hub.HubError as error:
            raise BundleError(str(error)) from error
    try:
        name = files.local_name(bundle)
    except ValueError as error:
        raise BundleError(f"bundle: {error}") from error
    folder = SHIPPED / name if name in shipped() else pathlib.Path(name)
    if not (folder / "config.json").is_file():
        raise BundleError(
            f"bundle {str(bundle)!r}: neither a folder with a config.json nor a bundle of this package "
            f"({', '.join(shipped()) or 'which has none'})"
        )
    try:
        config = files.from_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"bundle {folder}: config.json is damaged ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("parts"), dict):
        raise BundleError(f"bundle {folder}: config.json has no table of parts")
    if config.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"bundle {folder}: format_version is {config.get('format_version')!r}, this release reads {FORMAT_VERSION}"
        )
    if unknown := sorted(set(config["parts"]) - set(PART_CONFIGS)):
        raise BundleError(f"bundle {folder}: unknown part {', '.join(unknown)}: parts are {', '.join(PART_CONFIGS)}")
    return Bundle(folder, config)


def _load_part(bundle: Bundle, part: str) -> Part:
    where = f"bundle {bundle.path}: part {part}"
    if not bundle.has(part):
        raise BundleError(f"{where} is not in the bundle, which holds {', '.join(bundle.config['parts']) or 'nothing'}")
    entry = bundle.config["parts"][part]
    if not isinstance(entry, dict) or not {"config", "config_sha256", "sha256"} <= entry.keys():
        raise BundleError(f"{where}: its entry in config.json must hold config, config_sha256 and sha256")
    config = config_from_json(_config_class(part), entry["config"], where)
    if _json_sha256(entry["config"]) != entry["config_sha256"]:
        raise BundleError(f"{where}: its config was changed after the export and no longer describes the weights")
    path = bundle.file(f"{part}.safetensors")
    size = path.stat().st_size
    # The size first: a file of another size is not read into memory.
    data = files.read(path) if size == entry.get("bytes", size) else None
    if data is None or hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise BundleError(
            f"{where}: {path.name} is damaged or from another export ({size} bytes, expected {entry.get('bytes')}, and "
            "its sha256 differs): install or export the bundle again"
        )
    try:
        variables = unpack(safetensors.numpy.load(data))
    except (safetensors.SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise BundleError(f"{where}: {path.name} is not a safetensors file of weights ({error})") from error
    return Part(config, variables)


def save_part(bundle: str | os.PathLike, part: str, config: Any, variables: dict, storage: str = "float16") -> int:
    """Adds or replaces one part of a bundle; creates the folder if it is missing.

    Args:
      bundle: folder of the bundle.
      part: one of `PART_CONFIGS`.
      config: an instance of the part's config dataclass.
      variables: nested dicts of arrays.
      storage: "float16", or "int8" to store large matrices in int8 with a scale per row and the rest in float16.

    Returns:
      The size of the part's file in bytes.

    Raises:
      ValueError: if the part or the storage is unknown, or the config has the wrong type.
    """
    if part not in PART_CONFIGS:
        raise ValueError(f"unknown part {part!r}: parts are {', '.join(PART_CONFIGS)}")
    if not isinstance(config, _config_class(part)):
        raise ValueError(f"part {part} takes a {PART_CONFIGS[part].split(':')[1]}, got a {type(config).__name__}")
    folder = files.local_path(bundle)
    folder.mkdir(parents=True, exist_ok=True)
    data = safetensors.numpy.save(pack(variables, storage))
    files.write(folder / f"{part}.safetensors", data)
    stored_config = json.loads(json.dumps(dataclasses.asdict(config)))
    entry = {
        "config": stored_config,
        "config_sha256": _json_sha256(stored_config),
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "storage": storage,
    }
    _update_config(folder, lambda contents: contents["parts"].update({part: entry}))
    return len(data)


def save_mulan(bundle: str | os.PathLike, config: Any, variables: dict) -> dict[str, int]:
    """Adds MuLan: the text encoder as a separate part in int8, its vocabulary as vocab.txt, the rest as "mulan".

    Args:
      bundle: folder of the bundle.
      config: a MulanConfig.
      variables: MuLan's variables, including "text" (the encoder's parameters) and "vocab" (uint8, the content of
        vocab.txt).

    Returns:
      The size in bytes of each part and of vocab.txt.
    """
    rest = {name: value for name, value in variables.items() if name not in ("text", "vocab")}
    vocab = np.asarray(variables["vocab"], np.uint8).tobytes()
    sizes = {
        "mulan": save_part(bundle, "mulan", config, rest),
        "text_encoder": save_part(bundle, "text_encoder", config, {"text": variables["text"]}, storage="int8"),
        "vocab.txt": len(vocab),
    }
    files.write(files.local_path(bundle) / "vocab.txt", vocab)
    return sizes


def save_generation(bundle: str | os.PathLike, generation: GenerationConfig) -> None:
    """Sets the bundle's settings for generation."""
    folder = files.local_path(bundle)
    folder.mkdir(parents=True, exist_ok=True)
    _update_config(folder, lambda contents: contents.update(generation=dataclasses.asdict(generation)))


def _update_config(folder: pathlib.Path, change) -> None:
    path = folder / "config.json"
    with files.locked(folder, "musiclm export", wait=True):  # several parts may be exported at the same time
        if path.exists():
            contents = load(folder).config
        else:
            generation = dataclasses.asdict(GenerationConfig())
            contents = {"format_version": FORMAT_VERSION, "generation": generation, "parts": {}}
        change(contents)
        contents["parts"] = {part: contents["parts"][part] for part in PART_CONFIGS if part in contents["parts"]}
        files.write(path, json.dumps(contents, indent=1) + "\n")


def pack(variables: dict, storage: str = "float16") -> dict[str, np.ndarray]:
    """Converts nested dicts of arrays to named tensors in their storage dtypes; `unpack` inverts it up to rounding.

    Raises:
      ValueError: if the storage is unknown, a value is NaN or infinite, or a name contains "/" or ends in ":scale".
    """
    if storage not in ("float16", "int8"):
        raise ValueError(f"storage {storage!r} is unknown: use float16 or int8")
    tensors: dict[str, np.ndarray] = {}
    for name, leaf in _flatten(variables):
        array = np.asarray(leaf)
        if not np.issubdtype(array.dtype, np.floating):
            tensors[name] = np.ascontiguousarray(array)
            continue
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinite values: the training failed; check its losses")
        if storage == "int8" and array.ndim >= 2 and array.size >= INT8_MIN_SIZE:
            tensors[name], scale = rounded(array)
            tensors[name + SCALE_SUFFIX] = scale[..., None]
        elif array.ndim >= 2 and np.abs(array).max(initial=0) < np.finfo(np.float16).max:
            tensors[name] = array.astype(np.float16)
        else:
            tensors[name] = np.ascontiguousarray(array)
    return tensors


def unpack(tensors: dict[str, np.ndarray]) -> dict:
    """Converts named tensors to nested dicts of JAX arrays; floating-point arrays become float32.

    Raises:
      ValueError: if a tensor has the name of a group of tensors, or its scale has another shape.
    """
    variables: dict = {}
    for name, array in tensors.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        if (scale := tensors.get(name + SCALE_SUFFIX)) is not None:
            if scale.shape != (*array.shape[:-1], 1):  # NumPy would broadcast some others, to any size
                raise ValueError(f"{name} has the shape {array.shape}, its scale {scale.shape}")
            array = array.astype(np.float32) * scale
        elif array.dtype == np.float16:
            array = array.astype(np.float32)
        *parents, last = name.split("/")
        node = variables
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name} is below another tensor")
        if last in node:
            raise ValueError(f"{name} is above another tensor")
        node[last] = jax.device_put(array)  # jnp.asarray compiles a program for each shape
    return variables


def _flatten(tree: Any, prefix: str = ""):
    if not hasattr(tree, "items"):
        yield prefix, tree
        return
    for key, value in tree.items():
        if "/" in key or key.endswith(SCALE_SUFFIX):
            raise ValueError(f"variable name {key!r} must not contain '/' or end in {SCALE_SUFFIX!r}")
        yield from _flatten(value, f"{prefix}/{key}" if prefix else key)


def config_from_json(config_class: type, values: Any, where: str) -> Any:
    """Builds a config dataclass from its JSON form: lists become tuples, tables become nested dataclasses.

    Args:
      config_class: the dataclass.
      values: the fields, as `dataclasses.asdict` and JSON store them.
      where: beginning of error messages.

    Raises:
      BundleError: if a field is unknown, missing or of another type, or the dataclass rejects a value.
    """
    if not isinstance(values, dict):
        raise BundleError(f"{where}: its config must be a table, got {type(values).__name__}")
    kinds = typing.get_type_hints(config_class)
    if unknown := sorted(set(values) - {field.name for field in dataclasses.fields(config_class)}):
        raise BundleError(f"{where}: {config_class.__name__} has no field {', '.join(unknown)}: from another release?")
    arguments = {name: _of_kind(kinds[name], value, f"{where}: {name}") for name, value in values.items()}
    try:
        return config_class(**arguments)
    except Exception as error:  # of any kind, for values that no release has written
        raise BundleError(f"{where}: {error or repr(error)}") from error


def _of_kind(kind: Any, value: Any, where: str) -> Any:
    """Converts a value of JSON to the type of a field.

    Raises:
      BundleError: if it is of another type, or a number that is too large.
    """
    members = typing.get_args(kind)
    if isinstance(kind, types.UnionType):  # of a type and None
        return None if value is None else _of_kind(members[0], value, where)
    if dataclasses.is_dataclass(kind):
        return config_from_json(kind, value, where)  # type: ignore[arg-type]
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        own = members[:1] * len(value) if members[-1] is Ellipsis else members
        if len(own) == len(value):
            return tuple(_of_kind(member, item, where) for member, item in zip(own, value, strict=True))
    elif isinstance(kind, type) and issubclass(kind, tuple) and isinstance(value, list):  # a NamedTuple
        fields = typing.get_type_hints(kind)
        if len(fields) == len(value):
            return kind(*(_of_kind(field, item, where) for field, item in zip(fields.values(), value, strict=True)))
    elif kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:  # not NaN or infinity
        return value
    elif type(value) is kind and (kind is not int or abs(value) < 2**31):
        return value
    raise BundleError(f"{where} is {value!r:.80}, expected {getattr(kind, '__name__', kind)}")


def _config_class(part: str) -> Any:
    module, name = PART_CONFIGS[part].split(":")
    return getattr(importlib.import_module(module), name)


def _json_sha256(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
