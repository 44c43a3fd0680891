"""Augmentation of training batches, on the device: waveforms before the front end, and masks of spectrograms after it.

Every layer is a function of (batch, seed): it draws by TensorFlow's stateless generators from an int32 (2,) seed, of
which the trainer makes (seed, step), so that a killed and resumed run goes on as if nothing had happened. Off unless
`training`. A share of a batch is an exact number of its rows, chosen anew each step, so that the rest costs nothing.

Banks of noises and impulse responses are in memory: 512 noises of 3 s take 512 · 48,240 · 2 bytes = 49 MB as float16.
"""

import math
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from vggvox_tf import audio
from vggvox_tf.corpus import AUDIO_SUFFIXES
from vggvox_tf.frontend import SAMPLE_RATE, crop_samples, play

# Powers below this (a full-scale sine has 0.5) count as this: a digital silence cannot be brought to a power.
SILENT_POWER = 1e-12


class AugmentError(ValueError):
    """A folder that holds nothing to augment with."""


# Draws


def draw_rows(seed, batch, share):
    """int32 (round(share · batch),): different rows of a batch, in random order."""
    order = tf.argsort(tf.random.stateless_uniform([batch], seed))
    return order[: round(share * batch)]


def draw_ratios(seed, count, decibels):
    """Power ratios (count, 1), uniform in dB between the two `decibels`."""
    return 10.0 ** (tf.random.stateless_uniform([count, 1], seed, *decibels) / 10)


def power(waveforms):
    """Mean squares (B, 1)."""
    return tf.maximum(tf.reduce_mean(tf.square(waveforms), axis=1, keepdims=True), SILENT_POWER)


# What is done to waveforms (B, samples)


def mix(speech, noise, ratios):
    """Speech plus noise at power ratios (B, 1): x + n·√(Pₓ / (Pₙ·ratio))."""
    return speech + noise * tf.sqrt(power(speech) / (power(noise) * ratios))


def reverberate(waveforms, responses):
    """Convolves rows with impulse responses (B, taps), as long as before and with the same power.

    By FFT, with room for the tail, so that it does not come round to the beginning.
    """
    samples = waveforms.shape[1]
    length = good_length(samples + responses.shape[1] - 1)
    spectra = tf.signal.rfft(waveforms, [length]) * tf.signal.rfft(responses, [length])
    wet = tf.signal.irfft(spectra, [length])[:, :samples]
    return wet * tf.sqrt(power(waveforms) / power(wet))


def good_length(least):
    """The smallest product of 2, 3 and 5 that is at least `least`: FFTs of other lengths are slower."""
    lengths = (2**a * 3**b * 5**c for a in range(26) for b in range(8) for c in range(6))
    return min(length for length in lengths if length >= least)


# Layers


class Augmentation(keras.layers.Layer):
    """Base: `call(batch, seed, training)` augments with draws of its own, and does nothing unless training.

    `STREAM` keeps the draws of layers apart that get the same seed.
    """

    STREAM = 0

    def call(self, batch, seed, training=False):
        if not training:
            return batch
        return self.augment(batch, tf.random.experimental.stateless_fold_in(seed, self.STREAM))

    def on_rows(self, batch, seed, share, change):
        """The batch with `change(rows, indices, seed)` in place of a share of its rows."""
        first, rest = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        indices = draw_rows(first, batch.shape[0], share)
        if not indices.shape[0]:
            return batch
        changed = change(tf.gather(batch, indices), indices, rest)
        return tf.tensor_scatter_nd_update(batch, indices[:, tf.newaxis], changed)


def speed_of_rows(batch_size, speeds, unit=1):
    """Which of the speeds each row of a batch has: int32 (batch_size,), in blocks as equal as they can be.

    A function of the row alone, so that shapes are known beforehand; which utterance is in which row is random.

    Args:
      unit: consecutive rows that belong together, the K utterances of a speaker.
    """
    blocks = math.ceil(batch_size / unit)
    return np.repeat(np.arange(blocks) * len(speeds) // blocks, unit)[:batch_size].astype(np.int32)


def input_samples(samples, speeds):
    """Samples that SpeedPerturbation needs of an utterance to give `samples`."""
    return math.ceil(max(1, *speeds) * samples)


class SpeedPerturbation(keras.layers.Layer):
    """Plays rows faster or slower (Ko et al. 2015): (B, input_samples) to (B, samples).

    The voice's pitch changes with the speed, so that it may count as another speaker's. Not training: the first
    `samples` samples as they are.
    """

    def __init__(self, speeds, samples, unit=1):
        super().__init__(dtype="float32")
        self.speeds = speeds
        self.samples = samples
        self.unit = unit

    def call(self, waveforms, seed=None, training=False):
        if not training:
            return waveforms[:, : self.samples]
        speed_of_row = speed_of_rows(waveforms.shape[0], self.speeds, self.unit)
        parts = []
        for index, speed in enumerate(self.speeds):
            first, last = np.searchsorted(speed_of_row, [index, index + 1])
            rows = waveforms[first:last, : math.ceil(speed * self.samples)]
            parts.append(rows if speed == 1 else play(rows, speed)[:, : self.samples])
        return tf.concat(parts, axis=0)


class AdditiveNoise(Augmentation):
    """Adds noises of a bank (M, samples) to a share of the rows, at an SNR drawn from `snr` in dB."""

    STREAM = 1

    def __init__(self, bank, share, snr):
        super().__init__(dtype="float32")
        self.bank = tf.constant(bank)
        self.share = share
        self.snr = snr

    def augment(self, waveforms, seed):
        return self.on_rows(waveforms, seed, self.share, self.add)

    def add(self, rows, _, seed):
        count, samples = rows.shape
        which, where, ratio = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
        chosen = tf.random.stateless_uniform([count], which, 0, self.bank.shape[0], tf.int32)
        # One shift for all rows: a shift of its own for each takes a gather of single samples, several times as long.
        shift = tf.random.stateless_uniform([], where, 0, self.bank.shape[1], tf.int32)
        noise = tf.roll(tf.cast(tf.gather(self.bank, chosen), tf.float32), shift, axis=1)[:, :samples]
        return mix(rows, noise, draw_ratios(ratio, count, self.snr))


class Babble(Augmentation):
    """Adds the sum of other rows of the batch, each shifted in a circle, to a share of the rows.

    As the babble of x-vectors (Snyder et al. 2018), of 3 to 7 speakers, but of the training speech itself: as many rows
    as are drawn from `voices`, (lowest, highest), of the same power each. A row's own speaker may be among them, and a
    row be there twice; the row itself is not.
    """

    STREAM = 2

    def __init__(self, share, snr, voices=(3, 7)):
        super().__init__(dtype="float32")
        self.share = share
        self.snr = snr
        self.voices = voices

    def augment(self, waveforms, seed):
        def add(rows, indices, seed):
            count, samples = rows.shape
            batch = waveforms.shape[0]
            fewest, most = self.voices
            which, where, many, ratio = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
            offsets = tf.random.stateless_uniform([most, count], which, 1, batch, tf.int32)
            # One for all rows, as in AdditiveNoise.
            shifts = tf.random.stateless_uniform([most], where, 0, samples, tf.int32)
            voices = tf.random.stateless_uniform([count, 1], many, fewest, most + 1, tf.int32)
            noise = tf.zeros_like(rows)
            for voice in range(most):
                other = tf.roll(tf.gather(waveforms, (indices + offsets[voice]) % batch), shifts[voice], axis=1)
                other /= tf.sqrt(power(other))
                noise += other * tf.cast(voice < voices, tf.float32)
            return mix(rows, noise, draw_ratios(ratio, count, self.snr))

        return self.on_rows(waveforms, seed, self.share, add)


class Reverberation(Augmentation):
    """Puts a share of the rows into rooms: convolution with responses of a bank (R, taps)."""

    STREAM = 3

    def __init__(self, bank, share):
        super().__init__(dtype="float32")
        self.bank = tf.constant(bank)
        self.share = share

    def augment(self, waveforms, seed):
        def change(rows, _, seed):
            chosen = tf.random.stateless_uniform([rows.shape[0]], seed, 0, self.bank.shape[0], tf.int32)
            return reverberate(rows, tf.gather(self.bank, chosen))

        return self.on_rows(waveforms, seed, self.share, change)


class Gain(Augmentation):
    """Changes each row's loudness by −`decibels` to +`decibels`, uniformly."""

    STREAM = 4

    def __init__(self, decibels):
        super().__init__(dtype="float32")
        self.decibels = decibels

    def augment(self, waveforms, seed):
        return waveforms * tf.sqrt(draw_ratios(seed, waveforms.shape[0], (-self.decibels, self.decibels)))


class Filter(Augmentation):
    """Filters each row by a random curve of −`decibels` to +`decibels`, as a microphone or a room does.

    FilterAugment (Nam et al. 2022) of the linear kind: decibels are drawn for six frequencies, 0, 8 kHz and four about
    evenly between them on the mel scale, and are interpolated linearly on that scale. Of the waveform in place of the
    spectrogram, so that it is the same before every front end; in zero phase.
    """

    STREAM = 6
    BANDS = 5
    POINTS = 257  # where curves are computed, evenly on the mel scale; between two of them gains are interpolated

    def __init__(self, decibels):
        super().__init__(dtype="float32")
        self.decibels = decibels

    def augment(self, waveforms, seed):
        samples = waveforms.shape[1]
        length = good_length(samples)
        gains = 10.0 ** (self.curves(seed, waveforms.shape[0]) / 20)
        # A product with a matrix that is nearly all zeros, and still half of the time of a power for every bin.
        gains = tf.matmul(gains, tf.constant(from_mel_places(self.POINTS, length // 2 + 1), tf.float32))
        spectra = tf.signal.rfft(waveforms, [length]) * tf.cast(gains, tf.complex64)
        return tf.signal.irfft(spectra, [length])[:, :samples]

    def curves(self, seed, batch):
        """Decibels (batch, POINTS) at frequencies from 0 to 8 kHz, evenly on the mel scale."""
        where, what = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        # Each of the four is within a quarter of a band of its place, so that no band is narrower than half of one.
        jitter = tf.random.stateless_uniform([batch, self.BANDS - 1], where, -0.25, 0.25)
        corners = (tf.range(1.0, self.BANDS) + jitter) / self.BANDS
        places = tf.concat([tf.zeros([batch, 1]), corners, tf.ones([batch, 1])], axis=1)
        decibels = tf.random.stateless_uniform([batch, self.BANDS + 1], what, -self.decibels, self.decibels)
        mels = tf.linspace(0.0, 1.0, self.POINTS)
        curves = decibels[:, :1] * tf.ones_like(mels)
        for band in range(self.BANDS):
            low, high = places[:, band, tf.newaxis], places[:, band + 1, tf.newaxis]
            rise = decibels[:, band + 1, tf.newaxis] - decibels[:, band, tf.newaxis]
            curves += rise * tf.clip_by_value((mels - low) / (high - low), 0, 1)
        return curves


def from_mel_places(points, bins):
    """The matrix (points, bins) that interpolates from places even on the mel scale to frequencies even in Hz.

    Both from 0 to 8 kHz.
    """
    mels = np.log1p(np.linspace(0, SAMPLE_RATE / 2, bins) / 700)
    places = mels / mels[-1] * (points - 1)
    return np.maximum(0, 1 - np.abs(np.arange(points)[:, np.newaxis] - places))


class WaveformAugmentation(keras.layers.Layer):
    """Other layers, one after the other."""

    def __init__(self, steps):
        super().__init__(dtype="float32")
        self.steps = steps

    def call(self, waveforms, seed, training=False):
        for step in self.steps:
            waveforms = step(waveforms, seed, training=training)
        return waveforms


class SpecAugment(Augmentation):
    """Masks `masks` bands of rows and `masks` stretches of frames of spectrograms (B, F, T, 1) with 0.

    Park et al. 2019, section 2: widths uniform from 0 to the maximum, places uniform; no time warping. 0 is the mean
    after normalisation. A maximum of 0 leaves that axis alone.
    """

    STREAM = 5

    def __init__(self, frequency_mask, time_mask, masks=2):
        super().__init__(dtype="float32")
        self.widths = (frequency_mask, time_mask)
        self.masks = masks

    def augment(self, spectrograms, seed):
        batch = tf.shape(spectrograms)[0]
        for axis, widest in enumerate(self.widths, start=1):
            size = tf.shape(spectrograms)[axis]
            for mask in range(self.masks if widest else 0):
                own = tf.random.experimental.stateless_fold_in(seed, 2 * mask + axis)
                width_seed, place_seed = tf.unstack(tf.random.experimental.stateless_split(own, 2))
                width = tf.random.stateless_uniform([batch], width_seed, 0, tf.minimum(widest, size) + 1, tf.int32)
                places = tf.cast(size - width + 1, tf.float32) * tf.random.stateless_uniform([batch], place_seed)
                start = tf.cast(places, tf.int32)
                index = tf.range(size)[tf.newaxis]
                kept = (index < start[:, tf.newaxis]) | (index >= (start + width)[:, tf.newaxis])  # (B, size)
                shape = [batch, size, 1, 1] if axis == 1 else [batch, 1, size, 1]
                spectrograms *= tf.reshape(tf.cast(kept, spectrograms.dtype), shape)
        return spectrograms


# Banks


def audio_files(folder, flag, unwanted=lambda path: False):
    """Sorted paths of the recordings below a folder but the unwanted; AugmentError where there are none."""
    files = (path for path in Path(folder).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    paths = sorted(path for path in files if not unwanted(path))
    if not paths:
        found = "no such files in it" if Path(folder).is_dir() else "no such folder"
        raise AugmentError(
            f"--{flag}={folder}: expected a folder with {', '.join(AUDIO_SUFFIXES)} files, found {found}"
        )
    return paths


def load_each(paths, load, folder, flag):
    """The rows that `load(path)` makes of each of the files; bad ones are named and left out."""
    loaded = []
    for path in paths:
        try:
            loaded.extend(load(path))
        except audio.AudioError as error:
            logging.warning("Skipping a bad recording of --%s: %s", flag, error)
    if not loaded:
        raise AugmentError(f"--{flag}={folder}: none of {len(paths)} files can be used; the log names them")
    return np.stack(loaded)


def load_noises(folder, seconds, limit=512, seed=0):
    """Excerpts of the noises below a folder, MUSAN's or any: float16 (M, crop_samples(seconds)), M ≤ limit.

    Of more files than `limit`, as MUSAN's 2,016 with 109 hours are, some are drawn by the seed, one excerpt of each. Of
    fewer, each gives as many as it is long, up to `limit` in all. Noises shorter than an excerpt are repeated.
    """
    paths = audio_files(folder, "noise")
    random = np.random.default_rng(seed)
    chosen = [paths[index] for index in np.sort(random.permutation(len(paths))[:limit])]
    positions = dict(zip(chosen, random.random(len(chosen)), strict=True))
    samples = crop_samples(seconds)

    def load(path):
        count = max(1, min(limit // len(chosen), audio.num_samples(path) // samples))
        places = (np.arange(count) + positions[path]) / count
        return [audio.load_crop(path, place, samples).astype(np.float16) for place in places]

    return load_each(chosen, load, folder, "noise")


def is_noise(path):
    """Whether a file of RIRS_NOISES is a noise: …/pointsource_noises/*.wav, …/RVB2014_type1_noise_*.wav."""
    return path.parent.name == "pointsource_noises" or "_noise_" in path.name


def load_responses(folder, seconds=0.5, limit=1024, seed=0):
    """Impulse responses of the rooms below a folder, RIRS_NOISES' or any: float32 (R, taps) of unit energy.

    The largest peak, the direct path, comes first, so that the speech is not delayed. Channels are averaged. Of more
    files than `limit` some are drawn by the seed. RIRS_NOISES also has noises, which are left out by their names.
    """
    paths = audio_files(folder, "reverberation", is_noise)
    chosen = [paths[index] for index in np.sort(np.random.default_rng(seed).permutation(len(paths))[:limit])]
    taps = round(seconds * SAMPLE_RATE)

    def load(path):
        response = audio.load(path)
        response = response[np.abs(response).argmax() :][:taps]
        return [np.pad(response / np.linalg.norm(response), (0, taps - len(response)))]

    return load_each(chosen, load, folder, "reverberation")
