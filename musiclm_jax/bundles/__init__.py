"""Bundles, which are folders of configurations and weights, and the encoding of audio with their models (`encode`).

Imports `tokenizers`, `stages`, `kernels` and `data`.
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
    shipped,
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
    "shipped",
    "unpack",
]
