"""model.fit on recordings against a step on a batch that is there already: the gap is the waiting. And the start."""

import itertools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np

from tools.benchmark.measuring import Options, of_process, print_table, ratio, write_speech
from tools.benchmark.training import NETS, batch_of, one_operation_at_a_time, tensorflow_step, training_model
from vggvox_tf import callbacks, pipeline, sampling
from vggvox_tf.corpus import read_corpus
from vggvox_tf.frontend import crop_samples

SPEAKERS, UTTERANCES, LENGTHS = 16, 16, (4, 12)  # seconds
CONTAINERS = ("wav", "flac", "m4a")
FITTED = {"vggm × 0.375, 100 mel × 200": 40, "vggm, 512 × 300": 5}  # steps that are measured


def write_corpus(folder, container):
    """SPEAKERS folders of UTTERANCES recordings of LENGTHS seconds."""
    random = np.random.default_rng(0)
    for number in range(SPEAKERS * UTTERANCES):
        speaker = pathlib.Path(folder, f"s{number % SPEAKERS:02}", "session")
        speaker.mkdir(parents=True, exist_ok=True)
        write_speech(speaker / f"{number}.{container}", random.uniform(*LENGTHS), random)
    return folder


def cached(corpus, samples):
    """Recordings that are all in memory already, as after the first pass of --cache."""
    recordings = pipeline.Recordings(corpus, samples, 0.1, cache=True)
    recordings.crops(np.arange(len(corpus)), np.zeros(len(corpus)))
    return recordings


class _Steps(keras.callbacks.Callback):
    """When steps were over."""

    def on_train_begin(self, logs=None):
        self.times = []

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(time.perf_counter())


def _fit(model, recordings, size, steps):
    """Seconds that a step takes in model.fit, on recordings and with what training has around it."""
    sampler = sampling.UtteranceSampler(recordings.corpus, size, 0)
    dataset = pipeline.dataset(recordings, sampler, 0, 0, steps + 3)
    throughput, timer = callbacks.Throughput(size), _Steps()
    model.fit(throughput.timed(dataset), steps_per_epoch=steps + 3, verbose=0, callbacks=[throughput, timer])
    return (timer.times[-1] - timer.times[2]) / steps  # the first ones begin with empty buffers


def fitting(options: Options):
    """Utterances per second of model.fit by container, and its ratio to the step on a constant batch (1: no wait)."""
    return of_process(_fitting, options)


def _fitting(options):
    one_operation_at_a_time()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        corpora = {name: read_corpus(write_corpus(pathlib.Path(folder, name), name)) for name in CONTAINERS}
        for net, steps in FITTED.items():
            size, seconds, arguments = NETS[net]
            samples = crop_samples(seconds)
            ways = {name: pipeline.Recordings(corpus, samples, 0.1) for name, corpus in corpora.items()}
            ways |= {f"{name}, cached": cached(corpus, samples) for name, corpus in corpora.items()}
            waveforms, speakers = batch_of(size, seconds)
            model, _ = training_model(arguments)
            step = tensorflow_step(model, waveforms, speakers)
            step()
            times = {name: [] for name in ("constant batch", *ways)}
            for _ in range(options.rounds):
                begin = time.perf_counter()
                for _ in range(steps):
                    step()
                times["constant batch"].append((time.perf_counter() - begin) / steps)
                for name, recordings in ways.items():
                    times[name].append(_fit(model, recordings, size, steps))
            for name, values in times.items():
                rows.append(
                    {
                        "way": f"{net}, {name}",
                        "utterances/s": round(size / statistics.median(values), 1),
                        "ratio": ratio(times["constant batch"], values),
                        "rounds": values,
                    }
                )
            print_table(rows[-len(times) :], header=len(rows) == len(times))
            keras.utils.clear_session()
    return rows


# Ends a training process as soon as its first step is over, with the seconds since its beginning.
FIRST_STEP = """
import os, sys, time
begin = float(sys.argv.pop(1))
import tensorflow
imported = time.time() - begin
from vggvox_tf import callbacks, cli, train
def over(*_, **__):
    print("seconds", imported, time.time() - begin, flush=True)
    os._exit(0)
callbacks.FiniteLoss.on_train_batch_end = over
cli.start(train.main)
"""


def start(options: Options):
    """Seconds from the command to the end of the first training step, on the quickstart's recipe and 256 recordings."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(pathlib.Path(folder, "corpus"), "wav")
        names = sorted(str(path.relative_to(corpus)) for path in corpus.rglob("*.wav"))
        trials = pathlib.Path(corpus, "trials.txt")
        trials.write_text("".join(f"{int(a[:3] == b[:3])} {a} {b}\n" for a, b in itertools.pairwise(names)))
        common = ["--flagfile=configs/quickstart_softmax.cfg", f"--corpus={corpus}"]
        ways = {
            "without trials": [*common, "--trials="],
            "with an evaluation of 256 recordings first": [*common, f"--trials={trials}"],
        }
        for way, flags in ways.items():
            measured = []
            for number in range(options.rounds):
                run = f"--run={folder}/{way.split()[0]}{number}"
                command = [sys.executable, "-c", FIRST_STEP, str(time.time()), *flags, run]
                done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
                line = next((line for line in done.stdout.splitlines() if line.startswith("seconds")), None)
                if line is None:
                    raise RuntimeError(done.stderr)
                measured.append([float(value) for value in line.split()[1:]])
            imported, first = zip(*measured, strict=True)
            rows.append(
                {
                    "way": way,
                    "first step s": round(statistics.median(first), 1),
                    "TensorFlow's import s": round(statistics.median(imported), 1),
                    "rounds": measured,
                }
            )
        print_table(rows)
    return rows
