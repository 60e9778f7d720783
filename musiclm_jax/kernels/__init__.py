"""The operations that take the time: attention for accelerators, products and attention for decoding on CPUs.

Imports nothing else of the package.
"""

__all__ = [
    "cpu_decoding",
    "flash_attention",
    "int8",
    "transposed",
]
