"""How good the music is: FAD, KLD, MCC, memorization, listening tests, and which part is at fault.

Imports `generation` and what lies below it.
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
