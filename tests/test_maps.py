import matplotlib.image
import numpy as np
import pytest

from vggvox_tf import maps


@pytest.fixture
def crowd():
    """Directions of 3 speakers, 20 points each, far apart, with lengths that play no part."""
    random = np.random.default_rng(0)
    speakers = np.repeat(["ann", "bob", "$eve_"], 20)
    vectors = np.repeat(np.eye(3, 60, dtype=np.float32), 20, axis=0) + 0.02 * random.normal(size=(60, 60))
    return vectors * random.uniform(0.1, 10, (60, 1)), speakers


def test_speakers_lie_together(crowd):
    places = maps.t_sne(crowd[0], seed=0)
    means = places.reshape(3, 20, 2).mean(axis=1)
    nearest = np.linalg.norm(places[:, np.newaxis] - means, axis=2).argmin(axis=1)
    np.testing.assert_array_equal(nearest, np.repeat([0, 1, 2], 20))
    np.testing.assert_array_equal(places, maps.t_sne(crowd[0], seed=0))


@pytest.mark.parametrize("vectors", [np.eye(2), np.eye(3, 2), np.ones((5, 4))])
def test_few_or_equal_points_have_a_place(vectors):
    """An encoder that has collapsed gives equal vectors: no reason to lose the end of a training run."""
    places = maps.t_sne(vectors, seed=0)
    assert places.shape == (len(vectors), 2) and np.isfinite(places).all()


def test_a_sample_is_sorted_and_repeatable(monkeypatch):
    assert maps.sample(5, seed=0).tolist() == [0, 1, 2, 3, 4]
    monkeypatch.setattr(maps, "POINTS", 3)
    rows = maps.sample(5, seed=0)
    assert len(rows) == 3 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, maps.sample(5, seed=0))


def test_picture_as_file_and_array(crowd, tmp_path):
    vectors, speakers = crowd
    image = maps.draw(vectors[:, :2], speakers, tmp_path / "new" / "map.png", "60 of $3_")
    assert image.dtype == np.uint8 and image.shape[2] == 3
    saved = matplotlib.image.imread(tmp_path / "new" / "map.png")
    np.testing.assert_allclose(saved[..., :3], image / 255, atol=1e-6)
    for colour in ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0x2C, 0xA0, 0x2C)):  # blue, orange, green
        assert (image == colour).all(axis=2).sum() > 100
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["map.png"]


def test_beyond_twenty_speakers_the_rest_is_grey(tmp_path):
    """Speakers 0 to 20 with 2 points each and 21 with 3: the 20 largest, the first of equals, have colours."""
    speakers = np.array([f"{n:02}" for n in [*range(21), *range(21), 21, 21, 21]])
    places = np.random.default_rng(0).normal(size=(len(speakers), 2))
    image = maps.draw(places, speakers, tmp_path / "map.png", "22 speakers")
    grey = (image == round(0.82 * 255)).all(axis=2).sum()
    image = maps.draw(places[speakers < "20"], speakers[speakers < "20"], tmp_path / "map.png", "20 speakers")
    assert grey > 100 > (image == round(0.82 * 255)).all(axis=2).sum()
