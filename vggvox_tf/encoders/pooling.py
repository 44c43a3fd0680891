"""Pooling over time: feature maps (B, 1, T, C) of any number of frames to one vector an utterance."""

import keras
import tensorflow as tf

POOLINGS = ("average", "statistics", "self_attentive", "attentive_statistics", "netvlad", "ghostvlad")

# Hidden units of the attention (Okabe et al. 2018 has 64 for 512 channels; ECAPA-TDNN 128 for 1536).
ATTENTION_UNITS = 128

# Xie et al. 2019: eight clusters, and two ghosts where there are any.
CLUSTERS = 8
GHOSTS = 2

# Variances below this count as this, so that the deviation of a channel that does not change has a finite slope.
MINIMUM_VARIANCE = 1e-6


def pool_over_time(x, kind, name):
    """Feature maps (B, 1, T, C) to (B, C), (B, 2C) with statistics, or (B, CLUSTERS · C) with a VLAD."""
    if kind == "average":
        return keras.layers.GlobalAveragePooling2D(name=name)(x)
    if kind == "statistics":
        return StatisticsPooling(name=name)(x)
    if kind in ("self_attentive", "attentive_statistics"):
        return AttentivePooling(statistics=kind == "attentive_statistics", name=name)(x)
    if kind in ("netvlad", "ghostvlad"):
        return NetVLAD(ghosts=GHOSTS if kind == "ghostvlad" else 0, name=name)(x)
    raise ValueError(f"pooling must be one of {POOLINGS}, received {kind}")


def weighted_statistics(x, weights):
    """Mean Σ wₜxₜ and standard deviation √(Σ wₜxₜ² − mean²) over time (Okabe et al. 2018).

    Args:
      x: (B, T, C).
      weights: broadcast to x; of sum 1 over time.

    Returns:
      two (B, C).
    """
    mean = tf.reduce_sum(weights * x, axis=1)
    # Of differences from the mean: Σ wx² − mean² cancels to noise where the deviation is small.
    variance = tf.reduce_sum(weights * tf.square(x - mean[:, tf.newaxis]), axis=1)
    return mean, tf.sqrt(tf.maximum(variance, MINIMUM_VARIANCE))


class Pooling(keras.layers.Layer):
    """Base: computes in float32 on (B, T, C), since sums over many frames lose digits in float16."""

    def __init__(self, **kwargs):
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)

    def call(self, x):
        return self.pool(x[:, 0])


@keras.saving.register_keras_serializable(package="vggvox_tf")
class StatisticsPooling(Pooling):
    """Mean and standard deviation over time, (B, 1, T, C) to (B, 2C) (Snyder et al. 2018)."""

    def pool(self, x):
        mean, deviation = weighted_statistics(x, 1 / tf.cast(tf.shape(x)[1], tf.float32))
        return tf.concat([mean, deviation], axis=1)


@keras.saving.register_keras_serializable(package="vggvox_tf")
class AttentivePooling(Pooling):
    """Frames weighted by a small network: wₜ = softmaxₜ(vᵀ·tanh(W·xₜ + b) + k).

    Self-attentive pooling is the weighted mean, (B, C) (Cai et al. 2018; Chung et al. 2020).
    With statistics, mean and standard deviation, (B, 2C) (Okabe et al. 2018).
    """

    def __init__(self, statistics=False, **kwargs):
        super().__init__(**kwargs)
        self.statistics = statistics
        self.hidden = keras.layers.Dense(ATTENTION_UNITS, "tanh", dtype="float32", name="hidden")
        self.score = keras.layers.Dense(1, dtype="float32", name="score")

    def build(self, input_shape):
        self.hidden.build((None, input_shape[-1]))
        self.score.build((None, ATTENTION_UNITS))

    def pool(self, x):
        weights = tf.nn.softmax(self.score(self.hidden(x)), axis=1)  # (B, T, 1)
        mean, deviation = weighted_statistics(x, weights)
        return tf.concat([mean, deviation], axis=1) if self.statistics else mean

    def get_config(self):
        return super().get_config() | {"statistics": self.statistics}


@keras.saving.register_keras_serializable(package="vggvox_tf")
class NetVLAD(Pooling):
    """Residuals to learned cluster centres, summed over time: (B, 1, T, C) to (B, clusters · C), of unit length.

    V(k) = Σₜ aₖ(xₜ)·(xₜ − cₖ) with aₖ = softmaxₖ(wₖᵀxₜ + bₖ); each V(k) is brought to unit length, then all of them
    together (Arandjelović et al. 2016). Ghost clusters take part in the softmax only, so that
    frames that are of no use can go there (Zhong et al. 2018; Xie et al. 2019).
    """

    def __init__(self, clusters=CLUSTERS, ghosts=0, **kwargs):
        super().__init__(**kwargs)
        self.clusters = clusters
        self.ghosts = ghosts
        self.assignment = keras.layers.Dense(clusters + ghosts, "softmax", dtype="float32", name="assignment")

    def build(self, input_shape):
        self.assignment.build((None, input_shape[-1]))
        self.centres = self.add_weight((self.clusters, input_shape[-1]), "orthogonal", name="centres")

    def pool(self, x):
        shares = self.assignment(x)[..., : self.clusters]  # (B, T, K)
        sums = tf.einsum("btk,btc->bkc", shares, x) - tf.reduce_sum(shares, 1)[..., tf.newaxis] * self.centres
        sums = tf.math.l2_normalize(sums, axis=2)
        return tf.math.l2_normalize(tf.reshape(sums, [-1, sums.shape[1] * sums.shape[2]]), axis=1)

    def get_config(self):
        return super().get_config() | {"clusters": self.clusters, "ghosts": self.ghosts}
