import numpy as np
import pytest
import scipy.signal
import soundfile
import tensorflow as tf

from vggvox_tf import augment
from vggvox_tf.frontend import crop_samples

RATE = 16_000
SEED = tf.constant([3, 7])
NEXT = tf.constant([3, 8])


def noise(batch, samples, seed=0, level=0.1):
    return np.random.default_rng(seed).normal(0, level, (batch, samples)).astype(np.float32)


def sines(frequencies, samples, level=0.5):
    t = np.arange(samples) / RATE
    return np.stack([level * np.sin(2 * np.pi * f * t) for f in frequencies]).astype(np.float32)


def loudest(waveform):
    """Frequency of the largest bin, in Hz."""
    return np.abs(np.fft.rfft(waveform)).argmax() * RATE / len(waveform)


LAYERS = {
    "noise": augment.AdditiveNoise(noise(4, 9000, 5).astype(np.float16), 0.5, (5.0, 20.0)),
    "babble": augment.Babble(0.5, (5.0, 20.0)),
    "reverberation": augment.Reverberation(noise(3, 800, 6), 0.5),
    "gain": augment.Gain(6.0),
    "filter": augment.Filter(6.0),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_function_of_the_seed_and_off_at_test_time(layer):
    x = noise(8, 8000)
    once, again = layer(x, SEED, training=True).numpy(), layer(x, SEED, training=True).numpy()
    np.testing.assert_array_equal(once, again)
    assert np.abs(layer(x, NEXT, training=True).numpy() - once).max() > 1e-3
    np.testing.assert_array_equal(layer(x, SEED), x)
    compiled = tf.function(lambda x, seed: layer(x, seed, training=True))
    np.testing.assert_allclose(compiled(x, SEED), once, atol=1e-5)
    assert not layer.weights  # banks are no weights, so no checkpoint holds them


@pytest.mark.parametrize("name", ["noise", "babble", "reverberation"])
def test_exactly_the_share_of_the_rows_changes(name):
    x = noise(8, 8000)
    changed = (LAYERS[name](x, SEED, training=True).numpy() != x).any(axis=1)
    assert changed.sum() == 4
    assert (changed != (LAYERS[name](x, NEXT, training=True).numpy() != x).any(axis=1)).any()


def test_mixing_by_hand():
    """Speech of power 4, noise of power 1, at a ratio of 10: the noise times √0.4."""
    mixed = augment.mix(tf.constant([[2.0, -2.0]]), tf.constant([[1.0, 1.0]]), tf.constant([[10.0]]))
    np.testing.assert_allclose(mixed, [[2 + np.sqrt(0.4), -2 + np.sqrt(0.4)]], rtol=1e-6)


@pytest.mark.parametrize("name", ["noise", "babble"])
def test_signal_to_noise_ratio_is_within_the_limits(name):
    x = noise(64, 8000, 1)
    added = LAYERS[name](x, SEED, training=True).numpy() - x
    rows = np.abs(added).max(axis=1) > 0
    snr = 10 * np.log10((x[rows] ** 2).mean(axis=1) / (added[rows] ** 2).mean(axis=1))
    assert snr.min() >= 5 - 0.01 and snr.max() <= 20.01
    assert np.ptp(snr) > 8  # 32 draws from 15 dB


@pytest.mark.parametrize("decibels", [0.0, 12.0])
def test_signal_to_noise_ratio_is_the_drawn_one(decibels):
    """Between equal limits there is one to draw, which the powers of what goes in and what is added then have."""
    x = noise(8, 8000, 1)
    for layer in (
        augment.AdditiveNoise(noise(4, 9000, 5), 1.0, (decibels, decibels)),
        augment.Babble(1.0, (decibels, decibels)),
    ):
        added = layer(x, SEED, training=True).numpy() - x
        snr = 10 * np.log10((x**2).mean(axis=1) / (added**2).mean(axis=1))
        np.testing.assert_allclose(snr, decibels, atol=0.01)


def test_silence_stays_finite():
    for layer in LAYERS.values():
        assert np.isfinite(layer(np.zeros((4, 2000), np.float32), SEED, training=True)).all()


def test_babble_is_of_other_rows_only():
    """Eight sines of their own frequencies: what is added to a row has nothing at its own."""
    frequencies = 500 * np.arange(1, 9)
    x = sines(frequencies, 16_000)
    layer = augment.Babble(1.0, (0.0, 0.0))
    added = layer(x, SEED, training=True).numpy() - x
    spectra = np.abs(np.fft.rfft(added))[:, frequencies]  # one bin a Hz
    assert np.diag(spectra).max() < 1 and ((spectra > 100).sum(axis=1) >= 1).all()


def test_babble_has_as_many_voices_as_drawn():
    """64 sines, 100 Hz apart: the bins that rise are the voices. Of three drawn at random some are the same."""
    frequencies = 100 * np.arange(1, 65)
    x = sines(frequencies, 16_000)
    for voices, fewest, most in (((3, 3), 1, 3), ((3, 7), 1, 7)):
        added = augment.Babble(1.0, (0.0, 0.0), voices)(x, SEED, training=True).numpy() - x
        counts = (np.abs(np.fft.rfft(added))[:, frequencies] > 100).sum(axis=1)
        assert counts.min() >= fewest and counts.max() == most


def test_reverberation_is_a_convolution_and_keeps_the_power():
    x, h = noise(2, 3000), noise(2, 500, 1)
    expected = np.stack([scipy.signal.fftconvolve(a, b)[:3000] for a, b in zip(x, h, strict=True)])
    expected *= np.sqrt((x**2).mean(axis=1, keepdims=True) / (expected**2).mean(axis=1, keepdims=True))
    np.testing.assert_allclose(augment.reverberate(x, h), expected, atol=1e-4)
    delta = np.zeros((2, 500), np.float32)
    delta[:, 0] = 0.3
    np.testing.assert_allclose(augment.reverberate(x, delta), x, atol=1e-5)


def test_fft_lengths():
    """Products of 2, 3 and 5: 1001 → 1024, 37 → 40, 2·3·5 = 30."""
    assert [augment.good_length(n) for n in (1001, 37, 30, 1)] == [1024, 40, 30, 1]


def test_gain_is_within_its_decibels():
    x = noise(64, 100)
    gains = 20 * np.log10(LAYERS["gain"](x, SEED, training=True).numpy()[:, 0] / x[:, 0])
    assert np.abs(gains).max() <= 6.01 and np.ptp(gains) > 8


def test_filter_is_its_curve():
    """Sines in the middle of bins come out louder or softer by the curve's decibels there, and not shifted."""
    bins = np.array([8, 200, 1200, 3000, 3990])  # one Hz each
    x = sines(bins, 2 * RATE).reshape(5, 2, RATE).sum(axis=0) * 0.1
    layer = augment.Filter(6.0)
    curves = layer.curves(tf.random.experimental.stateless_fold_in(SEED, layer.STREAM), 2).numpy()
    places = np.log1p(bins / 700) / np.log1p(8000 / 700)
    decibels = [np.interp(places, np.linspace(0, 1, layer.POINTS), curve) for curve in curves]
    ratios = np.fft.rfft(layer(x, SEED, training=True).numpy())[:, bins] / np.fft.rfft(x)[:, bins]
    np.testing.assert_allclose(ratios, 10 ** (np.array(decibels) / 20), atol=1e-3)


def test_filter_curves_are_lines_on_the_mel_scale_between_six_frequencies():
    """In places of a fine grid that is even in mel, second differences are 0 but at the four inner corners."""
    layer = augment.Filter(6.0)
    layer.POINTS = 2001
    found = []
    for curve in layer.curves(SEED, 32).numpy():
        assert np.abs(curve).max() <= 6.001
        bends = np.abs(np.diff(curve, 2)) > 1e-3
        corners = np.flatnonzero(bends[1:] & ~bends[:-1]) + 1 + bends[0]
        off = np.abs(corners[:, np.newaxis] / (layer.POINTS - 1) - np.array([0.2, 0.4, 0.6, 0.8]))
        assert (off.min(axis=1) <= 0.052).all()  # within a quarter of a band, 0.05
        found.append((off <= 0.052).any(axis=0))
    assert (np.mean(found, axis=0) > 0.85).all()  # a corner may be too flat to be seen
    curves = layer.curves(SEED, 256).numpy()
    assert np.ptp(curves[:, 0]) > 11 and np.ptp(curves[:, -1]) > 11  # from end to end, and each end of its own
    assert abs(np.corrcoef(curves[:, 0], curves[:, -1])[0, 1]) < 0.2


def test_interpolation_from_the_mel_scale():
    """Like NumPy's, of values at places even on the HTK mel scale 1127·ln(1 + f/700), at frequencies even in Hz."""
    values = np.random.default_rng(0).normal(size=9)
    mels = 1127 * np.log1p(np.linspace(0, 8000, 33) / 700)
    expected = np.interp(mels, np.linspace(0, mels[-1], 9), values)
    np.testing.assert_allclose(values @ augment.from_mel_places(9, 33), expected, rtol=1e-9)


def test_speed_of_rows_by_hand():
    np.testing.assert_array_equal(augment.speed_of_rows(7, (0.9, 1, 1.1)), [0, 0, 0, 1, 1, 2, 2])
    # Pairs of rows stay together: four speakers with two utterances each, three speeds.
    np.testing.assert_array_equal(augment.speed_of_rows(8, (0.9, 1, 1.1), unit=2), [0, 0, 0, 0, 1, 1, 2, 2])


def test_speeds_scale_frequencies_and_rows_at_their_own_speed_are_untouched():
    """1000 Hz at speeds 0.9, 1 and 1.1 are 900, 1000 and 1100 Hz; output bins are 1 Hz apart."""
    layer = augment.SpeedPerturbation([0.9, 1.0, 1.1], RATE)
    x = sines([1000] * 3, augment.input_samples(RATE, [0.9, 1.0, 1.1]))
    assert x.shape[1] == 17_600
    y = layer(x, training=True).numpy()
    assert [loudest(row) for row in y] == [900, 1000, 1100]
    np.testing.assert_array_equal(y[1], x[1, :RATE])
    np.testing.assert_allclose(np.sqrt((y**2).mean(axis=1)), 0.5 / np.sqrt(2), rtol=0.01)
    np.testing.assert_array_equal(layer(x), x[:, :RATE])
    compiled = tf.function(lambda x: layer(x, training=True))
    np.testing.assert_allclose(compiled(x), y, atol=1e-5)


def test_nothing_is_folded_back_by_a_faster_speed():
    """7,900 Hz played 1.1 times as fast would be 8,690 Hz: beyond what there is, so nothing."""
    tone = sines([7900], 17_600) * np.hanning(17_600).astype(np.float32)
    assert np.abs(augment.SpeedPerturbation([1.1], RATE)(tone, training=True)).max() < 1e-3


def test_spec_augment_masks_rows_and_frames_to_zero():
    layer = augment.SpecAugment(10, 20)
    x = np.ones((32, 80, 200, 1), np.float32)
    y = layer(x, SEED, training=True).numpy()[..., 0]
    rows, frames = (y == 0).all(axis=2).sum(axis=1), (y == 0).all(axis=1).sum(axis=1)
    assert rows.max() <= 20 and frames.max() <= 40 and rows.max() > 10 and frames.max() > 20
    assert len(set(rows)) > 4 and set(np.unique(y)) == {0, 1}
    # What is left is a product of a row's mask and a frame's.
    np.testing.assert_array_equal(y, y.max(axis=2, keepdims=True) * y.max(axis=1, keepdims=True))
    np.testing.assert_array_equal(layer(x, SEED), x)
    np.testing.assert_array_equal(layer(x, SEED, training=True).numpy()[..., 0], y)
    np.testing.assert_array_equal(tf.function(lambda x, seed: layer(x, seed, training=True))(x, SEED)[..., 0], y)
    assert (layer(x, NEXT, training=True).numpy()[..., 0] != y).any()
    only_time = augment.SpecAugment(0, 20)(x, SEED, training=True).numpy()
    assert (only_time.max(axis=2) == 1).all() and (only_time == 0).any()


def test_masks_wider_than_the_spectrogram_are_drawn_up_to_its_width():
    """Widths uniform on 0…10 for 10 frames: one mask of 256 leaves half on average, not nothing."""
    masked = augment.SpecAugment(0, 1000, masks=1)(np.ones((256, 4, 10, 1), np.float32), SEED, training=True)
    assert np.mean(masked) == pytest.approx(0.5, abs=0.06)


def test_chain():
    chain = augment.WaveformAugmentation([augment.SpeedPerturbation([0.9, 1.1], 8000), *LAYERS.values()])
    x = noise(8, augment.input_samples(8000, [0.9, 1.1]))
    assert chain(x, SEED, training=True).shape == (8, 8000)
    np.testing.assert_array_equal(chain(x, SEED), x[:, :8000])


def test_noises_come_from_any_layout_and_bad_files_are_left_out(tmp_path, caplog):
    for index, name in enumerate(("music/a/long.wav", "noise/short.flac", "speech/b.wav")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(1, 3 * RATE if index == 0 else RATE // 2, index)[0], RATE)
    (tmp_path / "noise" / "bad.wav").write_bytes(b"nothing")
    bank = augment.load_noises(tmp_path, 1.0)
    samples = crop_samples(1.0)
    assert bank.dtype == np.float16
    # long.wav is 48,000 samples: two whole excerpts of 16,240.
    assert bank.shape == (4, samples)
    assert "bad.wav" in caplog.text
    short, _ = soundfile.read(tmp_path / "noise" / "short.flac", dtype="float32")
    np.testing.assert_allclose(bank[2], np.resize(short, samples), atol=1e-3)  # repeated
    assert len(augment.load_noises(tmp_path, 1.0, limit=2, seed=1)) <= 2
    np.testing.assert_array_equal(
        augment.load_noises(tmp_path, 1.0, seed=4), augment.load_noises(tmp_path, 1.0, seed=4)
    )


def test_a_bank_fits_the_crops_of_as_many_seconds(tmp_path):
    """2 s are 200 frames = 200·160 + 240 = 32,240 samples, more than 2 · 16,000."""
    soundfile.write(tmp_path / "a.wav", noise(1, 3 * RATE)[0], RATE)
    layer = augment.AdditiveNoise(augment.load_noises(tmp_path, 2.0), 1.0, (5.0, 20.0))
    assert layer(noise(4, crop_samples(2.0)), SEED, training=True).shape == (4, 32_240)


def test_few_long_noises_give_several_excerpts_up_to_the_limit(tmp_path):
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", noise(1, 10 * RATE, ord(name))[0], RATE)
    bank = augment.load_noises(tmp_path, 1.0)
    assert len(bank) == 18  # 160,000 // 16,240 = 9 of each
    assert len(np.unique(bank[:, :50], axis=0)) == 18
    assert len(augment.load_noises(tmp_path, 1.0, limit=6)) == 6


def test_noises_of_rirs_noises_are_no_responses(tmp_path):
    room = np.eye(1, 4000, dtype=np.float32)[0]
    for name in ("simulated_rirs/r.wav", "pointsource_noises/n.wav", "real_rirs/RVB2014_type1_noise_largeroom1_1.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, room, RATE)
    assert len(augment.load_responses(tmp_path)) == 1
    with pytest.raises(augment.AugmentError, match="--reverberation"):
        augment.load_responses(tmp_path / "pointsource_noises")


def test_responses_begin_with_their_peak(tmp_path):
    response = np.zeros(5000, np.float32)
    response[1000], response[1300] = 0.8, 0.6
    soundfile.write(tmp_path / "room.wav", response, RATE, subtype="FLOAT")
    bank = augment.load_responses(tmp_path, seconds=0.25)
    assert bank.shape == (1, 4000)
    assert bank[0, 0] == pytest.approx(0.8) and bank[0, 300] == pytest.approx(0.6)
    assert np.sum(bank**2) == pytest.approx(1)


def test_empty_and_missing_folders_are_explained(tmp_path):
    with pytest.raises(augment.AugmentError, match=r"--noise=.*expected a folder with .*\.wav.*no such files in it"):
        augment.load_noises(tmp_path, 1.0)
    with pytest.raises(augment.AugmentError, match=r"--reverberation=nowhere: .*no such folder"):
        augment.load_responses("nowhere")
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    with pytest.raises(augment.AugmentError, match="none of 1 files can be used"):
        augment.load_noises(tmp_path, 1.0)
