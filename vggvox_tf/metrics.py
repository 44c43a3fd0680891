"""How well scores tell target trials from non-target trials: confusion counts, ROC, AUC, EER and minDCF.

Everywhere, for M trials:

    scores  (M,) float  higher = more likely the same speaker (negate a distance); finite
    labels  (M,) bool   True (or 1) for a target trial: both recordings are of the same speaker

A trial is *accepted* where score >= threshold. Everything is exact, also with tied scores: a threshold cannot
separate equal scores, so they enter together and the ROC has one point per *distinct* score. All of it costs
one sort, O(M log M). Every function raises ValueError for different lengths, no trials, NaN or infinite
scores, labels other than 0 and 1, and trials of one kind only (an error rate over no trials is not a number).

Neither TensorFlow nor matplotlib is imported with this file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# A picture 1,000 pixels wide shows no more; Agg cannot fill a path of millions of points.
_POINTS_IN_PICTURE = 4000


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class Confusion:
    """Counts of trials at one threshold. A ratio of nothing to nothing is 0.0, as in scikit-learn: the
    precision of a threshold that accepts no trial is 0.0, not undefined and not perfect."""

    true_positives: int  # targets accepted
    false_positives: int  # non-targets accepted
    true_negatives: int  # non-targets rejected
    false_negatives: int  # targets rejected

    @property
    def accuracy(self) -> float:
        """Share of all trials that were decided correctly."""
        right = self.true_positives + self.true_negatives
        return _ratio(right, right + self.false_positives + self.false_negatives)

    @property
    def precision(self) -> float:
        """Share of the accepted trials that are targets; 0.0 where none was accepted."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of the targets that were accepted: 1 − P_miss."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def tpr(self) -> float:
        """True positive rate, the recall by its ROC name."""
        return self.recall

    @property
    def fpr(self) -> float:
        """False positive rate: share of the non-targets that were accepted, P_fa."""
        return _ratio(self.false_positives, self.false_positives + self.true_negatives)


class Roc(NamedTuple):
    """K + 1 points for K distinct scores, from (0, 0) to (1, 1), thresholds falling from +inf to the lowest
    score."""

    fpr: np.ndarray  # (K + 1,) float64
    tpr: np.ndarray  # (K + 1,) float64
    thresholds: np.ndarray  # (K + 1,) float64


class _Curve(NamedTuple):
    """The ROC in whole trials: what a threshold at each distinct score accepts. Integers keep ties exact."""

    true_positives: np.ndarray  # (K + 1,) int64, rising from 0 to targets
    false_positives: np.ndarray  # (K + 1,) int64, rising from 0 to nontargets
    thresholds: np.ndarray  # (K + 1,) float64, falling from +inf

    @property
    def targets(self) -> int:
        return int(self.true_positives[-1])

    @property
    def nontargets(self) -> int:
        return int(self.false_positives[-1])

    @property
    def tpr(self) -> np.ndarray:
        return self.true_positives / self.targets

    @property
    def p_miss(self) -> np.ndarray:
        return (self.targets - self.true_positives) / self.targets

    @property
    def fpr(self) -> np.ndarray:
        return self.false_positives / self.nontargets


def _checked(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Trials as (M,) float64 and (M,) bool; ValueError as the head of this file says."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 1 or labels.ndim != 1:
        raise ValueError(
            f"Expected one-dimensional scores and labels. Received shapes {scores.shape} and {labels.shape}; "
            "flatten them with .ravel()."
        )
    if len(scores) != len(labels):
        raise ValueError(f"Expected one label per score. Received {len(scores)} scores and {len(labels)} labels.")
    if not len(scores):
        raise ValueError("Expected at least one target and one non-target trial. Received no trials at all.")
    if scores.dtype.kind not in "fiu":
        raise ValueError(f"Expected scores to be real numbers. Received {scores.dtype}.")
    scores = scores.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ValueError(
            f"Expected finite scores. Received {len(bad)} that are NaN or infinite, the first "
            f"({scores[bad[0]]}) at trial {bad[0]}; look for an embedding with NaN or of length zero "
            "(a silent recording?)."
        )
    other = labels[(labels != 0) & (labels != 1)]
    if len(other):  # also for strings, which equal neither
        raise ValueError(
            f"Expected labels 1 (same speaker) and 0 (different speakers). Received {other[0]} among them."
        )
    labels = labels.astype(bool)
    if labels.all() or not labels.any():
        missing = "non-target (label 0)" if labels.all() else "target (label 1)"
        raise ValueError(
            f"Expected both kinds of trials. Received {len(labels)} trials and no {missing} trial among "
            "them: error rates need both, so use the whole trial list or add trials of the missing kind."
        )
    return scores, labels


def _curve(scores: np.ndarray, labels: np.ndarray) -> _Curve:
    """Counts at every distinct score, for checked trials."""
    order = np.argsort(scores)[::-1]
    scores = scores[order]
    # The last trial of every run of equal scores: there, and only there, a threshold can stand.
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # (K,)
    accepted = np.cumsum(labels[order])[last]
    return _Curve(
        true_positives=np.append(0, accepted),
        false_positives=np.append(0, last + 1 - accepted),
        thresholds=np.append(np.inf, scores[last]),
    )


def _threshold(curve: _Curve, point: int) -> float:
    """A finite threshold that accepts exactly what `point` of the curve accepts: the middle of the gap to the
    next lower score, where scores of other recordings have most room; just above all scores for point 0."""
    high = curve.thresholds[point]
    if point == 0:
        return float(np.nextafter(curve.thresholds[1], np.inf))
    if point == len(curve.thresholds) - 1:
        return float(high)
    low = curve.thresholds[point + 1]
    # Halving first cannot overflow; between neighbouring floats the middle may round to `low`, which would
    # accept it.
    return float(np.clip(low / 2 + high / 2, np.nextafter(low, np.inf), high))


def _confusion(scores: np.ndarray, labels: np.ndarray, threshold: float) -> Confusion:
    accepted = scores >= threshold
    hits = int(np.count_nonzero(accepted & labels))
    false_alarms = int(np.count_nonzero(accepted)) - hits
    targets = int(np.count_nonzero(labels))
    return Confusion(hits, false_alarms, len(labels) - targets - false_alarms, targets - hits)


def confusion(scores, labels, threshold: float) -> Confusion:
    """Counts where trials with score >= threshold (a float, ±inf allowed, not NaN) are accepted."""
    if np.isnan(threshold):
        raise ValueError("Expected a threshold that is a number. Received NaN.")
    return _confusion(*_checked(scores, labels), float(threshold))


def roc(scores, labels) -> Roc:
    """Receiver operating characteristic: one point per distinct score, plus (0, 0) at threshold +inf.

    No point is left out, also none on a straight line (scikit-learn's drop_intermediate=False)."""
    curve = _curve(*_checked(scores, labels))
    return Roc(curve.fpr, curve.tpr, curve.thresholds)


def _auc(curve: _Curve) -> float:
    fpr, tpr = curve.fpr, curve.tpr
    return float(np.dot(np.diff(fpr), tpr[1:] + tpr[:-1]) / 2)


def auc(scores, labels) -> float:
    """Area under the ROC by trapezoids: the probability that a random target scores above a random
    non-target, ties counting one half (sklearn.metrics.roc_auc_score)."""
    return _auc(_curve(*_checked(scores, labels)))


def _eer(curve: _Curve) -> tuple[float, float]:
    # P_miss − P_fa times targets × nontargets: in whole numbers, so that an exact crossing is recognised.
    # Every point accepts a trial more than the one before, so this falls strictly, from +1 to −1 times that
    # product.
    misses = curve.targets - curve.true_positives
    gap = misses * curve.nontargets - curve.false_positives * curve.targets
    after = int(np.argmax(gap <= 0))
    if gap[after] == 0:
        return float(curve.fpr[after]), _threshold(curve, after)
    before = after - 1
    share = gap[before] / (gap[before] - gap[after])  # how far along the segment the crossing lies, 0 … 1
    rate = (1 - share) * curve.fpr[before] + share * curve.fpr[after]
    high, low = curve.thresholds[before], curve.thresholds[after]
    threshold = low if np.isinf(high) else (1 - share) * high + share * low
    return float(rate), float(threshold)


def eer(scores, labels) -> tuple[float, float]:
    """Equal error rate, 0 … 1, and its threshold: where P_miss = P_fa.

    P_miss and P_fa move in steps. Where they are equal at a point of the ROC, that is the EER and the
    threshold lies in the middle of the gap below that score: perfect separation gives 0 and the middle
    between the classes, perfectly reversed scores give 1. Otherwise the crossing lies between two
    neighbouring scores, and both the rate and the threshold are interpolated linearly along that segment of
    the ROC. If it lies above the highest score (all scores equal: EER 0.5), where there is nothing to
    interpolate with, the threshold is the highest score."""
    return _eer(_curve(*_checked(scores, labels)))


def det_cost(p_miss, p_fa, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0):
    """Raw detection cost, elementwise: C_det = C_miss·P_miss·P_tar + C_fa·P_fa·(1 − P_tar).

    The VoxCeleb papers (arXiv 1706.08612 and 1806.05622) use C_miss = C_fa = 1 and P_tar = 0.01."""
    if not 0 < p_target < 1:
        raise ValueError(f"Expected 0 < p_target < 1, the prior of a target trial. Received {p_target}.")
    if not (0 < c_miss < np.inf and 0 < c_fa < np.inf):
        raise ValueError(f"Expected positive, finite costs. Received c_miss={c_miss} and c_fa={c_fa}.")
    return c_miss * p_target * p_miss + c_fa * (1 - p_target) * p_fa


def _min_dcf(curve: _Curve, p_target, c_miss, c_fa, normalised) -> tuple[float, float]:
    costs = det_cost(curve.p_miss, curve.fpr, p_target, c_miss, c_fa)
    best = int(np.argmin(costs))
    # Rejecting every trial costs C_miss·P_tar, accepting every one C_fa·(1 − P_tar).
    trivial = min(c_miss * p_target, c_fa * (1 - p_target)) if normalised else 1.0
    return float(costs[best] / trivial), _threshold(curve, best)


def min_dcf(
    scores, labels, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0, normalised: bool = True
) -> tuple[float, float]:
    """Least detection cost over all thresholds, and the (finite) threshold that has it.

    As NIST evaluations do, and as VoxCeleb results are printed, C_det (`det_cost`) is divided by the cost of
    the better of the two systems that do not listen, min(C_miss·P_tar, C_fa·(1 − P_tar)): 0 is perfect and 1
    no better than rejecting (or accepting) everything. `normalised=False` gives C_det itself. Toolkits differ
    in P_tar (0.01 or 0.05): print it beside the number. Where thresholds tie, the strictest is given."""
    return _min_dcf(_curve(*_checked(scores, labels)), p_target, c_miss, c_fa, normalised)


def summary(scores, labels, p_target: float = 0.01) -> dict[str, int | float]:
    """All of the above as plain, finite ints and floats, ready for json.dump.

    accuracy, precision, recall, tpr and fpr are counted at `eer_threshold`; with few distinct scores tpr and
    fpr there are those of the nearest point that exists, not the interpolated EER."""
    scores, labels = _checked(scores, labels)
    curve = _curve(scores, labels)
    rate, threshold = _eer(curve)
    cost, cost_threshold = _min_dcf(curve, p_target, 1.0, 1.0, True)
    counts = _confusion(scores, labels, threshold)
    return {
        "trials": len(scores),
        "targets": curve.targets,
        "nontargets": curve.nontargets,
        "eer": rate,
        "eer_threshold": threshold,
        "auc": _auc(curve),
        "min_dcf": cost,
        "min_dcf_threshold": cost_threshold,
        "p_target": float(p_target),
        "accuracy": counts.accuracy,
        "precision": counts.precision,
        "recall": counts.recall,
        "tpr": counts.tpr,
        "fpr": counts.fpr,
    }


def format_summary(summary: Mapping[str, int | float]) -> str:
    """The dict of `summary` as an aligned table of plain text, without a line break at its end."""
    kinds = f"{summary['targets']:,} target, {summary['nontargets']:,} non-target"
    rows = [
        ("trials", f"{summary['trials']:,}", kinds),
        ("EER", f"{summary['eer']:.2%}", f"at threshold {summary['eer_threshold']:.4f}"),
        (
            f"minDCF (p_target {summary['p_target']:g})",
            f"{summary['min_dcf']:.4f}",
            f"at threshold {summary['min_dcf_threshold']:.4f}",
        ),
        ("AUC", f"{summary['auc']:.4f}", ""),
        ("accuracy", f"{summary['accuracy']:.2%}", "at the EER threshold"),
        ("precision", f"{summary['precision']:.2%}", "at the EER threshold"),
        ("recall (TPR)", f"{summary['recall']:.2%}", "at the EER threshold"),
        ("FPR", f"{summary['fpr']:.2%}", "at the EER threshold"),
    ]
    rows = [(name, value.replace("%", " %"), note) for name, value, note in rows]
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{name:<{names}}  {value:>{values}}  {note}".rstrip() for name, value, note in rows)


def plot_roc(scores, labels, path: str | os.PathLike, title: str) -> None:
    """Writes the ROC with its EER point and the diagonal of chance as a PNG of 960 × 960 pixels to `path`.

    The file appears whole or not at all. matplotlib's object API keeps pyplot's global state (and with it a
    display) out: this also runs in a training callback or in a thread."""
    # Scoring without a picture should neither need matplotlib nor wait a second for its import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curve = _curve(*_checked(scores, labels))
    rate, threshold = _eer(curve)
    fpr, tpr = curve.fpr, curve.tpr
    if len(fpr) > _POINTS_IN_PICTURE:
        # fpr + tpr rises strictly from 0 to 2: even steps in it leave no stretch of the curve without points.
        keep = np.searchsorted(fpr + tpr, np.linspace(0, 2, _POINTS_IN_PICTURE)).clip(max=len(fpr) - 1)
        fpr, tpr = fpr[keep], tpr[keep]

    figure = Figure(figsize=(6.4, 6.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 100], [0, 100], "--", color="0.6", label="chance")
    axes.plot([0, 100], [100, 0], ":", color="0.75", label="misses = false acceptances")
    axes.plot(100 * fpr, 100 * tpr, color="tab:blue", linewidth=2, label=f"ROC, AUC {_auc(curve):.4f}")
    point = f"EER {100 * rate:.2f} %, threshold {threshold:.3f}"
    axes.plot(100 * rate, 100 * (1 - rate), "o", color="tab:red", markersize=8, zorder=3, label=point)
    axes.set(
        title=title,
        xlabel=f"non-targets accepted (of {curve.nontargets:,}), %",
        ylabel=f"targets accepted (of {curve.targets:,}), %",
        xlim=(-1, 101),
        ylim=(-1, 101),
        aspect="equal",
    )
    axes.grid(color="0.9")
    axes.legend(loc="lower right")

    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
