"""Rounding to 8 bits."""

from typing import Any

LARGEST = 127


def rounded(values: Any) -> tuple[Any, Any]:
    """Quantizes `values` [..., n] to int8 [..., n] with float32 scales [...]; their product approximates it.

    Takes an array of NumPy or JAX and returns arrays of the same library.
    """
    xp = values.__array_namespace__()
    wide = values.astype(xp.float32)
    scale = xp.maximum(xp.max(xp.abs(wide), axis=-1), 1e-12) / LARGEST
    return xp.round(wide / scale[..., None]).astype(xp.int8), scale
