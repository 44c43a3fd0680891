"""Losses on distances between embeddings, and softmax losses with a margin.

A batch is embeddings (N, D) with the speaker ids (N,) as labels. `ContrastiveLoss` takes it as drawn pairs: two halves
that belong together row by row. The other metric losses take all distances of a P×K batch, P speakers with K utterances
each, in any order, computed once as one matrix. A row without a positive or a negative counts for nothing.
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
    # In double precision: TensorFlow multiplies single precision as TF32 on GPUs, with 10 bits, and what the difference
    # leaves of that puts equal rows 0.08 apart.
    rows = tf.cast(embeddings, tf.float64)
    squares = tf.reduce_sum(tf.square(rows), axis=-1)
    products = tf.matmul(rows, rows, transpose_b=True)
    squared = tf.cast(squares[:, tf.newaxis] + squares[tf.newaxis, :] - 2 * products, embeddings.dtype)
    return safe_sqrt(squared)


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


def same_speaker(speakers):
    """Bool (N, N), True where two rows are of the same speaker, from ids (N,) or (N, 1)."""
    speakers = tf.reshape(speakers, [-1])
    return tf.equal(speakers[:, tf.newaxis], speakers[tf.newaxis, :])


def others(same):
    """The positive pairs of each row: `same` (N, N) without the diagonal."""
    return same & ~tf.eye(tf.shape(same)[0], dtype=tf.bool)


def anchors(same):
    """Bool (N,): rows that have both a positive and a negative."""
    return tf.reduce_any(others(same), axis=1) & tf.reduce_any(~same, axis=1)


def furthest(distances, mask):
    """Largest distance (N,) of each row where the mask is true; 0 where it is true nowhere."""
    return tf.reduce_max(tf.where(mask, distances, 0.0), axis=1)


def nearest(distances, mask):
    """Smallest distance (N,) of each row where the mask is true; infinite where it is true nowhere."""
    return tf.reduce_min(tf.where(mask, distances, float("inf")), axis=1)


def negatives_in_order(distances, same):
    """Distances (N, N) of each row's negatives, closest first; infinite after the last."""
    return tf.sort(tf.where(same, float("inf"), distances), axis=1)


def nearest_of_others(distances, same):
    """Smallest distance (N,) of two rows of two speakers other than the row's own; infinite where there is none.

    The closest negative pair of the batch is that of all speakers but its own two, who each have the closest pair
    without them: three minima over (N, N).
    """
    negatives = tf.where(same, float("inf"), distances)
    count = tf.shape(same)[0]
    closest = tf.argmin(tf.reshape(negatives, [-1]), output_type=tf.int32)
    pairs = tf.fill([count], tf.reduce_min(negatives))
    for row in (closest // count, closest % count):
        speaker = same[row]  # (N,)
        without = ~same & ~speaker[:, tf.newaxis] & ~speaker[tf.newaxis, :]
        pairs = tf.where(speaker, tf.reduce_min(nearest(distances, without)), pairs)
    return pairs


def finite(distances):
    """0 for infinite distances, of rows that count for nothing: 0 times an infinite loss would be NaN."""
    return tf.where(tf.math.is_inf(distances), 0.0, distances)


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


def semi_hard_negatives(distances, same, margin):
    """Negative pairs of a batch that are further apart than a positive pair of one of the two, but within the margin:
    bool (N, N), above the diagonal.

    For pairs what Schroff et al. 2015, section 3.2, call semi-hard for triplets: d(a, p) < d(a, n), for the closest p
    of either side, and inside the margin. Pairs beyond it cost nothing, and would only dilute the mean of the others.
    """
    closest = nearest(distances, others(same))  # (N,)
    further = distances > tf.minimum(closest[:, tf.newaxis], closest[tf.newaxis, :])
    return ~same & above_diagonal(same) & further & (distances < margin)


def drawn_pairs(speakers, embeddings):
    """The pairs of a batch of drawn pairs, rows i and N/2 + i: distances (N/2,) and whether of one speaker (N/2,)."""
    first, second = tf.split(tf.reshape(speakers, [-1]), 2)
    a, b = tf.split(embeddings, 2)
    return paired_distances(a, b), tf.equal(first, second)


def all_pairs(speakers, embeddings):
    """The unordered pairs of a P×K batch: distances (N(N − 1)/2,) and whether of one speaker (N(N − 1)/2,)."""
    same = same_speaker(speakers)  # (N, N)
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


class BatchLoss(keras.losses.Loss):
    """Base: `call(speakers, outputs)` gives the loss of a batch as a whole, a scalar.

    In one of R replicas it is divided by R, which Keras itself does for means over the batch: gradients are summed.
    """

    def __init__(self, name):
        super().__init__(name=name, reduction=None, dtype="float32")

    def __call__(self, y_true, y_pred, sample_weight=None):
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        loss = super().__call__(y_true, y_pred, sample_weight)
        return loss if replicas == 1 else loss / replicas


@keras.saving.register_keras_serializable(package="vggvox_tf")
class ContrastiveLoss(BatchLoss):
    """Contrastive loss of drawn pairs: rows i and N/2 + i of the batch are a pair. A scalar, the mean over pairs."""

    def __init__(self, margin=1.0, name="contrastive"):
        super().__init__(name)
        self.margin = margin

    def call(self, speakers, embeddings):
        return tf.reduce_mean(contrastive(*drawn_pairs(speakers, embeddings), self.margin))

    def get_config(self):
        return {"margin": self.margin, "name": self.name}


@keras.saving.register_keras_serializable(package="vggvox_tf")
class MinedContrastiveLoss(BatchLoss):
    """Contrastive loss over a P×K batch: every positive pair, and the negative pairs that are mined.

    The scalar is the mean over the positive pairs plus the mean over the chosen negative pairs, halved, as if pairs
    of both kinds had been drawn equally often.

    Args:
      mining: "hard": the closest `hardest_share` of the negative pairs. "half_hard": those for one half, and all for
        the other, which is what drawing half of them at random comes to on average (Nagrani et al. 2017).
        "semi_hard": see semi_hard_negatives; where there is none, that mean is 0.
    """

    def __init__(self, margin=1.0, mining="hard", hardest_share=0.1, name="mined_contrastive"):
        super().__init__(name)
        self.margin = margin
        self.mining = mining
        self.hardest_share = hardest_share

    def call(self, speakers, embeddings):
        same, distances = same_speaker(speakers), all_distances(embeddings)
        losses = contrastive(distances, same, self.margin)
        positives, negatives = hardest_negatives(tf.stop_gradient(distances), same, self.hardest_share)
        if self.mining == "semi_hard":
            negatives = semi_hard_negatives(tf.stop_gradient(distances), same, self.margin)
        negative = mean_where(losses, negatives)
        if self.mining == "half_hard":
            negative = (negative + mean_where(losses, ~same)) / 2
        return (mean_where(losses, positives) + negative) / 2

    def get_config(self):
        return {
            "margin": self.margin,
            "mining": self.mining,
            "hardest_share": self.hardest_share,
            "name": self.name,
        }


def triplet(positive, negative, margin):
    """Triplet loss max(d(a, p) − d(a, n) + margin, 0), of distances (…).

    Schroff et al. 2015, equation 3, with distances in place of their squares (Hermans et al. 2017, section 2: squares
    made training collapse).
    """
    return tf.maximum(positive - negative + margin, 0)


@keras.saving.register_keras_serializable(package="vggvox_tf")
class TripletLoss(BatchLoss):
    """Triplet loss of a P×K batch: a scalar, the mean over (anchor, positive) pairs, or over all triplets.

    Args:
      mining: which negative each (anchor, positive) pair has. "hard": the closest. "semi_hard": the closest of those
        further than the positive (Schroff et al. 2015, section 3.2), and where there is none the furthest, as in
        TensorFlow Addons. "random": each of them, which is what drawing one at random comes to on average.
    """

    def __init__(self, margin=0.3, mining="hard", name="triplet"):
        super().__init__(name)
        self.margin = margin
        self.mining = mining

    def call(self, speakers, embeddings):
        same, distances = same_speaker(speakers), all_distances(embeddings)
        if self.mining == "random":
            return self._all_triplets(distances, same)
        negatives = nearest(distances, ~same)[:, tf.newaxis]  # (N, 1)
        if self.mining == "semi_hard":
            ordered = negatives_in_order(distances, same)
            further = tf.searchsorted(ordered, distances, side="right")  # N where a distance is NaN, else less
            ordered = tf.pad(ordered, [[0, 0], [0, 1]], constant_values=float("inf"))
            closest = tf.gather(ordered, further, batch_dims=1)  # (N, N), for each anchor and positive
            negatives = tf.where(closest < float("inf"), closest, furthest(distances, ~same)[:, tf.newaxis])
        has_negative = tf.reduce_any(~same, axis=1, keepdims=True)
        return mean_where(triplet(distances, finite(negatives), self.margin), others(same) & has_negative)

    def _all_triplets(self, distances, same):
        """The mean over N·(K − 1)·(N − K) triplets from N² numbers: those that cost anything have the negatives that
        come first in order, k of them, and cost k·(d(a, p) + margin) less the sum of those negatives' distances."""
        limits = distances + self.margin
        ordered = negatives_in_order(distances, same)
        within = tf.searchsorted(ordered, limits)
        sums = tf.gather(tf.pad(tf.cumsum(finite(ordered), axis=1), [[0, 0], [1, 0]]), within, batch_dims=1)
        losses = tf.cast(within, limits.dtype) * limits - sums  # (N, N)
        positives = tf.cast(others(same), losses.dtype)
        triplets = tf.reduce_sum(positives * tf.reduce_sum(tf.cast(~same, losses.dtype), axis=1, keepdims=True))
        return tf.reduce_sum(losses * positives) / tf.maximum(triplets, 1)

    def get_config(self):
        return {"margin": self.margin, "mining": self.mining, "name": self.name}


@keras.saving.register_keras_serializable(package="vggvox_tf")
class TriHardLoss(BatchLoss):
    """Batch-hard triplet loss: a scalar, the mean over anchors of the furthest positive and the closest negative.

    max(max d(a, p) − min d(a, n) + margin, 0), or softly ln(1 + exp(max d(a, p) − min d(a, n))) (Hermans et al. 2017,
    equation 5 and section 2).
    """

    def __init__(self, margin=0.3, soft=False, name="trihard"):
        super().__init__(name)
        self.margin = margin
        self.soft = soft

    def call(self, speakers, embeddings):
        same, distances = same_speaker(speakers), all_distances(embeddings)
        positive, negative = furthest(distances, others(same)), finite(nearest(distances, ~same))
        losses = tf.nn.softplus(positive - negative) if self.soft else triplet(positive, negative, self.margin)
        return mean_where(losses, anchors(same))

    def get_config(self):
        return {"margin": self.margin, "soft": self.soft, "name": self.name}


@keras.saving.register_keras_serializable(package="vggvox_tf")
class QuadrupletLoss(BatchLoss):
    """Quadruplet loss of a P×K batch: a scalar, the mean over anchors.

    max(d(a, p) − d(a, n) + margin, 0) + max(d(a, p) − d(n₁, n₂) + second_margin, 0), with n₁ and n₂ of two speakers
    other than the anchor's (Chen et al. 2017, with distances for their learned metric), of each kind the
    hardest: the furthest positive, the closest negative and the closest n₁, n₂.
    """

    def __init__(self, margin=0.3, second_margin=0.1, name="quadruplet"):
        super().__init__(name)
        self.margin = margin
        self.second_margin = second_margin

    def call(self, speakers, embeddings):
        same, distances = same_speaker(speakers), all_distances(embeddings)
        positive, closest = furthest(distances, others(same)), nearest(distances, ~same)  # (N,)
        pairs = nearest_of_others(distances, same)
        losses = triplet(positive, finite(closest), self.margin)
        has_pair = tf.cast(pairs < float("inf"), losses.dtype)
        losses += has_pair * triplet(positive, finite(pairs), self.second_margin)
        return mean_where(losses, anchors(same))

    def get_config(self):
        return {"margin": self.margin, "second_margin": self.second_margin, "name": self.name}


@keras.saving.register_keras_serializable(package="vggvox_tf")
class MSMLLoss(BatchLoss):
    """Margin sample mining loss: a scalar, one term a batch (Xiao et al. 2017).

    max(d(a, p) − d(n₁, n₂) + margin, 0) of the positive pair furthest apart and the negative pair closest together.
    """

    def __init__(self, margin=0.3, name="msml"):
        super().__init__(name)
        self.margin = margin

    def call(self, speakers, embeddings):
        same, distances = same_speaker(speakers), all_distances(embeddings)
        positive = tf.reduce_max(furthest(distances, others(same)))
        negative = tf.reduce_min(nearest(distances, ~same))
        loss = triplet(positive, finite(negative), self.margin)
        return loss * tf.cast(tf.reduce_any(others(same)) & tf.reduce_any(~same), loss.dtype)

    def get_config(self):
        return {"margin": self.margin, "name": self.name}


@keras.saving.register_keras_serializable(package="vggvox_tf")
class PrototypeCrossEntropy(BatchLoss):
    """Softmax cross-entropy of heads.Prototypes' logits (P, P), the right prototype being on the diagonal: a scalar.

    Snell et al. 2017, equation 2; Chung et al. 2020. The speaker ids (N,) are not needed.
    """

    def __init__(self, name="prototype_cross_entropy"):
        super().__init__(name)

    def call(self, speakers, logits):
        labels = tf.range(tf.shape(logits)[0])
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

    def get_config(self):
        return {"name": self.name}


class MarginSoftmaxLoss(BatchLoss):
    """Softmax cross-entropy of scaled cosines, the right speaker's lowered by a margin: a scalar, the mean of a batch.

    Takes speaker ids (N,) and cosines (N, S). `margin` is a variable, so that a margin can be warmed up in a compiled
    training step.
    """

    def __init__(self, margin=0.2, scale=30.0, name=None):
        super().__init__(name)
        self.full_margin = margin
        self.margin = tf.Variable(margin, trainable=False, dtype=tf.float32)
        self.scale = scale

    def call(self, speakers, cosines):
        speakers = tf.cast(tf.reshape(speakers, [-1]), tf.int32)
        rows = tf.stack([tf.range(tf.shape(speakers)[0]), speakers], axis=1)
        lowered = self.lowered(tf.gather_nd(cosines, rows), self.margin)
        logits = self.scale * tf.tensor_scatter_nd_update(cosines, rows, lowered)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(speakers, logits))

    def get_config(self):
        return {"margin": self.full_margin, "scale": self.scale, "name": self.name}


@keras.saving.register_keras_serializable(package="vggvox_tf")
class AdditiveMarginLoss(MarginSoftmaxLoss):
    """Additive margin softmax, s·(cos θ − m) (Wang, Cheng et al. 2018)."""

    @staticmethod
    def lowered(cosines, margin):
        return cosines - margin


@keras.saving.register_keras_serializable(package="vggvox_tf")
class AdditiveAngularMarginLoss(MarginSoftmaxLoss):
    """Additive angular margin softmax, s·cos(θ + m) (Deng et al. 2019, equation 3)."""

    @staticmethod
    def lowered(cosines, margin):
        """cos(θ + m); where θ + m > π, and it would rise again, cos θ − m·sin m, as in the authors' code."""
        sines = safe_sqrt(1 - tf.square(cosines))
        added = cosines * tf.cos(margin) - sines * tf.sin(margin)
        return tf.where(cosines > -tf.cos(margin), added, cosines - margin * tf.sin(margin))
