"""The corpus of the tiny bundle: real compositions in synthetic performance, with captions of true facts.

scores.py (with abc.py) reads compositions, arrangement.py chooses what is played and how, rendering.py makes it sound,
captions.py says what it is, build.py writes the records.
"""
