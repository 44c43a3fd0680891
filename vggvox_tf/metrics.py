"""How well scores tell target trials from non-target trials: confusion counts, ROC, AUC, EER, minDCF and C_llr.

Everywhere, for M trials:

    scores  (M,) float  higher = more likely the same speaker (negate a distance); finite
    labels  (M,) bool   True (or 1) for a target trial: both recordings are of the same speaker

A trial is *accepted* where score >= threshold. Everything is exact, also with tied scores: a threshold cannot
separate equal scores, so they enter together and the ROC has one point per *distinct* score. All of it costs
one sort, O(M log M). Every function raises MetricsError for different lengths, no trials, NaN or infinite
scores, labels other than 0 and 1, and trials of one kind only (an error rate over no trials is not a number).

Neither TensorFlow nor matplotlib is imported with this file.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import rel_entr


class MetricsError(ValueError):
    """Trials that no error rates can be counted on."""


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
    def miss_rate(self) -> float:
        """Share of the targets that were rejected, P_miss."""
        return _ratio(self.false_negatives, self.true_positives + self.false_negatives)

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


def checked(scores: Any, labels: Any, infinite: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Trials as (M,) float64 and (M,) bool; ValueError as the head of this file says.

    `infinite` lets ±inf pass; NaN never does."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 1 or labels.ndim != 1:
        raise MetricsError(
            f"Expected one-dimensional scores and labels. Received shapes {scores.shape} and {labels.shape}; "
            "flatten them with .ravel()."
        )
    if len(scores) != len(labels):
        raise MetricsError(f"Expected one label per score. Received {len(scores)} scores and {len(labels)} labels.")
    if not len(scores):
        raise MetricsError("Expected at least one target and one non-target trial. Received no trials at all.")
    if scores.dtype.kind not in "fiu":
        raise MetricsError(f"Expected scores to be real numbers. Received {scores.dtype}.")
    scores = scores.astype(np.float64)
    bad = np.flatnonzero(np.isnan(scores) if infinite else ~np.isfinite(scores))
    if len(bad):
        wanted, found = ("scores that are numbers", "NaN") if infinite else ("finite scores", "NaN or infinite")
        raise MetricsError(
            f"Expected {wanted}. Received {len(bad)} that are {found}, the first "
            f"({scores[bad[0]]}) at trial {bad[0]}; look for an embedding with NaN or of length zero "
            "(a silent recording?)."
        )
    other = labels[(labels != 0) & (labels != 1)]
    if len(other):  # also for strings, which equal neither
        raise MetricsError(
            f"Expected labels 1 (same speaker) and 0 (different speakers). Received {other[0]} among them."
        )
    labels = labels.astype(bool)
    if labels.all() or not labels.any():
        missing = "non-target (label 0)" if labels.all() else "target (label 1)"
        raise MetricsError(
            f"Expected both kinds of trials. Received {len(labels)} trials and no {missing} trial among "
            "them: error rates need both, so use the whole trial list or add trials of the missing kind."
        )
    return scores, labels


def _curve(scores: np.ndarray, labels: np.ndarray, order: np.ndarray | None = None) -> _Curve:
    """Counts at every distinct score, for checked trials. `order` (M,) sorts them by falling score."""
    order = np.argsort(scores)[::-1] if order is None else order
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
        raise MetricsError("Expected a threshold that is a number. Received NaN.")
    return _confusion(*checked(scores, labels), float(threshold))


def roc(scores, labels) -> Roc:
    """Receiver operating characteristic: one point per distinct score, plus (0, 0) at threshold +inf.

    No point is left out, also none on a straight line (scikit-learn's drop_intermediate=False)."""
    curve = _curve(*checked(scores, labels))
    return Roc(curve.fpr, curve.tpr, curve.thresholds)


def _auc(curve: _Curve) -> float:
    fpr, tpr = curve.fpr, curve.tpr
    return float(np.dot(np.diff(fpr), tpr[1:] + tpr[:-1]) / 2)


def auc(scores, labels) -> float:
    """Area under the ROC by trapezoids: the probability that a random target scores above a random
    non-target, ties counting one half (sklearn.metrics.roc_auc_score)."""
    return _auc(_curve(*checked(scores, labels)))


def _eer(curve: _Curve) -> tuple[float, float]:
    def gap(point: int) -> int:
        # P_miss − P_fa times targets × nontargets: in whole numbers, so that an exact crossing is recognised.
        # It never rises and goes from +1 to −1 times that product.
        hits, false_alarms = int(curve.true_positives[point]), int(curve.false_positives[point])
        return (curve.targets - hits) * curve.nontargets - false_alarms * curve.targets

    after = bisect_left(range(len(curve.thresholds)), True, key=lambda point: gap(point) <= 0)
    if gap(after) == 0:
        return float(curve.false_positives[after] / curve.nontargets), _threshold(curve, after)
    before = after - 1
    share = gap(before) / (gap(before) - gap(after))  # how far along the segment the crossing lies, 0 … 1
    false_alarms = (1 - share) * curve.false_positives[before] + share * curve.false_positives[after]
    rate = false_alarms / curve.nontargets
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
    return _eer(_curve(*checked(scores, labels)))


def _checked_speakers(labels: np.ndarray, enrol: Any, test: Any) -> tuple[int, np.ndarray, np.ndarray]:
    """The number of speakers S, and each trial's two as (M,) numbers from 0 to S − 1."""
    enrol, test = np.asarray(enrol), np.asarray(test)
    for name, side in (("enrol_speakers", enrol), ("test_speakers", test)):
        if side.shape != labels.shape or side.dtype.kind not in "iu":
            raise MetricsError(
                f"Expected {name} to be one integer per trial, {labels.shape}. Received {side.dtype} {side.shape}."
            )
    wrong = np.flatnonzero((enrol == test) != labels)
    if len(wrong):
        first = wrong[0]
        kind = "target" if labels[first] else "non-target"
        raise MetricsError(
            "Expected target trials of one speaker and non-target trials of two. Received at trial "
            f"{first} a {kind} trial of speakers {enrol[first]} and {test[first]} ({len(wrong)} such trials)."
        )
    names, numbers = np.unique(np.concatenate([enrol, test]), return_inverse=True)
    if len(names) < 3:  # one is impossible: a non-target trial has two
        raise MetricsError(
            "Expected at least 3 speakers: a draw of 2 that still has non-target trials is the list itself, so "
            "the interval would have no width. Received 2."
        )
    return len(names), *np.split(numbers, 2)


def eer_interval(
    scores, labels, enrol_speakers, test_speakers, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Interval (low, high) of the EER over other speakers like these: percentile bootstrap over speakers.

    Trials of one speaker succeed and fail together, so drawing trials gives too narrow an interval (Bolle,
    Ratha and Pankanti, "The subsets bootstrap", Computer Vision and Image Understanding 93, 2004). Each
    resample draws S speakers with replacement from the S in the list. Where speaker s was drawn w_s times, a
    target trial of s counts w_s times, and a non-target trial of s and t w_s·w_t times, as in the bootstrap
    over the vertices of a network (Snijders and Borgatti, Connections 22, 1999). Ferrer's joint bootstrap
    (github.com/luferrer/DCA-PLDA) counts targets w_s² times; here two draws of one speaker stand for two
    people, between whom the list has no trial. The EER of each resample is that of `eer`; the interval goes
    from its (1 − confidence) / 2 to its (1 + confidence) / 2 quantile over the resamples.

    A resample without target or without non-target trials is drawn again. (Three given speakers are all in a
    draw with probability 2/9 or more, so that this ends.) With few speakers the interval is too narrow: of
    200 simulated lists with a true EER of 12 %, the 95 % interval held it in 96 % with 40 or 100 speakers and
    in 88 % with 10; with trials drawn instead, in 55 to 60 %.

    Args:
      scores, labels: as everywhere in this file.
      enrol_speakers, test_speakers: (M,) int, who speaks on either side; any numbers, equal for the same speaker.
      confidence: 0 … 1, exclusive.
      resamples: number of draws; time is proportional to it, memory is not.
      seed: the same seed gives the same interval.

    Raises:
      ValueError: bad trials, a label that contradicts its trial's speakers, or fewer than 3 speakers.
    """
    scores, labels = checked(scores, labels)
    speakers, enrol, test = _checked_speakers(labels, enrol_speakers, test_speakers)
    if not 0 < confidence < 1:
        raise MetricsError(f"Expected 0 < confidence < 1. Received {confidence}.")
    if resamples < 1:
        raise MetricsError(f"Expected at least one resample. Received resamples={resamples}.")
    order = np.argsort(scores)[::-1]
    curve = _curve(scores, labels, order)
    targets, nontargets = order[labels[order]], order[~labels[order]]
    target_speakers, enrol, test = enrol[targets], enrol[nontargets], test[nontargets]
    # Weight of the first 0, 1, 2, … targets and non-targets, of which the curve's points accept the first few.
    hits, false_alarms = np.zeros(len(targets) + 1, np.int64), np.zeros(len(nontargets) + 1, np.int64)

    rng = np.random.default_rng(seed)
    rates: list[float] = []
    while len(rates) < resamples:
        drawn = np.bincount(rng.integers(speakers, size=speakers), minlength=speakers)  # (S,)
        np.cumsum(drawn[target_speakers], out=hits[1:])
        np.cumsum(drawn[enrol] * drawn[test], out=false_alarms[1:])
        if hits[-1] and false_alarms[-1]:
            # A score that nobody drawn has repeats the point before it, which moves no crossing.
            resample = _Curve(hits[curve.true_positives], false_alarms[curve.false_positives], curve.thresholds)
            rates.append(_eer(resample)[0])
    low, high = np.quantile(rates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def det_cost(p_miss, p_fa, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0):
    """Raw detection cost, elementwise: C_det = C_miss·P_miss·P_tar + C_fa·P_fa·(1 − P_tar).

    The VoxCeleb papers (arXiv 1706.08612 and 1806.05622) use C_miss = C_fa = 1 and P_tar = 0.01."""
    if not 0 < p_target < 1:
        raise MetricsError(f"Expected 0 < p_target < 1, the prior of a target trial. Received {p_target}.")
    if not (0 < c_miss < np.inf and 0 < c_fa < np.inf):
        raise MetricsError(f"Expected positive, finite costs. Received c_miss={c_miss} and c_fa={c_fa}.")
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
    return _min_dcf(_curve(*checked(scores, labels)), p_target, c_miss, c_fa, normalised)


def cllr(llrs, labels) -> float:
    """Cost of log-likelihood ratios (natural logarithm) in bits, over all priors and costs (Brümmer and du
    Preez, "Application-independent evaluation of speaker detection", Computer Speech & Language 20, 2006):

        C_llr = ½ · [mean over targets of log2(1 + e^−llr) + mean over non-targets of log2(1 + e^llr)]

    0 is perfect, 1 is no better than llr = 0 for every trial, and more than 1 is worse than that. Here ±inf is
    allowed, which is certainty: it costs nothing where it is right, and one such error makes C_llr inf."""
    llrs, labels = checked(llrs, labels, infinite=True)
    cost = np.logaddexp(0, np.where(labels, -llrs, llrs))
    return float((cost[labels].mean() + cost[~labels].mean()) / (2 * np.log(2)))


def _min_cllr(curve: _Curve) -> float:
    targets, nontargets = np.diff(curve.true_positives), np.diff(curve.false_positives)  # (K,) at each score
    trials = targets + nontargets
    blocks = isotonic_regression(targets / trials, weights=trials, increasing=False).blocks[:-1]
    # Shares of all targets and of all non-targets in each block. A block's posterior over its prior odds, its
    # likelihood ratio, is p / q, and 1 + 1 / (p / q) = (p + q) / p.
    p = np.add.reduceat(targets, blocks) / curve.targets
    q = np.add.reduceat(nontargets, blocks) / curve.nontargets
    return float(abs(np.sum(rel_entr(p, p + q) + rel_entr(q, p + q))) / (2 * np.log(2)))  # all terms are <= 0


def min_cllr(scores, labels) -> float:
    """C_llr after the best rising map from scores to log-likelihood ratios: what is left of `cllr` when
    calibration is perfect (Brümmer and du Preez 2006).

    That map is isotonic regression of the labels (pool adjacent violators; equal scores are pooled first),
    whose posteriors become likelihood ratios by removing the list's own prior odds. Perfect separation gives
    0, all scores equal or in reverse order 1."""
    return _min_cllr(_curve(*checked(scores, labels)))


def _operating_point(scores: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, int | float]:
    counts = _confusion(scores, labels, threshold)
    return {
        "threshold": threshold,
        "accuracy": counts.accuracy,
        "precision": counts.precision,
        "recall": counts.recall,
        "miss_rate": counts.miss_rate,
        "false_alarm_rate": counts.fpr,
        **asdict(counts),
    }


def summary(
    scores, labels, p_targets: Sequence[float] = (0.01, 0.05), threshold: float | None = None
) -> dict[str, Any]:
    """All of the above, except `cllr` and `eer_interval`, as plain, finite ints and floats, ready for json.dump:

        trials, targets, nontargets, eer, eer_threshold, auc, min_cllr
        detection_costs   per p_target (C_miss = C_fa = 1): p_target, min_dcf (normalised), min_c_det (C_det as
                          the VoxCeleb papers print it), threshold
        operating_points  "eer", "min_dcf" (of the first p_target), and "chosen" where a `threshold` is given:
                          threshold, accuracy, precision, recall, miss_rate, false_alarm_rate, true_positives,
                          false_positives, true_negatives, false_negatives

    Operating points are counted: with few distinct scores, miss_rate and false_alarm_rate at "eer" are those
    of the nearest point that exists, not the interpolated EER."""
    if not len(p_targets):
        raise MetricsError("Expected at least one p_target. Received none.")
    if threshold is not None and not np.isfinite(threshold):
        raise MetricsError(f"Expected a finite threshold. Received {threshold}.")
    scores, labels = checked(scores, labels)
    curve = _curve(scores, labels)
    rate, eer_threshold = _eer(curve)
    costs = []
    for p_target in p_targets:
        cost, cost_threshold = _min_dcf(curve, p_target, 1.0, 1.0, True)
        raw_cost, _ = _min_dcf(curve, p_target, 1.0, 1.0, False)
        costs.append({"p_target": float(p_target), "min_dcf": cost, "min_c_det": raw_cost, "threshold": cost_threshold})
    thresholds = {"eer": eer_threshold, "min_dcf": costs[0]["threshold"]}
    if threshold is not None:
        thresholds["chosen"] = float(threshold)
    return {
        "trials": len(scores),
        "targets": curve.targets,
        "nontargets": curve.nontargets,
        "eer": rate,
        "eer_threshold": eer_threshold,
        "auc": _auc(curve),
        "min_cllr": _min_cllr(curve),
        "detection_costs": costs,
        "operating_points": {name: _operating_point(scores, labels, at) for name, at in thresholds.items()},
    }


def _aligned(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Rows of as many cells as `align` has signs, < or > (left or right), as lines of equal columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)).rstrip()
        for row in rows
    ]


def format_summary(summary: Mapping[str, Any]) -> str:
    """The dict of `summary` as aligned tables of plain text, without a line break at its end.

    Where the dict has an "eer_interval" [low, high], the 95 % interval of `eer_interval`, it is shown."""
    at_eer = f"at threshold {summary['eer_threshold']:.4f}"
    if summary.get("eer_interval"):
        low, high = summary["eer_interval"]
        at_eer += f", 95 % interval {100 * low:.1f}–{100 * high:.1f} %"
    figures = [
        ("trials", f"{summary['trials']:,}", f"{summary['targets']:,} target, {summary['nontargets']:,} non-target"),
        ("EER", f"{100 * summary['eer']:.2f} %", at_eer),
        ("AUC", f"{summary['auc']:.4f}", ""),
    ]
    for cost in summary["detection_costs"]:
        note = f"at threshold {cost['threshold']:.4f}, C_det {cost['min_c_det']:.4f}"
        figures.append((f"minDCF (p_target {cost['p_target']:g})", f"{cost['min_dcf']:.4f}", note))
    figures.append(("min C_llr", f"{summary['min_cllr']:.4f}", ""))

    names = {
        "eer": "EER",
        "min_dcf": f"minDCF (p_target {summary['detection_costs'][0]['p_target']:g})",
        "chosen": "chosen",
    }
    points = [("at the threshold of", "threshold", "accuracy", "precision", "recall", "false alarms")]
    for name, point in summary["operating_points"].items():
        shares = (point[key] for key in ("accuracy", "precision", "recall", "false_alarm_rate"))
        points.append((names[name], f"{point['threshold']:.4f}", *(f"{100 * share:.2f} %" for share in shares)))
    return "\n".join([*_aligned(figures, "<><"), "", *_aligned(points, "<>>>>>")])
