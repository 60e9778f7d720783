"""The corpus of the tiny bundle: real compositions in synthetic performance, with captions of true facts.

scores.py (with abc.py) reads compositions. arrangement.py chooses what is played and how: which part of a piece
(excerpts.py), in whose hands (performance.py), with whom (companions.py, harmony.py). rendering.py makes it sound,
captions.py says what it is, clips.py makes a clip of all that. build.py writes records; resident.py has workers render
clips from a pack (pack.py) where the scores are not installed.

Imports `data`, and the score and synthesis libraries of the `corpus` extra where they are used.
"""
