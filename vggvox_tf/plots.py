"""Pictures of tests: ROC, DET, score histograms and EERs, as PNG files that appear whole or not at all.

Instead of a path, every function takes an open binary file, such as a BytesIO.

Trials are scores (M,) and labels (M,) as in `metrics`, which also says what is wrong with them. matplotlib is imported
by the functions that draw: a test without pictures should neither need it nor wait a second for it. Its object API
keeps pyplot's global state (and with it a display) out: this also runs in a training callback or in a thread.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from scipy.special import ndtri

from vggvox_tf import metrics

# A picture 1,000 pixels wide shows no more; Agg cannot fill a path of millions of points.
POINTS = 2000
# Okabe and Ito's colours, which colour-blind people tell apart, without the yellow that is hard to see on white. Seven
# colours and four line styles repeat together after 28 curves only.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")
DET_TICKS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)

Curve = tuple[str, np.ndarray, np.ndarray]  # name, scores (M,), labels (M,)
Target = str | os.PathLike | BinaryIO


def deviate(rates, trials: int):
    """Error rates in [0, 1] over `trials` trials as normal deviates, elementwise; 0.5 becomes 0.

    No error and nothing but errors would be infinite: they are drawn half a trial away from it."""
    return ndtri(np.clip(rates, 0.5 / trials, 1 - 0.5 / trials))


def roc(curves: Sequence[Curve], path: Target, title: str) -> None:
    """Targets accepted over non-targets accepted, with every curve's EER and the diagonal of chance."""
    figure, axes = _figure(title, height=6.2)
    legend = []
    for index, (name, scores, labels) in enumerate(_checked(curves)):
        points = metrics.roc(scores, labels)
        rate, _ = metrics.eer(scores, labels)
        x, y = _thinned(100 * points.fpr, 100 * points.tpr)
        legend += [(_draw(axes, index, x, y, (100 * rate, 100 * (1 - rate))), f"{name}: EER {100 * rate:.2f} %")]
    legend += [(axes.plot([0, 100], [0, 100], color="0.6", linewidth=1, zorder=1)[0], "chance")]
    axes.set(xlim=(-1, 101), ylim=(-1, 101), aspect="equal")
    axes.set(xlabel="non-targets accepted, %", ylabel="targets accepted, %")
    _write(figure, legend, path)


def det(curves: Sequence[Curve], path: Target, title: str) -> None:
    """Misses over false alarms on axes of normal deviates, with every curve's EER on the diagonal.

    Normally distributed scores give straight lines there, and good systems do not crowd in a corner as in a ROC.
    (Martin, Doddington, Kamm, Ordowski and Przybocki, "The DET curve in assessment of detection task performance",
    Eurospeech 1997.) Where the axes begin and end depends on the curves."""
    figure, axes = _figure(title, height=6.2)
    legend, low, high = [], [], [0.0]
    for index, (name, scores, labels) in enumerate(_checked(curves)):
        points = metrics.roc(scores, labels)
        rate, _ = metrics.eer(scores, labels)
        targets = int(np.count_nonzero(labels))
        nontargets = len(labels) - targets
        x, y = _thinned(deviate(points.fpr, nontargets), deviate(1 - points.tpr, targets))
        eer = deviate(rate, nontargets), deviate(rate, targets)
        legend += [(_draw(axes, index, x, y, eer), f"{name}: EER {100 * rate:.2f} %")]
        # Down to 0.1 %, or to half a trial where trials are few, or lower where the EER itself is.
        low.append(min(max(ndtri(0.001), min(x[0], y[-1])), min(eer) - 0.3) - 0.05)
        high.append(max(eer) + 0.6)
    ends = min(low), max(high)
    legend += [(axes.plot(ends, ends, color="0.6", linewidth=1, zorder=1)[0], "misses = false alarms")]
    ticks = [tick for tick in DET_TICKS if ends[0] <= ndtri(tick) <= ends[1]]
    axes.set_xticks(ndtri(ticks), [f"{100 * tick:g}" for tick in ticks])
    axes.set_yticks(ndtri(ticks), [f"{100 * tick:g}" for tick in ticks])
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.set(xlabel="false alarms (non-targets accepted), %", ylabel="misses (targets rejected), %")
    _write(figure, legend, path)


def histogram(
    scores: np.ndarray,
    labels: np.ndarray,
    thresholds: Mapping[str, float],
    path: Target,
    title: str,
    xlabel: str,
) -> None:
    """Densities of the targets' and the non-targets' scores, each over its own count, and named thresholds in it."""
    scores, labels = metrics.checked(scores, labels)
    figure, axes = _figure(title, height=3.6)
    legend = []
    # 2·n^⅓ bins of the rarer kind (Rice's rule), within what can be seen.
    bins = int(np.clip(2 * min(labels.sum(), (~labels).sum()) ** (1 / 3), 12, 120))
    edges = np.histogram_bin_edges(scores, bins)
    for kind, name, colour in ((labels, "targets", COLOURS[0]), (~labels, "non-targets", COLOURS[1])):
        counts, _ = np.histogram(scores[kind], edges)
        density = counts / (counts.sum() * np.diff(edges))
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.3)
        legend += [(axes.stairs(density, edges, color=colour, linewidth=1.5), f"{name} ({counts.sum():,})")]
    # Their names stand in the legend: beside the lines they would cover each other where thresholds are close.
    for index, (name, threshold) in enumerate(thresholds.items()):
        legend += [(axes.axvline(threshold, **_look(index + 2)), f"{name}: {threshold:.4f}")]
    axes.set(xlabel=xlabel, ylabel="density")
    axes.set_ylim(bottom=0)
    _write(figure, legend, path)


def eers(rows: Mapping[str, Sequence[Sequence[float]]], lists: Sequence[str], path: Target, title: str) -> None:
    """EERs of recipes, one below the other: for each list a dot at the mean over seeds, on a line from the lowest to
    the highest.

    `rows` are name -> for each of the `lists` the EERs in [0, 1] of one or more seeds; the first comes on top."""
    figure, axes = _figure(title, height=0.7 + 0.2 * len(rows))
    figure.set_figwidth(8)
    legend, places = [], np.arange(len(rows))
    for index, name in enumerate(lists):
        percent = [100 * np.array(row[index]) for row in rows.values()]
        colour = COLOURS[index % len(COLOURS)]
        axes.hlines(places, [seeds.min() for seeds in percent], [seeds.max() for seeds in percent], color=colour)
        legend += [(axes.plot([seeds.mean() for seeds in percent], places, "o", color=colour, alpha=0.8)[0], name)]
    axes.set_yticks(places, rows, fontsize=8)
    axes.set(xlabel="EER, %", xlim=(0, None), ylim=(len(rows) - 0.5, -0.5))
    _write(figure, legend, path)


def _checked(curves: Sequence[Curve]) -> Sequence[Curve]:
    if not curves:
        raise ValueError("Expected at least one curve (name, scores, labels). Received none.")
    return curves


def _look(index: int) -> dict:
    colour, style = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
    return {"color": colour, "linestyle": style, "linewidth": 1.8}


def _draw(axes, index: int, x: np.ndarray, y: np.ndarray, eer: tuple[float, float]):
    """A curve with its EER; returns the line."""
    (line,) = axes.plot(x, y, **_look(index))
    axes.plot(*eer, "o", color=line.get_color(), markersize=7, zorder=3)
    return line


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS of the points (K,) of a monotone curve, evenly along it, the first and the last among them."""
    if len(x) <= POINTS:
        return x, y
    way = np.abs(x - x[0]) + np.abs(y - y[0])
    keep = np.searchsorted(way, np.linspace(0, way[-1], POINTS)).clip(max=len(x) - 1)
    return x[keep], y[keep]


def _figure(title: str, height: float):
    """A figure 6.4 inches wide and, without title and legend, `height` high; and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    title = textwrap.fill(title, 56)
    figure = Figure(figsize=(6.4, height + 0.3 * len(title.splitlines())), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, parse_math=False)  # a name with $ in it is no formula
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def _write(figure, legend: list, path: Target) -> None:
    """Writes the figure with a `legend` [(line, name)] below it, which covers no curve however many there are."""
    names = [textwrap.fill(name, 84) for _, name in legend]
    lines = sum(len(name.splitlines()) for name in names)
    figure.set_figheight(figure.get_figheight() + 0.25 + 0.19 * lines)
    # matplotlib leaves out names that begin with an underscore: they are written into a legend of placeholders.
    shown = figure.legend(
        [line for line, _ in legend], ["name"] * len(legend), loc="outside lower center", fontsize=9, handlelength=3
    )
    for text, name in zip(shown.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)
    if not isinstance(path, str | os.PathLike):
        figure.savefig(path, format="png")
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
