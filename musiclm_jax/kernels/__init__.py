"""The most expensive operations: attention on TPUs, and matrix products and attention for decoding on CPUs.

Imports nothing else from the package.
"""

__all__ = [
    "cpu_decoding",
    "flash_attention",
    "int8",
    "transposed",
]
