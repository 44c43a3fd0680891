"""Vectors in the plane, named by their angles: the cosine of two is that of the angle between them."""

import numpy as np
import pytest

from vggvox_tf import gallery
from vggvox_tf.gallery import Gallery, GalleryError


def at(*degrees, length=1.0):
    """Vectors (N, 2) at angles from the first axis."""
    radians = np.radians(degrees)
    return (length * np.stack([np.cos(radians), np.sin(radians)], axis=1)).astype(np.float32)


def cos(degrees):
    return np.cos(np.radians(degrees))


@pytest.fixture
def people():
    """Anna at 0° and 60°, Bob at 90°. Lengths do not matter."""
    people = Gallery("e1")
    people.add("Bob", ["b.wav"], at(90, length=7))
    people.add("Anna", ["a0.wav", "a60.wav"], at(0, 60, length=3))
    return people


def test_a_score_is_the_mean_cosine(people):
    """A vector at 30° is 30° from both of Anna's: cos 30° (1, if her mean were brought to unit length), and 60° from
    Bob's. One at 90° is 90° and 30° from Anna's: (0 + cos 30°) / 2."""
    assert people.people == ["Anna", "Bob"]
    scores = people.scores(at(30, 90, length=0.01))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [[cos(30), cos(60)], [cos(30) / 2, 1]], atol=1e-6)


def test_the_nearest_people_come_first_and_equal_ones_by_name(people):
    people.add("Carl", ["c.wav"], at(90))
    people.add("Aaron", ["d.wav"], at(90))
    (nearest,) = people.identify(at(90), k=3)
    assert [name for name, _ in nearest] == ["Aaron", "Bob", "Carl"]
    assert [name for name, _ in people.identify(at(90), k=1)[0]] == ["Aaron"]
    ((name, score), *rest) = people.identify(at(0), k=99)[0]
    assert name == "Anna" and score == pytest.approx((1 + cos(60)) / 2) and len(rest) == 3
    assert people.identify(np.zeros((0, 2))) == []


def test_many_vectors_are_scored_in_blocks(people, monkeypatch):
    vectors = at(*range(0, 360, 7))
    whole = people.identify(vectors)
    monkeypatch.setattr(gallery, "BLOCK", 5)
    assert people.identify(vectors) == whole


def test_a_file_added_again_replaces_its_vector(people):
    people.add("Anna", ["a60.wav", "new.wav"], at(0, 0))
    assert people.recordings("Anna") == ["a0.wav", "a60.wav", "new.wav"]
    assert people.scores(at(0))[0, 0] == pytest.approx(1)


def test_recordings_and_people_are_removed(people):
    people.remove("Anna", ["a0.wav"])
    np.testing.assert_allclose(people.scores(at(60)), [[1, cos(30)]], atol=1e-6)
    with pytest.raises(GalleryError, match=r"Anna has no recording a6.wav; nearest in spelling: a60.wav"):
        people.remove("Anna", ["a60.wav", "a6.wav"])
    assert people.recordings("Anna") == ["a60.wav"]  # all or nothing
    people.remove("Anna", ["a60.wav", "a60.wav"])
    assert people.people == ["Bob"]
    with pytest.raises(GalleryError, match=r"^Bop is not enrolled; nearest in spelling: Bob$"):
        people.remove("Bop")
    with pytest.raises(GalleryError, match=r"^Xyz is not enrolled$"):
        people.recordings("Xyz")
    people.remove("Bob")
    with pytest.raises(GalleryError, match="Nobody is enrolled"):
        people.identify(at(0))


def test_a_gallery_comes_back_from_its_file(people, tmp_path):
    people.add("Zoë\udcff", ["/data/\udcff.wav"], at(45))  # a file name that is not UTF-8
    path = tmp_path / "new" / "people.npz"
    people.save(path)
    for fingerprint in ("e1", None):
        back = Gallery.load(path, fingerprint)
        assert back.people == people.people and back.encoder_fingerprint == "e1"
        assert [back.recordings(name) for name in back.people] == [people.recordings(name) for name in people.people]
        np.testing.assert_array_equal(back.scores(at(10, 20)), people.scores(at(10, 20)))
    with np.load(path, allow_pickle=False) as file:  # the documented arrays
        assert sorted(file.files) == ["encoder", "files", "format", "names", "vectors"]
        assert file["vectors"].dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(file["vectors"], axis=1), 1, atol=1e-6)
    with pytest.raises(GalleryError, match=r"people.npz was made with another encoder \(e1\) than this one \(e2\)"):
        Gallery.load(path, "e2")
    with pytest.raises(GalleryError, match=r"Cannot write .*people.npz/g.npz: (Not a directory|File exists)"):
        people.save(path / "g.npz")
    Gallery("e3").save(path)
    back = Gallery.load(path, "e3")
    back.add("Anna", ["a.wav"], at(0))
    assert back.people == ["Anna"] and [child.name for child in path.parent.iterdir()] == ["people.npz"]


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"format": np.array("vggvox_tf gallery 2")}, "gallery 2"),
        ({"names": None}, "names"),
        ({"names": np.array(["Anna"])}, "for 2 vectors"),
        ({"files": np.array([1, 2])}, "int64"),
        ({"files": np.array(["a.wav", "a.wav"])}, "twice"),
        ({"names": np.array(["Anna", ""])}, "no name"),
        ({"names": np.array(["Anna", "Bob"], object)}, "allow_pickle"),
        ({"vectors": at(0, 90).astype(np.float64)}, "float64"),
        ({"vectors": at(0, 90)[:, 0]}, "float32"),
        ({"vectors": at(0, 90, length=2)}, "unit length"),
        ({"vectors": np.full((2, 2), np.nan, np.float32)}, "unit length"),
    ],
)
def test_a_file_with_other_arrays_is_refused(tmp_path, change, complaint):
    arrays = {
        "format": np.array(gallery.FORMAT), "encoder": np.array("e1"), "names": np.array(["Anna", "Anna"]),
        "files": np.array(["a.wav", "b.wav"]), "vectors": at(0, 90),
    }  # fmt: skip
    path = tmp_path / "people.npz"
    np.savez(path, **arrays)
    assert Gallery.load(path, "e1").people == ["Anna"]
    np.savez(path, **{name: array for name, array in (arrays | change).items() if array is not None})
    with pytest.raises(GalleryError, match=f"people.npz: expected a gallery .*{complaint}"):
        Gallery.load(path, "e1")


def test_a_file_that_is_no_gallery(people, tmp_path):
    people.save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(at(90).tobytes())] ^= 1  # a bit, which the checksum notices
    np.save(tmp_path / "array.npy", at(0))
    contents = {
        "text.npz": b"Dear diary", "empty.npz": b"", "cut.npz": whole[: len(whole) // 2], "flipped.npz": bytes(flipped),
        "array.npz": (tmp_path / "array.npy").read_bytes(),
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "gone.npz"):
        with pytest.raises(GalleryError, match=f"{name}: expected a gallery"):
            Gallery.load(tmp_path / name, "e1")
    with pytest.raises(GalleryError, match="No such file"):
        Gallery.load(tmp_path / "gone.npz", "e1")


def test_a_gallery_that_would_fill_the_memory_is_refused_unread(tmp_path):
    """100 kB that would be 100 MB."""
    np.savez_compressed(tmp_path / "people.npz", vectors=np.zeros(10**8, np.uint8))
    with pytest.raises(GalleryError, match=r"people.npz: expected a gallery .*its arrays are compressed"):
        Gallery.load(tmp_path / "people.npz", "e1")


@pytest.mark.parametrize(
    "name, files, vectors, complaint",
    [
        ("", ["a.wav"], at(0), "a name"),
        ("Anna", [], np.zeros((0, 2)), "0 files"),
        ("Anna", ["a.wav"], at(0, 90), "1 files, 2 vectors"),
        ("Anna", ["a.wav"], np.ones((1, 3)), r"\(N, 2\). Received: \(1, 3\)"),
        ("Anna", ["a.wav"], np.ones(2), r"Received: \(2,\)"),
        ("Anna", ["a.wav", "b.wav"], [[1, 0], [0, 0]], "Vector 1 is zero"),
        ("Anna", ["a.wav"], [[np.nan, 0]], "Vector 0 is zero, NaN"),
    ],
)
def test_what_cannot_be_added(people, name, files, vectors, complaint):
    with pytest.raises(GalleryError, match=complaint):
        people.add(name, files, vectors)
    assert people.recordings("Anna") == ["a0.wav", "a60.wav"]


def test_what_cannot_be_asked(people):
    with pytest.raises(GalleryError, match="Vector 0 is zero, NaN"):
        people.scores([[np.nan, 1]])
    with pytest.raises(GalleryError, match="k of at least 1"):
        people.identify(at(0), k=0)
