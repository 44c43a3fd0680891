import keras
import numpy as np
import pytest
import tensorflow as tf

from vggvox_tf.encoders import layers


def two_norms(**arguments):
    """Ours and Keras's, with the same scales and shifts."""
    norms = layers.BatchNormalization(**arguments), keras.layers.BatchNormalization(**arguments)
    random = np.random.default_rng(0)
    scale, shift = random.normal(1, 0.2, 3), random.normal(0, 1, 3)
    for norm in norms:
        norm.build((None, 5, 6, 3))
        norm.gamma.assign(scale)
        norm.beta.assign(shift)
    return norms


def images(seed=1):
    return tf.constant(np.random.default_rng(seed).normal([1, 2, 3], 2, (4, 5, 6, 3)), tf.float32)


def test_training_is_kerass_with_its_gradients_and_running_statistics():
    """Also by hand: after one step the mean is 0.9·0 + 0.1·x̄, the variance 0.9·1 + 0.1·Σ (x − x̄)² / n."""
    ours, theirs = two_norms(momentum=0.9, epsilon=1e-5)
    x, results = images(), []
    for norm in (ours, theirs):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = norm(x, training=True)
            loss = tf.reduce_sum(y * tf.reshape(tf.sin(tf.range(360.0)), y.shape))
        results.append([y, *tape.gradient(loss, [x, norm.gamma.value, norm.beta.value]), *norm.non_trainable_variables])
    for mine, reference in zip(*results, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.moving_mean, 0.1 * x.numpy().mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(ours.moving_variance, 0.9 + 0.1 * x.numpy().var((0, 1, 2)), rtol=1e-5)


def test_inference_and_a_frozen_layer_use_the_running_statistics():
    ours, theirs = two_norms(momentum=0.5)
    for norm in (ours, theirs):
        norm(images(), training=True)
    x = images(2)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    ours.trainable = False
    before = ours.moving_mean.numpy()
    np.testing.assert_allclose(ours(x, training=True), theirs(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ours.moving_mean, before)


def test_bfloat16_images_have_float32_statistics():
    ours, theirs = two_norms(dtype="mixed_bfloat16")
    outputs = [norm(tf.cast(images(), tf.bfloat16), training=True) for norm in (ours, theirs)]
    assert outputs[0].dtype == tf.bfloat16 and ours.moving_mean.dtype == "float32"
    np.testing.assert_allclose(tf.cast(outputs[0], tf.float32), tf.cast(outputs[1], tf.float32), atol=0.05)
    np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, rtol=1e-2)


@pytest.mark.parametrize("kernel, stride, padding, height", [(3, 1, 1, 9), (3, 2, 1, 5), (1, 1, 0, 9), (7, 2, 1, 3)])
def test_both_sides_are_padded_alike(kernel, stride, padding, height):
    """Of 9 rows and a kernel of ones on ones: (9 + 2p − k) // s + 1 rows, mirrored about the middle.

    With 9 rows and a stride of 2, kernel 3 begins one row before the image and ends one after it.
    """
    inputs = keras.Input((9, 9, 1))
    model = keras.Model(inputs, layers.conv_norm(inputs, 8, kernel, stride, padding, "conv"))
    model.get_layer("conv").set_weights([np.ones((kernel, kernel, 1, 8), np.float32)])
    sums = model(tf.ones([1, 9, 9, 1])).numpy()[0, :, :, 0]
    assert sums.shape == (height, height)
    np.testing.assert_allclose(sums, sums[::-1])
    np.testing.assert_allclose(sums, sums.T)
    if kernel == 3:  # a corner sees 2×2 ones, the middle 3×3
        assert sums[height // 2, height // 2] / sums[0, 0] == pytest.approx(9 / 4, rel=1e-5)
