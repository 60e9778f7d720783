"""Plots show the user's words as they are."""

import errno
import io
import os
import warnings

import matplotlib
import miniature
import numpy as np
import pytest

from musiclm_jax.evaluation import evaluate
from musiclm_jax.launch import drawing, evaluation_page, generate

ODD = [
    "a $5 bill",
    "costs $x_{ in $ or \\frac",
    "$\\nonesuch$",
    "静かなピアノ \U0001f3b5",
    "two\nlines\tand\0",
    "caf\udce9",
]


@pytest.mark.parametrize("title", ODD)
def test_any_prompt_is_a_title(tmp_path, title):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate.draw_spectrogram(miniature.tone(), tmp_path / "a.png", title)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def drawn(text):
    with drawing.pyplot() as pyplot:
        figure = pyplot.figure(figsize=(3, 1))
        figure.text(0, 0.5, text)
        figure.savefig(buffer := io.BytesIO(), format="png")
    buffer.seek(0)
    return pyplot.imread(buffer)


def test_a_dollar_is_drawn_and_begins_no_mathematics():
    assert not np.array_equal(drawn("$a$"), drawn("a"))
    with matplotlib.rc_context({"text.parse_math": True, "text.usetex": True}):  # the user's own settings
        np.testing.assert_array_equal(drawn("$a$"), drawn("$a$"))
        assert matplotlib.rcParams["text.usetex"]


@pytest.mark.parametrize("system, values", [("ours", {}), ("_ours", {"a": 1.0, "b": 2.0})])
def test_histograms_without_values_or_with_any_name_warn_of_nothing(system, values):
    scores = [evaluate.Scores(name, (), {"KLD x": values, "MCC y": {"a": 0.5}}, {}) for name in (system, "noise")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluation_page._plot_distributions(scores).startswith(b"\x89PNG")


def test_a_plot_on_a_full_disk_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.png"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '\S+a\.png'"):
        generate.draw_spectrogram(miniature.tone(), path, "a tone")
    assert not path.exists()
