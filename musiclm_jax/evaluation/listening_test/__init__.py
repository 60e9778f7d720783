"""Blind listening test of two systems: pairs of clips, rated on a five-point scale (MusicLM section 5.2).

`make_trials` makes the pairs, `server` plays them on a web page, `answers` stores and evaluates the ratings.
"""

from musiclm_jax.evaluation.listening_test.trials import Trial, make_trials, read_captions

__all__ = ["Trial", "make_trials", "read_captions"]
