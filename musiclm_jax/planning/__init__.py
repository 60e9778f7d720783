"""What a training costs before it is begun: memory, FLOPs and traffic of the compiled step.

Imports `stages` and `training`.
"""

__all__ = [
    "dry_run",
    "hlo",
    "plan",
]
