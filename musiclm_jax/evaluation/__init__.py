"""Measures the quality of music: FAD, KLD, MCC, memorization, listening tests, and diagnosis of the part at fault.

Imports `generation` and the rooms below it.
"""

__all__ = [
    "clips",
    "diagnose",
    "embedders",
    "evaluate",
    "frechet",
    "listening_test",
    "memorization",
    "metrics",
]
