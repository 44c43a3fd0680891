"""How well speakers are clusters, as numbers beside the projector's picture; by cosine, in blocks of bounded memory.

Vectors (N, D) may be of any length; speakers (N,) are names or numbers. Nothing here imports TensorFlow.
"""

import numpy as np

from vggvox_tf.scoring import speaker_means, unit_length

# Asking 5,000 points for their neighbours tells the share to ±0.7 % (one standard error, at most): √(½·½ / 5,000).
QUERIES = 5000
# Numbers in a block of work: 4 Mi float32 are 16 MiB.
BLOCK = 2**22


def nearest_neighbour_share(embeddings, speakers, seed=0):
    """Share of the points whose nearest other point is of the same speaker: 1 where speakers are clusters.

    Asked are the points of speakers with two or more, since the others have nobody to find; beyond QUERIES of them, as
    many drawn from the seed. All points are found. NaN where nobody can be asked, or there is only one speaker.
    """
    speakers = np.asarray(speakers)
    names, numbers, counts = np.unique(speakers, return_inverse=True, return_counts=True)
    asked = np.flatnonzero(counts[numbers] > 1)
    if len(names) < 2 or not len(asked):
        return float("nan")
    if len(asked) > QUERIES:
        asked = np.random.default_rng(seed).choice(asked, QUERIES, replace=False)
    unit = unit_length(np.asarray(embeddings, np.float32))
    hits = 0
    for block in _blocks(len(asked), len(unit)):
        rows = asked[block]
        cosines = unit[rows] @ unit.T  # (B, N)
        cosines[np.arange(len(rows)), rows] = -np.inf  # itself
        hits += np.count_nonzero(numbers[cosines.argmax(axis=1)] == numbers[rows])
    return hits / len(asked)


def silhouette(embeddings, speakers):
    """Mean silhouette of all points (Rousseeuw 1987) with the cosine distance 1 − cos, in [−1, 1].

    A point's is (b − a) / max(a, b), with a its mean distance to the other points of its speaker and b that to those of
    the nearest other speaker: near 1 in a cluster of its own, 0 between two. A point that is its speaker's only one
    counts 0, as in scikit-learn. NaN for a single speaker, and where no speaker has two points.

    The mean of 1 − x·yᵢ over n unit vectors yᵢ is 1 − x·Σyᵢ/n. So the score is exact with N × S products instead of
    N × N, and nothing has to be sampled.
    """
    unit = unit_length(np.asarray(embeddings, np.float32))
    names, numbers, counts = np.unique(speakers, return_inverse=True, return_counts=True)
    if len(names) < 2 or counts.max() < 2:
        return float("nan")
    sums = np.zeros((len(names), unit.shape[1]), np.float32)  # (S, D)
    np.add.at(sums, numbers, unit)
    total = 0.0
    for block in _blocks(len(unit), len(names)):
        own, rows = numbers[block], np.arange(len(numbers[block]))
        distances = counts - unit[block] @ sums.T  # (B, S) sums of the distances to each speaker's points
        # The point itself is among its speaker's, at distance 0.
        a = distances[rows, own] / np.maximum(counts[own] - 1, 1)
        distances /= counts
        distances[rows, own] = np.inf
        b = distances.min(axis=1)
        scores = (b - a) / np.maximum(np.maximum(a, b), 1e-12)
        total += float(scores[counts[own] > 1].sum())
    return total / len(unit)


def nearest_other_speaker(embeddings, speakers):
    """For each point the other speaker, str (N,), whose mean direction is nearest; "" where there is only one."""
    names, means = speaker_means(np.asarray(embeddings, np.float32), speakers)
    if len(names) < 2:
        return np.full(len(speakers), "")
    numbers = np.searchsorted(names, speakers)
    found = np.empty(len(numbers), np.int64)
    for block in _blocks(len(numbers), len(names)):
        cosines = embeddings[block] @ means.T  # up to a factor for each point
        cosines[np.arange(len(cosines)), numbers[block]] = -np.inf
        found[block] = cosines.argmax(axis=1)
    return names[found].astype(str)


def _blocks(rows, numbers_per_row):
    step = max(1, BLOCK // numbers_per_row)
    return (slice(start, start + step) for start in range(0, rows, step))
