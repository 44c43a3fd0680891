"""Embedding whole recordings of mixed lengths: batches of equal lengths, against one recording at a time."""

import pathlib
import statistics
import tempfile
import time

import numpy as np
import tensorflow as tf

from tools.benchmark.measuring import Options, print_table, ratio, write_speech
from vggvox_tf import audio, encoders
from vggvox_tf.corpus import AUDIO_SUFFIXES
from vggvox_tf.speaker_encoder import SpeakerEncoder

FILES = 200  # of 3 to 12 s, as VoxCeleb1's are in the main, where none are given


def _one_at_a_time(forward):
    def embed(paths):
        return np.concatenate([forward(audio.load(path)[np.newaxis]).numpy() for path in paths])

    return embed


def embedding(options: Options):
    """Whole recordings of mixed lengths to vectors, decoding included."""
    if options.encoder:
        encoder = SpeakerEncoder.load(options.encoder)
    else:
        encoder = SpeakerEncoder(encoders.build_encoder("vggm", 0.25, 257, compression="log"))
    model = encoder.model
    compiled = tf.function(
        lambda waveforms: model(waveforms, training=False), input_signature=[tf.TensorSpec([None, None], tf.float32)]
    )
    ways = {
        "SpeakerEncoder.embed_files": encoder.embed_files,
        "one at a time, model(waveform)": _one_at_a_time(lambda waveform: model(waveform, training=False)),
        "one at a time, in a tf.function": _one_at_a_time(compiled),
    }
    with tempfile.TemporaryDirectory() as folder:
        if options.audio:
            paths = [path for path in pathlib.Path(options.audio).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES]
            paths = sorted(paths)[:: max(1, len(paths) // 500)]
        else:
            rng = np.random.default_rng(0)
            paths = [pathlib.Path(folder, f"{number}.wav") for number in range(FILES)]
            for path in paths:
                write_speech(path, rng.uniform(3, 12), rng)
        vectors = {name: embed(paths) for name, embed in ways.items()}  # also traces the graphs
        seconds = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, embed in ways.items():
                begin = time.perf_counter()
                embed(paths)
                seconds[name].append(time.perf_counter() - begin)
        first = next(iter(ways))
        scale = np.abs(vectors[first]).max()
        rows = [
            {
                "way": name,
                "recordings/s": round(len(paths) / statistics.median(times), 1),
                "ratio": ratio(seconds[first], times),
                "largest difference": f"{np.abs(vectors[name] - vectors[first]).max() / scale:.0e}",
                "rounds": [round(value, 3) for value in times],
            }
            for name, times in seconds.items()
        ]
    print(f"{len(paths)} recordings")
    print_table(rows)
    return rows
