import subprocess
import sys

import numpy as np
import pytest
import scipy.signal
import soundfile

from tools.simulate_channels import high_shelf, low_shelf, peak, through_channel
from vggvox_tf.trials import read_trials

RATE = 16_000


@pytest.mark.parametrize(
    ("kind", "at_0", "at_1000", "at_8000"), [(low_shelf, 6, 3, 0), (high_shelf, 0, 3, 6), (peak, 0, 6, 0)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_filters_have_their_gain_where_they_should(kind, at_0, at_1000, at_8000, sign):
    """Of 6 dB at 1000 Hz: a shelf has half of them at its frequency, a peak all of them."""
    b, a = kind(1000, 6 * sign)
    _, response = scipy.signal.freqz(b, a, [0, 1000, 8000], fs=RATE)
    np.testing.assert_allclose(20 * np.log10(np.abs(response)), sign * np.array([at_0, at_1000, at_8000]), atol=1e-6)
    assert np.abs(np.roots(a)).max() < 1


def test_without_filters_it_is_the_speech_at_another_level_with_noise():
    speech = np.random.default_rng(1).normal(0, 0.1, RATE)
    recording = through_channel(speech, 0.0, np.random.default_rng(2))
    assert 10 ** (-16 / 20) <= np.abs(recording).max() <= 10 ** (-6 / 20)
    correlation = np.corrcoef(speech, recording)[0, 1]
    snr = 10 * np.log10(correlation**2 / (1 - correlation**2))
    assert 24.5 < snr < 45.5
    assert np.abs(through_channel(speech, 0.0, np.random.default_rng(3)) - recording).max() > 1e-3


def test_command(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "u.flac", np.random.default_rng(ord(name)).normal(0, 0.1, RATE), RATE)
    (tmp_path / "list.txt").write_text("0 a/u.flac b/u.flac\n1 a/u.flac a/u.flac\n")
    command = [sys.executable, "-m", "tools.simulate_channels", f"--trials={tmp_path}/list.txt"]
    done = subprocess.run([*command, f"--output={tmp_path}/out"], capture_output=True, text=True)
    assert done.returncode == 0 and "2 trials over 2 recordings" in done.stdout, done.stderr
    trials = read_trials(tmp_path / "out" / "trials.txt")
    trials.check_files()
    assert trials.paths.tolist() == ["a/u.flac.wav", "b/u.flac.wav"] and trials.labels.tolist() == [False, True]
    assert soundfile.info(tmp_path / "out" / "a" / "u.flac.wav").frames == RATE

    (tmp_path / "b" / "u.flac").write_bytes(b"nothing")
    done = subprocess.run([*command, f"--output={tmp_path}/bad"], capture_output=True, text=True)
    assert done.returncode == 1 and "b/u.flac" in done.stderr and "Traceback" not in done.stderr
