"""Calibration against examples derived by hand, a known distribution, and scikit-learn."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vggvox_tf import calibration, metrics
from vggvox_tf.calibration import Calibration, CalibrationError

ABOUT = {
    "fingerprint": "ab" * 32,
    "distance": "cosine",
    "protocol": "whole",
    "normalisation": "none",
    "trial_list": "dev.txt",
    "speakers": 40,
}
# llr = 4 · score − 1
LINE = Calibration(slope=4.0, offset=-1.0, targets=3, nontargets=5, eer=0.1, cllr=0.4, min_cllr=0.3, **ABOUT)


def normal_trials(seed, trials, targets, mean=1.0, sigma=1.0):
    """Scores N(mean, σ²) for a share `targets` of the trials and N(−mean, σ²) for the others."""
    rng = np.random.default_rng(seed)
    labels = rng.random(trials) < targets
    return rng.normal(np.where(labels, mean, -mean), sigma), labels


@pytest.mark.parametrize("targets", [0.5, 0.1])
def test_fit_recovers_the_llr_of_two_normal_distributions(targets):
    """ln N(s; m, σ²) − ln N(s; −m, σ²) = [(s + m)² − (s − m)²] / 2σ² = 2m/σ² · s, whatever the share of targets.
    With m = 0.3 and σ = 0.4: slope 0.6 / 0.16 = 3.75, offset 0; all scores higher by 2: offset −7.5."""
    scores, labels = normal_trials(0, 100_000, targets, mean=0.3, sigma=0.4)
    assert calibration.fit(scores, labels) == pytest.approx((3.75, 0), abs=0.06)
    slope, offset = calibration.fit(scores + 2, labels)
    assert slope == pytest.approx(3.75, abs=0.06) and offset == pytest.approx(-7.5, abs=0.15)


@pytest.mark.parametrize("seed", range(10))
def test_fit_agrees_with_scikit_learn(seed):
    """Logistic regression with class_weight="balanced" and next to no regularisation."""
    scores, labels = normal_trials(seed, 300, 0.3)
    model = LogisticRegression(class_weight="balanced", C=1e9, tol=1e-9, max_iter=1000).fit(scores[:, None], labels)
    assert calibration.fit(scores, labels) == pytest.approx((model.coef_[0, 0], model.intercept_[0]), abs=1e-5)


@pytest.mark.parametrize(("factor", "shift"), [(1e-6, 0), (1e6, 0), (1, 1e4), (1e-3, -50)])
def test_fit_does_not_depend_on_the_scale_of_the_scores(factor, shift):
    scores, labels = normal_trials(1, 300, 0.3)
    slope, offset = calibration.fit(scores, labels)
    scaled = scores * factor + shift
    other_slope, other_offset = calibration.fit(scaled, labels)
    np.testing.assert_allclose(other_slope * scaled + other_offset, slope * scores + offset, atol=1e-6)


def test_fit_has_the_least_cllr():
    scores, labels = normal_trials(2, 300, 0.3)
    slope, offset = calibration.fit(scores, labels)
    least = metrics.cllr(slope * scores + offset, labels)
    assert metrics.min_cllr(scores, labels) <= least < 1
    for step in (-0.01, 0.01):
        assert metrics.cllr((slope + step) * scores + offset, labels) > least
        assert metrics.cllr(slope * scores + offset + step, labels) > least


def test_fit_of_separable_scores_by_hand():
    """Platt's labels for one target at 1 and one non-target at 0: posteriors 1 − 1/3 and 1/3, log odds ± ln 2; the
    line through them is 2 ln 2 · s − ln 2. For three targets: 1 − 1/5, log odds ln 4, slope ln 4 + ln 2 = ln 8."""
    assert calibration.fit([1, 0], [1, 0]) == pytest.approx((2 * math.log(2), -math.log(2)), abs=1e-6)
    assert calibration.fit([1, 1, 1, 0], [1, 1, 1, 0]) == pytest.approx((math.log(8), -math.log(2)), abs=1e-6)
    # A score that both kinds share at the border does not make the best line finite either.
    slope, _ = calibration.fit([2, 1, 1, 0], [1, 1, 0, 0])
    assert 0 < slope < 5


@pytest.mark.parametrize(
    ("scores", "labels", "means"),
    [([0, 1], [1, 0], "0 and 1"), ([0.1] * 3, [1, 0, 0], "0.1 and 0.1"), ([3, 1, 2, 2], [1, 1, 0, 0], "2 and 2")],
)
def test_scores_that_do_not_rise_with_the_labels_are_refused(scores, labels, means):
    with pytest.raises(CalibrationError, match=rf"means of {means}\. Check that label 1"):
        calibration.fit(scores, labels)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [([1, math.nan], [1, 0], "NaN"), ([2, 1], [1, 1], "no non-target"), ([1], [0], "no target"), ([], [], "no trials")],
)
def test_bad_trials_are_named(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        calibration.calibrate(scores, labels, **ABOUT)


def test_llr_probability_and_threshold_by_hand():
    """Line 4 · s − 1. Score 0.25 has llr 0, so it leaves every prior as it is; score 1 has llr 3. With p_target 0.01
    the odds beforehand are 1 : 99, so one half takes llr ln 99 = 4.595: score 5.595 / 4."""
    np.testing.assert_allclose(LINE.llr([[0.25, 1], [0, -1]]), [[0, 3], [-1, -5]])
    np.testing.assert_allclose(LINE.probability([0.25, 1]), [0.5, 1 / (1 + math.exp(-3))])
    assert LINE.probability(0.25, p_target=0.01) == pytest.approx(0.01)
    assert LINE.threshold() == 0.25
    assert LINE.threshold(0.01) == pytest.approx(5.595 / 4, abs=1e-4)
    assert LINE.probability(LINE.threshold(0.01), p_target=0.01) == pytest.approx(0.5)


def test_probability_of_huge_llrs():
    with np.errstate(over="raise", invalid="raise"):
        np.testing.assert_array_equal(LINE.probability([1e6, -1e6]), [1, 0])
        assert LINE.probability(-100) == pytest.approx(math.exp(-401), rel=1e-12)


@pytest.mark.parametrize("p_target", [0, 1, math.nan])
def test_bad_priors_are_named(p_target):
    for function in (LINE.threshold, lambda p: LINE.probability(0.5, p)):
        with pytest.raises(ValueError, match=f"p_target.*Received {p_target}"):
            function(p_target)


def test_calibrate_measures_on_its_own_list():
    scores, labels = normal_trials(3, 500, 0.2)
    found = calibration.calibrate(scores, labels, **ABOUT)
    assert (found.slope, found.offset) == calibration.fit(scores, labels)
    assert (found.targets, found.nontargets) == (labels.sum(), 500 - labels.sum())
    assert found.eer == metrics.eer(scores, labels)[0]
    assert found.cllr == metrics.cllr(found.llr(scores), labels)
    assert found.min_cllr == metrics.min_cllr(scores, labels)
    assert {key: getattr(found, key) for key in ABOUT} == ABOUT


def test_save_and_load(tmp_path):
    path = tmp_path / "encoder.calibration.json"
    found = calibration.calibrate(*normal_trials(4, 500, 0.2), **ABOUT)
    found.save(path)
    assert Calibration.load(path) == found
    lines = path.read_text().splitlines()
    assert lines[1] == '  "format": "vggvox_tf calibration 1",' and len(lines) == 16
    assert list(tmp_path.iterdir()) == [path]  # no temporary file left


def test_load_takes_whole_numbers_for_floats(tmp_path):
    """A person or another language may write 4 for 4.0."""
    path = tmp_path / "c.json"
    LINE.save(path)
    path.write_text(path.read_text().replace('"slope": 4.0', '"slope": 4'))
    loaded = Calibration.load(path)
    assert loaded == LINE and type(loaded.slope) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "vggvox_tf calibration 2"}, r"calibration 1.*Found 'vggvox_tf calibration 2'"),
        ({"format": None}, "Found None"),
        ({"slope": 0}, r"slope.*positive\. Found 0"),
        ({"slope": -4.5}, r"slope.*positive\. Found -4\.5"),
        ({"slope": math.nan}, r"slope.*finite number.*Found nan"),
        ({"offset": -math.inf}, r"offset.*finite number.*Found -inf"),
        ({"eer": "0.1"}, r"eer.*finite number.*Found '0\.1'"),
        ({"eer": True}, r"eer.*finite number.*Found True"),
        ({"targets": 3.5}, r"targets.*whole number.*Found 3\.5"),
        ({"targets": True}, r"targets.*whole number.*Found True"),
        ({"distance": None}, r"distance.*text.*Found None"),
        ({"threshold": 0.3}, r"Missing: \[\]; unknown: \['threshold'\]"),
    ],
)
def test_bad_fields_are_named(tmp_path, change, message):
    path = tmp_path / "c.json"
    LINE.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CalibrationError, match=message) as error:
        Calibration.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "JSON"),
        (b"slope = 4", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[1, 2]", "Found None"),
        (b"{}", "Found None"),
        (b'{"format": "vggvox_tf calibration 1", "slope": 4}', r"Missing: \['cllr', .*; unknown: \[\]"),
    ],
)
def test_files_that_are_no_calibration_are_named(tmp_path, content, message):
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=message) as error:
        Calibration.load(path)
    assert str(path) in str(error.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CalibrationError, match=r"none\.json: No such file"):
        Calibration.load(tmp_path / "none.json")
    with pytest.raises(CalibrationError, match="directory"):
        Calibration.load(tmp_path)


def test_import_stays_light():
    root = Path(calibration.__file__).parents[1]
    code = "import sys, vggvox_tf.calibration; print('tensorflow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root).strip() == "False"
