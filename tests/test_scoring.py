import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances

from vggvox_tf import scoring
from vggvox_tf.trials import read_trials


@pytest.fixture
def trials(tmp_path):
    (tmp_path / "list.txt").write_text("1 a.wav b.wav\n0 a.wav c.wav\n0 c.wav b.wav\n")
    return read_trials(tmp_path / "list.txt")


@pytest.fixture(params=[1, 2**20])
def block(request, monkeypatch):
    """Everything in blocks of one row, and everything at once."""
    monkeypatch.setattr(scoring, "BLOCK", request.param)


def test_scores_by_hand(trials, block):
    """a, b, c = (3, 4), (6, 8), (−4, 3): cos(a, b) = 1, cos(a, c) = cos(c, b) = 0; |a − b| = 5, |a − c| = √50."""
    embeddings = np.array([[3, 4], [6, 8], [-4, 3]], np.float32)
    np.testing.assert_allclose(scoring.score(trials, embeddings), [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        scoring.score(trials, embeddings, "euclidean"), [-5, -np.sqrt(50), -np.sqrt(125)], rtol=1e-6
    )


def test_crops_are_scored_in_all_pairs(trials, block):
    """Against scikit-learn: the mean over the 4 × 4 cosines, and over the 4 × 4 distances, of each trial."""
    crops = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    for distance, matrix in (("cosine", cosine_similarity), ("euclidean", lambda a, b: -euclidean_distances(a, b))):
        expected = [matrix(crops[a], crops[b]).mean() for a, b in ((0, 1), (0, 2), (2, 1))]
        np.testing.assert_allclose(scoring.score(trials, crops, distance), expected, rtol=1e-4)


def test_speaker_means_by_hand():
    """East twice (at any length) and north once for "b": (2, 1) / √5. "a" has south-west only."""
    vectors = np.array([[9, 0], [0, 2], [-1, -1], [1, 0]])
    names, means = scoring.speaker_means(vectors, np.array(["b", "b", "a", "b"]))
    assert names.tolist() == ["a", "b"]
    np.testing.assert_allclose(means, [[-np.sqrt(0.5)] * 2, [2 / np.sqrt(5), 1 / np.sqrt(5)]], rtol=1e-6)


def test_cohort_statistics_by_hand(block):
    """Cosines of (1, 0) with the cohort east, north, west, 60°: 1, 0, −1, ½. Mean ⅛, mean square 9/16, variance
    9/16 − 1/64 = 35/64. Of the two highest, 1 and ½: mean ¾, deviation ¼."""
    cohort = np.array([[2, 0], [0, 1], [-3, 0], [0.5, np.sqrt(0.75)]])
    mean, deviation = scoring.cohort_statistics(np.array([[5.0, 0], [5.0, 0]]), cohort)
    np.testing.assert_allclose(mean, [1 / 8] * 2, rtol=1e-6)
    np.testing.assert_allclose(deviation, [np.sqrt(35) / 8] * 2, rtol=1e-6)
    mean, deviation = scoring.cohort_statistics(np.array([[5.0, 0]]), cohort, top=2)
    np.testing.assert_allclose([mean[0], deviation[0]], [3 / 4, 1 / 4], rtol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("crops", [None, 3])
def test_cohort_statistics_against_a_plain_way(distance, crops, block):
    """All scores by scikit-learn, sorted, the highest seven; crops' scores are averaged first."""
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(6, *([crops] if crops else []), 5))
    cohort = rng.normal(size=(20, 5))
    matrix = cosine_similarity if distance == "cosine" else lambda a, b: -euclidean_distances(a, b)
    scores = matrix(embeddings.reshape(-1, 5), cohort).reshape(6, crops or 1, 20).mean(axis=1)
    highest = np.sort(scores, axis=1)[:, -7:]
    for top, expected in ((None, scores), (7, highest)):
        mean, deviation = scoring.cohort_statistics(embeddings, cohort, distance, top)
        np.testing.assert_allclose(mean, expected.mean(axis=1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(deviation, expected.std(axis=1), rtol=1e-4)


def test_normalisation_by_hand(trials):
    """Trials a–b, a–c, c–b with scores 5, 2, 1; means of a, b, c: 1, 2, 3; deviations 2, 1, ½.

    z-norm by the enrolled side: (5 − 1)/2, (2 − 1)/2, (1 − 3)/½ = 2, ½, −4. t-norm by the tested side: (5 − 2)/1,
    (2 − 3)/½, (1 − 2)/1 = 3, −2, −1. s-norm: their means.
    """
    scores = np.array([5.0, 2.0, 1.0])
    statistics = np.array([1.0, 2, 3]), np.array([2.0, 1, 0.5])
    expected = {
        "none": [5, 2, 1],
        "z-norm": [2, 0.5, -4],
        "t-norm": [3, -2, -1],
        "s-norm": [2.5, -0.75, -2.5],
        "as-norm": [2.5, -0.75, -2.5],
    }
    assert set(expected) == set(scoring.NORMALISATIONS)
    for kind, values in expected.items():
        np.testing.assert_allclose(scoring.normalise(scores, trials, statistics, kind), values)


@pytest.mark.parametrize("speakers, top", [(1, None), (5, 6), (5, 1)])
def test_a_cohort_too_small(speakers, top):
    with pytest.raises(scoring.ScoringError, match=f"found {speakers}"):
        scoring.cohort_statistics(np.ones((3, 2)), np.ones((speakers, 2)), top=top)
