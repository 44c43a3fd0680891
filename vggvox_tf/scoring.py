"""From embeddings to the scores of trials: cosine or distance, test-time protocols, score normalisation.

A recording is one vector (D,), or several (C, D) of crops, of which every pair is scored (protocol "pairs"). Scores
are higher for the same speaker. Nothing here imports TensorFlow.
"""

import numpy as np

# The test-time protocols of Chung et al. 2018, section 4.3, by what a recording is to each of them.
PROTOCOLS = {
    "whole": "whole utterance",
    "mean": "mean of ten 3 s crops",
    "pairs": "mean of 10 × 10 crop distances",
}
NORMALISATIONS = ("none", "z-norm", "t-norm", "s-norm", "as-norm")

# Numbers in a block of work: 4 MiB of float32 stay in a processor's cache.
BLOCK = 2**20


class ScoringError(ValueError):
    """Scores that cannot be computed as asked."""


def unit_length(embeddings):
    """Vectors (…, D) brought to unit length; a zero vector stays zero."""
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-12)


def score(trials, embeddings, distance="cosine"):
    """Scores (M,) of trials, higher for the same speaker: the cosine, or minus the Euclidean distance.

    Args:
      trials: a trials.Trials of M trials over U recordings.
      embeddings: (U, D), in the order of trials.paths; or (U, C, D), for the mean over the C × C pairs of crops.
      distance: "cosine" or "euclidean".
    """
    if distance == "cosine":
        embeddings = unit_length(embeddings)
        if embeddings.ndim == 3:
            # The mean of all cosines is the product of the means: Σᵢⱼ aᵢ·bⱼ / C² = (Σᵢ aᵢ / C)·(Σⱼ bⱼ / C).
            embeddings = embeddings.mean(axis=1)
    numbers = np.prod(embeddings.shape[1:], dtype=int)
    scores = np.empty(len(trials), np.float32)
    for block in _blocks(len(trials), numbers):
        a, b = embeddings[trials.enrol[block]], embeddings[trials.test[block]]
        if distance == "cosine":
            scores[block] = np.einsum("md,md->m", a, b)
        elif embeddings.ndim == 2:
            scores[block] = -np.linalg.norm(a - b, axis=1)
        else:
            scores[block] = -_distances(a, b).mean(axis=(1, 2))
    return scores


def speaker_means(embeddings, speakers):
    """One vector of unit length a speaker: the mean direction of their recordings.

    Args:
      embeddings: (N, D).
      speakers: (N,) names or numbers.

    Returns:
      The S speakers, sorted, and float32 (S, D).
    """
    names, rows = np.unique(speakers, return_inverse=True)
    means = np.zeros((len(names), embeddings.shape[1]), np.float32)
    np.add.at(means, rows, unit_length(embeddings))
    return names, unit_length(means)


def cohort_statistics(embeddings, cohort, distance="cosine", top=None):
    """Mean and standard deviation, (U,) each, of every recording's scores against a cohort of other speakers.

    Args:
      embeddings: (U, D), or (U, C, D), of which the crops' scores against a cohort vector are averaged.
      cohort: (K, D), one vector a speaker.
      distance: "cosine" or "euclidean".
      top: only the `top` highest scores of each recording count; None: all.

    Raises:
      ScoringError: fewer than two scores to take the deviation of.
    """
    if (top or len(cohort)) < 2 or (top or 0) > len(cohort):
        raise ScoringError(
            f"Score normalisation needs at least 2 cohort speakers and no more than there are; found {len(cohort)}, "
            f"of which {top or 'all'} are to be used (--cohort_top)"
        )
    if distance == "cosine":
        embeddings, cohort = unit_length(embeddings), unit_length(cohort)
        if embeddings.ndim == 3:
            embeddings = embeddings.mean(axis=1)
    mean, deviation = np.empty((2, len(embeddings)), np.float32)
    per_recording = len(cohort) * (embeddings.shape[1] if embeddings.ndim == 3 else 1)
    for block in _blocks(len(embeddings), per_recording):
        a = embeddings[block]
        if distance == "cosine":
            scores = a @ cohort.T  # (B, K)
        elif a.ndim == 2:
            scores = -_distances(a, cohort)
        else:
            scores = -_distances(a, cohort[np.newaxis]).mean(axis=1)
        if top and top < len(cohort):
            scores = np.partition(scores, len(cohort) - top, axis=1)[:, -top:]
        mean[block], deviation[block] = scores.mean(axis=1), scores.std(axis=1)
    return mean, np.maximum(deviation, 1e-6)


def normalise(scores, trials, statistics, kind):
    """Scores (M,) in standard deviations above the mean of a cohort of other speakers.

    z-norm takes the cohort's scores against the enrolled recording, t-norm (Auckenthaler et al. 2000) those against the
    tested one, s-norm (Kenny 2010) the mean of both; as-norm is s-norm with statistics of the highest scores only
    (adaptive s-norm; Matějka et al. 2017), for which `statistics` was computed with `top`.

    Args:
      scores: (M,), of `trials`.
      statistics: (mean (U,), deviation (U,)) of `cohort_statistics`, by the same distance.
      kind: one of NORMALISATIONS.
    """
    if kind == "none":
        return scores
    mean, deviation = statistics
    z = (scores - mean[trials.enrol]) / deviation[trials.enrol]
    if kind == "z-norm":
        return z
    t = (scores - mean[trials.test]) / deviation[trials.test]
    return t if kind == "t-norm" else (z + t) / 2


def _distances(a, b):
    """Euclidean distances (…, I, J) between the rows of (…, I, D) and of (…, J, D)."""
    squares = np.sum(a**2, axis=-1)[..., :, np.newaxis] + np.sum(b**2, axis=-1)[..., np.newaxis, :]
    return np.sqrt(np.maximum(squares - 2 * a @ np.swapaxes(b, -1, -2), 0))


def _blocks(rows, numbers_per_row):
    """Slices that cover `rows` rows in blocks of about BLOCK numbers."""
    step = max(1, BLOCK // max(1, numbers_per_row))
    return (slice(start, start + step) for start in range(0, rows, step))
