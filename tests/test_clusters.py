import numpy as np
import pytest
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from vggvox_tf import clusters


def at(*degrees):
    """Vectors (N, 2) at angles from the first axis, of different lengths, which play no part."""
    radians = np.radians(degrees)
    lengths = 1 + np.arange(len(degrees))[:, np.newaxis]
    return (lengths * np.stack([np.cos(radians), np.sin(radians)], axis=1)).astype(np.float32)


@pytest.fixture
def crowd():
    """600 points of 12 speakers in 16 dimensions, which overlap."""
    random = np.random.default_rng(3)
    speakers = random.integers(12, size=600)
    return (random.normal(size=(12, 16))[speakers] + 1.2 * random.normal(size=(600, 16))).astype(np.float32), speakers


def test_share_by_hand():
    """a at 0° and 10°, b at 25° and 90°, c at 100°: a's two find each other, b's find 10° (a) and 100° (c). c has one
    point and is not asked, but found."""
    assert clusters.nearest_neighbour_share(at(0, 10, 25, 90, 100), list("aabbc")) == 0.5


def test_silhouette_by_hand():
    """a at 0° and 60°, b at 90° and 180°; distances 1 − cos.

    0°: a = ½, b = (1 + 2) / 2 = 1.5, (1.5 − ½) / 1.5 = ⅔. 60°: a = ½, b = (1 − √¾ + 1.5) / 2 = 0.81699, 0.38800.
    90°: a = 1, b = (1 + 1 − √¾) / 2 = 0.56699, −0.43301. 180°: a = 1, b = (2 + 1.5) / 2 = 1.75, 0.42857.
    """
    assert clusters.silhouette(at(0, 60, 90, 180), list("aabb")) == pytest.approx(
        (2 / 3 + 0.38800 - 0.43301 + 0.42857) / 4, abs=1e-5
    )


def test_nearest_other_speaker_by_hand():
    """Means: a at 5°, b at 50°, c at 90°."""
    assert clusters.nearest_other_speaker(at(0, 10, 45, 55, 90), np.array(list("aabbc"))).tolist() == list("bbacb")


def test_against_scikit_learn(crowd, monkeypatch):
    embeddings, speakers = crowd
    monkeypatch.setattr(clusters, "BLOCK", 1000)
    expected = silhouette_score(embeddings, speakers, metric="cosine")
    assert clusters.silhouette(embeddings, speakers) == pytest.approx(expected, abs=1e-5)
    speakers[0] = 99  # the only one of its speaker
    expected = silhouette_score(embeddings, speakers, metric="cosine")
    assert clusters.silhouette(embeddings, speakers) == pytest.approx(expected, abs=1e-5)
    found = NearestNeighbors(n_neighbors=2, metric="cosine").fit(embeddings).kneighbors(embeddings)[1][:, 1]
    expected = np.mean((speakers[found] == speakers)[1:])
    assert clusters.nearest_neighbour_share(embeddings, speakers) == pytest.approx(expected)


def test_a_share_from_a_sample(crowd, monkeypatch):
    whole = clusters.nearest_neighbour_share(*crowd)
    monkeypatch.setattr(clusters, "QUERIES", 300)
    some = clusters.nearest_neighbour_share(*crowd, seed=1)
    assert some == clusters.nearest_neighbour_share(*crowd, seed=1) == pytest.approx(whole, abs=0.1)
    assert some * 300 == pytest.approx(round(some * 300))


@pytest.mark.parametrize("speakers", [list("aaa"), list("abc")])
def test_no_clusters_to_speak_of(speakers):
    """One speaker only, and nobody with two points."""
    assert np.isnan(clusters.nearest_neighbour_share(at(0, 10, 20), speakers))
    assert np.isnan(clusters.silhouette(at(0, 10, 20), speakers))


def test_one_speaker_has_no_other():
    assert clusters.nearest_other_speaker(at(0, 10), ["a", "a"]).tolist() == ["", ""]
