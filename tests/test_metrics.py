"""Metrics against examples derived by hand, exact fractions, and scikit-learn."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
from sklearn.isotonic import IsotonicRegression

from vggvox_tf import metrics

# The worked example of this file: 4 targets, 4 non-targets, two ties (one of them mixed).
#   score      0.9   0.7   0.7   0.5   0.3   0.3   0.2   0.1
#   label       1     1     0     1     0     0     1     0
# Accepting down to each distinct score accepts (targets, non-targets):
#   0.9: (1, 0)   0.7: (2, 1)   0.5: (3, 1)   0.3: (3, 3)   0.2: (4, 3)   0.1: (4, 4)
SCORES = np.array([0.3, 0.9, 0.7, 0.2, 0.5, 0.7, 0.1, 0.3])
LABELS = np.array([0, 1, 0, 1, 1, 1, 0, 0], bool)


def random_trials(seed, trials=400, levels=25, separation=1.0):
    """Trials with about trials / levels ties per score."""
    rng = np.random.default_rng(seed)
    labels = rng.random(trials) < 0.4
    scores = np.round((rng.normal(size=trials) + separation * labels) * levels / 8) * 0.5
    return scores, labels


def exact_eer(scores, labels):
    """The definition in exact arithmetic: walk along the ROC and cut the segment where P_miss − P_fa changes
    sign."""
    targets, nontargets = int(labels.sum()), int((~labels).sum())
    point = Fraction(1), Fraction(0)  # P_miss, P_fa
    for threshold in sorted(set(scores.tolist()), reverse=True):
        accepted = scores >= threshold
        miss = 1 - Fraction(int((accepted & labels).sum()), targets)
        false = Fraction(int((accepted & ~labels).sum()), nontargets)
        if miss <= false:
            gap_before, gap_after = point[0] - point[1], miss - false
            share = gap_before / (gap_before - gap_after)
            return point[1] + share * (false - point[1])
        point = miss, false
    raise AssertionError("P_miss ends at 0 and P_fa at 1")


def test_confusion_by_hand():
    """At 0.5 the trials 0.9, 0.7, 0.7, 0.5 are accepted (score >= threshold), of which 0.7 with label 0 is
    wrong; of the rejected 0.3, 0.3, 0.2, 0.1 the target 0.2 is wrong. Accuracy 6/8, precision 3/4, recall
    3/4, FPR 1/4."""
    counts = metrics.confusion(SCORES, LABELS, 0.5)
    assert counts == metrics.Confusion(true_positives=3, false_positives=1, true_negatives=3, false_negatives=1)
    assert (counts.accuracy, counts.precision, counts.recall) == (0.75, 0.75, 0.75)
    assert (counts.tpr, counts.miss_rate, counts.fpr) == (0.75, 0.25, 0.25)


def test_confusion_accepts_nothing_or_everything():
    """Above all scores nothing is accepted: precision is 0/0, defined as 0. At the lowest, everything is."""
    nothing = metrics.confusion(SCORES, LABELS, np.inf)
    assert nothing == metrics.Confusion(0, 0, 4, 4)
    assert (nothing.accuracy, nothing.precision, nothing.recall, nothing.fpr) == (0.5, 0.0, 0.0, 0.0)
    everything = metrics.confusion(SCORES, LABELS, 0.1)
    assert everything == metrics.Confusion(4, 4, 0, 0)
    assert (everything.accuracy, everything.precision, everything.recall, everything.fpr) == (0.5, 0.5, 1, 1)
    with pytest.raises(ValueError, match="NaN"):
        metrics.confusion(SCORES, LABELS, float("nan"))


def test_roc_by_hand():
    """The table at the head of this file divided by 4, after the point (0, 0) that accepts nothing."""
    roc = metrics.roc(SCORES, LABELS)
    np.testing.assert_array_equal(roc.thresholds, [np.inf, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1])
    np.testing.assert_array_equal(roc.tpr, [0, 0.25, 0.5, 0.75, 0.75, 1, 1])
    np.testing.assert_array_equal(roc.fpr, [0, 0, 0.25, 0.25, 0.75, 0.75, 1])


def test_auc_by_hand():
    """Pairs (target, non-target) the target wins, of 16: 0.9 beats 4; 0.7 beats 3 and ties 1; 0.5 beats 3;
    0.2 beats 1. 4 + 3.5 + 3 + 1 = 11.5 of 16."""
    assert metrics.auc(SCORES, LABELS) == pytest.approx(11.5 / 16, abs=1e-15)


def test_eer_exactly_at_a_score():
    """At threshold 0.5: P_miss = 1/4 = P_fa. The same holds for every threshold in (0.3, 0.5]; the middle is
    0.4."""
    rate, threshold = metrics.eer(SCORES, LABELS)
    assert rate == 0.25
    assert threshold == pytest.approx(0.4, abs=1e-15)


def test_eer_between_two_scores():
    """Targets 3, 1; non-targets 2, 1, 0. Points (P_fa, P_miss): 3: (0, 1/2); 2: (1/3, 1/2); 1: (2/3, 0),
    which the tie reaches by a slanted segment. On it P_miss − P_fa goes from 1/6 to −2/3, so it is zero after
    (1/6) / (5/6) = 1/5: EER = 1/3 + 1/5 · 1/3 = 2/5, threshold 2 − 1/5 · 1 = 1.8."""
    rate, threshold = metrics.eer([3, 2, 1, 1, 0], [1, 0, 1, 0, 0])
    assert rate == pytest.approx(2 / 5, abs=1e-15)
    assert threshold == pytest.approx(1.8, abs=1e-15)


def test_perfect_separation():
    """Targets 0.9, 0.8; non-targets 0.2, 0.1: everything right at the middle of the gap, (0.8 + 0.2) / 2."""
    scores, labels = [0.1, 0.9, 0.2, 0.8], [0, 1, 0, 1]
    assert metrics.eer(scores, labels) == (0.0, 0.5)
    assert metrics.auc(scores, labels) == 1.0
    assert metrics.min_dcf(scores, labels) == (0.0, 0.5)
    assert metrics.confusion(scores, labels, 0.5).accuracy == 1.0


def test_perfectly_reversed():
    """Every non-target above every target: at the gap nothing is right, P_miss = P_fa = 1."""
    scores, labels = [0.9, 0.1, 0.8, 0.2], [0, 1, 0, 1]
    assert metrics.eer(scores, labels) == (1.0, 0.5)
    assert metrics.auc(scores, labels) == 0.0
    # No threshold is better than rejecting everything; the strictest of the equals is just above the highest
    # score.
    cost, threshold = metrics.min_dcf(scores, labels)
    assert cost == 1.0
    assert metrics.confusion(scores, labels, threshold) == metrics.Confusion(0, 0, 2, 2)


def test_all_scores_equal():
    """The ROC is (0, 0) to (1, 1) and nothing between: it crosses P_miss = P_fa at 1/2, however unequal the
    counts."""
    rate, threshold = metrics.eer([0.3] * 5, [1, 0, 0, 0, 0])
    assert (rate, threshold) == (0.5, 0.3)
    assert metrics.auc([0.3] * 5, [1, 0, 0, 0, 0]) == 0.5
    assert metrics.min_dcf([0.3] * 5, [1, 0, 0, 0, 0])[0] == 1.0


@pytest.mark.parametrize(("scores", "rate", "area"), [([2, 1], 0.0, 1.0), ([1, 2], 1.0, 0.0), ([1, 1], 0.5, 0.5)])
def test_one_trial_of_each(scores, rate, area):
    """Target and non-target: right order, wrong order, tie."""
    assert metrics.eer(scores, [1, 0])[0] == rate
    assert metrics.auc(scores, [1, 0]) == area


def test_thresholds_between_neighbouring_floats():
    """Between two neighbouring floats there is no middle: the threshold still accepts the upper and rejects
    the lower. Nor may the middle of two huge scores overflow."""
    high = np.float64(1.0)
    low = np.nextafter(high, 0)
    threshold = metrics.eer([high, low], [1, 0])[1]
    assert metrics.confusion([high, low], [1, 0], threshold).accuracy == 1.0
    assert metrics.eer([1.7e308, 1.6e308], [1, 0])[1] == pytest.approx(1.65e308)


def test_min_dcf_by_hand():
    """With P_tar = 0.01 a false acceptance weighs 0.99 and a miss 0.01. Points (P_miss, P_fa) of the worked
    example: nothing (1, 0) costs 0.01; 0.9: (3/4, 0) costs 0.0075; all others have P_fa >= 1/4 and cost above
    0.24. So the raw cost is 0.0075 and, over min(0.01, 0.99), 0.75; its threshold is the middle of 0.7 and
    0.9.

    With P_tar = 1/2 and equal costs the cost is (P_miss + P_fa) / 2, least at 0.5: (1/4 + 1/4) / 2, over 1/2
    again 1/2.

    With P_tar = 1/2 and C_miss = 10: 10/2 · P_miss + 1/2 · P_fa is least at 0.2, where P_miss = 0 and P_fa =
    3/4: 3/8, over min(5, 1/2) = 3/4."""
    cost, threshold = metrics.min_dcf(SCORES, LABELS)
    assert cost == pytest.approx(0.75) and threshold == pytest.approx(0.8)
    assert metrics.min_dcf(SCORES, LABELS, normalised=False)[0] == pytest.approx(0.0075)
    cost, threshold = metrics.min_dcf(SCORES, LABELS, p_target=0.5)
    assert cost == pytest.approx(0.5) and threshold == pytest.approx(0.4)
    cost, threshold = metrics.min_dcf(SCORES, LABELS, p_target=0.5, c_miss=10)
    assert cost == pytest.approx(0.75) and threshold == pytest.approx(0.15)


def test_det_cost_by_hand():
    """1 · 0.2 · 0.01 + 1 · 0.03 · 0.99 = 0.002 + 0.0297; elementwise on arrays."""
    assert metrics.det_cost(0.2, 0.03) == pytest.approx(0.0317)
    np.testing.assert_allclose(metrics.det_cost(np.array([0.2, 1]), np.array([0.03, 0])), [0.0317, 0.01])


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_scikit_learn(seed):
    scores, labels = random_trials(seed)
    roc = metrics.roc(scores, labels)
    fpr, tpr, thresholds = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc.fpr, fpr, atol=1e-15)
    np.testing.assert_allclose(roc.tpr, tpr, atol=1e-15)
    np.testing.assert_array_equal(roc.thresholds, thresholds)
    area = sklearn_metrics.roc_auc_score(labels, scores)
    assert metrics.auc(scores, labels) == pytest.approx(area, abs=1e-13)
    counts = metrics.confusion(scores, labels, 1.5)
    accepted = scores >= 1.5
    table = sklearn_metrics.confusion_matrix(labels, accepted).ravel()
    assert table.tolist() == [
        counts.true_negatives, counts.false_positives, counts.false_negatives, counts.true_positives
    ]  # fmt: skip
    assert counts.precision == sklearn_metrics.precision_score(labels, accepted)


@pytest.mark.parametrize("seed", range(20))
def test_eer_agrees_with_exact_fractions(seed):
    scores, labels = random_trials(seed, trials=60 + seed, levels=3 + seed, separation=seed / 10 - 0.5)
    assert metrics.eer(scores, labels)[0] == pytest.approx(float(exact_eer(scores, labels)), abs=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_min_dcf_is_the_least_cost_and_its_threshold_has_it(seed):
    scores, labels = random_trials(seed)
    cost, threshold = metrics.min_dcf(scores, labels, p_target=0.05)
    costs = []
    for at in [*np.unique(scores), np.inf]:
        counts = metrics.confusion(scores, labels, at)
        costs.append(metrics.det_cost(counts.miss_rate, counts.fpr, p_target=0.05) / 0.05)
    assert cost == pytest.approx(min(costs))
    counts = metrics.confusion(scores, labels, threshold)
    assert metrics.det_cost(counts.miss_rate, counts.fpr, p_target=0.05) / 0.05 == pytest.approx(cost)


@pytest.mark.parametrize("transform", [np.exp, np.arctan, lambda s: 3 * s - 7], ids=["exp", "arctan", "affine"])
def test_only_the_order_of_scores_counts(transform):
    """A strictly rising function of the scores changes no rate, only thresholds."""
    scores, labels = random_trials(1)
    before, after = metrics.summary(scores, labels), metrics.summary(transform(scores), labels)
    for key in ("eer", "auc", "min_cllr"):
        assert after[key] == before[key], key
    for costs in zip(after["detection_costs"], before["detection_costs"], strict=True):
        assert costs[0]["min_dcf"] == costs[1]["min_dcf"]
    for name, point in before["operating_points"].items():
        assert after["operating_points"][name] | {"threshold": 0} == point | {"threshold": 0}
    np.testing.assert_array_equal(metrics.roc(transform(scores), labels).fpr, metrics.roc(scores, labels).fpr)


def test_order_of_trials_and_types_do_not_count():
    scores, labels = random_trials(2)
    order = np.random.default_rng(0).permutation(len(scores))
    expected = metrics.summary(scores, labels)
    assert metrics.summary(scores[order], labels[order]) == expected
    assert metrics.summary(scores.astype(np.float32), labels.astype(np.int8)) == expected  # halves are exact
    assert metrics.summary(scores.tolist(), labels.astype(float).tolist()) == expected


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1, 2, 3], [1, 0], "3 scores and 2 labels"),
        ([], [], "no trials"),
        ([1, float("nan"), 2], [1, 0, 1], "1 that are NaN or infinite.*trial 1"),
        ([1, 2, float("inf")], [1, 0, 1], "NaN or infinite.*trial 2"),
        ([1, 2, 3], [1, 0, 2], "Received 2"),
        ([1, 2], [1, float("nan")], "Received nan"),
        ([1, 2], ["same", "other"], "Received same"),
        ([1, 2], [1, 1], "no non-target"),
        ([1, 2], [False, False], "no target"),
        ([[1], [2]], [1, 0], "ravel"),
        (["a", "b"], [1, 0], "real numbers"),
    ],
)
@pytest.mark.parametrize(
    "function",
    [metrics.roc, metrics.auc, metrics.eer, metrics.min_dcf, metrics.min_cllr, metrics.summary],
    ids=lambda f: f.__name__,
)
def test_bad_trials_are_named(function, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        function(scores, labels)
    with pytest.raises(ValueError, match=message):
        metrics.confusion(scores, labels, 0.5)
    with pytest.raises(ValueError, match=message):
        metrics.eer_interval(scores, labels, [0] * len(scores), [0] * len(scores))


@pytest.mark.parametrize("bad", [{"p_target": 0}, {"p_target": 1}, {"c_miss": 0}, {"c_fa": float("inf")}])
def test_bad_costs_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        metrics.min_dcf(SCORES, LABELS, **bad)


@pytest.mark.parametrize("seed", range(20))
def test_weighted_eer_is_that_of_repeated_trials(seed):
    """A resample in which speaker s is drawn w_s times has the EER of a list in which every target trial of s
    stands w_s times and every non-target trial of s and t w_s·w_t times. One resample is its own interval."""
    scores, labels = random_trials(seed, trials=60 + seed, levels=3 + seed)
    rng = np.random.default_rng(seed)
    enrol = rng.integers(7, size=len(scores))
    test = np.where(labels, enrol, (enrol + rng.integers(1, 7, size=len(scores))) % 7)
    drawn = np.bincount(np.random.default_rng(seed).integers(7, size=7), minlength=7)  # as eer_interval draws
    repeats = np.where(labels, drawn[enrol], drawn[enrol] * drawn[test])
    expected = float(exact_eer(np.repeat(scores, repeats), np.repeat(labels, repeats)))
    low, high = metrics.eer_interval(scores, labels, enrol, test, resamples=1, seed=seed)
    assert low == high == pytest.approx(expected, abs=1e-14)


def verification_list(speakers, seed=0):
    """Every speaker's 10 target trials and 10 non-target trials with others; some speakers are easier."""
    rng = np.random.default_rng(seed)
    enrol = np.repeat(np.arange(speakers), 20)
    labels = np.tile(np.arange(20) < 10, speakers)
    test = np.where(labels, enrol, (enrol + rng.integers(1, speakers, size=len(enrol))) % speakers)
    ease = rng.normal(size=speakers)
    scores = rng.normal(size=len(enrol)) + labels * (2.5 + ease[enrol])
    return scores, labels, enrol, test


def test_eer_interval_holds_the_eer_and_widens_with_fewer_speakers():
    widths = []
    for speakers in (100, 20, 5):
        trials = verification_list(speakers)
        low, high = metrics.eer_interval(*trials, resamples=300)
        assert 0 <= low < metrics.eer(*trials[:2])[0] < high <= 1
        widths.append(high - low)
    assert widths == sorted(widths)


def test_eer_interval_repeats_and_narrows_with_confidence():
    """The same seed draws the same speakers; what they are called, how the trials are ordered and which side is
    which does not count."""
    scores, labels, enrol, test = verification_list(20)
    expected = metrics.eer_interval(scores, labels, enrol, test, resamples=100)
    order = np.random.default_rng(0).permutation(len(scores))
    sides = 10 * test[order] - 7, 10 * enrol[order] - 7
    assert metrics.eer_interval(scores[order], labels[order], *sides, resamples=100) == expected
    assert metrics.eer_interval(scores, labels, enrol, test, resamples=100, seed=1) != expected
    low, high = metrics.eer_interval(scores, labels, enrol, test, confidence=0.5, resamples=100)
    assert expected[0] < low < high < expected[1]


def test_eer_interval_draws_speakers_not_trials():
    """All errors come from speaker 0, who is not drawn with probability (9/10)^10 = 35 %: then the EER is 0. A
    draw of trials would all but never miss all of the 10 wrong trials out of 200: (1 − 10/200)^200 = 0.003 %."""
    _, labels, enrol, test = verification_list(10)
    scores = np.where(labels, np.where(enrol == 0, -1, 1), 0)
    low, high = metrics.eer_interval(scores, labels, enrol, test)
    assert metrics.eer(scores, labels)[0] > 0
    assert low == 0 and high > 0


def test_eer_interval_draws_again_what_lacks_a_kind():
    """Targets of speaker 0 only, non-targets of 1 and 2 only: the one draw that has both is the list itself."""
    scores, labels, enrol, test = [3, 1, 2, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 2, 2]
    assert metrics.eer_interval(scores, labels, enrol, test, resamples=50) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_speakers": [1, 1, 2, 3]}, r"trial 0 a target trial of speakers 0 and 1 \(1 such"),
        ({"test_speakers": [0, 1, 2, 2]}, r"trial 3 a non-target trial of speakers 2 and 2 \(1 such"),
        ({"test_speakers": [0, 1, 2]}, r"test_speakers.*\(4,\).*Received int64 \(3,\)"),
        ({"enrol_speakers": ["a", "b", "a", "b"]}, "enrol_speakers.*integer"),
        ({"enrol_speakers": [0, 1, 0, 1], "test_speakers": [0, 1, 1, 0]}, "at least 3 speakers"),
        ({"confidence": 1}, "confidence"),
        ({"resamples": 0}, "resamples"),
    ],
)
def test_bad_arguments_of_eer_interval_are_named(changes, message):
    arguments = {"enrol_speakers": [0, 1, 0, 2], "test_speakers": [0, 1, 2, 3]} | changes
    with pytest.raises(ValueError, match=message):
        metrics.eer_interval([4, 3, 2, 1], [1, 1, 0, 0], **arguments)


def test_cllr_by_hand():
    """llr = 0 costs log2(1 + 1) = 1 bit on either side. A target at llr ln 3 costs log2(4/3), at −ln 3 log2(4) = 2;
    a non-target at −ln 7 log2(8/7): ½ · [(log2(4/3) + 2) / 2 + log2(8/7)]."""
    assert metrics.cllr([0, 0, 0], [1, 0, 0]) == pytest.approx(1, abs=1e-15)
    expected = ((np.log2(4 / 3) + 2) / 2 + np.log2(8 / 7)) / 2
    assert metrics.cllr(np.log([3, 1 / 3, 1 / 7]), [1, 1, 0]) == pytest.approx(expected, abs=1e-15)


def test_cllr_of_certainty():
    """e^1000 overflows, the cost of an error at llr 1000 does not: 1000 / ln 2 bits. Certainty is free where it is
    right and infinitely dear where it is wrong; NaN is refused."""
    assert metrics.cllr([1000, -1000], [1, 0]) == 0
    assert metrics.cllr([-1000, 1000], [1, 0]) == pytest.approx(1000 / np.log(2))
    assert metrics.cllr([np.inf, -np.inf], [1, 0]) == 0
    assert metrics.cllr([np.inf, np.inf], [1, 0]) == np.inf
    with pytest.raises(ValueError, match=r"1 that are NaN.*trial 1"):
        metrics.cllr([np.inf, np.nan, 0], [1, 0, 0])
    with pytest.raises(ValueError, match="no target"):
        metrics.cllr([0, 0], [0, 0])


def test_min_cllr_by_hand():
    """Worked example, scores falling, targets/trials: 0.9: 1/1; 0.7: 1/2; 0.5: 1/1; 0.3: 0/2; 0.2: 1/1; 0.1: 0/1.
    Pooled where they rise: 1/1; {0.7, 0.5}: 2/3; {0.3, 0.2}: 1/3; 0/1. With even priors the likelihood ratios are
    inf, 2, 1/2 and 0. Targets cost 0, 2 · log2(3/2) and log2(3), non-targets log2(3), 2 · log2(3/2) and 0: mean
    (2 · log2(3/2) + log2(3)) / 4 on either side."""
    expected = (2 * np.log2(1.5) + np.log2(3)) / 4
    assert metrics.min_cllr(SCORES, LABELS) == pytest.approx(expected, abs=1e-15)


def test_min_cllr_at_its_ends():
    """Perfect separation can be made certain; equal and reversed scores say nothing."""
    assert metrics.min_cllr([4, 3, 2, 1, 0], [1, 1, 0, 0, 0]) == 0
    assert metrics.min_cllr([0.3] * 5, [1, 0, 0, 0, 0]) == pytest.approx(1, abs=1e-15)
    assert metrics.min_cllr([1, 2, 3], [1, 0, 0]) == pytest.approx(1, abs=1e-15)
    assert metrics.min_cllr([2, 1], [1, 0]) == 0


@pytest.mark.parametrize("seed", range(20))
def test_min_cllr_agrees_with_scikit_learn(seed):
    """Isotonic posteriors there, their prior odds removed, and `cllr` of what is left."""
    scores, labels = random_trials(seed, levels=3 + 5 * seed)
    posteriors = IsotonicRegression().fit_transform(scores, labels.astype(float)).clip(0, 1)
    with np.errstate(divide="ignore"):
        llrs = np.log(posteriors) - np.log1p(-posteriors) - np.log(labels.sum() / (~labels).sum())
    best = metrics.min_cllr(scores, labels)
    assert best == pytest.approx(metrics.cllr(llrs, labels), abs=1e-12)
    assert best <= metrics.cllr(scores, labels)


def test_summary_is_json_of_the_worked_example():
    """At the EER threshold 0.4 the confusion is that of 0.5: 3 of 4 right on both sides. For both priors the least
    cost is that of point 0.9, P_miss = 3/4 without false alarms, 3/4 of the prior: precision 1, recall 1/4, 5 of 8
    right. At a chosen 0.15 one non-target is rejected: 4 + 1 of 8 right, precision 4/7."""
    summary = metrics.summary(SCORES, LABELS, threshold=0.15)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    flat = {key: value for key, value in summary.items() if key not in ("detection_costs", "operating_points")}
    assert flat == pytest.approx({
        "trials": 8, "targets": 4, "nontargets": 4, "eer": 0.25, "eer_threshold": 0.4, "auc": 11.5 / 16,
        "min_cllr": (2 * np.log2(1.5) + np.log2(3)) / 4,
    })  # fmt: skip
    assert summary["detection_costs"] == [
        pytest.approx({"p_target": 0.01, "min_dcf": 0.75, "min_c_det": 0.0075, "threshold": 0.8}),
        pytest.approx({"p_target": 0.05, "min_dcf": 0.75, "min_c_det": 0.0375, "threshold": 0.8}),
    ]
    expected = {
        "eer": (0.4, 6 / 8, 3 / 4, 3 / 4, 1 / 4, 1 / 4, 3, 1, 3, 1),
        "min_dcf": (0.8, 5 / 8, 1, 1 / 4, 3 / 4, 0, 1, 0, 4, 3),
        "chosen": (0.15, 5 / 8, 4 / 7, 1, 0, 3 / 4, 4, 3, 1, 0),
    }
    rates = ["accuracy", "precision", "recall", "miss_rate", "false_alarm_rate"]
    counts = ["true_positives", "false_positives", "true_negatives", "false_negatives"]
    assert summary["operating_points"].keys() == expected.keys()
    for name, values in expected.items():
        point = dict(zip(["threshold", *rates, *counts], values, strict=True))
        assert summary["operating_points"][name] == pytest.approx(point), name


def test_summary_without_a_chosen_threshold():
    summary = metrics.summary(SCORES, LABELS, p_targets=(0.5,))
    assert list(summary["operating_points"]) == ["eer", "min_dcf"]
    assert [cost["p_target"] for cost in summary["detection_costs"]] == [0.5]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"p_targets": ()}, "p_target"),
        ({"p_targets": (0.01, 1)}, "p_target"),
        ({"threshold": np.inf}, "finite threshold"),
    ],
)
def test_bad_arguments_of_summary_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        metrics.summary(SCORES, LABELS, **bad)


def test_summary_stays_finite_where_rejecting_everything_is_best():
    summary = metrics.summary([0.9, 0.1], [0, 1])
    json.dumps(summary, allow_nan=False)
    assert summary["detection_costs"][0]["min_dcf"] == 1.0
    assert summary["operating_points"]["min_dcf"]["true_negatives"] == 1


def test_format_summary():
    summary = metrics.summary(SCORES, LABELS, threshold=0.15) | {"eer_interval": [0.031, 0.45]}
    assert metrics.format_summary(summary).splitlines() == [
        "trials                        8  4 target, 4 non-target",
        "EER                     25.00 %  at threshold 0.4000, 95 % interval 3.1–45.0 %",
        "AUC                      0.7188",
        "minDCF (p_target 0.01)   0.7500  at threshold 0.8000, C_det 0.0075",
        "minDCF (p_target 0.05)   0.7500  at threshold 0.8000, C_det 0.0375",
        "min C_llr                0.6887",
        "",
        "at the threshold of     threshold  accuracy  precision    recall  false alarms",
        "EER                        0.4000   75.00 %    75.00 %   75.00 %       25.00 %",
        "minDCF (p_target 0.01)     0.8000   62.50 %   100.00 %   25.00 %        0.00 %",
        "chosen                     0.1500   62.50 %    57.14 %  100.00 %       75.00 %",
    ]
    plain = metrics.format_summary(metrics.summary(SCORES, LABELS))
    assert "interval" not in plain and "chosen" not in plain


def test_import_stays_light():
    """Scoring runs on machines without TensorFlow and without matplotlib."""
    root = Path(metrics.__file__).parents[1]
    code = "import sys, vggvox_tf.metrics; print({'tensorflow', 'matplotlib'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root).strip() == "set()"
