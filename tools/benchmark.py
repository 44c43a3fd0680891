"""How fast the parts are on this machine.

  python -m tools.benchmark                                 every section
  python -m tools.benchmark decoders --rounds=7             one of them
  python -m tools.benchmark decoders --audio=/data/vox2     with real files instead of generated ones

Contestants are measured in turn, round by round, so that what else the machine does meets all of them alike.
The table shows medians over the rounds; a ratio is the median of the rounds' ratios to the first contestant.
CPU time, unlike speed, hardly depends on what else runs. Every round's figure goes to `--output`.

A section is a function of `Options` that returns rows (dicts of one shape), listed in `SECTIONS`.
"""

import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time

import av
import numpy as np
import soundfile
import tensorflow as tf
from absl import app, flags

from vggvox_tf import audio

CROP = 48_240  # samples at 16 kHz: 300 frames = 300·160 + 240
BATCH = 64
FILES = 32  # generated per container and length: the decoder is measured, not the disk
SECONDS = (4, 8, 20)
CONTAINERS = ("wav", "flac", "ogg", "mp3", "m4a")

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds, each of which measures every contestant once.", lower_bound=1)
_SECONDS = flags.DEFINE_float(
    "seconds_per_measurement", 1.5, "Seconds that one contestant is measured per round.", lower_bound=0.01
)
_AUDIO = flags.DEFINE_string(
    "audio",
    None,
    "Folder of real recordings, 16 kHz mono, for the decoders section; default: generated ones.",
)
_OUTPUT = flags.DEFINE_string("output", "benchmark.json", "File for the JSON report.")


@dataclasses.dataclass(frozen=True)
class Options:
    """What the flags say, for the sections."""

    rounds: int
    seconds: float
    audio: str | None = None


# Decoders: crops of 3 s at random positions, from files to batches


def _generate(folder, container, seconds, rng):
    """Writes FILES recordings of speech-like noise: a falling spectrum, four syllables per second."""
    folder = pathlib.Path(folder, f"{container}-{seconds}")
    folder.mkdir()
    paths = []
    for number in range(FILES):
        samples = seconds * audio.SAMPLE_RATE
        shape = 1 / (1 + np.fft.rfftfreq(samples, 1 / audio.SAMPLE_RATE) / 500)  # half at 500 Hz
        noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * shape, samples)
        syllables = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * np.arange(samples) / audio.SAMPLE_RATE)
        waveform = (0.3 * syllables * noise / np.abs(noise).max()).astype(np.float32)
        paths.append(str(folder / f"{number}.{container}"))
        if container == "m4a":
            _write_m4a(paths[-1], waveform)
        else:
            soundfile.write(paths[-1], waveform, audio.SAMPLE_RATE)
    return paths


def _write_m4a(path, waveform):
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=audio.SAMPLE_RATE, layout="mono")
        stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(waveform[np.newaxis], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = audio.SAMPLE_RATE, 0
        for packet in itertools.chain(stream.encode(frame), stream.encode(None)):
            container.mux(packet)


def _crop(waveform, position):
    start = int(position * max(1, len(waveform) - CROP + 1))
    return np.resize(waveform, CROP) if len(waveform) < CROP else waveform[start : start + CROP]


def _soundfile_whole(path, position):
    return _crop(soundfile.read(os.fsdecode(path), dtype="float32")[0], position)


def _pyav_whole(path, position):
    with av.open(os.fsdecode(path)) as container:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    if samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / (np.iinfo(samples.dtype).max + 1)
    return _crop(samples, position)


def _pyav_from_start(path, position):
    """The crop without a seek: all frames up to its end are decoded."""
    with av.open("file:" + os.fsdecode(path), format="mp4") as container:
        stream = container.streams.audio[0]
        stream.codec_context.thread_count = 1
        end = int(position * max(1, stream.duration - CROP + 1)) + CROP
        pieces, decoded = [], 0
        for frame in container.decode(stream):
            pieces.append(np.frombuffer(frame.planes[0], np.float32, frame.samples))
            decoded += frame.samples
            if decoded >= end:
                break
    return np.resize(np.concatenate(pieces)[end - CROP : end], CROP)


def _wav_fromfile(path, position):
    """The least that Python can do for a WAV: a 44-byte header, taken on trust."""
    frames = (os.path.getsize(path) - 44) // 2
    start = int(position * max(1, frames - CROP + 1))
    samples = np.fromfile(os.fsdecode(path), "<i2", CROP, offset=44 + 2 * start)
    return np.resize(samples.astype(np.float32) * np.float32(1 / 32768), CROP)


def _in_python(decode):
    def decode_path(path, position):
        crop = tf.numpy_function(decode, [path, position], tf.float32, stateful=False)
        return tf.ensure_shape(crop, [CROP])

    return decode_path


def _in_graph(decode):
    """decode: contents → (n, 1), int16 or float32."""

    def decode_path(path, position):
        waveform = decode(tf.io.read_file(path))[:, 0]
        length = tf.shape(waveform)[0]
        waveform = tf.tile(waveform, [-(-CROP // length)])  # repeated where shorter than the crop
        starts = tf.cast(tf.maximum(length - CROP + 1, 1), tf.float64)
        start = tf.cast(tf.cast(position, tf.float64) * starts, tf.int32)
        crop = tf.ensure_shape(waveform[start : start + CROP], [CROP])
        return tf.cast(crop, tf.float32) / 32768 if crop.dtype == tf.int16 else crop

    return decode_path


def _decoders(container):
    """name → function of (path, position) in a tf.data graph; the project's own first."""
    contestants = {"audio.load_crop": _in_python(lambda path, position: audio.load_crop(path, position, CROP))}
    try:
        import tensorflow_io as tfio  # absent or unloadable beside most versions of TensorFlow

        native = {
            "wav": lambda contents: tfio.audio.decode_wav(contents, dtype=tf.int16),
            "flac": lambda contents: tfio.audio.decode_flac(contents, dtype=tf.int16),
            "ogg": tfio.audio.decode_vorbis,
            "mp3": tfio.audio.decode_mp3,
        }
        if container in native:
            contestants["tensorflow-io in graph"] = _in_graph(native[container])
    except ImportError as error:
        print(f"Without tensorflow-io: {error}")
    if container == "wav":
        contestants["tf.audio.decode_wav"] = _in_graph(lambda contents: tf.audio.decode_wav(contents)[0])
        contestants["numpy.fromfile"] = _in_python(_wav_fromfile)
    if container == "m4a":
        contestants["PyAV, from the start"] = _in_python(_pyav_from_start)
    else:
        contestants["soundfile, whole file"] = _in_python(_soundfile_whole)
    contestants["PyAV, whole file"] = _in_python(_pyav_whole)
    return contestants


def _pipeline(paths, decode):
    """An endless dataset of (BATCH, CROP) batches."""
    paths = tf.constant(paths)

    def crop(index):
        position = tf.random.stateless_uniform([], tf.stack([index, 0]))
        return decode(paths[index % len(paths)], position)

    dataset = tf.data.Dataset.range(2**40).map(crop, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(BATCH, drop_remainder=True)


def _measure(dataset, seconds):
    """(utterances per second, CPU milliseconds per utterance) of a dataset of batches."""
    iterator = iter(dataset)
    warm = time.perf_counter() + 0.3 * seconds  # AUTOTUNE raises the parallelism step by step
    while next(iterator) is not None and time.perf_counter() < warm:
        pass
    utterances, cpu, begin = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        next(iterator)
        utterances += BATCH
    return utterances / (time.perf_counter() - begin), 1000 * (time.process_time() - cpu) / utterances


def decoders(options):
    """Crops of 3 s through `range → map(decode) → batch`, by container, length and decoder."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for container, seconds, paths in _recordings(options, folder):
            datasets = {name: _pipeline(paths, decode) for name, decode in _decoders(container).items()}
            measured = {name: [] for name in datasets}
            failures = {}
            for _, (name, dataset) in itertools.product(range(options.rounds), datasets.items()):
                if name in failures:
                    continue
                try:
                    measured[name].append(_measure(dataset, options.seconds))
                except tf.errors.OpError as error:
                    failures[name] = error.message.rpartition("}} ")[2].strip().splitlines()[0]
            for name in datasets:
                row = {"container": container, "seconds": seconds, "decoder": name}
                if name in failures:
                    rows.append(row | {"failure": failures[name]})
                    continue
                speeds, cpu = zip(*measured[name], strict=True)
                first = measured["audio.load_crop"]
                row["utterances/s"] = round(statistics.median(speeds))
                row["CPU ms each"] = round(statistics.median(cpu), 3)
                row["ratio"] = _ratio(speeds, [speed for speed, _ in first])
                row["CPU ratio"] = _ratio([cpu for _, cpu in first], cpu)
                rows.append(row | {"rounds": [round(speed, 1) for speed in speeds]})
            print_table(rows[-len(datasets) :], header=len(rows) == len(datasets))
    return rows


def _ratio(numerators, denominators):
    """Median over the rounds, to two digits."""
    return round(statistics.median(n / d for n, d in zip(numerators, denominators, strict=True)), 2)


def _recordings(options, folder):
    """Yields (container, mean seconds, paths)."""
    if options.audio is None:
        rng = np.random.default_rng(0)
        for container, seconds in itertools.product(CONTAINERS, SECONDS):
            yield container, seconds, _generate(folder, container, seconds, rng)
        return
    for container in CONTAINERS:
        paths = sorted(str(path) for path in pathlib.Path(options.audio).rglob(f"*.{container}"))
        paths = paths[:: max(1, len(paths) // 500)]  # enough, and spread over the folder
        if paths:
            seconds = statistics.fmean(audio.num_samples(path) for path in paths) / audio.SAMPLE_RATE
            yield container, round(seconds, 1), paths


SECTIONS = {"decoders": decoders}


# Report


def machine():
    """The machine and the versions that a figure belongs to."""
    model = platform.processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {"python": platform.python_version(), "libsndfile": soundfile.__libsndfile_version__}
    for package in ("tensorflow", "tensorflow-io", "keras", "numpy", "scipy", "soundfile", "av"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {"cpu": model, "cores": cores, "system": platform.platform(), "versions": versions}


def print_table(rows, header=True):
    """Prints dicts as aligned columns; lists (the single rounds) are left to the JSON."""
    for number, row in enumerate(rows):
        row = {key: value for key, value in row.items() if not isinstance(value, list)}
        widths = [max(len(key), 26 if key == "decoder" else 12) for key in row]
        if header and number == 0:
            print("  ".join(key.ljust(width) for key, width in zip(row, widths, strict=True)))
        print(
            "  ".join(str(value).ljust(width) for value, width in zip(row.values(), widths, strict=True)),
            flush=True,
        )


def main(argv):
    names = argv[1:] or list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        raise app.UsageError(f"Expected sections of {', '.join(SECTIONS)}. Received: {', '.join(unknown)}.")
    if _AUDIO.value and not os.path.isdir(_AUDIO.value):
        raise app.UsageError(f"--audio={_AUDIO.value} is no folder.")
    options = Options(_ROUNDS.value, _SECONDS.value, _AUDIO.value)
    report = {"machine": machine(), "options": dataclasses.asdict(options)}
    report["date"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    versions = ", ".join(f"{name} {version}" for name, version in report["machine"]["versions"].items())
    print(f"{report['machine']['cpu']}, {report['machine']['cores']} cores; {versions}")
    for name in names:
        print(f"\n{name}: {SECTIONS[name].__doc__}")
        report[name] = SECTIONS[name](options)
        with open(_OUTPUT.value, "w", encoding="utf-8") as file:  # after each section: an interrupted run keeps it
            json.dump(report, file, indent=1)
    print(f"\nEvery round: {_OUTPUT.value}")


if __name__ == "__main__":
    app.run(main)
