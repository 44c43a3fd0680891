import keras
import numpy as np
import pytest
import scipy.signal
import tensorflow as tf

from vggvox_tf.frontend import (
    Spectrogram,
    crop_samples,
    frames_in,
    magnitude_spectrogram,
    normalise_over_time,
    samples_for,
)

RATE = 16_000


def noise(seconds=1.0, batch=2, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, (batch, round(seconds * RATE))).astype(np.float32)


def test_numbers_of_frames_and_samples():
    """(48000 − 400) / 160 + 1 = 298.5 → 298 frames in 3.000 s; 300 frames need 300·160 + 240 = 48,240 samples."""
    assert frames_in(48_000) == 298
    assert samples_for(300) == crop_samples(3) == 48_240
    assert frames_in(48_239) == 299
    assert frames_in(48_240) == 300


def test_magnitude_agrees_with_scipy():
    waveforms = noise()
    ours = magnitude_spectrogram(waveforms, tf.signal.hamming_window(400), 160, 1024).numpy()
    _, _, theirs = scipy.signal.stft(
        waveforms, RATE, "hamming", 400, 240, 1024, boundary=None, padded=False, scaling="spectrum"
    )
    assert ours.shape == (2, 513, 98)
    # scipy divides by the sum of the window.
    np.testing.assert_allclose(ours, np.abs(theirs) * scipy.signal.get_window("hamming", 400).sum(), atol=2e-5)


def test_sine_on_a_bin():
    """Bin k is k·fs/N Hz, and a sine of amplitude A there has magnitude A·N/2: bin 64 of 1024 is 1000 Hz."""
    sine = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2048) / RATE)[np.newaxis].astype(np.float32)
    magnitude = magnitude_spectrogram(sine, tf.ones(1024), 1024, 1024).numpy()
    assert magnitude.shape == (1, 513, 2)
    np.testing.assert_allclose(magnitude[0, 64], 0.5 * 1024 / 2, rtol=1e-4)
    np.testing.assert_allclose(np.delete(magnitude[0], 64, axis=0), 0, atol=2e-3)


def test_constant_lies_in_bin_zero():
    """A constant A has magnitude A·N at bin 0 and nothing elsewhere."""
    magnitude = magnitude_spectrogram(tf.fill([1, 1024], 0.25), tf.ones(1024), 1024, 1024).numpy()
    np.testing.assert_allclose(magnitude[0, 0], 0.25 * 1024, rtol=1e-5)
    np.testing.assert_allclose(magnitude[0, 1:], 0, atol=1e-3)


def test_one_second_resolves_one_hertz():
    """Two sines 1 Hz apart lie in neighbouring bins of a 16,000-point transform of one second."""
    t = np.arange(RATE) / RATE
    wave = (np.sin(2 * np.pi * 440 * t) + np.sin(2 * np.pi * 442 * t))[np.newaxis].astype(np.float32)
    magnitude = magnitude_spectrogram(wave, tf.ones(RATE), RATE, RATE).numpy()[0, :, 0]
    np.testing.assert_allclose(magnitude[[440, 441, 442]], [8000, 0, 8000], atol=10)


@pytest.mark.parametrize("rows", [512, 257])
@pytest.mark.parametrize("log_magnitude", [False, True])
def test_every_bin_has_mean_0_and_variance_1_over_time(rows, log_magnitude):
    spectrograms = Spectrogram(rows, log_magnitude)(noise(3.015)).numpy()
    assert spectrograms.shape == (2, rows, 300, 1)
    np.testing.assert_allclose(spectrograms.mean(axis=2), 0, atol=1e-4)
    np.testing.assert_allclose(spectrograms.std(axis=2), 1, atol=1e-3)


def test_loudness_does_not_matter_for_linear_magnitude():
    """Per-bin normalisation takes out every gain, even a 16-bit recording at 1 % of full scale."""
    waveforms = noise()
    np.testing.assert_allclose(Spectrogram()(waveforms), Spectrogram()(waveforms / 100), atol=2e-3)


def test_normalisation_by_hand():
    """Of 1, 2, 3 the mean is 2 and the deviation √(2/3); a constant bin becomes zeros, not NaN."""
    result = normalise_over_time(tf.constant([[[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]])).numpy()
    np.testing.assert_allclose(result[0], [[-np.sqrt(1.5), 0, np.sqrt(1.5)], [0, 0, 0]], atol=1e-5)


@pytest.mark.parametrize("log_magnitude", [False, True])
@pytest.mark.parametrize("level", [0.0, 0.5])
def test_constant_input_is_finite(log_magnitude, level):
    spectrograms = Spectrogram(log_magnitude=log_magnitude)(tf.fill([1, 16_000], level))
    assert np.isfinite(spectrograms).all()
    # Rounding differs a little from frame to frame; it must not be blown up to unit variance.
    assert np.abs(spectrograms).max() < 20
    assert spectrograms.shape == (1, 512, 98, 1)


def test_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = Spectrogram()
    finally:
        keras.config.set_dtype_policy("float32")
    assert layer(noise()).dtype == tf.float32
    np.testing.assert_array_equal(layer(noise()), Spectrogram()(noise()))


def test_too_short_says_how_long_it_must_be():
    layer = Spectrogram(minimum_frames=65)
    assert layer(noise(10_640 / RATE)).shape[2] == 65
    with pytest.raises(ValueError, match=r"at least 10640 samples \(0.67 s at 16 kHz\).*10639"):
        layer(noise(10_639 / RATE))
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least 10640 samples"):
        tf.function(layer, input_signature=[tf.TensorSpec([None, None])])(noise(10_639 / RATE))


def test_unknown_rows():
    with pytest.raises(ValueError, match=r"\[257, 512\], received 300"):
        Spectrogram(300)


def test_comes_back_from_its_configuration():
    layer = Spectrogram(257, True, 65)
    copy = Spectrogram.from_config(layer.get_config())
    assert (copy.rows, copy.log_magnitude, copy.minimum_frames) == (257, True, 65)
    np.testing.assert_array_equal(copy(noise()), layer(noise()))
    assert layer.compute_output_shape((4, 48_240)) == (4, 257, 300, 1)


def test_same_in_a_graph():
    layer = Spectrogram(257, True)
    np.testing.assert_allclose(tf.function(layer)(noise()), layer(noise()), atol=1e-4)
