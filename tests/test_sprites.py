import numpy as np
import pytest
import soundfile

from vggvox_tf import encoders, sprites


@pytest.fixture(scope="module")
def model():
    return encoders.build_encoder("vggm", 0.03, 257, compression="log")


def test_a_rising_tone_is_a_dark_diagonal_from_the_bottom_left(model, tmp_path):
    """From 0 Hz to 8 kHz over 3 s: the darkest row of a column is at the tone's frequency, low ones at the bottom."""
    t = np.arange(48_240) / 16_000
    sweep = 0.5 * np.sin(2 * np.pi * (8000 / t[-1]) * t**2 / 2) + 1e-3 * np.random.default_rng(0).normal(size=t.size)
    soundfile.write(tmp_path / "sweep.wav", sweep, 16_000)
    (picture,) = sprites.thumbnails(model, tmp_path, ["sweep.wav"], 16)
    assert picture.shape == (16, 16) and picture.dtype == np.uint8
    np.testing.assert_allclose(picture.argmin(axis=0), np.arange(15, -1, -1), atol=1)
    assert picture.min() < 60 and np.median(picture) > 180


def test_the_centre_is_shown(model, tmp_path):
    """5 s of which the middle 3 s are noise and the rest a hum: as the noise alone, except at its ends."""
    random = np.random.default_rng(1)
    hum = 0.2 * np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000)
    noise = 0.2 * random.uniform(-1, 1, 48_240)
    soundfile.write(tmp_path / "long.wav", np.concatenate([hum, noise, hum]), 16_000)
    soundfile.write(tmp_path / "noise.wav", noise, 16_000)
    long, alone = sprites.thumbnails(model, tmp_path, ["long.wav", "noise.wav"], 8)
    np.testing.assert_allclose(long.astype(int), alone, atol=2)


def test_unusable_recordings_are_blank(model, tmp_path):
    soundfile.write(tmp_path / "short.wav", 0.1 * np.ones(400), 16_000)
    (tmp_path / "text.wav").write_text("no audio")
    pictures = sprites.thumbnails(model, tmp_path, ["short.wav", "text.wav", "missing.wav"], 4)
    np.testing.assert_array_equal(pictures, 255)
