"""The front end: waveforms, played at another speed or as they are, to normalised spectrograms, as layers of the model.

Frames of 25 ms (400 samples) every 10 ms (160 samples) at 16 kHz under a Hamming window, as in VoxCeleb1
(Nagrani et al. 2017, section 4.1). There is no padding, so `n` frames need n·160 + 240 samples.

    magnitude (rows) → [mel bands of the power] → compression → normalisation
"""

from fractions import Fraction

import keras
import tensorflow as tf

SAMPLE_RATE = 16_000
FRAME_LENGTH = 400  # 25 ms
FRAME_STEP = 160  # 10 ms

# rows -> FFT length. 512 rows are the paper's: bins 0–511 of a 1024-point FFT, without the Nyquist bin.
# 257 rows are all bins of a 512-point FFT, as released ResNet trunks expect (257→129→65→33→17→9).
FFT_LENGTHS = {512: 1024, 257: 512}

# Added to the magnitude before the logarithm, so that bins between and below the speech do not vary as much as those
# of the speech. In the demo corpus half of the magnitudes lie below 0.012 and 5 % above 0.55; rounding to 16 bits alone
# makes one of about 2⁻¹⁵/√12 · √(Σw²) = 8.8e-6 · 12.6 = 1.1e-4. Of 1e-3, 1e-2 and 1e-1, 1e-2 gave the lowest EER on
# held-out speakers (9.75, 9.25 and 10.20 % after 400 steps).
LOG_OFFSET = 1e-2

# The same for the energy in a mel band, which is a sum of squares: (1e-2)².
LOG_MEL_OFFSET = 1e-4

# Edges of the mel bands in Hz: below 20 Hz there is no speech, above 7,600 Hz the low-pass filters of recorders.
MEL_EDGES = (20.0, 7600.0)

# With more bands some of the lowest lie between two bins of the 512-point FFT, 31.25 Hz apart, and are always empty.
MAXIMUM_MEL_BANDS = 124

# Exponent of the power law, on magnitudes. 1/3 of the power (the loudness of a sound grows with the cube root of its
# intensity: Stevens 1957; Hermansky 1990) is 2/3 of the magnitude.
POWER_LAW = 2 / 3

COMPRESSIONS = ("linear", "log", "power")
NORMALISATIONS = ("time", "mean", "running", "learned")

# A bin's standard deviation over time is taken to be at least this, so that a bin that never changes comes out
# as zeros instead of 0/0. It is far below the deviation that 16-bit rounding gives a bin (about 6e-5).
MINIMUM_DEVIATION = 1e-6


def frames_in(samples):
    """Number of whole frames in `samples` samples (an int or an array of them)."""
    return (samples - FRAME_LENGTH) // FRAME_STEP + 1


def samples_for(frames):
    """Smallest number of samples that holds `frames` frames: 300 frames = 300·160 + 240 = 48,240 samples."""
    return frames * FRAME_STEP + FRAME_LENGTH - FRAME_STEP


def crop_samples(seconds):
    """Samples of a crop of nominally `seconds`: 100 frames a second, so 3 s gives the paper's 300 frames."""
    return samples_for(round(seconds * SAMPLE_RATE / FRAME_STEP))


def play(waveforms, speed):
    """Rows (B, samples) at another speed, to two decimals: (B, ⌊samples / speed⌋), with another pitch.

    Band-limited: the spectrum is cut, or filled up with zeros.
    """
    taken, given = Fraction(speed).limit_denominator(100).as_integer_ratio()  # of so many samples so many are made
    samples = waveforms.shape[1] or tf.shape(waveforms)[1]
    units = -(-samples // taken)
    units = -(-units // 256) * 256  # with silence after it: FFTs are faster where the length has small factors
    spectra = tf.signal.rfft(waveforms, [taken * units])
    if given > taken:
        spectra = tf.pad(spectra, [[0, 0], [0, (given - taken) * units // 2]])
    played = tf.signal.irfft(spectra[:, : given * units // 2 + 1], [given * units]) * (given / taken)
    return played[:, : samples // taken * given + samples % taken * given // taken]


@keras.saving.register_keras_serializable(package="vggvox_tf")
class Speed(keras.layers.Layer):
    """Plays waveforms (B, samples) at another speed, from half to twice as fast, in training and outside of it."""

    def __init__(self, speed, **kwargs):
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        if not 0.5 <= speed <= 2:
            raise ValueError(f"speed must be from 0.5 to 2, received {speed}")
        self.speed = speed

    def call(self, waveforms):
        return play(tf.cast(waveforms, tf.float32), self.speed)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], None)

    def get_config(self):
        return super().get_config() | {"speed": self.speed}


def short_time_spectra(waveforms, window, frame_step, fft_length):
    """The short-time Fourier transform, without padding at the ends.

    Args:
      waveforms: float32 (B, samples).
      window: float32 (frame_length,); frames are multiplied by it and zero-padded to `fft_length`.
      frame_step: hop between frames in samples.
      fft_length: points of the FFT; bin k lies at k · sample rate / fft_length Hz.

    Returns:
      complex64 (B, T, fft_length // 2 + 1).
    """
    frames = tf.signal.frame(waveforms, window.shape[0], frame_step)  # (B, T, frame_length)
    return tf.signal.rfft(frames * window, [fft_length])


def mel_filters(bands, fft_length):
    """Triangular filters (fft_length // 2 + 1, bands), evenly spaced on the HTK mel scale 1127·ln(1 + f/700)."""
    return tf.signal.linear_to_mel_weight_matrix(bands, fft_length // 2 + 1, SAMPLE_RATE, *MEL_EDGES)


def normalise_over_time(spectrograms):
    """Zero mean and unit variance for every frequency bin of (B, F, T) over its frames.

    Nagrani et al. 2017, section 4.1: worth "almost 10 %" in identification accuracy. A constant bin becomes zeros.
    """
    mean, variance = tf.nn.moments(spectrograms, axes=[2], keepdims=True)
    return (spectrograms - mean) / tf.maximum(tf.sqrt(variance), MINIMUM_DEVIATION)


@keras.saving.register_keras_serializable(package="vggvox_tf")
class Spectrogram(keras.layers.Layer):
    """Waveforms (B, samples) in [-1, 1] at 16 kHz to normalised spectrograms (B, F, T, 1).

    Always computes in float32: under a float16 policy the squares of the quiet bins would underflow.

    Args:
      rows: 512 (1024-point FFT, the paper's) or 257 (512-point FFT): F, unless there are mel bands.
      mel_bands: F triangular mel filters, at most 124, over the power spectrum (the default of Kaldi and torchaudio) of
        a 512-point FFT; 0 keeps the rows.
      compression: "linear" magnitude, as in the paper (with mel bands: the root of their energy), its logarithm "log",
        or "power", its 2/3rd power.
      normalisation: "time": zero mean and unit variance of every row over the recording's frames, the paper's. "mean":
        zero mean only. "running": by the mean and variance of every row over the recordings trained on, as a running
        average. "learned": by a mean and a scale of every row that are trained, from 0 and 1.
      minimum_frames: shorter waveforms are refused with InvalidArgumentError; the trunk behind this layer
        sets it to the shortest input that its pooling layers leave something of.
    """

    def __init__(self, rows=512, mel_bands=0, compression="linear", normalisation="time", minimum_frames=1, **kwargs):
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        for name, value, known in (
            ("rows", rows, sorted(FFT_LENGTHS)),
            ("mel_bands", mel_bands, range(MAXIMUM_MEL_BANDS + 1)),
            ("compression", compression, COMPRESSIONS),
            ("normalisation", normalisation, NORMALISATIONS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, received {value}")
        self.rows = rows
        self.mel_bands = mel_bands
        self.compression = compression
        self.normalisation = normalisation
        self.minimum_frames = minimum_frames
        self.fft_length = FFT_LENGTHS[257 if mel_bands else rows]
        if normalisation == "running":
            # A memory of ten batches as in the trunks; Keras's ε of 1e-3 is more than the variance of most linear rows.
            self.statistics = keras.layers.BatchNormalization(
                axis=1, momentum=0.9, epsilon=MINIMUM_DEVIATION**2, center=False, scale=False, dtype="float32"
            )

    def build(self, input_shape):
        if self.normalisation == "running":
            self.statistics.build(self.compute_output_shape(input_shape)[:3])
        elif self.normalisation == "learned":
            shape = (self.mel_bands or self.rows, 1)
            self.mean = self.add_weight(shape, "zeros", name="mean")
            self.scale = self.add_weight(shape, "ones", name="scale")

    def call(self, waveforms, training=False):
        minimum = samples_for(self.minimum_frames)
        message = f"this encoder needs at least {minimum} samples ({minimum / SAMPLE_RATE:.2f} s at 16 kHz) of audio"
        if waveforms.shape[1] is not None and waveforms.shape[1] < minimum:
            raise ValueError(f"{message}, received {waveforms.shape[1]}")
        checks = [tf.debugging.assert_greater_equal(tf.shape(waveforms)[1], minimum, message=message)]
        with tf.control_dependencies(checks):
            waveforms = tf.cast(waveforms, tf.float32)
        window = tf.signal.hamming_window(FRAME_LENGTH)
        spectra = short_time_spectra(waveforms, window, FRAME_STEP, self.fft_length)
        spectrograms = tf.transpose(self.compress(spectra), [0, 2, 1])  # (B, F, T)
        if self.normalisation == "time":
            spectrograms = normalise_over_time(spectrograms)
        elif self.normalisation == "mean":
            spectrograms -= tf.reduce_mean(spectrograms, axis=2, keepdims=True)
        elif self.normalisation == "running":
            spectrograms = self.statistics(spectrograms, training=training)
        else:
            spectrograms = (spectrograms - self.mean) * self.scale
        return spectrograms[..., tf.newaxis]  # (B, F, T, 1)

    def compress(self, spectra):
        """Complex spectra (B, T, bins) to compressed rows or mel bands (B, T, F)."""
        if self.mel_bands:
            power = tf.square(tf.math.real(spectra)) + tf.square(tf.math.imag(spectra))  # the magnitude takes a root
            energies = tf.matmul(power, mel_filters(self.mel_bands, self.fft_length))
            if self.compression == "log":
                return tf.math.log(energies + LOG_MEL_OFFSET)
            return energies ** (0.5 if self.compression == "linear" else POWER_LAW / 2)
        magnitudes = tf.abs(spectra[..., : self.rows])
        if self.compression == "log":
            return tf.math.log(magnitudes + LOG_OFFSET)
        return magnitudes if self.compression == "linear" else magnitudes**POWER_LAW

    def compute_output_shape(self, input_shape):
        samples = input_shape[1]
        return (input_shape[0], self.mel_bands or self.rows, None if samples is None else frames_in(samples), 1)

    def get_config(self):
        return super().get_config() | {
            "rows": self.rows,
            "mel_bands": self.mel_bands,
            "compression": self.compression,
            "normalisation": self.normalisation,
            "minimum_frames": self.minimum_frames,
        }
