"""From a score to a decision that says what it rests on."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Threshold:
    """The score from which on two recordings count as of the same speaker, and where it came from."""

    score: float
    source: str


@dataclasses.dataclass(frozen=True)
class Decision:
    """Same speaker or not. Without a threshold there is no decision, and without a calibration no probability."""

    score: float
    same: bool | None
    probability: float | None  # of the same speaker, given the prior
    threshold: Threshold | None


def threshold_for(calibration, threshold=None, p_target=0.5):
    """The threshold to decide by: a given one, else the calibration's, else None.

    Args:
      calibration: a calibration.Calibration, or None.
      threshold: a score that the user has chosen, or None.
      p_target: prior probability of the same speaker; the calibrated threshold is where the posterior is one half.
    """
    if threshold is not None:
        return Threshold(threshold, "given")
    if calibration is None:
        return None
    return Threshold(
        calibration.threshold(p_target),
        f"where the probability is one half, with prior {p_target:g}; calibrated on {calibration.trial_list} "
        f"({calibration.targets:,} target and {calibration.nontargets:,} non-target trials of "
        f"{calibration.speakers:,} speakers, EER {100 * calibration.eer:.2f} %)",
    )


def decide(score, calibration=None, threshold=None, p_target=0.5):
    """A Decision on a score; arguments as for `threshold_for`."""
    score = float(score)
    used = threshold_for(calibration, threshold, p_target)
    probability = None if calibration is None else float(calibration.probability(score, p_target))
    return Decision(score, None if used is None else score >= used.score, probability, used)
