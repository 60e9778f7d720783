"""Weights of one stage as the beginning of another, whose vocabulary is a different one."""

from collections.abc import Mapping

import numpy as np

from musiclm_jax.stages.layout import Stage
from musiclm_jax.stages.transformer import CONDITION_GAIN, Params

WINDOW_SHARE = 0.25  # of a row's size: what tells a window of the melody from the others
RIDGE = 3.0  # things for which a code's old row counts, beside those that have the code
MOST_STRENGTH = 10.0  # times the size of other rows


def carried_over(params: Params, old: Stage, new: Stage, codebooks: Mapping[str, np.ndarray], seed: int = 0) -> Params:
    """Parameters of a stage with the embedding table of another stage's vocabulary.

    Levels of streams that both know keep their rows. Rows of the melody begin as a random projection of their codebook
    entries: near melodies then are near from the first step on, where rows that begin at random would have to be
    learned code by code (open in the paper, which trains all at once). The projection is the same for all windows, and
    a random vector for each of them is added. Where a stage has learned to add little of its conditions to its targets
    (`aligned_condition`), the melody's rows are larger by as much: it is heard as the conditions of a new stage are.
    Others are drawn.

    Args:
      params: of the old stage, stacked or not.
      old: the stage that was trained.
      new: the stage to train.
      codebooks: of streams of windows, what the codes of each level stand for, float32 `[levels, codebook_size, dim]`.
      seed: of what is drawn.

    Returns:
      `params` with another "embedding"; the same object where the vocabularies are equal.
    """
    if old.vocabulary == new.vocabulary:
        return params
    rng, table = np.random.default_rng(seed), np.asarray(params["embedding"])
    width = table.shape[1]
    size = np.sqrt(np.mean(np.square(table)))  # of the rows that are there: a new one neither drowns them nor drowns
    rows = size * rng.standard_normal((new.vocabulary.rows, width)).astype(np.float32)
    gain = abs(float(np.asarray(params.get("condition_gain", [CONDITION_GAIN]))[0]))
    strength = min(CONDITION_GAIN / max(gain, 1e-6), MOST_STRENGTH)
    known = {stream.name: stream for stream in old.streams}
    for stream in new.streams:
        entries = codebooks.get(stream.name)
        if entries is not None:
            projection = rng.standard_normal((entries.shape[2], width)).astype(np.float32)
            of_window = WINDOW_SHARE * rng.standard_normal((stream.windows, width)).astype(np.float32)
        for level in range(stream.quantizers):
            own = slice(new.vocabulary.offset(stream.name, level), None)
            before = known.get(stream.name)
            if before and before.codebook_size == stream.codebook_size and level < before.quantizers:
                first = old.vocabulary.offset(stream.name, level)
                rows[own][: stream.codebook_size] = table[first : first + stream.codebook_size]
            elif entries is not None:
                rvq_level, window = divmod(level, stream.windows)
                described = entries[rvq_level] @ projection + of_window[window]
                rows[own][: stream.codebook_size] = strength * size * described
    rows[new.vocabulary.bos] = table[old.vocabulary.bos]
    return {**params, "embedding": rows}


def with_new_codes(params: Params, stage: Stage, stream: str, before: np.ndarray, after: np.ndarray) -> Params:
    """Parameters of a stage for another quantizer of a stream per clip, such as a MuLan that was trained further.

    What the old codes of a thing stood for together, the new ones stand for now: rows of the new codes are fitted by
    least squares, so that their sum over the levels is what the sum over the old codes was. A code that is hardly seen
    keeps the row of the old code of its number. Nothing of the sort is in the paper, which trains its parts once.

    Args:
      params: of the stage, stacked or not.
      stage: whose vocabulary they have.
      stream: name of the stream.
      before: int `[n, quantizers]`, codes of n things by the old quantizer, at least as many levels as the stage reads.
      after: int `[n, quantizers]`, codes of the same things by the new one.

    Returns:
      `params` with other rows of the stream in "embedding".

    Raises:
      ValueError: if the codes are not of the same things, or have too few levels.
    """
    levels, size = stage.stream(stream).quantizers, stage.stream(stream).codebook_size
    if before.shape[0] != after.shape[0] or min(before.shape[1], after.shape[1]) < levels:
        raise ValueError(
            f"codes {before.shape} and {after.shape}: expected [n, {levels} or more] of the same n things from both"
        )
    table = np.array(params["embedding"])
    own = slice(stage.vocabulary.offset(stream, 0), stage.vocabulary.offset(stream, 0) + levels * size)
    rows = table[own]
    old, new = (np.eye(size, dtype=np.float32)[codes[:, :levels]].reshape(len(codes), -1) for codes in (before, after))
    wanted = old @ rows - new @ rows
    table[own] = rows + np.linalg.solve(new.T @ new + RIDGE * np.eye(levels * size), new.T @ wanted)
    return {**params, "embedding": table}
