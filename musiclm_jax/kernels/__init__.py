"""The most expensive operations: attention, and matrix products and attention for decoding on CPUs.

Imports nothing else from the package.
"""

__all__ = [
    "block_attention",
    "cpu_decoding",
    "cudnn_attention",
    "flash_attention",
    "int8",
    "rounding",
    "transposed",
]
