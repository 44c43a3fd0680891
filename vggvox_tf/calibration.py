"""From scores to log-likelihood ratios: a straight line, fitted on a development list and kept in a JSON file.

    llr = slope · score + offset     natural logarithm of p(score | same speaker) / p(score | different speakers)

A raw score has no meaning of its own: a cosine of 0.4 may be a match for one encoder and a mismatch for the next.
A log-likelihood ratio has: it says how much the recordings change the odds, and with the odds beforehand (the prior
p_target) it gives the probability of the same speaker and the threshold to decide by. All of it holds only for
scores of the kind that the line was fitted on, which is why the file names the encoder, the distance, the protocol
and the normalisation.

TensorFlow is not imported with this file.
"""

import dataclasses
import json
import math
import os
import sys
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from vggvox_tf import metrics
from vggvox_tf.corpus import replacing

FORMAT = "vggvox_tf calibration 1"


class CalibrationError(ValueError):
    """Scores that cannot be calibrated or a file that is no calibration; the message says what was found."""


def fit(scores, labels) -> tuple[float, float]:
    """Slope and offset with the least C_llr (`metrics.cllr`): logistic regression in which targets and
    non-targets weigh one half each, however many there are (Brümmer and du Preez 2006).

    Where every target scores at least as high as every non-target, no line is best: each steeper one costs less.
    Then, and only then, the labels are smoothed as Platt does ("Probabilistic outputs for support vector
    machines", 1999): 1 / (n + 2) of each of n targets is taken for a non-target, and the other way round. So n
    targets that all have the same score claim odds of n + 1 to 1 and not more.

    Args:
      scores: (M,) finite, higher = more likely the same speaker.
      labels: (M,) bool, True (or 1) for a target trial.

    Raises:
      ValueError: what `metrics` refuses: NaN, other labels, trials of one kind only.
      CalibrationError: targets do not score higher than non-targets on average, so that the slope is not positive.
    """
    scores, labels = metrics.checked(scores, labels)
    means = scores[labels].mean(), scores[~labels].mean()
    # The cost is convex and at slope 0 falls towards positive slopes exactly if the targets' mean is higher. (Means of
    # equal scores may differ by rounding.)
    if scores.min() == scores.max() or means[0] <= means[1]:
        raise CalibrationError(
            f"Expected targets to score higher than non-targets. Received means of {means[0]:.4g} and {means[1]:.4g}. "
            "Check that label 1 means the same speaker, that a distance was negated, and that the encoder is trained."
        )
    smoothing = 0.0, 0.0
    if scores[labels].min() >= scores[~labels].max():
        smoothing = 1 / (labels.sum() + 2), 1 / ((~labels).sum() + 2)
    wanted = np.where(labels, 1 - smoothing[0], smoothing[1])  # the posterior at even odds
    weights = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())
    centre, scale = scores.mean(), scores.std()
    inputs = np.stack([(scores - centre) / scale, np.ones_like(scores)])  # (2, M)

    def cost(line):
        llrs = line @ inputs
        return weights @ (np.logaddexp(0, llrs) - wanted * llrs), inputs @ (weights * (expit(llrs) - wanted))

    def curvature(line):
        posteriors = expit(line @ inputs)
        return (inputs * (weights * posteriors * (1 - posteriors))) @ inputs.T

    result = minimize(cost, np.zeros(2), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-9})
    slope = result.x[0] / scale
    return float(slope), float(result.x[1] - slope * centre)


@dataclass(frozen=True)
class Calibration:
    """A fitted line, what scores it is for, and how it did on the list that it was fitted on."""

    slope: float  # positive
    offset: float
    fingerprint: str  # of the encoder whose scores these are, SHA-256 in hexadecimal
    distance: str  # which score: "cosine" or "euclidean"
    protocol: str  # at test time: "whole", "mean" or "pairs"
    normalisation: str  # "none", "z-norm", "t-norm", "s-norm" or "as-norm"
    trial_list: str  # the development list
    targets: int
    nontargets: int
    speakers: int
    eer: float  # on that list, 0 … 1
    cllr: float  # on that list, after calibration
    min_cllr: float

    def llr(self, scores):
        """Log-likelihood ratios (natural logarithm) of scores of any shape."""
        return self.slope * np.asarray(scores, np.float64) + self.offset

    def probability(self, scores, p_target: float = 0.5):
        """Probability of the same speaker, where it was `p_target` before listening; scores of any shape."""
        return expit(self.llr(scores) + _prior_log_odds(p_target))

    def threshold(self, p_target: float = 0.5) -> float:
        """The score at which `probability` is one half: accepting from there on makes the least expected cost
        where a miss and a false alarm cost the same."""
        return (-_prior_log_odds(p_target) - self.offset) / self.slope

    def save(self, path: str | os.PathLike) -> None:
        """Writes JSON for `load`. The file appears whole or not at all."""
        with replacing(path) as file:
            json.dump({"format": FORMAT, **dataclasses.asdict(self)}, file, indent=2, allow_nan=False)
            file.write("\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Calibration":
        """Reads what `save` wrote; CalibrationError for any other file."""
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
        except OSError as error:
            raise CalibrationError(f"Expected a calibration file at {path}: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested a thousand deep
            raise CalibrationError(f"Expected {path} to be a calibration in JSON: {error}.") from error
        found = content.pop("format", None) if isinstance(content, dict) else None
        if found != FORMAT:
            raise CalibrationError(f'Expected {path} to have "format": "{FORMAT}". Found {found!r}.')
        types = {field.name: field.type for field in dataclasses.fields(cls)}
        if content.keys() != types.keys():
            missing, unknown = sorted(types.keys() - content), sorted(content.keys() - types)
            raise CalibrationError(f"Expected {path} to have other fields. Missing: {missing}; unknown: {unknown}.")
        for name, kind in types.items():
            value = content[name]
            if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
                value = content[name] = float(value)
            if type(value) is not kind or (kind is float and not math.isfinite(value)):
                wanted = {float: "a finite number", int: "a whole number", str: "text"}[kind]
                raise CalibrationError(f"Expected {name} in {path} to be {wanted}. Found {value!r}.")
        if content["slope"] <= 0:
            raise CalibrationError(f"Expected slope in {path} to be positive. Found {content['slope']}.")
        return cls(**content)


def _prior_log_odds(p_target: float) -> float:
    if not 0 < p_target < 1:
        raise ValueError(f"Expected 0 < p_target < 1, the prior of a target trial. Received {p_target}.")
    return float(logit(p_target))


def calibrate(
    scores,
    labels,
    *,
    fingerprint: str,
    distance: str,
    protocol: str,
    normalisation: str,
    trial_list: str,
    speakers: int,
) -> Calibration:
    """Fits a line (`fit`, with its errors) and measures it on the same list; the other arguments are kept as given."""
    slope, offset = fit(scores, labels)
    scores, labels = metrics.checked(scores, labels)
    return Calibration(
        slope=slope,
        offset=offset,
        fingerprint=fingerprint,
        distance=distance,
        protocol=protocol,
        normalisation=normalisation,
        trial_list=trial_list,
        targets=int(labels.sum()),
        nontargets=int((~labels).sum()),
        speakers=int(speakers),
        eer=metrics.eer(scores, labels)[0],
        cllr=metrics.cllr(slope * scores + offset, labels),
        min_cllr=metrics.min_cllr(scores, labels),
    )
