import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from vggvox_tf import encoders, muon


def kernels(*shapes):
    """Layers' kernels of these shapes with values in [-1, 1), and gradients for them."""
    random = np.random.default_rng(0)
    variables = [keras.Variable(random.uniform(-1, 1, shape), dtype="float32", name="kernel") for shape in shapes]
    return variables, [tf.constant(random.normal(size=shape), tf.float32) for shape in shapes]


def step_of(optimizer, variable, *gradients):
    """What a variable has changed by after steps with these gradients."""
    before = variable.numpy()
    for gradient in gradients:
        optimizer.apply([gradient], [variable])
    return variable.numpy() - before


def test_orthogonal_by_hand():
    """Of diag(3, 4), 5 in norm, each of 0.6 and 0.8 goes five times through 3.4445·s − 4.775·s³ + 2.0315·s⁵."""
    expected = np.array([0.6, 0.8])
    for _ in range(5):
        expected = 3.4445 * expected - 4.775 * expected**3 + 2.0315 * expected**5
    found = muon.orthogonal(tf.constant([[3.0, 0.0], [0.0, 4.0]]))
    np.testing.assert_allclose(found, np.diag(expected), atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5)])
def test_orthogonal_keeps_the_singular_vectors_and_brings_the_values_near_one(shape):
    matrix = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    within = left.T @ muon.orthogonal(tf.constant(matrix)).numpy() @ right.T
    np.testing.assert_allclose(within, np.diag(np.diag(within)), atol=1e-4)
    assert np.diag(within).min() > 0.65 and np.diag(within).max() < 1.25


@pytest.mark.skipif(
    "rms_rate" not in inspect.signature(keras.optimizers.Muon).parameters, reason="Keras's Muon had other steps then"
)
def test_steps_of_a_matrix_are_those_of_keras_muon():
    ours, theirs = kernels((6, 20))[0] + kernels((6, 20))[0]
    gradients = [tf.random.stateless_normal((6, 20), [0, seed]) for seed in range(3)]
    expected = step_of(keras.optimizers.Muon(1e-2, weight_decay=None), theirs, *gradients)
    np.testing.assert_allclose(step_of(muon.Muon(1e-2), ours, *gradients), expected, atol=1e-6)


def test_a_convolution_is_the_matrix_of_its_filters():
    (kernel,), (gradient,) = kernels((3, 2, 4, 8))  # a matrix (24, 8)
    expected = -1e-2 * 0.2 * np.sqrt(24) * muon.orthogonal(tf.reshape(gradient, (24, 8))).numpy()
    change = step_of(muon.Muon(1e-2), kernel, gradient)
    np.testing.assert_allclose(change.reshape(24, 8), expected, atol=1e-6)
    # Eight singular values of about 1 in 192 entries: 0.2 · √24 · √(8 / 192) = 0.2 per unit of learning rate.
    assert np.sqrt(np.mean(np.square(change))) == pytest.approx(1e-2 * 0.2, rel=0.2)


def test_weights_decay_by_the_learning_rate_as_adams_do():
    (kernel,), (gradient,) = kernels((3, 5))
    (decayed,), _ = kernels((3, 5))
    np.testing.assert_array_equal(kernel, decayed)
    without = step_of(muon.Muon(1e-2), kernel, gradient)
    change = step_of(muon.Muon(1e-2, weight_decay=0.5), decayed, gradient)
    np.testing.assert_allclose(change - without, -1e-2 * 0.5 * kernels((3, 5))[0][0].numpy(), atol=1e-6)


@pytest.mark.parametrize("cosine", [False, True])
def test_a_classifier_and_what_is_no_kernel_are_adams(cosine):
    """Of the same layers with the same gradients the kernels of the first two move otherwise than by Adam, no more."""

    def moved(optimizer):
        keras.utils.set_random_seed(0)
        x = keras.Input((8, 8, 1))
        y = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, name="conv1")(x))
        y = encoders.classifier(3, cosine)(keras.layers.Dense(4, name="embedding")(y))
        model = keras.Model(x, y)
        before = [v.numpy() for v in model.trainable_variables]
        model.compile(optimizer, "mse", jit_compile=False)
        data = np.random.default_rng(2).normal(size=(6, 8, 8, 1)).astype(np.float32)
        model.fit(data, np.ones((6, 3)), batch_size=6, verbose=0)
        return {v.path: v.numpy() - b for v, b in zip(model.trainable_variables, before, strict=True)}

    ours, adams = moved(muon.Muon(1e-3)), moved(keras.optimizers.Adam(1e-3))
    others = {path for path in ours if not np.allclose(ours[path], adams[path], rtol=1e-4)}
    assert others == {"conv1/kernel", "embedding/kernel"}
