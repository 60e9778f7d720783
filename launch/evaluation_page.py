"""The page of an evaluation: one self-contained HTML file with figures, plots, players and spectrograms."""

import base64
import dataclasses
import html
import io
import pathlib
import tempfile
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from musiclm_jax.data import audio as sound
from musiclm_jax.data import spectrogram
from musiclm_jax.evaluation.evaluate import EvaluationSet, Figure, Scores
from musiclm_jax.launch import drawing

MAX_TAGS = 24  # bars of a plot
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .25rem .7rem; border-bottom: 1px solid #ddd; }
th { text-align: left; vertical-align: top; } td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.number:last-child { white-space: normal; } img { display: block; max-width: 100%; }
.samples { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; } .samples img, audio { width: 100%; }
.samples p { grid-column: 1 / -1; margin: .5rem 0 -.5rem; } .note { color: #666; }
"""
# MusicLM, table 1: other captions, other recordings, other embedders.
PAPER = (
    ("system", "FAD Trill", "FAD VGG", "KLD", "MCC"),
    ("Riffusion", "0.76", "13.4", "1.19", "0.34"),
    ("Mubert", "0.45", "9.6", "1.58", "0.32"),
    ("MusicLM", "0.44", "4.0", "1.01", "0.51"),
)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A clip to listen to."""

    id: str
    caption: str
    audio: np.ndarray  # float32 [samples], 24 kHz
    reference: np.ndarray | None  # in the same format


@drawing.pyplot()
def page(task: EvaluationSet, scores: Sequence[Scores], remarks: Sequence[str], samples: Sequence[Sample]) -> str:
    """Renders the page as HTML.

    Args:
      task: captions and references.
      scores: scores of the system, then of the controls.
      remarks: notes for readers of the figures.
      samples: clips to listen to.
    """
    parts = [
        f"<h1>{html.escape(scores[0].system)} on {html.escape(task.name)}</h1>",
        f"<p>{len(task.items)} captions. Figures of different embedders are not comparable with each other.</p>",
        *(_figure_table(scores, index) for index in range(len(scores[0].figures))),
        "<h2>Remarks</h2><ul>" + "".join(f"<li>{html.escape(remark)}</li>" for remark in remarks) + "</ul>"
        if remarks
        else "",
        "<h2>Systems side by side</h2>" + _image(_plot_figures(scores)),
    ]
    if scores[0].by_clip:
        parts.append("<h2>Clip by clip</h2>" + _image(_plot_distributions(scores)))
    if any(scores[0].by_tag.values()):
        parts.append("<h2>By tag</h2><p class=note>Means over the clips of a tag; the number of clips in brackets.</p>")
        parts.append(_image(_plot_tags(scores[0])))
    parts += [
        "<h2>The paper's table 1, for orientation</h2>",
        "<p class=note>MusicCaps, other recordings, VGGish, TRILL and the paper's MuLan: <b>another data set and other "
        "embedders</b>. Do not compare with the figures above.</p>",
        _table(PAPER[0], PAPER[1:]),
        "<h2>Listen</h2><div class=samples>",
        *(_sample(sample) for sample in samples),
        "</div>",
    ]
    title = html.escape(f"{scores[0].system}: {task.name}")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>"


def cells(figure: Figure) -> tuple[str, str, str, str]:
    """Returns the cells of a figure: value with interval, value at infinite N, clip counts, note."""
    value = str(figure.estimate) if figure.estimate else "not available"
    infinity = f"{figure.infinity:.3f}" if figure.infinity is not None else ""
    return value, infinity, f"{figure.clips} of {figure.asked}", figure.note


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td class=number>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _figure_table(scores: Sequence[Scores], index: int) -> str:
    figure = scores[0].figures[index]
    rows = [(row.system, *cells(row.figures[index])) for row in scores]
    heading = f"<h2>{figure.metric} by {html.escape(figure.embedder)}</h2>"
    weights = f"<p class=note>weights: {html.escape(figure.version)}</p>"
    return heading + weights + _table(("system", "value [95 % interval]", "at infinite N", "clips", "note"), rows)


def _pyplot():
    from matplotlib import pyplot

    return pyplot


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, dpi=90)
    _pyplot().close(figure)
    return buffer.getvalue()


def _plot_figures(scores: Sequence[Scores]) -> bytes:
    """Plots one panel for each metric and embedder: values with intervals, one row per system."""
    count = len(scores[0].figures)
    figure, axes = _pyplot().subplots(1, count, figsize=(3.4 * count, 0.8 + 0.4 * len(scores)), squeeze=False)
    for index, axis in enumerate(axes[0]):
        for place, row in enumerate(scores):
            estimate = row.figures[index].estimate
            if estimate is None:
                continue
            spread = [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
            axis.errorbar(estimate.value, place, xerr=spread, fmt="o", color="C1" if place == 0 else "C0", capsize=3)
        axis.set_yticks(range(len(scores)), [row.system for row in scores] if index == 0 else [""] * len(scores))
        axis.set_ylim(len(scores) - 0.5, -0.5)
        axis.set_title(f"{row.figures[index].metric} by {row.figures[index].embedder}", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    return _png(figure)


def _plot_distributions(scores: Sequence[Scores]) -> bytes:
    """Plots one panel for each per-clip value: the systems' histograms."""
    names = list(scores[0].by_clip)
    figure, axes = _pyplot().subplots(1, len(names), figsize=(5 * len(names), 3), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        values = [list(row.by_clip[name].values()) for row in scores]
        joined = np.concatenate(values) if any(values) else np.zeros(1)
        edges = np.linspace(joined.min(), joined.max() + 1e-9, 30)
        for row, found in zip(scores, values, strict=True):
            if found:
                # matplotlib leaves out labels that begin with "_", hence the space.
                axis.hist(found, edges, histtype="step", density=True, label=f" {row.system}")
        axis.set_title(name, fontsize=9)
        axis.set_yticks([])
        if any(values):
            axis.legend(fontsize=7)
    return _png(figure)


def _plot_tags(scores: Scores) -> bytes:
    """Plots one panel for each value: a bar for each of the most common tags."""
    names = [name for name, tags in scores.by_tag.items() if tags]
    most = max(min(len(scores.by_tag[name]), MAX_TAGS) for name in names)
    size = (5 * len(names), 1 + 0.22 * most)
    figure, axes = _pyplot().subplots(1, len(names), figsize=size, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        tags = list(scores.by_tag[name].items())[:MAX_TAGS]
        axis.barh(range(len(tags)), [mean for _, (mean, _) in tags], color="C0")
        axis.set_yticks(range(len(tags)), [f"{tag[:30]} ({count})" for tag, (_, count) in tags], fontsize=7)
        axis.invert_yaxis()
        axis.set_title(name, fontsize=9)
    return _png(figure)


def _image(png: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _sample(sample: Sample) -> str:
    caption = f"<p><b>{html.escape(sample.id)}</b>: {html.escape(sample.caption)}</p>"
    own = f"<div>generated{_player(sample.audio)}</div>"
    if sample.reference is None:
        return f"{caption}{own}<div class=note>no reference clip</div>"
    return f"{caption}{own}<div>reference{_player(sample.reference)}</div>"


def _player(audio: np.ndarray) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "clip.ogg"
        sound.write(path, audio)
        data = base64.b64encode(path.read_bytes()).decode()
    return f'{_image(_spectrogram(audio))}<audio controls preload=none src="data:audio/ogg;base64,{data}"></audio>'


def _spectrogram(audio: np.ndarray) -> bytes:
    config = spectrogram.LogMelConfig(window=1024, hop=480)
    levels = 20 / np.log(10) * np.asarray(spectrogram.log_mel(jnp.asarray(audio[None]), config))[0].T[::-1]
    buffer = io.BytesIO()
    _pyplot().imsave(buffer, levels, cmap="magma", vmin=levels.max() - 80, vmax=levels.max(), format="png")
    return buffer.getvalue()
