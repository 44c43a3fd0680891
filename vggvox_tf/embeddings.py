"""Embeddings on disk: which recording has which vector, and which encoder made it.

An `.npz` file of plain arrays, without pickles: `format`, `encoder` (the fingerprint), `paths` (N,), `speakers` (N,) as
far as known, `vectors` float32 (N, D).
"""

import dataclasses
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np

FORMAT = "vggvox_tf embeddings 1"


class EmbeddingsError(ValueError):
    """A file of embeddings that cannot be used."""


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
    """N recordings and their vectors."""

    paths: np.ndarray  # (N,) str, relative to the root that was embedded
    speakers: np.ndarray  # (N,) str, "" where not known
    vectors: np.ndarray  # (N, D) float32, as they came out of the encoder
    fingerprint: str  # of the encoder

    def __len__(self):
        return len(self.paths)

    def save(self, path):
        """Writes the file under a temporary name, then renames it: it is there whole or not at all."""
        save_arrays(
            path,
            format=np.array(FORMAT),
            encoder=np.array(self.fingerprint),
            paths=np.asarray(self.paths, str),
            speakers=np.asarray(self.speakers, str),
            vectors=np.asarray(self.vectors, np.float32),
        )

    @classmethod
    def load(cls, path, fingerprint=None):
        """Reads what `save` wrote; EmbeddingsError if it is something else, or another encoder's than asked for."""
        try:
            arrays = load_arrays(path)
            if str(arrays["format"]) != FORMAT:
                raise ValueError(f"its format is {str(arrays['format'])!r}")
            embeddings = cls(arrays["paths"], arrays["speakers"], arrays["vectors"], str(arrays["encoder"]))
            count = len(embeddings.paths)
            if embeddings.vectors.ndim != 2 or {len(embeddings.vectors), len(embeddings.speakers)} != {count}:
                raise ValueError("its arrays are of different lengths")
        except Exception as error:  # what NumPy raises for a file that is none differs by what is wrong with it
            raise EmbeddingsError(
                f"{path}: expected embeddings (.npz) from python -m vggvox_tf.embed; {_reason(error)}"
            ) from error
        if fingerprint and embeddings.fingerprint != fingerprint:
            raise EmbeddingsError(
                f"{path} was made with another encoder ({embeddings.fingerprint[:12]}) than this one "
                f"({fingerprint[:12]}): embed the recordings again"
            )
        return embeddings


def save_arrays(path, **arrays):
    """Writes an uncompressed `.npz`, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)  # who may read someone's voice print stays the same
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_arrays(path):
    """The arrays that `save_arrays` wrote; raises all kinds of errors where the file is something else."""
    with np.load(path, allow_pickle=False) as file:
        # What is compressed may be larger than the memory, however small the file.
        if any(member.compress_type != zipfile.ZIP_STORED for member in file.zip.infolist()):
            raise ValueError("its arrays are compressed")
        return {name: file[name] for name in file.files}


def _reason(error):
    return f"it has no array {error}" if isinstance(error, KeyError) else str(error)
