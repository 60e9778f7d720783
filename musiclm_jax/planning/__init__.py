"""Estimates the cost of a training before it starts: memory, FLOPs and traffic of the compiled step.

Imports `stages` and `training`.
"""

__all__ = [
    "dry_run",
    "hlo",
    "plan",
]
