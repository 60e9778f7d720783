"""A listening test of two systems: blind pairs of clips on a scale of five answers (MusicLM section 5.2).

`make_trials` makes the pairs, `server` plays them on a web page, `answers` keeps and counts what was said.
"""

from musiclm_jax.evaluation.listening_test.trials import Trial, make_trials, read_captions

__all__ = ["Trial", "make_trials", "read_captions"]
