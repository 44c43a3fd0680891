import pickle
import zipfile

import numpy as np
import pytest

from vggvox_tf.embeddings import Embeddings, EmbeddingsError


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_round_trip(tmp_path):
    """Also names that are no UTF-8, which file systems allow."""
    paths = np.array(["ä/1.wav", b"\xff/2.wav".decode("utf-8", "surrogateescape")])
    saved = Embeddings(paths, np.array(["ä", ""]), np.arange(6, dtype=np.float32).reshape(2, 3), "abc")
    saved.save(tmp_path / "new" / "e.npz")
    loaded = Embeddings.load(tmp_path / "new" / "e.npz", "abc")
    assert loaded.paths.tolist() == paths.tolist() and loaded.speakers.tolist() == ["ä", ""] and len(loaded) == 2
    np.testing.assert_array_equal(loaded.vectors, saved.vectors)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["e.npz"]  # no temporary file is left
    with pytest.raises(EmbeddingsError, match=r"e.npz was made with another encoder \(abc\) than this one \(xyz\)"):
        Embeddings.load(tmp_path / "new" / "e.npz", "xyz")


def test_files_that_are_no_embeddings(tmp_path):
    good = {"format": "vggvox_tf embeddings 1", "encoder": "x", "paths": ["a"], "speakers": ["s"]}
    np.savez(tmp_path / "other.npz", a=1)
    np.savez(tmp_path / "short.npz", **good, vectors=np.zeros((2, 3)))
    np.savez(tmp_path / "pickle.npz", **{**good, "paths": np.array(["a"], object)}, vectors=np.zeros((1, 3)))
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "short.npz").read_bytes()[:500])
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    np.savez(tmp_path / "run.npz", **good, vectors=np.array([Runs(tmp_path / "ran")]))
    np.savez_compressed(tmp_path / "bomb.npz", **good, vectors=np.zeros((1, 3)))
    array = (tmp_path / "array.npy").read_bytes()
    with zipfile.ZipFile(tmp_path / "endless.npz", "w") as archive:
        archive.writestr("vectors.npy", array.replace(b"(3,), }" + b" " * 16, b"(10000000000000000,), }"))
    with zipfile.ZipFile(tmp_path / "header.npz", "w") as archive:
        archive.writestr("vectors.npy", array.replace(b"}", b" "))
    names = ("other.npz", "short.npz", "pickle.npz", "text.npz", "cut.npz", "gone.npz", "array.npy", "pickle.npy")
    for name in (*names, "run.npz", "bomb.npz", "endless.npz", "header.npz"):
        with pytest.raises(EmbeddingsError, match=f"{name}: expected embeddings"):
            Embeddings.load(tmp_path / name)
    assert not (tmp_path / "ran").exists()
