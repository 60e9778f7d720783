"""The training loop for any learner, with checkpoints, meshes, progress lines and preemption.

Imports only `data` and knows no model. A learner is four pure functions (`learner.Learner`).
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
    "resume",
    "summaries",
    "trainer",
]
