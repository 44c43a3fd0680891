"""The front end, 512 rows of magnitude with their normalisation, against the same by scipy, librosa and PyTorch."""

import statistics
import time

import numpy as np
import scipy.signal
import tensorflow as tf

from tools.benchmark.measuring import Options, print_table, ratio
from vggvox_tf.frontend import FRAME_LENGTH, FRAME_STEP, SAMPLE_RATE, Spectrogram, crop_samples

BATCH, SECONDS, FFT = 32, 3, 1024
# The others centre the window in the FFT: so much silence on both sides gives them the same frames.
AROUND = (FFT - FRAME_LENGTH) // 2


def _normalised(magnitudes):
    magnitudes = magnitudes[:, :512]
    return (magnitudes - magnitudes.mean(2, keepdims=True)) / magnitudes.std(2, keepdims=True)


def _ways(waveforms):
    """Name -> function that computes spectrograms (B, 512, T) of the batch; ours first."""
    window = scipy.signal.get_window("hamming", FRAME_LENGTH)  # periodic, as TensorFlow's
    wide = np.pad(waveforms, [(0, 0), (AROUND, AROUND)])
    front_end, batch = tf.function(Spectrogram(512)), tf.constant(waveforms)

    def scipy_stft():
        _, _, spectra = scipy.signal.stft(
            waveforms, window=window, nperseg=FRAME_LENGTH, noverlap=FRAME_LENGTH - FRAME_STEP, nfft=FFT,
            boundary=None, padded=False,
        )  # fmt: skip
        return _normalised(np.abs(spectra))

    ways = {"frontend.Spectrogram": lambda: front_end(batch).numpy()[..., 0], "scipy.signal.stft": scipy_stft}
    try:
        import librosa  # an extra of the benchmark: requirements-benchmark.txt

        ways["librosa.stft"] = lambda: _normalised(
            np.abs(
                librosa.stft(
                    wide, n_fft=FFT, hop_length=FRAME_STEP, win_length=FRAME_LENGTH, window=window, center=False
                )
            )
        )
    except ImportError as error:
        print(f"Without librosa: {error}")
    try:
        import torch  # another

        padded, torch_window = torch.from_numpy(wide), torch.from_numpy(window.astype(np.float32))

        def torch_stft():
            spectra = torch.stft(
                padded, FFT, FRAME_STEP, FRAME_LENGTH, torch_window, center=False, return_complex=True
            )  # fmt: skip
            magnitudes = spectra.abs()[:, :512]
            deviation, mean = torch.std_mean(magnitudes, 2, correction=0, keepdim=True)
            return ((magnitudes - mean) / deviation).numpy()

        ways["torch.stft"] = torch_stft
    except ImportError as error:
        print(f"Without PyTorch: {error}")
    return ways


def front_end(options: Options):
    """Milliseconds for a second of audio, in batches of 32 crops of 3 s, and the ratio to ours."""
    random = np.random.default_rng(0)
    ways = _ways(random.normal(0, 0.1, (BATCH, crop_samples(SECONDS))).astype(np.float32))
    results = {name: compute() for name, compute in ways.items()}  # the first call traces and plans
    expected = results["frontend.Spectrogram"]
    times = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, compute in ways.items():
            begin = time.perf_counter()
            compute()
            times[name].append(1000 * (time.perf_counter() - begin) / (BATCH * crop_samples(SECONDS) / SAMPLE_RATE))
    ours = times["frontend.Spectrogram"]
    rows = [
        {
            "way": name,
            "ms per second": round(statistics.median(values), 3),
            "ratio": ratio(values, ours),
            "largest difference": f"{np.abs(results[name] - expected).max():.0e}",
            "rounds": [round(value, 4) for value in values],
        }
        for name, values in times.items()
    ]
    print_table(rows)
    return rows
