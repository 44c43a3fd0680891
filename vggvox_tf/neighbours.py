"""Who sounds like whom: python -m vggvox_tf.neighbours --embeddings=embeddings.npz --k=5

Prints each speaker's, or utterance's, nearest others with the angle between their vectors, as tables of word embeddings
do: `blue: (red, 47.6°), (yellow, 51.9°)`. The embeddings come from python -m vggvox_tf.embed.
"""

import numpy as np
from absl import flags

from vggvox_tf import cli
from vggvox_tf.embeddings import Embeddings, EmbeddingsError
from vggvox_tf.gallery import nearest_spelled
from vggvox_tf.scoring import speaker_means, unit_length

FLAGS = flags.FLAGS

# Numbers in a block of work: 4 Mi float64 are 32 MiB, and a few such blocks are all that is held at a time.
BLOCK = 2**22


def define_flags():
    # Not at import: tests import this beside other modules with flags of the same names.
    flags.DEFINE_string("embeddings", None, "Embeddings (.npz) from python -m vggvox_tf.embed.", flag_values=FLAGS)
    flags.DEFINE_enum(
        "by",
        "speaker",
        ["speaker", "utterance"],
        "speaker: compare speakers, each the mean direction of their utterances. utterance: compare single utterances.",
        flag_values=FLAGS,
    )
    flags.DEFINE_integer("k", 5, "How many neighbours to print for each.", 1, flag_values=FLAGS)
    flags.DEFINE_list(
        "of",
        [],
        "Speakers, or paths with --by=utterance, to print, separated by commas; default: all.",
        flag_values=FLAGS,
    )
    flags.mark_flag_as_required("embeddings", flag_values=FLAGS)


def nearest(vectors, k, rows=None):
    """The nearest others of vectors, by angle; in blocks, which hold little more than the vectors themselves.

    Args:
      vectors: (N, D), of any length but zero.
      k: how many neighbours to find; where there are fewer others, all.
      rows: (R,) indices of the vectors whose neighbours are wanted; default: all.

    Returns:
      Indices (R, k) and angles in degrees (R, k) of the neighbours, nearest first, equal ones in order. The angles are
      exact; but the k are chosen by cosines in float32, which do not tell angles below 0.03° from each other.

    Raises:
      EmbeddingsError: there are no others, or a vector is zero or not finite.
    """
    vectors = np.asarray(vectors, np.float32)
    if len(vectors) < 2:
        raise EmbeddingsError(f"Expected at least two to compare. Received: {len(vectors)}")
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))  # np.linalg.norm would hold a square of every number
    unusable = ~((lengths > 0) & np.isfinite(lengths))
    if unusable.any():
        raise EmbeddingsError(f"Vector {unusable.argmax()} is zero, NaN or infinite: it has no direction")
    rows = np.arange(len(vectors)) if rows is None else np.asarray(rows)
    k = min(k, len(vectors) - 1)
    indices = np.empty((len(rows), k), np.int64)
    angles = np.empty((len(rows), k))
    step = max(1, BLOCK // max(len(vectors), k * vectors.shape[1]))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        away = -(vectors[rows[block]] @ vectors.T) / lengths  # minus the cosines, times a number for each row
        away[np.arange(len(away)), rows[block]] = np.inf  # itself
        found = np.argpartition(away, k - 1, axis=1)[:, :k]
        # arccos would lose half the digits of a small angle: 2·atan2(|a − b|, |a + b|) is exact for any (Kahan).
        a, b = _exact(vectors[rows[block]])[:, np.newaxis], _exact(vectors[found])  # (B, 1, D), (B, k, D)
        angle = np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=2), np.linalg.norm(a + b, axis=2)))
        order = np.lexsort((found, angle))
        indices[block] = np.take_along_axis(found, order, axis=1)
        angles[block] = np.take_along_axis(angle, order, axis=1)
    return indices, angles


def _exact(vectors):
    return unit_length(vectors.astype(np.float64))


def rows_of(wanted, names):
    """Where in `names` (N,) the wanted ones are; raises flags.Error for one that is not there."""
    place = {name: row for row, name in enumerate(names.tolist())}
    for name in wanted:
        if name not in place:
            raise flags.Error(f"--of: {name} is not among the {len(place):,}{nearest_spelled(name, place)}")
    return [place[name] for name in wanted]


def main(_):
    embeddings = Embeddings.load(FLAGS.embeddings)
    names, vectors = embeddings.paths, embeddings.vectors
    if FLAGS.by == "speaker":
        if unknown := np.count_nonzero(embeddings.speakers == ""):
            raise EmbeddingsError(
                f"{FLAGS.embeddings} does not say who speaks in {unknown:,} of {len(names):,} recordings; use "
                "--by=utterance, or embed a corpus"
            )
        names, vectors = speaker_means(vectors, embeddings.speakers)
    rows = rows_of(FLAGS.of, names) if FLAGS.of else np.arange(len(names))
    for row, found, angles in zip(rows, *nearest(vectors, FLAGS.k, rows), strict=True):
        print(f"{names[row]}: " + ", ".join(f"({names[i]}, {a:.1f}°)" for i, a in zip(found, angles, strict=True)))


if __name__ == "__main__":
    define_flags()
    cli.start(main)
