"""Building blocks that the trunks share."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="vggvox_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch norm of images (B, F, T, C) by TensorFlow's fused operation, with the same results.

    Keras composes it of a dozen operations, each a pass through memory; with them a step of VGG-M takes a sixth longer.
    Vectors (B, C), and statistics over several devices (`synchronized`), are left to Keras.
    """

    def call(self, inputs, training=None, mask=None):
        training = bool(training and self.trainable)
        if len(inputs.shape) != 4 or (training and self.synchronized):
            return super().call(inputs, training=training, mask=mask)
        known = (tf.zeros([0]),) * 2 if training else (self.moving_mean, self.moving_variance)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=self.gamma, offset=self.beta, mean=known[0], variance=known[1], epsilon=self.epsilon,
            is_training=training,
        )  # fmt: skip
        if training:
            count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), tf.float32)
            variance *= (count - 1) / count  # TensorFlow divides by n − 1, Keras keeps the mean square
            for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(self.momentum * moving + (1 - self.momentum) * value)
        return outputs


def scaled(filters, width):
    """`filters` times the width multiplier, to the nearest multiple of 8 (vector units), at least 8."""
    return max(8, 8 * round(filters * width / 8))


def conv_norm(x, filters, kernel, stride, padding, name, activation=True):
    """Convolution → batch norm (ε 1e-5) → ReLU; the batch norm's shift makes a bias redundant.

    Args:
      x: feature maps (B, F, T, C).
      kernel, stride: one number, or (frequency, time).
      padding: zeros added on each side. Keras's "same" pads strided convolutions more at the end than at the start;
        the papers' networks pad both sides alike.
      activation: False leaves the ReLU out.
    """
    same = stride == 1 and kernel == 2 * padding + 1  # without strides "same" pads alike, and saves a copy
    if padding and not same:
        x = keras.layers.ZeroPadding2D(padding, name=f"{name}_pad")(x)
    x = keras.layers.Conv2D(
        filters, kernel, stride, "same" if same else "valid", use_bias=False, kernel_initializer="he_normal", name=name
    )(x)
    return norm_relu(x, name, activation)


def norm_relu(x, name, activation=True):
    """Batch norm with a memory of about ten batches, short enough for runs of a few hundred steps, then ReLU."""
    x = BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x) if activation else x


def squeeze_excite(x, name, reduction=8):
    """Each channel times a gate in (0, 1), from the means of all channels (Hu et al. 2018, equations 2 to 4)."""
    channels = x.shape[-1]
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    gate = keras.layers.Dense(max(4, channels // reduction), "relu", name=f"{name}_reduce")(gate)
    gate = keras.layers.Dense(channels, "sigmoid", name=f"{name}_gate")(gate)
    return keras.layers.Multiply(name=name)([x, gate])
