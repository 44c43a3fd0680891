"""Export to TensorBoard's projector, and the numbers on clusters, at the most points that it shows."""

import pathlib
import statistics
import tempfile

import numpy as np

from tools.benchmark.measuring import Options, in_process, print_table
from vggvox_tf import clusters
from vggvox_tf import projector as ours

POINTS, DIMENSION, SPEAKERS = 100_000, 512, 1_000


def _points(count):
    rng = np.random.default_rng(0)
    speakers = np.sort(rng.integers(0, SPEAKERS, count))
    means = rng.standard_normal((SPEAKERS, DIMENSION), np.float32)
    return rng.standard_normal((count, DIMENSION), np.float32) + means[speakers], speakers.astype(str)


def _export(count):
    embeddings, speakers = _points(count)
    with tempfile.TemporaryDirectory() as folder:
        ours.export_speakers(folder, "points", embeddings, {"speaker": speakers}, "points")


def _savetxt(count):
    embeddings, _ = _points(count)
    with tempfile.TemporaryDirectory() as folder:
        np.savetxt(pathlib.Path(folder, "points.tsv"), embeddings, "%.6g", "\t")


def _share(count):
    clusters.nearest_neighbour_share(*_points(count), seed=0)


def _silhouette(count):
    clusters.silhouette(*_points(count))


TASKS = {
    f"export, {POINTS:,} × {DIMENSION} (PCA 50)": (_export, POINTS),
    f"export, 19,000 × {DIMENSION} (as it is)": (_export, 19_000),
    f"numpy.savetxt, 19,000 × {DIMENSION}": (_savetxt, 19_000),
    f"nearest neighbour share, {POINTS:,}": (_share, POINTS),
    f"silhouette, {POINTS:,}": (_silhouette, POINTS),
}


def projector(options: Options):
    """Seconds and peak memory of an export and of the numbers on clusters; drawing the points is part of both."""
    rows = []
    for task, (function, count) in TASKS.items():
        results = [in_process(function, count) for _ in range(options.rounds)]
        seconds = [value for value, _ in results]
        rows.append(
            {
                "task": task,
                "seconds": round(statistics.median(seconds), 2),
                "peak MiB": round(max(peak for _, peak in results)),
                "rounds": [round(value, 3) for value in seconds],
            }
        )
        print_table(rows[-1:], header=len(rows) == 1)
    return rows
