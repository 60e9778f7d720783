"""GPUs that this machine does not have, described to XLA's compiler: JAX's CUDA plugin compiles for them on a CPU.

The plugin needs neither a card nor a driver for that (checked with JAX 0.10.2 and the plugin for CUDA 12). What a card
would change: autotuning, which is off here, picks faster products by trying them. Memory, operations and collectives
are those of the program that the card would run.
"""

import os
import re
from typing import Any

from musiclm_jax.training.chips import CHIPS, Chip

NODE = 8  # GPUs that NVLink connects in a DGX or HGX node
DESCRIPTIONS = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}
# Per multiprocessor and card, from NVIDIA's "Hopper Tuning Guide" and what CUDA reports of an H100 SXM.
_HOPPER = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 48 * 2**10,
    "shared_memory_per_block_optin": 227 * 2**10,
    "shared_memory_per_core": 228 * 2**10,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "l2_cache_size": 50 * 2**20,
    "clock_rate_ghz": 1.98,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
}
# Tuning tries products on a card.
COMPILER_OPTIONS = {"xla_gpu_autotune_level": "0"}


def devices(name: str) -> tuple[list[Any], Chip]:
    """Returns the GPUs of a node such as "h100:8", and their figures.

    Args:
      name: a card of `DESCRIPTIONS` and the number of GPUs, 1 to 8.

    Raises:
      ValueError: if the card is unknown, there are not 1 to 8 of them, or JAX's CUDA plugin is missing.
    """
    from jax.experimental import topologies

    family, _, count = name.partition(":")
    if family not in DESCRIPTIONS or not re.fullmatch(r"[1-9]\d*", count) or int(count) > NODE:
        raise ValueError(
            f"topology {name!r}: expected one node of 1 to {NODE} GPUs, like h100:8, for one of "
            f"{', '.join(DESCRIPTIONS)}"
        )
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # else the plugin asks CUDA, which needs a driver
    try:
        found = topologies.get_topology_desc(
            topology_name=name, platform="cuda", target_config=_target(family), topology=f"1x1x{count}"
        )
        return list(found.devices), CHIPS[family]
    except Exception as error:  # the plugin's errors have many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"cannot describe {name!r} to the compiler ({reason}): pip install '.[cuda12]' in a checkout for JAX's "
            "CUDA plugin, which compiles without a card"
        ) from error


def _target(family: str) -> str:
    """Returns the description of a card, in the text form of XLA's GpuTargetConfigProto."""
    chip = CHIPS[family]
    numbers = _HOPPER | {"memory_bandwidth": int(chip.hbm_rate), "device_memory_size": int(chip.hbm_bytes)}
    lines = "\n".join(f"  {name}: {value}" for name, value in numbers.items())
    return (
        f"gpu_device_info {{\n{lines}\n  cuda_compute_capability {{ major: 9 }}\n}}\n"
        'platform_name: "CUDA"\nruntime_version { major: 12 minor: 8 }\ndnn_version_info { major: 9 minor: 10 }\n'
        f'device_description_str: "{DESCRIPTIONS[family]}"\n'
    )
