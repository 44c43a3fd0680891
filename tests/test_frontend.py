import keras
import numpy as np
import pytest
import scipy.signal
import tensorflow as tf

from vggvox_tf.frontend import (
    COMPRESSIONS,
    MAXIMUM_MEL_BANDS,
    NORMALISATIONS,
    Spectrogram,
    Speed,
    crop_samples,
    frames_in,
    mel_filters,
    normalise_over_time,
    play,
    samples_for,
    short_time_spectra,
)

RATE = 16_000


def noise(seconds=1.0, batch=2, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, (batch, round(seconds * RATE))).astype(np.float32)


def spectrograms_of(layer, waveforms):
    """(B, F, T) of a layer of a 512-point FFT, before its normalisation."""
    return layer.compress(short_time_spectra(waveforms, tf.signal.hamming_window(400), 160, 512)).numpy().swapaxes(1, 2)


def test_numbers_of_frames_and_samples():
    """(48000 − 400) / 160 + 1 = 298.5 → 298 frames in 3.000 s; 300 frames need 300·160 + 240 = 48,240 samples."""
    assert frames_in(48_000) == 298
    assert samples_for(300) == crop_samples(3) == 48_240
    assert frames_in(48_239) == 299
    assert frames_in(48_240) == 300


def test_spectra_agree_with_scipy():
    waveforms = noise()
    ours = short_time_spectra(waveforms, tf.signal.hamming_window(400), 160, 1024).numpy()
    _, _, theirs = scipy.signal.stft(
        waveforms, RATE, "hamming", 400, 240, 1024, boundary=None, padded=False, scaling="spectrum"
    )
    theirs = theirs.transpose(0, 2, 1) * scipy.signal.get_window("hamming", 400).sum()  # it divides by that
    assert ours.shape == (2, 98, 513)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("speed, taken, given", [(0.9, 9, 10), (1.1, 11, 10), (0.75, 3, 4), (1.25, 5, 4)])
@pytest.mark.parametrize("samples", [16_000, 16_007])
def test_playing_at_another_speed_agrees_with_scipy(speed, taken, given, samples):
    """Of 11 samples 10 are made. Nothing lies near the edges or near the cut, where filters differ."""
    taps = scipy.signal.firwin(301, 0.5)
    x = scipy.signal.oaconvolve(noise(2), taps[np.newaxis], axes=1)[:, :samples] * np.hanning(samples)
    x = x.astype(np.float32)
    ours, theirs = play(x, speed).numpy(), scipy.signal.resample_poly(x, given, taken, 1, ("kaiser", 14.0))
    assert ours.shape == (2, samples * given // taken)
    np.testing.assert_allclose(ours, theirs[:, : ours.shape[1]], atol=2e-4)
    compiled = tf.function(lambda x: play(x, speed), input_signature=[tf.TensorSpec([None, None])])
    np.testing.assert_allclose(compiled(x), ours, atol=1e-6)


def test_speeds_that_make_a_file_of_any_size_are_refused():
    for speed in (0.49, 2.01, -1):
        with pytest.raises(ValueError, match=r"from 0\.5 to 2"):
            Speed(speed)


def test_sine_on_a_bin():
    """Bin k is k·fs/N Hz, and a sine of amplitude A there has magnitude A·N/2: bin 64 of 1024 is 1000 Hz."""
    sine = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2048) / RATE)[np.newaxis].astype(np.float32)
    magnitude = np.abs(short_time_spectra(sine, tf.ones(1024), 1024, 1024))
    assert magnitude.shape == (1, 2, 513)
    np.testing.assert_allclose(magnitude[0, :, 64], 0.5 * 1024 / 2, rtol=1e-4)
    np.testing.assert_allclose(np.delete(magnitude[0], 64, axis=1), 0, atol=2e-3)


def test_constant_lies_in_bin_zero():
    """A constant A has magnitude A·N at bin 0 and nothing elsewhere."""
    magnitude = np.abs(short_time_spectra(tf.fill([1, 1024], 0.25), tf.ones(1024), 1024, 1024))
    np.testing.assert_allclose(magnitude[0, 0, 0], 0.25 * 1024, rtol=1e-5)
    np.testing.assert_allclose(magnitude[0, 0, 1:], 0, atol=1e-3)


def test_one_second_resolves_one_hertz():
    """Two sines 1 Hz apart lie in neighbouring bins of a 16,000-point transform of one second."""
    t = np.arange(RATE) / RATE
    wave = (np.sin(2 * np.pi * 440 * t) + np.sin(2 * np.pi * 442 * t))[np.newaxis].astype(np.float32)
    magnitude = np.abs(short_time_spectra(wave, tf.ones(RATE), RATE, RATE))[0, 0]
    np.testing.assert_allclose(magnitude[[440, 441, 442]], [8000, 0, 8000], atol=10)


@pytest.mark.parametrize("rows", [512, 257])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_bin_has_mean_0_and_variance_1_over_time(rows, compression):
    spectrograms = Spectrogram(rows, compression=compression)(noise(3.015)).numpy()
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


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("level", [0.0, 0.5])
def test_constant_input_is_finite(compression, level):
    spectrograms = Spectrogram(compression=compression)(tf.fill([1, 16_000], level))
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


def test_mel_filters_are_triangles():
    """Corners at even distances on the scale 1127·ln(1 + f/700); weights linear on that scale, bins 31.25 Hz apart."""
    filters = mel_filters(40, 512).numpy()
    mel = 1127 * np.log1p(np.arange(257) * 31.25 / 700)
    corners = np.linspace(1127 * np.log1p(20 / 700), 1127 * np.log1p(7600 / 700), 42)
    for band, (low, centre, high) in enumerate(zip(corners, corners[1:], corners[2:], strict=False)):
        triangle = np.clip(np.minimum((mel - low) / (centre - low), (high - mel) / (high - centre)), 0, None)
        np.testing.assert_allclose(filters[1:, band], triangle[1:], atol=1e-4)


def test_no_band_is_empty_up_to_the_maximum():
    for bands in range(1, MAXIMUM_MEL_BANDS + 1):
        assert mel_filters(bands, 512).numpy().any(axis=0).all()
    assert not mel_filters(MAXIMUM_MEL_BANDS + 1, 512).numpy().any(axis=0).all()


def test_compression_by_hand():
    """Magnitude 0.008: linear 0.008, log ln(0.018), power 0.008^(2/3) = 0.04."""
    for compression, value in (("linear", 0.008), ("log", np.log(0.018)), ("power", 0.04)):
        compressed = Spectrogram(compression=compression).compress(tf.fill([1, 2, 513], 0.008 + 0j))
        assert compressed.shape == (1, 2, 512)
        np.testing.assert_allclose(compressed, value, rtol=1e-5)


def test_mel_bands_by_hand():
    """A single bin, 16 (500 Hz), of magnitude 3: a band's energy is 9 times its filter there."""
    spectra = np.zeros((1, 1, 257), np.complex64)
    spectra[0, 0, 16] = 3 * np.exp(1j)
    energies = 9 * mel_filters(80, 512).numpy()[16]
    for compression, expected in (
        ("linear", np.sqrt(energies)),
        ("power", np.cbrt(energies)),
        ("log", np.log(energies + 1e-4)),
    ):
        bands = Spectrogram(mel_bands=80, compression=compression).compress(spectra)
        np.testing.assert_allclose(bands[0, 0], expected, atol=1e-5)


def test_mean_normalisation_keeps_the_variance():
    plain = spectrograms_of(Spectrogram(257, compression="log"), noise())
    result = Spectrogram(257, compression="log", normalisation="mean")(noise())[..., 0]
    np.testing.assert_allclose(result, plain - tf.reduce_mean(plain, 2, keepdims=True), atol=1e-5)


def test_running_normalisation_learns_in_training_only():
    """After n batches of mean µ and variance v the running mean is (1 − 0.9ⁿ)·µ, the variance 0.9ⁿ + (1 − 0.9ⁿ)·v.

    The noise is so quiet that v is about 3e-5: it must not drown in an ε.
    """
    layer = Spectrogram(257, normalisation="running")
    waveforms = noise() / 100
    linear = spectrograms_of(layer, waveforms)
    mean, variance = linear.mean(axis=(0, 2)), linear.var(axis=(0, 2))
    np.testing.assert_allclose(layer(waveforms)[..., 0], linear, rtol=1e-5)  # (x − 0) / √1
    for _ in range(2):
        trained = layer(waveforms, training=True).numpy()
    np.testing.assert_allclose(trained.mean(axis=(0, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(trained.std(axis=(0, 2)), 1, atol=1e-3)
    np.testing.assert_allclose(layer.statistics.moving_mean, 0.19 * mean, rtol=1e-4)
    np.testing.assert_allclose(layer.statistics.moving_variance, 0.81 + 0.19 * variance, rtol=1e-4)
    expected = (linear - 0.19 * mean[:, None]) / np.sqrt(0.81 + 0.19 * variance)[:, None]
    for _ in range(2):  # at inference nothing is learned
        np.testing.assert_allclose(layer(waveforms)[..., 0], expected, rtol=1e-3, atol=1e-5)


def test_learned_normalisation_has_a_mean_and_a_scale_of_each_row():
    layer = Spectrogram(mel_bands=40, compression="log", normalisation="learned")
    layer(noise())
    assert [tuple(w.shape) for w in layer.trainable_weights] == [(40, 1), (40, 1)]
    before = layer(noise()).numpy()
    layer.mean.assign(tf.fill([40, 1], 2.0))
    layer.scale.assign(tf.fill([40, 1], 3.0))
    np.testing.assert_allclose(layer(noise()), (before - 2) * 3, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("mel_bands", [0, 40])
def test_gradients_reach_the_waveform_and_are_finite(compression, mel_bands):
    waveforms = tf.Variable(noise())
    layer = Spectrogram(257, mel_bands, compression)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(waveforms) ** 3)
    assert np.isfinite(tape.gradient(total, waveforms)).all()


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ({"rows": 300}, r"rows must be one of \[257, 512\], received 300"),
        ({"mel_bands": 125}, r"mel_bands must be one of range\(0, 125\), received 125"),
        ({"compression": "cube"}, "compression must be one of .*, received cube"),
        ({"normalisation": "none"}, "normalisation must be one of .*, received none"),
    ],
)
def test_unknown_choices(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        Spectrogram(**arguments)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_comes_back_from_its_configuration(normalisation):
    layer = Spectrogram(257, 40, "log", normalisation, 65)
    copy = Spectrogram.from_config(layer.get_config())
    assert (copy.rows, copy.mel_bands, copy.compression, copy.minimum_frames) == (257, 40, "log", 65)
    np.testing.assert_array_equal(copy(noise()), layer(noise()))
    assert layer.compute_output_shape((4, 48_240)) == (4, 40, 300, 1)


def test_same_in_a_graph():
    for layer in (Spectrogram(257, compression="log"), Spectrogram(mel_bands=40, compression="power")):
        np.testing.assert_allclose(tf.function(layer)(noise()), layer(noise()), atol=1e-4)
