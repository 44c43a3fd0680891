"""Losses on distances between embeddings, and the pairs of a batch that they are taken over.

A batch is embeddings (N, D) with the speaker ids (N,) as labels. The Keras classes turn it into pairs: two halves that
belong together row by row (`ContrastiveLoss`), or all pairs of a P×K batch (`HardNegativeContrastiveLoss`).
"""

import keras
import tensorflow as tf

# Squared distances below this count as zero, with a zero gradient: the slope of √x grows without bound towards 0.
TINY = 1e-12


def safe_sqrt(squares):
    """√max(x, 0) whose gradient is 0, not infinite or NaN, where x is (nearly) 0."""
    is_tiny = squares < TINY
    return tf.where(is_tiny, 0.0, tf.sqrt(tf.where(is_tiny, 1.0, squares)))


def paired_distances(a, b):
    """Euclidean distances (B,) between the rows of a (B, D) and b (B, D)."""
    return safe_sqrt(tf.reduce_sum(tf.square(a - b), axis=-1))


def all_distances(embeddings):
    """Euclidean distances (N, N) between all rows of (N, D), by |a|² + |b|² − 2a·b: one matrix product."""
    squares = tf.reduce_sum(tf.square(embeddings), axis=-1)
    products = tf.matmul(embeddings, embeddings, transpose_b=True)
    return safe_sqrt(squares[:, tf.newaxis] + squares[tf.newaxis, :] - 2 * products)


def contrastive(distances, same, margin):
    """Contrastive loss y·d² + (1 − y)·max(margin − d, 0)², pair by pair.

    Hadsell, Chopra, LeCun 2006, equation 4, without its factor ½; Chung et al. 2018, section 3.3.

    Args:
      distances: (…), Euclidean.
      same: (…), 1 where both sides are of the same speaker, else 0.
      margin: negative pairs further apart than this cost nothing.
    """
    same = tf.cast(same, distances.dtype)
    return same * tf.square(distances) + (1 - same) * tf.square(tf.maximum(margin - distances, 0))


def above_diagonal(square):
    """Bool (N, N), True above the diagonal: every unordered pair once."""
    return tf.linalg.band_part(tf.ones_like(square, tf.bool), 0, -1) & ~tf.eye(tf.shape(square)[0], dtype=tf.bool)


def hardest_negatives(distances, same, share):
    """The pairs of a batch to learn from: every positive pair, and the closest `share` of the negative ones.

    Args:
      distances: (N, N), symmetric.
      same: bool (N, N), True where both are of the same speaker.
      share: of the negative pairs, in (0, 1]; at least one is kept.

    Returns:
      positives, negatives: bool (N, N); each unordered pair is marked once, above the diagonal. Negative pairs that
      are exactly as far apart as the last one kept are kept as well.
    """
    upper = above_diagonal(same)
    positives, negatives = same & upper, ~same & upper
    ranked = tf.sort(tf.reshape(tf.where(negatives, distances, float("inf")), [-1]))
    count = tf.reduce_sum(tf.cast(negatives, tf.float32))
    last = tf.cast(tf.maximum(tf.math.ceil(share * count), 1) - 1, tf.int32)
    return positives, negatives & (distances <= ranked[last])


def drawn_pairs(speakers, embeddings):
    """The pairs of a batch of drawn pairs, rows i and N/2 + i: distances (N/2,) and whether of one speaker (N/2,)."""
    first, second = tf.split(tf.reshape(speakers, [-1]), 2)
    a, b = tf.split(embeddings, 2)
    return paired_distances(a, b), tf.equal(first, second)


def all_pairs(speakers, embeddings):
    """The unordered pairs of a P×K batch: distances (N(N − 1)/2,) and whether of one speaker (N(N − 1)/2,)."""
    speakers = tf.reshape(speakers, [-1])
    same = tf.equal(speakers[:, tf.newaxis], speakers[tf.newaxis, :])  # (N, N)
    upper = above_diagonal(same)
    return tf.boolean_mask(all_distances(embeddings), upper), tf.boolean_mask(same, upper)


def active_pairs(speakers, embeddings, pairs, margin):
    """Share of the n pairs that a batch offers whose loss yᵢ·dᵢ² + (1 − yᵢ)·max(margin − dᵢ, 0)² is not zero.

    These are the positive pairs (unless they coincide) and the negative ones within the margin. In a P×K batch all
    N(N − 1)/2 pairs count, whether they are chosen as the hardest or not: once fewer negative pairs than are chosen
    lie within the margin, the rest of the chosen ones teach nothing.

    Args:
      speakers, embeddings: a batch, (N,) or (N, 1), and (N, D).
      pairs: drawn_pairs or all_pairs.
    """
    distances, same = pairs(speakers, embeddings)
    return tf.reduce_mean(tf.cast(contrastive(distances, same, margin) > 0, tf.float32))


def positive_distance(speakers, embeddings, pairs):
    """Mean distance Σ yᵢ·dᵢ / Σ yᵢ of the positive pairs that a batch offers; 0 where it has none."""
    return mean_where(*pairs(speakers, embeddings))


def negative_distance(speakers, embeddings, pairs):
    """Mean distance Σ (1 − yᵢ)·dᵢ / Σ (1 − yᵢ) of the negative pairs that a batch offers; 0 where it has none."""
    distances, same = pairs(speakers, embeddings)
    return mean_where(distances, ~same)


def mean_where(values, mask):
    """Mean of the values where the mask is true; 0 where it is true nowhere."""
    mask = tf.cast(mask, values.dtype)
    return tf.reduce_sum(values * mask) / tf.maximum(tf.reduce_sum(mask), 1)


@keras.saving.register_keras_serializable(package="vggvox_tf")
class ContrastiveLoss(keras.losses.Loss):
    """Contrastive loss of drawn pairs: rows i and N/2 + i of the batch are a pair. A scalar, the mean over pairs."""

    def __init__(self, margin=1.0, name="contrastive"):
        super().__init__(name=name, reduction=None, dtype="float32")
        self.margin = margin

    def call(self, speakers, embeddings):
        return tf.reduce_mean(contrastive(*drawn_pairs(speakers, embeddings), self.margin))

    def get_config(self):
        return {"margin": self.margin, "name": self.name}


@keras.saving.register_keras_serializable(package="vggvox_tf")
class HardNegativeContrastiveLoss(keras.losses.Loss):
    """Contrastive loss over a P×K batch: every positive pair and the hardest share of the negative pairs.

    The scalar is the mean over the positive pairs plus the mean over the chosen negative pairs, halved, as if pairs
    of both kinds had been drawn equally often.
    """

    def __init__(self, margin=1.0, hardest_share=0.1, name="hard_negative_contrastive"):
        super().__init__(name=name, reduction=None, dtype="float32")
        self.margin = margin
        self.hardest_share = hardest_share

    def call(self, speakers, embeddings):
        speakers = tf.reshape(speakers, [-1])
        same = tf.equal(speakers[:, tf.newaxis], speakers[tf.newaxis, :])  # (N, N)
        distances = all_distances(embeddings)
        positives, negatives = hardest_negatives(tf.stop_gradient(distances), same, self.hardest_share)
        losses = contrastive(distances, same, self.margin)
        return (mean_where(losses, positives) + mean_where(losses, negatives)) / 2

    def get_config(self):
        return {"margin": self.margin, "hardest_share": self.hardest_share, "name": self.name}
