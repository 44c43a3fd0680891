import pytest

from vggvox_tf.calibration import Calibration
from vggvox_tf.decision import decide

# llr = 10·score − 4
CALIBRATION = Calibration(10.0, -4.0, "f", "cosine", "whole", "none", "dev.txt", 1000, 9000, 40, 0.05, 0.2, 0.15)


def test_calibrated():
    """At 0.4 the llr is 0: probability ½ with prior ½. With prior 0.01 the threshold is (ln 99 + 4) / 10 = 0.8595."""
    decision = decide(0.4, CALIBRATION)
    assert decision.same and decision.probability == pytest.approx(0.5) and decision.threshold.score == 0.4
    assert "dev.txt (1,000 target and 9,000 non-target trials of 40 speakers, EER 5.00 %)" in decision.threshold.source
    decision = decide(0.4, CALIBRATION, p_target=0.01)
    assert not decision.same and decision.probability == pytest.approx(0.01)
    assert decision.threshold.score == pytest.approx(0.85951, abs=1e-5)


def test_a_given_threshold_goes_before_the_calibration():
    decision = decide(0.4, CALIBRATION, threshold=0.5)
    assert decision.same is False and decision.threshold.source == "given" and decision.probability is not None
    assert decide(0.5, None, threshold=0.5).same


def test_neither_decides_nothing():
    decision = decide(0.99)
    assert decision.same is None and decision.probability is None and decision.threshold is None
