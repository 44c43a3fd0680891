"""The input pipeline alone: batches of crops from recordings, by container and by who decodes."""

import itertools
import os
import pathlib
import statistics
import tempfile
import time

from tools.benchmark.fitting import cached, write_corpus
from tools.benchmark.measuring import Options, print_table, ratio
from vggvox_tf import decoding, pipeline, sampling
from vggvox_tf.corpus import read_corpus
from vggvox_tf.frontend import crop_samples

CONTAINERS = ("wav", "flac", "m4a", "mp3")
BATCH = 64


def _measure(dataset, seconds):
    """Crops per second of an iterator over batches."""
    for _ in range(5):  # which were in its buffers
        next(dataset)
    batches, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        next(dataset)
        batches += 1
    return batches * BATCH / (time.perf_counter() - begin)


def feeding(options: Options):
    """Crops of 3 s per second from pipeline.dataset: one thread, one process, one for each core, and from memory."""
    rows, samples = [], crop_samples(3)
    with tempfile.TemporaryDirectory() as folder:
        for container in CONTAINERS:
            corpus = read_corpus(write_corpus(pathlib.Path(folder, container), container))
            ways = {"a thread": pipeline.Recordings(corpus, samples, 0.1)}
            for number in dict.fromkeys((1, os.cpu_count())):
                processes = decoding.Processes(number)
                ways[f"--decode_processes={number}"] = pipeline.Recordings(corpus, samples, 0.1, processes)
            ways["--cache, from the second pass on"] = cached(corpus, samples)
            measured = {name: [] for name in ways}
            for _, (name, recordings) in itertools.product(range(options.rounds), ways.items()):
                sampler = sampling.UtteranceSampler(corpus, BATCH, 0)
                batches = iter(pipeline.dataset(recordings, sampler, 0, 0, 10**6))
                measured[name].append(_measure(batches, options.seconds))
                del batches  # which would read on
            for name, rates in measured.items():
                rows.append(
                    {
                        "container": container,
                        "way": name,
                        "crops/s": round(statistics.median(rates)),
                        "ratio": ratio(rates, measured["a thread"]),
                        "rounds": [round(rate, 1) for rate in rates],
                    }
                )
            print_table(rows[-len(ways) :], header=len(rows) == len(ways))
    return rows
