"""Packaging of musiclm_jax.

`tasks/`, `launch/` and `gin_configs/` are top-level folders of the repository and install as `musiclm_jax.tasks`,
`musiclm_jax.launch` and `musiclm_jax.gin_configs`, so nothing generic lands in site-packages.
"""

import pathlib
import re

from setuptools import find_packages, setup

MAPPED = {
    "musiclm_jax.tasks": "tasks",
    "musiclm_jax.launch": "launch",
    "musiclm_jax.gin_configs": "gin_configs",
}

# Read, not imported: whoever builds the package has none of its dependencies.
VERSION = re.search(r'^__version__ = "(.+)"$', pathlib.Path("musiclm_jax/__init__.py").read_text(), re.MULTILINE)[1]

# What training, evaluation and the preparation of data need, and generation does not.
TRAIN = [
    "seqio>=0.0.20,<0.1",
    "tensorflow>=2.21,<2.22",
    "tensorflow-text>=2.21,<2.22",
    "tensorflow-datasets>=4.9.10,<4.10",
    "tensorboard>=2.20,<3",
    "clu>=0.0.12,<0.1",
    "absl-py>=2.1,<3",
    "gin-config>=0.5,<0.6",
]
CORPUS = [*TRAIN, "music21>=10.5,<11", "pretty_midi>=0.2.10,<0.3"]

setup(
    name="musiclm_jax",
    version=VERSION,
    description="MusicLM (text to music) in JAX and Flax, from a laptop to a TPU pod",
    long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir=MAPPED,
    packages=find_packages(include=["musiclm_jax", "musiclm_jax.*"]) + list(MAPPED),
    package_data={
        "musiclm_jax": ["py.typed"],
        "musiclm_jax.bundles": ["*/*.json", "*/*.safetensors", "*/*.txt", "*/*.md"],
        "musiclm_jax.gin_configs": ["*.gin"],
        "musiclm_jax.evaluation.listening_test": ["*.html"],
    },
    install_requires=[
        "jax>=0.10,<0.11",
        "flax>=0.12,<0.13",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "librosa>=0.11,<0.12",
        "numba>=0.65,<0.69",
        "soundfile>=0.13,<0.15",
        "safetensors>=0.5,<1",
        "tokenizers>=0.21,<1",
        "numpy>=2.1,<3",
        "scipy>=1.14,<2",
        "etils[epath]>=1.10,<2",
        "matplotlib>=3.9,<4",
    ],
    extras_require={
        "train": TRAIN,
        "hub": ["huggingface_hub>=2.4,<3"],
        "test": [
            *CORPUS,
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "dill>=0.3.8,<1",
            "hypothesis>=6.170,<7",
            "ruff>=0.9,<1",
            "mypy>=1.14,<3",
            "transformers>=4.50,<6",
            # Its builds for GPUs bring triton, which crashes if TensorFlow is imported first: see tests/conftest.py.
            "torch>=2.6,<2.14",
            "onnxruntime>=1.20,<2",
        ],
        "corpus": CORPUS,
        "tpu": [*TRAIN, "jax[tpu]>=0.10,<0.11"],
        "cuda12": [*TRAIN, "jax[cuda12]>=0.10,<0.11"],
        "cuda13": [*TRAIN, "jax[cuda13]>=0.10,<0.11"],
        "gpu": [*TRAIN, "jax[cuda12]>=0.10,<0.11"],
    },
    entry_points={"console_scripts": ["musiclm = musiclm_jax.launch.main:main"]},
)
