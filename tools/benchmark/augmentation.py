"""Augmentation of a training batch: what each layer adds to a step, against the front end that follows it."""

import statistics
import time

import numpy as np
import tensorflow as tf

from tools.benchmark.measuring import Options, print_table, ratio
from vggvox_tf import augment
from vggvox_tf.frontend import SAMPLE_RATE, Spectrogram, crop_samples

BATCH, CROPS, NOISES, RESPONSES = 64, (2.0, 3.0), 64, 16
SPEEDS, SHARE, SNR = (0.9, 1.0, 1.1), 0.5, (5.0, 20.0)


def _ways(samples, rng):
    """Name -> (layer, its input): the front end first, which the others are compared with."""

    def noise(*shape):
        return rng.normal(0, 0.1, shape).astype(np.float32)

    waveforms, long = noise(BATCH, samples), noise(BATCH, augment.input_samples(samples, SPEEDS))
    spectrograms = Spectrogram(257)(waveforms)
    layers = {
        f"speeds {', '.join(f'{speed:g}' for speed in SPEEDS)}": augment.SpeedPerturbation(SPEEDS, samples),
        f"reverberation of {SHARE:.0%}": augment.Reverberation(noise(RESPONSES, SAMPLE_RATE // 2), SHARE),
        f"noise on {SHARE:.0%}": augment.AdditiveNoise(noise(NOISES, samples).astype(np.float16), SHARE, SNR),
        f"babble on {SHARE:.0%}": augment.Babble(SHARE, SNR),
        "gain": augment.Gain(6.0),
        "filter": augment.Filter(6.0),
    }
    front_end = Spectrogram(257)
    ways = {"front end, 257 rows": (lambda batch, seed, training: front_end(batch), waveforms)}
    for name, layer in layers.items():
        ways[name] = (layer, long if isinstance(layer, augment.SpeedPerturbation) else waveforms)
    ways["all of these waveform layers"] = (augment.WaveformAugmentation(list(layers.values())), long)
    ways["SpecAugment"] = (augment.SpecAugment(20, 20), spectrograms)
    return {name: (_compiled(layer), tf.constant(batch)) for name, (layer, batch) in ways.items()}


def _compiled(layer):
    # The sum, so that a GPU's results stay there.
    return tf.function(lambda batch, seed: tf.reduce_sum(layer(batch, seed, training=True)))


def augmentation(options: Options):
    """A batch of 64 crops of 2 and of 3 s: milliseconds a step of each layer, and relative to the front end."""
    rows = []
    for crop in CROPS:
        ways = _ways(crop_samples(crop), np.random.default_rng(0))
        times = {name: [] for name in ways}
        for step in range(options.rounds + 1):
            for name, (augmented, batch) in ways.items():
                begin = time.perf_counter()
                augmented(batch, tf.constant([0, step])).numpy()
                times[name].append(1000 * (time.perf_counter() - begin))
        times = {name: values[1:] for name, values in times.items()}  # the first traces the graph
        first = times[next(iter(ways))]
        for name, values in times.items():
            rows.append(
                {
                    "way": name,
                    "crop in s": crop,
                    "ms": round(statistics.median(values), 1),
                    "ratio": ratio(values, first),
                    "rounds": [round(value, 2) for value in values],
                }
            )
        print_table(rows[-len(ways) :], header=len(rows) == len(ways))
    return rows
