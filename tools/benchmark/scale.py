"""The start of training at the size of VoxCeleb2: its index, the samplers, and the pipeline with nothing to decode.

Every measurement has a process of its own, so that its peak memory is its own, too.
"""

import gzip
import importlib
import itertools
import pathlib
import statistics
import tempfile
import time

import numpy as np

from tools.benchmark.measuring import Options, of_process, peak_memory, print_table
from vggvox_tf import audio, sampling
from vggvox_tf.corpus import MANIFEST_COLUMNS, read_corpus

SPEAKERS, SESSIONS, UTTERANCES = 5_994, 145_569, 1_092_009  # VoxCeleb2 dev
SIZES = (1_000, 10_000, 100_000, UTTERANCES)
CROP = 48_240  # samples of 3 s

# Batches of 64.
SAMPLERS = {
    "UtteranceSampler": lambda corpus: sampling.UtteranceSampler(corpus, 64, seed=0),
    "SpeakerSampler, 32 × 2": lambda corpus: sampling.SpeakerSampler(corpus, 32, 2, seed=0),
    "PairSampler, 32 pairs": lambda corpus: sampling.PairSampler(corpus, 32, 0.5, seed=0, same_gender_share=0.5),
}


def _listed(index):
    """Path and seconds of every utterance, sorted: of the list, or names of VoxCeleb2's shape and number."""
    if index:
        with (gzip.open if index.endswith(".gz") else open)(index, "rt", encoding="utf-8") as file:
            return sorted((f"{name}.m4a", seconds) for name, seconds in map(str.split, file))
    sessions = np.arange(UTTERANCES) * SESSIONS // UTTERANCES
    return [(f"id{s * SPEAKERS // SESSIONS:05}/{s:011x}/{n:07}.m4a", "7.9") for n, s in enumerate(sessions.tolist())]


def _write_manifest(path, listed, size):
    """The whole list, or as many utterances of each of its first speakers, 64 or more, as make `size` together."""
    speakers = itertools.groupby(listed, lambda row: row[0].split("/")[0])
    # A tenth more than on average, as speakers differ in utterances.
    some = itertools.islice(speakers, max(64, size * SPEAKERS * 11 // 10 // UTTERANCES))
    turns = itertools.zip_longest(*([*rows] for _, rows in some))
    kept = itertools.islice(filter(None, itertools.chain.from_iterable(turns)), size)
    with open(path, "w", encoding="utf-8") as file:
        file.write("\t".join(MANIFEST_COLUMNS) + "\n")
        for name, seconds in sorted(kept):
            speaker, session, _ = name.split("/")
            file.write(f"{name}\t{speaker}\t{session}\t{seconds}\t{'fm'[int(speaker[2:]) % 2]}\n")


def _timed(function, *arguments):
    """What the function returns, and how many milliseconds it took."""
    begin = time.perf_counter()
    result = function(*arguments)
    return result, 1000 * (time.perf_counter() - begin)


# Each of these is run in a process of its own: milliseconds to begin, of the first step and of a later one, peak MiB.


def _read(manifest):
    return _timed(read_corpus, manifest)[1], None, None, peak_memory()


def _sample(manifest, name):
    sampler, begin = _timed(SAMPLERS[name], read_corpus(manifest))
    sampler(0)  # so that the first step is dearer by its permutation only
    sampling.permutation.cache_clear()
    first = _timed(sampler, 0)[1]
    steps = _timed(lambda: [sampler(step) for step in range(1, 2001)])[1]
    return begin, first, steps / 2000, peak_memory()


def _feed(manifest):
    from vggvox_tf import pipeline  # imports TensorFlow, which the figures above are to be free of

    corpus, crop = read_corpus(manifest), np.zeros(CROP, np.float32)
    recordings = pipeline.Recordings(corpus, CROP, max_bad_share=0.1)
    sampler = SAMPLERS["UtteranceSampler"](corpus)
    audio.load_crop = lambda path, position, samples: crop  # for the rest of this process
    batches, begin = _timed(lambda: iter(pipeline.dataset(recordings, sampler, 0, 0, 2**40)))
    first = _timed(next, batches)[1]
    sum(1 for _ in itertools.islice(batches, 20))  # AUTOTUNE raises the parallelism step by step
    steps = _timed(lambda: sum(1 for _ in itertools.islice(batches, 200)))[1]
    return begin, first, steps / 200, peak_memory()


def _import_tensorflow():
    return _timed(importlib.import_module, "vggvox_tf.pipeline")[1], None, None, peak_memory()


def scale(options: Options):
    """Milliseconds to begin, of a first step and of later ones, by the number of utterances; peak memory (Linux)."""
    rows = []

    def measure(task, utterances, function, *arguments):
        rounds = [of_process(function, *arguments) for _ in range(options.rounds)]
        *times, peak = zip(*rounds, strict=True)
        row = {"task": task, "utterances": utterances}
        for column, values in zip(("begin ms", "first step ms", "step ms"), times, strict=True):
            row[column] = "" if None in values else float(f"{statistics.median(values):.3g}")
        rows.append({**row, "peak MiB": round(max(peak)), "rounds": rounds})
        print_table(rows[-1:], header=len(rows) == 1)

    listed = _listed(options.index)
    with tempfile.TemporaryDirectory() as folder:
        manifests = {size: pathlib.Path(folder, f"{size}.tsv") for size in SIZES}
        for size, manifest in manifests.items():
            _write_manifest(manifest, listed, size)
            measure("read_corpus", size, _read, manifest)
        for name, (size, manifest) in itertools.product(SAMPLERS, manifests.items()):
            measure(name, size, _sample, manifest, name)
        measure("importing TensorFlow", "", _import_tensorflow)
        for size, manifest in manifests.items():
            measure("pipeline.dataset", size, _feed, manifest)
    return rows
