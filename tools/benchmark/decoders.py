"""Decoders: crops of 3 s at random positions, from files to batches."""

import importlib.util
import itertools
import os
import pathlib
import statistics
import tempfile
import time

import av
import numpy as np
import soundfile
import tensorflow as tf

from tools.benchmark.measuring import print_table, ratio, write_speech
from tools.make_shards import plan
from vggvox_tf import audio

CROP = 48_240  # samples at 16 kHz: 300 frames = 300·160 + 240
BATCH = 64
FILES = 32  # generated per container and length: the decoder is measured, not the disk
SECONDS = (4, 8, 20)
CONTAINERS = ("wav", "flac", "ogg", "mp3", "m4a")


def _generate(folder, container, seconds, rng):
    """Writes FILES recordings of one length; their paths."""
    folder = pathlib.Path(folder, f"{container}-{seconds}")
    folder.mkdir()
    paths = [str(folder / f"{number}.{container}") for number in range(FILES)]
    for path in paths:
        write_speech(path, seconds, rng)
    return paths


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


def _librosa(path, position):
    """librosa.load of the crop, at the file's own rate; it seeks where libsndfile does."""
    import librosa  # an extra of the benchmark: requirements-benchmark.txt

    path = os.fsdecode(path)
    samples = soundfile.info(path).frames
    start = int(position * max(1, samples - CROP + 1))
    rate = audio.SAMPLE_RATE
    waveform, _ = librosa.load(path, sr=None, offset=start / rate, duration=CROP / rate)
    return np.resize(waveform, CROP)


def _pyav_bare(path, position):
    """What FFmpeg takes for the packets of a crop: a seek and their decoding, without a sample that leaves it."""
    with av.open("file:" + os.fsdecode(path), format="mp4") as container:
        stream = container.streams.audio[0]
        stream.codec_context.thread_count = 1
        start = int(position * max(1, stream.duration - CROP + 1))
        container.seek(max(0, start - audio._RUN_UP), stream=stream)
        for frame in container.decode(stream):
            if frame.pts + frame.samples >= start + CROP:
                break
    return np.zeros(CROP, np.float32)


def _wav_fromfile(path, position):
    """The least that Python can do for a WAV: a 44-byte header, taken on trust."""
    frames = (os.path.getsize(path) - 44) // 2
    start = int(position * max(1, frames - CROP + 1))
    samples = np.fromfile(os.fsdecode(path), "<i2", CROP, offset=44 + 2 * start)
    return np.resize(samples.astype(np.float32) * np.float32(1 / 32768), CROP)


def _in_a_shard(folder, paths):
    """Packs the recordings into one shard; their names in it by their paths, as bytes."""
    contents = [pathlib.Path(path).read_bytes() for path in paths]
    sizes = np.array([len(content) for content in contents])
    shard = os.path.join(folder, f"{len(os.listdir(folder))}.tfrecord")
    with tf.io.TFRecordWriter(shard) as writer:
        for content in contents:
            writer.write(content)
    places = zip(paths, plan(sizes, 2**62)[1], sizes, strict=True)
    return {os.fsencode(path): f"{shard}:{offset}+{size}:{path}" for path, offset, size in places}


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


def _decoders(container, sharded):
    """name → function of (path, position) in a tf.data graph; the project's own first.

    Args:
      sharded: the names of the same recordings in a shard, by their paths.
    """
    contestants = {
        "audio.load_crop": _in_python(lambda path, position: audio.load_crop(path, position, CROP)),
        "audio.load_crop, from a shard": _in_python(
            lambda path, position: audio.load_crop(sharded[path], position, CROP)
        ),
    }
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
        contestants["PyAV, bare seek and decoding"] = _in_python(_pyav_bare)
        contestants["PyAV, from the start"] = _in_python(_pyav_from_start)
    else:
        contestants["soundfile, whole file"] = _in_python(_soundfile_whole)
        if importlib.util.find_spec("librosa"):
            contestants["librosa.load"] = _in_python(_librosa)
    contestants["PyAV, whole file"] = _in_python(_pyav_whole)
    return contestants


def _pipeline(paths, decode):
    """An endless dataset of (BATCH, CROP) batches."""
    paths = tf.constant(paths)

    def crop(index):
        position = tf.random.stateless_uniform([], tf.stack([index, 0]))
        return decode(paths[index % len(paths)], position)

    return tf.data.Dataset.range(2**40).map(crop).batch(BATCH, drop_remainder=True)


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
            contestants = _decoders(container, _in_a_shard(folder, paths))
            datasets = {name: _pipeline(paths, decode) for name, decode in contestants.items()}
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
                row["ratio"] = ratio(speeds, [speed for speed, _ in first])
                row["CPU ratio"] = ratio([cpu for _, cpu in first], cpu)
                rows.append(row | {"rounds": [round(speed, 1) for speed in speeds]})
            print_table(rows[-len(datasets) :], header=len(rows) == len(datasets))
    return rows


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
