"""Where an encoder's errors lie: by gender, session and length, and the speakers and trials it got most wrong.

A trial is accepted where score >= threshold; a miss is a target that is not, a false alarm a non-target that is.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from vggvox_tf import metrics
from vggvox_tf.trials import Trials, speaker_of

# How many of the worst speakers and of the worst trials of either kind are named.
WORST = 10


def breakdown(
    trials: Trials, scores: np.ndarray, threshold: float, genders: Mapping[str, str], seconds: np.ndarray
) -> dict:
    """Counts and error rates of parts of a trial list, ready for json.dump.

    Args:
      trials: M trials over U recordings.
      scores: (M,) float, finite, higher for the same speaker.
      threshold: what the error rates are counted at, usually that of the EER.
      genders: a speaker's "m" or "f"; speakers of unknown gender may be missing or have anything else.
      seconds: (U,) float, the recordings' lengths, NaN where unknown.

    Returns:
      "threshold", and three lists of groups {"name", "targets", "nontargets", "eer", "miss_rate",
      "false_alarm_rate"}, where what there are no trials for is None. A list is empty where nothing is known; a group
      without trials is left out.

      "gender": a target trial is of one gender by nature, and an EER needs both kinds of trials. So "same gender" and
        "cross gender" set the non-targets of that sort against all targets of known gender: the two EERs differ by
        the non-targets alone. "female" and "male" are the trials with both sides of that gender; whatever has a side
        of unknown gender is "unknown gender".
      "session": target trials within a session ("same session") and across two ("other session"), each against all
        non-targets; the session is the folder of a file in […/]<speaker>/<session>/<file>. Those with a side of
        <speaker>/<file> are of "unknown session".
      "duration": by the shorter side, in up to four groups of about as many trials, rounded to 0.1 s: "3.2–4.1 s" is
        from 3.2 to less than 4.1. A side of unknown length makes "unknown length".

      "worst_speakers": up to WORST speakers with errors, {"speaker", "targets", "nontargets", "miss_rate",
        "false_alarm_rate"} over the trials with one of their recordings on either side; the highest mean of the two
        rates (of the one, where the speaker has but one kind of trials) first.
      "missed_targets", "accepted_nontargets": up to WORST trials {"score", "enrol", "test"}, the most wrong first.

    Raises:
      ValueError: scores or seconds of a wrong shape, scores or a threshold that are not finite.
    """
    scores, seconds = np.asarray(scores, np.float64), np.asarray(seconds, np.float64)
    if scores.shape != trials.labels.shape or not np.isfinite(scores).all():
        raise ValueError(f"Expected {len(trials)} finite scores, one per trial. Received shape {scores.shape}.")
    if seconds.shape != trials.paths.shape:
        raise ValueError(
            f"Expected {len(trials.paths)} lengths, one per recording (NaN: unknown). Received shape {seconds.shape}."
        )
    if not np.isfinite(threshold):
        raise ValueError(f"Expected a finite threshold. Received {threshold}.")
    part = _Part(trials.labels, scores, float(threshold))
    speakers = [speaker_of(path) for path in trials.paths]  # (U,)
    groups = {
        "gender": _by_gender(part, trials, [genders.get(speaker, "") for speaker in speakers]),
        "session": _by_session(part, trials),
        "duration": _by_duration(part, trials, seconds),
    }
    return {
        "threshold": float(threshold),
        **{key: [group for group in some if group["targets"] + group["nontargets"]] for key, some in groups.items()},
        "worst_speakers": _worst_speakers(part, trials, speakers),
        "missed_targets": _worst_trials(trials, scores, part.misses, 1),
        "accepted_nontargets": _worst_trials(trials, scores, part.false_alarms, -1),
    }


class _Part:
    """The trials that parts are taken of, with what is wrong in each."""

    def __init__(self, labels: np.ndarray, scores: np.ndarray, threshold: float):
        self.labels, self.scores = labels, scores
        self.misses = labels & (scores < threshold)  # (M,) bool
        self.false_alarms = ~labels & (scores >= threshold)  # (M,) bool

    def group(self, name: str, mask: np.ndarray) -> dict:
        """The trials in `mask` (M,) bool, counted."""
        targets, nontargets = (int(np.count_nonzero(mask & kind)) for kind in (self.labels, ~self.labels))
        both = targets and nontargets
        return {
            "name": name,
            "targets": targets,
            "nontargets": nontargets,
            "eer": metrics.eer(self.scores[mask], self.labels[mask])[0] if both else None,
            "miss_rate": _rate(np.count_nonzero(mask & self.misses), targets),
            "false_alarm_rate": _rate(np.count_nonzero(mask & self.false_alarms), nontargets),
        }


def _rate(errors, trials) -> float | None:
    return float(errors / trials) if trials else None


def _by_gender(part: _Part, trials: Trials, genders: list[str]) -> list[dict]:
    codes = np.array([{"f": 1, "m": 2}.get(gender, 0) for gender in genders], np.int8)  # (U,)
    if not codes.any():
        return []
    enrol, test = codes[trials.enrol], codes[trials.test]  # (M,)
    known = (enrol > 0) & (test > 0)
    same = enrol == test
    return [
        part.group("same gender", known & (same | part.labels)),
        part.group("cross gender", known & (~same | part.labels)),
        part.group("female", same & (enrol == 1)),
        part.group("male", same & (enrol == 2)),
        part.group("unknown gender", ~known),
    ]


def _by_session(part: _Part, trials: Trials) -> list[dict]:
    folders = [path.rpartition("/")[0] for path in trials.paths]
    numbers: dict[str, int] = {}
    # One number per session, -1 where a path names none: speaker and file alone.
    sessions = np.array([numbers.setdefault(f, len(numbers)) if "/" in f else -1 for f in folders], np.int64)  # (U,)
    if (sessions < 0).all():
        return []
    enrol, test = sessions[trials.enrol], sessions[trials.test]  # (M,)
    known = (enrol >= 0) & (test >= 0)
    same = enrol == test
    sorts = {"same session": known & same, "other session": known & ~same, "unknown session": ~known}
    return [
        part.group(name, mask | ~part.labels) for name, mask in sorts.items() if np.count_nonzero(mask & part.labels)
    ]


def _by_duration(part: _Part, trials: Trials, seconds: np.ndarray) -> list[dict]:
    # Milliseconds: as float32, in which lengths are kept, 4.1 s would be less than 4.1.
    seconds = np.round(seconds, 3)
    shorter = np.minimum(seconds[trials.enrol], seconds[trials.test])  # (M,) NaN where one of them is
    unknown = np.isnan(shorter)
    if unknown.all():
        return []
    cuts = np.unique(np.round(np.quantile(shorter[~unknown], [0.25, 0.5, 0.75]), 1))
    cuts = cuts[(cuts > np.nanmin(shorter)) & (cuts <= np.nanmax(shorter))].tolist()  # neither side of one is empty
    names = ["all of known length"]
    if cuts:
        between = [f"{low:.1f}–{high:.1f} s" for low, high in itertools.pairwise(cuts)]
        names = [f"under {cuts[0]:.1f} s", *between, f"over {cuts[-1]:.1f} s"]
    numbers = np.searchsorted(cuts, shorter, side="right")  # (M,) which of the names
    groups = [part.group(name, (numbers == number) & ~unknown) for number, name in enumerate(names)]
    return [*groups, part.group("unknown length", unknown)]


def _worst_speakers(part: _Part, trials: Trials, speakers: list[str]) -> list[dict]:
    names = sorted(set(speakers))
    numbers = {name: number for number, name in enumerate(names)}
    of = np.array([numbers[speaker] for speaker in speakers])  # (U,)
    enrol, test = of[trials.enrol], of[trials.test]  # (M,)

    def involved(mask: np.ndarray) -> np.ndarray:
        """(S,) how many of the trials in `mask` (M,) bool have the speaker on either side, or on both."""
        second = mask & (test != enrol)
        return np.bincount(enrol[mask], minlength=len(names)) + np.bincount(test[second], minlength=len(names))

    targets, nontargets = involved(part.labels), involved(~part.labels)
    misses, false_alarms = involved(part.misses), involved(part.false_alarms)
    rates = misses / np.maximum(targets, 1) + false_alarms / np.maximum(nontargets, 1)
    mean = rates / np.maximum((targets > 0).astype(int) + (nontargets > 0), 1)
    worst = [s for s in np.argsort(-mean, kind="stable")[:WORST].tolist() if mean[s] > 0]
    return [
        {
            "speaker": names[s],
            "targets": int(targets[s]),
            "nontargets": int(nontargets[s]),
            "miss_rate": _rate(misses[s], targets[s]),
            "false_alarm_rate": _rate(false_alarms[s], nontargets[s]),
        }
        for s in worst
    ]


def _worst_trials(trials: Trials, scores: np.ndarray, wrong: np.ndarray, sign: int) -> list[dict]:
    """Of the trials in `wrong` (M,) bool those with the lowest sign · score; of equal ones the first in the list."""
    wrong = np.flatnonzero(wrong)
    worst = wrong[np.argsort(sign * scores[wrong], kind="stable")[:WORST]]
    return [
        {
            "score": float(scores[trial]),
            "enrol": str(trials.paths[trials.enrol[trial]]),
            "test": str(trials.paths[trials.test[trial]]),
        }
        for trial in worst.tolist()
    ]
