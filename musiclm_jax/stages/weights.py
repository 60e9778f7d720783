"""Initialises a stage with the weights of another stage that has a different vocabulary."""

from collections.abc import Mapping

import numpy as np

from musiclm_jax.stages.stage import Stage
from musiclm_jax.stages.transformer import CONDITION_GAIN, Params

WINDOW_SHARE = 0.25  # size of the vector that identifies a window of the melody, relative to a row
RIDGE = 3.0  # ridge regression: the old row of a code counts as much as this number of examples of the code
MOST_STRENGTH = 10.0  # upper limit of the size of melody rows, relative to other rows


def carried_over(params: Params, old: Stage, new: Stage, codebooks: Mapping[str, np.ndarray], seed: int = 0) -> Params:
    """Adapts the embedding table of a trained stage to the vocabulary of a new stage.

    Levels of streams that are in both vocabularies keep their rows. Rows of the melody are initialised as a random
    projection of their codebook entries, so similar melodies have similar rows from the first step on; random rows
    would have to be learned code by code (the paper trains everything at once and does not need this). All windows
    share the projection, and each adds a random vector of its own. If the old stage has learned a small gain for its
    conditioning (`aligned_condition`), the rows of the melody are scaled up to compensate for it, so that the melody
    counts as much as in a new stage. All other rows are drawn at random.

    Args:
      params: parameters of the old stage, stacked or not.
      old: the stage that was trained.
      new: the stage to train.
      codebooks: for streams with windows, the codebook entries of each level, float32 `[levels, codebook_size, dim]`.
      seed: seed of the random rows.

    Returns:
      `params` with a new "embedding"; the same object if the vocabularies are equal.
    """
    if old.vocabulary == new.vocabulary:
        return params
    rng, table = np.random.default_rng(seed), np.asarray(params["embedding"])
    width = table.shape[1]
    size = np.sqrt(np.mean(np.square(table)))  # RMS of the existing rows; new rows have the same
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
    """Adapts a stage to a new quantizer of a stream per clip, such as that of a MuLan that was trained further.

    The rows of the new codes are fitted by ridge regression, so that their sum over the levels equals the sum of the
    old codes' rows for the same example. A rare code keeps the row of the old code with its number. This is not in the
    paper, which trains each part once.

    Args:
      params: parameters of the stage, stacked or not.
      stage: the stage.
      stream: name of the stream.
      before: codes of n examples by the old quantizer, int `[n, quantizers]`, with at least the levels the stage reads.
      after: codes of the same examples by the new quantizer, int `[n, quantizers]`.

    Returns:
      `params` with new rows of the stream in "embedding".

    Raises:
      ValueError: if the numbers of examples differ, or there are too few levels.
    """
    levels, size = stage.stream(stream).quantizers, stage.stream(stream).codebook_size
    if before.shape[0] != after.shape[0] or min(before.shape[1], after.shape[1]) < levels:
        raise ValueError(
            f"codes {before.shape} and {after.shape}: expected [n, {levels} or more] for the same n examples in both"
        )
    table = np.array(params["embedding"])
    own = slice(stage.vocabulary.offset(stream, 0), stage.vocabulary.offset(stream, 0) + levels * size)
    rows = table[own]
    old, new = (np.eye(size, dtype=np.float32)[codes[:, :levels]].reshape(len(codes), -1) for codes in (before, after))
    wanted = old @ rows - new @ rows
    table[own] = rows + np.linalg.solve(new.T @ new + RIDGE * np.eye(levels * size), new.T @ wanted)
    return {**params, "embedding": table}
