import keras
import numpy as np
import pytest
import tensorflow as tf

from vggvox_tf.encoders import pooling


def maps(batch=2, frames=5, channels=4, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, 1, frames, channels)).astype(np.float32)


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def test_unknown_pooling():
    with pytest.raises(ValueError, match=r"pooling must be one of .*, received maximum"):
        pooling.pool_over_time(keras.Input((1, None, 4)), "maximum", "pool")


def test_statistics_by_hand():
    """Of 1, 2, 3: mean 2, deviation √(2/3). Of 5, 5, 5: mean 5, deviation √1e-6, the least there is."""
    x = tf.constant([[[[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]]])
    np.testing.assert_allclose(pooling.StatisticsPooling()(x), [[2, 5, np.sqrt(2 / 3), 1e-3]], rtol=1e-5)


def test_statistics_of_large_means_are_exact():
    """1000 ± 0.1: Σx²/T − mean² would leave nothing of a deviation of 0.1 in float32."""
    x = tf.constant([[[[999.9], [1000.1]]]])
    assert float(pooling.StatisticsPooling()(x)[0, 1]) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("statistics", [False, True])
def test_attentive_pooling_agrees_with_numpy(statistics):
    layer, x = pooling.AttentivePooling(statistics), maps()
    pooled = layer(x).numpy()
    (w, b), (v, k) = layer.hidden.get_weights(), layer.score.get_weights()
    weights = softmax(np.tanh(x[:, 0] @ w + b) @ v + k, axis=1)
    mean = (weights * x[:, 0]).sum(axis=1)
    deviation = np.sqrt((weights * x[:, 0] ** 2).sum(axis=1) - mean**2)
    np.testing.assert_allclose(pooled, np.hstack([mean, deviation]) if statistics else mean, atol=1e-5)


def test_equal_attention_is_the_plain_mean():
    layer, x = pooling.AttentivePooling(), maps()
    layer(x)
    layer.score.kernel.assign(tf.zeros_like(layer.score.kernel))
    np.testing.assert_allclose(layer(x), x[:, 0].mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("ghosts", [0, 2])
def test_netvlad_agrees_with_a_loop(ghosts):
    layer, x = pooling.NetVLAD(clusters=3, ghosts=ghosts), maps()
    pooled = layer(x).numpy()
    kernel, bias = layer.assignment.get_weights()
    assert kernel.shape == (4, 3 + ghosts)
    for utterance, vector in zip(x[:, 0], pooled, strict=True):
        shares = softmax(utterance @ kernel + bias, axis=1)
        clusters = [
            sum(shares[t, k] * (utterance[t] - layer.centres.numpy()[k]) for t in range(len(utterance)))
            for k in range(3)
        ]
        expected = np.concatenate([cluster / np.linalg.norm(cluster) for cluster in clusters]) / np.sqrt(3)
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_what_goes_to_a_ghost_is_gone():
    """A ghost's bias of 50 draws all of a frame: the residuals of the three clusters are zero."""
    layer, x = pooling.NetVLAD(clusters=3, ghosts=1), maps(frames=1)
    layer(x)
    layer.assignment.bias.assign([0, 0, 0, 50.0])
    np.testing.assert_allclose(layer(x), 0, atol=1e-6)


@pytest.mark.parametrize("kind", pooling.POOLINGS)
def test_any_number_of_frames_and_back_from_a_file(kind, tmp_path):
    inputs = keras.Input((1, None, 4))
    model = keras.Model(inputs, pooling.pool_over_time(inputs, kind, "pool"))
    size = {"average": 4, "self_attentive": 4, "statistics": 8, "attentive_statistics": 8}.get(kind, 32)
    assert model.output_shape == (None, size)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    for frames in (1, 7):
        pooled = model(maps(frames=frames)).numpy()
        assert pooled.shape == (2, size) and np.isfinite(pooled).all()
        np.testing.assert_array_equal(copy(maps(frames=frames)), pooled)


@pytest.mark.parametrize("kind", pooling.POOLINGS)
def test_gradients_of_constant_frames_are_finite(kind):
    x = tf.Variable(tf.ones((1, 1, 3, 4)))
    inputs = keras.Input((1, None, 4))
    model = keras.Model(inputs, pooling.pool_over_time(inputs, kind, "pool"))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model(x))
    assert np.isfinite(tape.gradient(total, x)).all()
