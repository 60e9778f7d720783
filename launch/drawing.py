"""Plots without a display, in which texts are drawn as they are written."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def pyplot() -> Iterator[Any]:
    """Yields `matplotlib.pyplot` with matplotlib's own defaults while the block runs.

    Titles and labels are the user's words: "$" does not begin mathematics in them, and a character that the font lacks
    is drawn as a box without a warning. A user's settings of matplotlib (such as `text.usetex`) do not count.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        try:
            yield pyplot
        finally:
            pyplot.close("all")
