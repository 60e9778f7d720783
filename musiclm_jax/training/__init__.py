"""The loop that trains any learner, and what stands around it: checkpoints, meshes, progress, stops.

Imports `data` alone: it knows no model. A learner is three pure functions (`learner.Learner`).
"""

__all__ = [
    "checkpoints",
    "chips",
    "divergence",
    "learner",
    "optimizers",
    "partitioning",
    "preemption",
    "profiling",
    "progress",
    "summaries",
    "trainer",
]
