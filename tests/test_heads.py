import keras
import numpy as np
import pytest
import tensorflow as tf

from vggvox_tf import losses
from vggvox_tf.heads import CosineClassifier, Prototypes


def test_cosines_agree_with_numpy():
    layer = CosineClassifier(5)
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    cosines = layer(x).numpy()
    kernel = layer.kernel.numpy()
    assert kernel.shape == (8, 5)
    expected = x @ kernel / np.linalg.norm(x, axis=1, keepdims=True) / np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(cosines, expected, atol=1e-6)


# Two speakers with three utterances each; the last is the query, the mean of the first two the prototype.
EMBEDDINGS = tf.constant([[0.0, 2.0], [0.0, 4.0], [1.0, 1.0], [3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])


def test_prototypes_by_hand():
    """Prototypes (0, 3) and (2, 0), queries (1, 1) and (2, 0): squared distances 1 + 4, 1 + 1; 4 + 9, 0."""
    np.testing.assert_allclose(Prototypes(3)(EMBEDDINGS), [[-5, -2], [-13, 0]])


def test_angular_prototypes_by_hand():
    """Cosines √½, √½; 0, 1. At first 10·cos − 5."""
    layer = Prototypes(3, angular=True)
    cosines = np.array([[np.sqrt(0.5), np.sqrt(0.5)], [0, 1]])
    np.testing.assert_allclose(layer(EMBEDDINGS), 10 * cosines - 5, atol=1e-5)
    assert len(layer.trainable_weights) == 2 and not Prototypes(3).trainable_weights
    layer.scale.assign(-1.0)  # which would teach the opposite
    assert np.all(np.diff(layer(EMBEDDINGS).numpy()[1]) > 0)


@pytest.mark.parametrize("angular", [False, True])
def test_prototypes_and_their_loss_agree_with_loops(angular):
    x = np.random.default_rng(0).normal(size=(12, 3))
    terms = []
    for i in range(3):
        query, logits = x[4 * i + 3], []
        for j in range(3):
            prototype = x[4 * j : 4 * j + 3].mean(axis=0)
            cosine = query @ prototype / np.linalg.norm(query) / np.linalg.norm(prototype)
            logits.append(10 * cosine - 5 if angular else -np.sum((query - prototype) ** 2))
        terms.append(np.log(np.exp(logits).sum()) - logits[i])
    loss = losses.PrototypeCrossEntropy()(np.repeat([7, 5, 6], 4), Prototypes(4, angular)(tf.constant(x, tf.float32)))
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-5)


@pytest.mark.parametrize("angular", [False, True])
@pytest.mark.parametrize("embeddings", [tf.ones((4, 3)), tf.zeros((4, 3))], ids=["coinciding", "zero"])
def test_gradients_are_finite(angular, embeddings):
    x, layer, classifier = tf.Variable(embeddings), Prototypes(2, angular), CosineClassifier(2)
    with tf.GradientTape() as tape:
        loss = losses.PrototypeCrossEntropy()([0, 0, 1, 1], layer(x))
        loss += losses.AdditiveAngularMarginLoss()([0, 0, 1, 1], classifier(x))
    assert np.isfinite(loss) and np.isfinite(tape.gradient(loss, x)).all()


@pytest.mark.parametrize("angular", [False, True])
def test_a_model_learns_by_prototypes(angular):
    keras.utils.set_random_seed(0)  # some first weights leave nothing to learn
    inputs = keras.Input((2,))
    model = keras.Model(inputs, Prototypes(3, angular)(keras.layers.Dense(4)(inputs)))
    model.compile("adam", losses.PrototypeCrossEntropy(), jit_compile=False)
    speakers = np.repeat([0, 1], 3)
    history = model.fit(EMBEDDINGS.numpy(), speakers, batch_size=6, epochs=20, shuffle=False, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("layer", [CosineClassifier(5), Prototypes(3, True)], ids=lambda layer: layer.name)
def test_comes_back_from_its_configuration_and_computes_in_float32(layer):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        copy = type(layer).from_config(layer.get_config() | {"dtype": None})  # the policy's
        assert copy(EMBEDDINGS).dtype == tf.float32
    finally:
        keras.config.set_dtype_policy("float32")
    assert copy.get_config() == layer.get_config() and copy.name == layer.name


def test_a_model_with_heads_is_saved_and_loaded(tmp_path):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, [CosineClassifier(5)(inputs), Prototypes(3, True)(inputs), Prototypes(3)(inputs)])
    assert [output.shape for output in model.outputs] == [(None, 5), (None, None), (None, None)]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(model(EMBEDDINGS), loaded(EMBEDDINGS), strict=True):
        np.testing.assert_array_equal(ours, theirs)
