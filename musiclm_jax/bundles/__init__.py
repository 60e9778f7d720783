"""Folders of configurations and weights, and audio to tokens with the models in them (`encode`).

Imports `tokenizers`, `stages` and `data`.
"""

from musiclm_jax.bundles.bundle import (
    PART_CONFIGS,
    Bundle,
    BundleError,
    GenerationConfig,
    Part,
    config_from_json,
    load,
    pack,
    save_generation,
    save_mulan,
    save_part,
    unpack,
)

__all__ = [
    "PART_CONFIGS",
    "Bundle",
    "BundleError",
    "GenerationConfig",
    "Part",
    "config_from_json",
    "load",
    "pack",
    "save_generation",
    "save_mulan",
    "save_part",
    "unpack",
]
