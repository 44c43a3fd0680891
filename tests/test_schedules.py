import keras
import numpy as np
import pytest

from vggvox_tf import schedules


def rates(schedule, steps):
    return [float(schedule(step)) for step in steps]


def test_exponential_by_hand():
    """From 1e-2 to 1e-4 in 100 steps: log-linear, so 1e-3 in the middle."""
    schedule = schedules.learning_rate("exponential", 1e-2, 1e-4, 100)
    np.testing.assert_allclose(rates(schedule, [0, 50, 100]), [1e-2, 1e-3, 1e-4], rtol=1e-4)


def test_cosine_by_hand():
    """0.1 + 0.9·(1 + cos πt)/2 at t = 0, 1/3, 1/2, 1: cosines 1, 1/2, 0, −1."""
    schedule = schedules.learning_rate("cosine", 1.0, 0.1, 300)
    np.testing.assert_allclose(rates(schedule, [0, 100, 150, 300]), [1, 0.775, 0.55, 0.1], rtol=1e-5)


def test_cyclic_by_hand():
    """Two triangles in 200 steps: at the bottom at 0, 100 and 200, at the top at 50 and 150, halfway at 25 and 175."""
    schedule = schedules.learning_rate("cyclic", 1.0, 0.2, 200, cycles=2)
    expected = [0.2, 0.6, 1.0, 0.2, 1.0, 0.6, 0.2]
    np.testing.assert_allclose(rates(schedule, [0, 25, 50, 100, 150, 175, 200]), expected, rtol=1e-5)


def test_warm_up_by_hand():
    """Over four steps: a quarter, a half, three quarters, then all of the schedule."""
    schedule = schedules.learning_rate("cosine", 1.0, 1.0, 100, warmup_steps=4)
    np.testing.assert_allclose(rates(schedule, range(6)), [0.25, 0.5, 0.75, 1, 1, 1])


@pytest.mark.parametrize("kind", ["exponential", "cosine", "cyclic"])
def test_schedules_come_back_from_their_configuration(kind):
    schedule = schedules.learning_rate(kind, 1.0, 0.1, 100, 10)
    copy = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert rates(copy, [0, 5, 40, 100]) == rates(schedule, [0, 5, 40, 100])


def test_steps_in_time_by_hand():
    """600 s, 5 epochs: 120 s each, of which 20 s are not steps; 100 s / 0.3 s = 333.3."""
    assert schedules.steps_in_time(600, 5, 0.3, 20) == 333
    with pytest.raises(ValueError, match=r"10 s are too short for 5 epochs: one takes 20\.0 s beside its steps"):
        schedules.steps_in_time(10, 5, 0.3, 20)
