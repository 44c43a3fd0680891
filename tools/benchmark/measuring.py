"""What the sections of the benchmark share."""

import dataclasses
import multiprocessing
import pathlib
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import av
import numpy as np
import soundfile

from vggvox_tf import audio


@dataclasses.dataclass(frozen=True)
class Options:
    """What the flags say, for the sections."""

    rounds: int
    seconds: float
    audio: str | None = None
    encoder: str | None = None
    trials: str | None = None
    index: str | None = None


def ratio(numerators, denominators):
    """Median over the rounds, to two digits."""
    return round(statistics.median(n / d for n, d in zip(numerators, denominators, strict=True)), 2)


def print_table(rows, header=True):
    """Prints dicts as aligned columns; lists (the single rounds) are left to the JSON."""
    for number, row in enumerate(rows):
        row = {key: value for key, value in row.items() if not isinstance(value, list)}
        wide = ("decoder", "task", "way")
        widths = [max(len(key), 34 if key in wide else 12) for key in row]
        if header and number == 0:
            print("  ".join(key.ljust(width) for key, width in zip(row, widths, strict=True)))
        print(
            "  ".join(str(value).ljust(width) for value, width in zip(row.values(), widths, strict=True)),
            flush=True,
        )


def write_speech(path, seconds, rng):
    """Writes a recording of speech-like noise: a falling spectrum, four syllables per second."""
    samples = round(seconds * audio.SAMPLE_RATE)
    shape = 1 / (1 + np.fft.rfftfreq(samples, 1 / audio.SAMPLE_RATE) / 500)  # half at 500 Hz
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * shape, samples)
    syllables = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * np.arange(samples) / audio.SAMPLE_RATE)
    waveform = (0.3 * syllables * noise / np.abs(noise).max()).astype(np.float32)
    if not str(path).endswith(".m4a"):
        soundfile.write(path, waveform, audio.SAMPLE_RATE)
        return
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=audio.SAMPLE_RATE, layout="mono")
        stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(waveform[np.newaxis], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = audio.SAMPLE_RATE, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])


def peak_memory():
    """The most MiB that this process has held so far (Linux)."""
    # Unlike getrusage's, Linux's own count does not begin with that of the process that started this one.
    status = pathlib.Path("/proc/self/status")
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


def of_process(function, *arguments):
    """What the function returns in a process that has done nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _measured(function, argument):
    begin = time.perf_counter()
    function(argument)
    return time.perf_counter() - begin, peak_memory()


def in_process(function, argument):
    """Seconds and peak MiB of `function(argument)` in a process that has done nothing else."""
    return of_process(_measured, function, argument)
