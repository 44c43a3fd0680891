"""Scoring at the size of VoxCeleb1-E: trial lists, scores, EER and its interval, score normalisation.

Every measurement has a process of its own, so that its peak memory is its own, too.
"""

import pathlib
import statistics
import tempfile

import numpy as np
from sklearn.metrics import roc_curve

from tools.benchmark.measuring import Options, in_process, print_table
from vggvox_tf import metrics, trials
from vggvox_tf import scoring as ours

SIZES = (10_000, 100_000, 1_000_000, 5_000_000)
RECORDINGS, SPEAKERS, TRIALS, DIMENSION, COHORT, TOP = 145_000, 1_251, 581_480, 512, 5_000, 300
# The plain way to normalise is measured on so much of the recordings, since all would take many minutes.
PLAIN_SHARE = 0.05


def _read_and_score(data):
    listed = trials.read_trials(data.trials)
    ours.score(listed, data.vectors(len(listed.paths)))


def _read_and_score_plainly(data):
    """A dict of vectors and a loop over the lines."""
    lines = [line.split() for line in pathlib.Path(data.trials).read_text().splitlines()]
    names = sorted({name for _, *sides in lines for name in sides})
    embeddings = dict(zip(names, data.vectors(len(names)), strict=True))
    labels, scores = [], []
    for label, enrol, test in lines:
        a, b = embeddings[enrol], embeddings[test]
        labels.append(int(label))
        scores.append(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def _eer(data):
    metrics.eer(*data.scored())


def _eer_by_scikit_learn(data):
    scores, labels = data.scored()
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    misses = 1 - tpr
    point = np.nanargmin(np.abs(misses - fpr))
    return (misses[point] + fpr[point]) / 2


def _interval(data):
    scores, labels = data.scored()
    rng = np.random.default_rng(0)
    a = rng.integers(0, SPEAKERS, len(scores))
    b = np.where(labels, a, (a + rng.integers(1, SPEAKERS, len(scores))) % SPEAKERS)
    metrics.eer_interval(scores, labels, a, b)


def _normalise(data):
    listed = trials.read_trials(data.trials)
    vectors = data.vectors(len(listed.paths))
    scores = ours.score(listed, vectors)
    ours.normalise(scores, listed, ours.cohort_statistics(vectors, data.cohort(), top=TOP), "as-norm")


def _normalise_plainly(data):
    """A loop over the recordings that sorts all of each one's cohort scores; times 1 / PLAIN_SHARE."""
    vectors, cohort = data.vectors(RECORDINGS), data.cohort()
    unit = cohort / np.linalg.norm(cohort, axis=1, keepdims=True)
    statistics = []
    for vector in vectors[: round(PLAIN_SHARE * len(vectors))]:
        highest = np.sort(unit @ (vector / np.linalg.norm(vector)))[-TOP:]
        statistics.append((highest.mean(), highest.std()))


# task -> way -> (function, share of the task that it does)
TASKS = {
    "read and score a list": {
        "read_trials, score": (_read_and_score, 1),
        "Python loop": (_read_and_score_plainly, 1),
    },
    "EER": {"metrics.eer": (_eer, 1), "scikit-learn's roc_curve": (_eer_by_scikit_learn, 1)},
    "95 % interval of the EER": {"metrics.eer_interval": (_interval, 1)},
    f"adaptive s-norm, cohort of {COHORT:,}": {
        "cohort_statistics, normalise": (_normalise, 1),
        "loop over recordings": (_normalise_plainly, PLAIN_SHARE),
    },
}


class _Data:
    """The files that a measurement works on; loading vectors and scores is part of it, making them is not."""

    def __init__(self, folder, listed, size=TRIALS):
        rng = np.random.default_rng(0)
        self.folder = folder
        self.trials = listed or str(pathlib.Path(folder, "trials.txt"))
        if not listed:
            self._draw_trials(rng, size)
        for name, rows in (("vectors", RECORDINGS), ("cohort", COHORT)):
            np.save(pathlib.Path(folder, name), rng.standard_normal((rows, DIMENSION), np.float32))
        labels = rng.random(size) < 0.5
        np.savez(pathlib.Path(folder, "scored"), scores=rng.normal(2.5 * labels).astype(np.float32), labels=labels)

    def _draw_trials(self, rng, size):
        """Random pairs, half of them called targets: only the size of the list matters."""
        names = [f"id1{n % SPEAKERS:04}/{n // 20:011x}/{n % 20:05}.wav" for n in range(RECORDINGS)]
        a, b = rng.integers(0, RECORDINGS, (2, size)).tolist()
        with open(self.trials, "w") as file:
            file.writelines(f"{n % 2} {names[i]} {names[j]}\n" for n, (i, j) in enumerate(zip(a, b, strict=True)))

    def vectors(self, rows):
        """The first of the drawn vectors, or as many again if a list has more recordings."""
        vectors = np.load(pathlib.Path(self.folder, "vectors.npy"))
        return vectors[:rows] if rows <= len(vectors) else np.resize(vectors, (rows, DIMENSION))

    def cohort(self):
        return np.load(pathlib.Path(self.folder, "cohort.npy"))

    def scored(self):
        with np.load(pathlib.Path(self.folder, "scored.npz")) as file:
            return file["scores"], file["labels"]


def scoring(options: Options):
    """581,480 trials over 145,000 vectors of 512 dimensions: seconds, and the peak memory of the process (Linux)."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = _Data(folder, options.trials)
        for task, ways in TASKS.items():
            measured = {way: [] for way in ways}
            for _ in range(options.rounds):
                for way, (function, share) in ways.items():
                    seconds, peak = in_process(function, data)
                    measured[way].append((seconds / share, peak))
            first = [seconds for seconds, _ in next(iter(measured.values()))]
            for way, results in measured.items():
                seconds = [value for value, _ in results]
                rows.append(
                    {
                        "task": task,
                        "way": way,
                        "seconds": round(statistics.median(seconds), 2),
                        "ratio": round(statistics.median(a / b for a, b in zip(seconds, first, strict=True)), 2),
                        "peak MiB": round(max(peak for _, peak in results)),
                        "rounds": [round(value, 3) for value in seconds],
                    }
                )
            print_table(rows[-len(ways) :], header=len(rows) == len(ways))
    return rows


def trial_growth(options: Options):
    """Seconds, and the peak memory of the process (Linux), by the number of trials over 145,000 recordings."""
    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            data = _Data(folder, None, size)
            for task, function in (("read and score a list", _read_and_score), ("EER", _eer)):
                seconds, peaks = zip(*(in_process(function, data) for _ in range(options.rounds)), strict=True)
                row = {"task": task, "trials": size, "seconds": round(statistics.median(seconds), 3)}
                rows.append({**row, "peak MiB": round(max(peaks)), "rounds": [round(value, 3) for value in seconds]})
        print_table(rows[-2:], header=len(rows) == 2)
    return rows
