"""What stands on top of an encoder in training only: layers whose outputs a loss is taken of."""

import keras
import tensorflow as tf

from vggvox_tf import devices


@keras.saving.register_keras_serializable(package="vggvox_tf")
class GlobalBatch(keras.layers.Layer):
    """Embeddings of a replica's part of a batch to those of the whole batch, (N/R, D) to (N, D).

    Each replica then computes heads and losses of the whole batch: the pairs of all speakers in it, as on one device.
    The gradients that come back from the R replicas are summed.
    """

    def call(self, embeddings):
        return devices.global_rows(embeddings)

    def compute_output_shape(self, input_shape):
        return (None, *input_shape[1:])


@keras.saving.register_keras_serializable(package="vggvox_tf")
class CosineClassifier(keras.layers.Layer):
    """Embeddings (N, D) to their cosines (N, S) with a vector for each of S speakers."""

    def __init__(self, speakers, **kwargs):
        super().__init__(**(kwargs | {"dtype": "float32"}))
        self.speakers = speakers

    def build(self, input_shape):
        self.kernel = self.add_weight((input_shape[-1], self.speakers), "glorot_uniform", name="kernel")

    def call(self, embeddings):
        return tf.matmul(tf.math.l2_normalize(embeddings, axis=1), tf.math.l2_normalize(self.kernel, axis=0))

    def get_config(self):
        return super().get_config() | {"speakers": self.speakers}


@keras.saving.register_keras_serializable(package="vggvox_tf")
class Prototypes(keras.layers.Layer):
    """Embeddings (P·K, D) of a P×K batch, speaker by speaker, to logits (P, P): how near a query is to each prototype.

    A speaker's query q is their last utterance, their prototype c the mean of the others. The logit is −‖q − c‖² (Snell
    et al. 2017, equation 2), or, angular, w·cos(q, c) + b with learned w > 0 and b (Chung et al. 2020).

    Args:
      utterances_per_speaker: K, at least 2.
    """

    def __init__(self, utterances_per_speaker, angular=False, **kwargs):
        super().__init__(**(kwargs | {"dtype": "float32"}))
        self.utterances_per_speaker = utterances_per_speaker
        self.angular = angular

    def build(self, input_shape):
        if self.angular:
            self.scale = self.add_weight((), keras.initializers.Constant(10.0), name="scale")
            self.offset = self.add_weight((), keras.initializers.Constant(-5.0), name="offset")

    def call(self, embeddings):
        grouped = tf.reshape(embeddings, [-1, self.utterances_per_speaker, embeddings.shape[-1]])  # (P, K, D)
        queries, prototypes = grouped[:, -1], tf.reduce_mean(grouped[:, :-1], axis=1)
        if self.angular:
            cosines = tf.matmul(
                tf.math.l2_normalize(queries, axis=1), tf.math.l2_normalize(prototypes, axis=1), transpose_b=True
            )
            return tf.maximum(self.scale, 1e-6) * cosines + self.offset
        return -tf.reduce_sum(tf.square(queries[:, tf.newaxis] - prototypes[tf.newaxis]), axis=2)

    def compute_output_shape(self, input_shape):
        return (None, None)

    def get_config(self):
        return super().get_config() | {
            "utterances_per_speaker": self.utterances_per_speaker,
            "angular": self.angular,
        }
