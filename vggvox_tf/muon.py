"""Muon: an optimizer whose steps are orthogonal matrices (Jordan et al. 2024)."""

import keras
import tensorflow as tf

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of "Muon: An optimizer for hidden layers": fast, and near enough to 1

# Root mean square of a step at a learning rate of 1, about that of Adam's, so that Adam's learning rates and weight
# decays serve (Liu et al. 2025, section 2.2).
STEP_RMS = 0.2


@keras.saving.register_keras_serializable(package="vggvox_tf")
class Muon(keras.optimizers.Adam):
    """Muon for the kernels of layers, but a classifier's; Adam for that, and for all that are no matrices.

    A kernel's step is its momentum (Nesterov's, 0.95) with all singular values brought to 1, so that directions which
    few utterances ask for are followed as fast as those which all ask for. The kernel of a convolution (height, width,
    in, out) is a matrix (height · width · in, out). Keras's own Muon leaves convolutions to Adam.
    """

    def build(self, variables):
        super().build(variables)
        self._kernels = tuple(
            self._get_variable_index(variable)
            for variable in variables
            if variable.name == "kernel" and "classifier" not in variable.path
        )

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        if index not in self._kernels:
            super().update_step(gradient, variable, learning_rate)
            return
        momentum = self._momentums[index]
        self.assign(momentum, MOMENTUM * momentum + gradient)
        direction = tf.reshape(gradient + MOMENTUM * momentum, [-1, variable.shape[-1]])
        scale = STEP_RMS * max(direction.shape) ** 0.5
        self.assign_sub(variable, tf.reshape(learning_rate * scale * orthogonal(direction), variable.shape))


def orthogonal(matrix):
    """U·Vᵀ of a matrix U·S·Vᵀ, roughly: singular values of about 0.7 to 1.2, by five steps of Newton and Schulz.

    Those below a hundredth of the matrix's norm stay smaller.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return tf.transpose(orthogonal(tf.transpose(matrix)))
    matrix /= tf.norm(matrix) + 1e-7  # the largest singular value is then at most 1, as the iteration needs
    # X ← (a + b·X·Xᵀ + c·(X·Xᵀ)²)·X, for which it is enough to know X·Xᵀ, the smaller matrix. What multiplies X is a
    # polynomial of the first X·Xᵀ each time, so that all of these commute.
    a, b, c = COEFFICIENTS
    identity = tf.eye(matrix.shape[0])
    gram, product = tf.matmul(matrix, matrix, transpose_b=True), identity
    for _ in range(ITERATIONS):
        factor = a * identity + b * gram + c * tf.matmul(gram, gram)
        product = tf.matmul(factor, product)
        gram = tf.matmul(factor, tf.matmul(factor, gram))
    return tf.matmul(product, matrix)
