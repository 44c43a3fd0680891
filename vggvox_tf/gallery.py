"""Enrolled people: the vectors of their recordings, and who a new recording sounds like.

On disk a gallery of R recordings is an `.npz` file of plain arrays, without pickles:

    format   "vggvox_tf gallery 1"
    encoder  fingerprint of the encoder that made the vectors; another encoder's cannot be compared with them
    names    (R,) str, the person in each recording
    files    (R,) str, where each recording came from
    vectors  (R, D) float32 of unit length
"""

import difflib
import itertools

import numpy as np

from vggvox_tf.embeddings import load_arrays, save_arrays
from vggvox_tf.scoring import BLOCK, unit_length

FORMAT = "vggvox_tf gallery 1"


class GalleryError(ValueError):
    """A gallery that cannot be read, or one that does not hold what was asked for."""


def nearest_spelled(name, names):
    """The end of a message about an unknown name: which of `names` may have been meant."""
    found = difflib.get_close_matches(name, names, 3)
    return f"; nearest in spelling: {', '.join(found)}" if found else ""


class Gallery:
    """People and their recordings; empty at first.

    Args:
      encoder_fingerprint: of the encoder whose vectors it will hold.
    """

    def __init__(self, encoder_fingerprint):
        self.encoder_fingerprint = encoder_fingerprint
        self._recordings = {}  # name -> {file: (D,) float32 of unit length}
        self._means = None  # (P, D), see `scores`; computed when it is needed

    @classmethod
    def load(cls, path, fingerprint):
        """Reads what `save` wrote.

        Args:
          path: the file.
          fingerprint: of the encoder that new vectors will come from; None where there will not be any.

        Raises:
          GalleryError: there is no such file, it is something else, or another encoder made it.
        """
        try:
            arrays = load_arrays(path)
            if str(arrays["format"]) != FORMAT:
                raise ValueError(f"its format is {str(arrays['format'])!r}")
            gallery = cls(str(arrays["encoder"]))
            gallery._fill(arrays["names"], arrays["files"], arrays["vectors"])
        except Exception as error:  # what NumPy raises for a file that is none differs by what is wrong with it
            raise GalleryError(
                f"{path}: expected a gallery that python -m vggvox_tf.identify enrol wrote, found: {error}"
            ) from error
        if fingerprint is not None and gallery.encoder_fingerprint != fingerprint:
            raise GalleryError(
                f"{path} was made with another encoder ({gallery.encoder_fingerprint[:12]}) than this one "
                f"({fingerprint[:12]}): use that one, or enrol everybody again with this one in a new gallery"
            )
        return gallery

    def _fill(self, names, files, vectors):
        count = len(vectors)
        if not names.dtype.kind == files.dtype.kind == "U" or not names.shape == files.shape == (count,):
            raise ValueError(
                f"names {names.dtype} {names.shape} and files {files.dtype} {files.shape} for {count} vectors"
            )
        if vectors.ndim != 2 or vectors.dtype != np.float32:
            raise ValueError(f"vectors {vectors.dtype} {vectors.shape}")
        if not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):  # false for NaN, too
            raise ValueError("vectors that are not of unit length")
        for name, file, vector in zip(names.tolist(), files.tolist(), vectors, strict=True):
            if not name or file in self._recordings.setdefault(name, {}):
                raise ValueError(f"{file!r} of {name!r}, which has no name or is there twice")
            self._recordings[name][file] = vector

    def save(self, path):
        """Writes the file under a temporary name, then renames it: it is there whole or not at all.

        Raises:
          GalleryError: it cannot be written.
        """
        names = [name for name in self.people for _ in self._recordings[name]]
        files = [file for name in self.people for file in self._recordings[name]]
        arrays = {
            "format": np.array(FORMAT),
            "encoder": np.array(self.encoder_fingerprint),
            "names": np.array(names, str),
            "files": np.array(files, str),
            "vectors": self._vectors(),
        }
        try:
            save_arrays(path, **arrays)
        except OSError as error:
            raise GalleryError(f"Cannot write {path}: {error.strerror}") from error

    @property
    def people(self):
        """Names of the P people, sorted."""
        return sorted(self._recordings)

    def recordings(self, name):
        """The files of one person."""
        return list(self._person(name))

    def add(self, name, files, vectors):
        """Adds recordings of a person. A file that the person has already gets the new vector.

        Args:
          name: the person, new or enrolled.
          files: where the recordings came from.
          vectors: (len(files), D), of any length but zero.
        """
        vectors = self._unit_length(vectors)
        if not name or not len(files) or len(files) != len(vectors):
            raise GalleryError(
                f"Expected a name and as many files as vectors. Received: {name!r}, {len(files)} files, "
                f"{len(vectors)} vectors"
            )
        self._recordings.setdefault(str(name), {}).update(zip(map(str, files), vectors, strict=True))
        self._means = None

    def remove(self, name, files=None):
        """Removes some of a person's recordings, or the person; who has no recording left is no longer enrolled.

        Raises:
          GalleryError: there is no such person or file; nothing is removed then.
        """
        recordings = self._person(name)
        files = list(recordings if files is None else files)
        for file in files:
            if file not in recordings:
                raise GalleryError(f"{name} has no recording {file}{nearest_spelled(file, recordings)}")
        for file in files:
            recordings.pop(file, None)  # a file may be named twice
        if not recordings:
            del self._recordings[name]
        self._means = None

    def scores(self, vectors):
        """Scores of test vectors (N, D) against all people: (N, P) float32, in the order of `people`.

        A score is the mean cosine between the vector and the person's recordings: the product with the mean of their
        unit vectors, which is not brought to unit length again. So scores are means of scores of pairs, and stay on
        the scale on which those were calibrated.
        """
        if not self._recordings:
            raise GalleryError("Nobody is enrolled in the gallery")
        if self._means is None:
            counts = np.array([len(self._recordings[name]) for name in self.people])
            sums = np.add.reduceat(self._vectors(), np.cumsum(counts) - counts, axis=0)
            self._means = sums / counts[:, np.newaxis].astype(np.float32)
        return self._unit_length(vectors) @ self._means.T

    def identify(self, vectors, k=5):
        """The people that each test vector sounds like most.

        Args:
          vectors: (N, D), of any length but zero.
          k: how many people to name.

        Returns:
          For each vector at most k pairs of (name, score), see `scores`: best first, equal ones by name.
        """
        if k < 1:
            raise GalleryError(f"Expected k of at least 1. Received: {k}")
        people = self.people
        k = min(k, len(people))
        rows = max(1, BLOCK // max(1, len(people)))
        result = []
        for start in range(0, len(vectors), rows):
            for scores in self.scores(vectors[start : start + rows]):
                # Sorting only the candidates, as there may be 100,000 people.
                candidates = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
                best = candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
                result.append([(people[i], float(scores[i])) for i in best])
        return result

    def _person(self, name):
        if name not in self._recordings:
            raise GalleryError(f"{name} is not enrolled{nearest_spelled(name, self.people)}")
        return self._recordings[name]

    def _vectors(self):
        """All vectors (R, D), person by person."""
        vectors = [vector for name in self.people for vector in self._recordings[name].values()]
        return np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)

    def _unit_length(self, vectors):
        vectors = np.asarray(vectors, np.float32)
        enrolled = itertools.chain.from_iterable(person.values() for person in self._recordings.values())
        dimension = next((vector.size for vector in enrolled), None)
        if vectors.ndim != 2 or (dimension and vectors.shape[1] != dimension):
            raise GalleryError(f"Expected vectors (N, {dimension or 'D'}). Received: {vectors.shape}")
        vectors = unit_length(vectors)
        unusable = ~np.isclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
        if unusable.any():
            raise GalleryError(f"Vector {unusable.argmax()} is zero, NaN or infinite: it points nowhere")
        return vectors
