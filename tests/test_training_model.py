import keras
import numpy as np
import pytest
import tensorflow as tf

from vggvox_tf import augment, encoders
from vggvox_tf.training_model import TrainingModel


def data(batch=6, samples=14_000):
    random = np.random.default_rng(0)
    return random.normal(0, 0.1, (batch, samples)).astype(np.float32), np.arange(batch) % 3


def training_model(accumulate=None, **arguments):
    keras.utils.set_random_seed(0)
    encoder = encoders.build_encoder("vggm", 0.03, 257, compression="log")
    logits = encoders.classifier(3)(encoder.output)
    model = TrainingModel(encoder.input, logits, "training", **arguments)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, gradient_accumulation_steps=accumulate), loss, jit_compile=False)
    return model, encoder


def test_average_by_hand():
    """Weight 1, then 3 and 7. Momentum min(0.9, 1/10), min(0.9, 2/11): 0.1·1 + 0.9·3 = 2.8; (2·2.8 + 9·7)/11."""
    model, _ = training_model(average=0.9)
    average, bias = model.weight_average, model.get_layer("classifier").bias
    index = [variable is bias for variable in average._watched.value].index(True)
    average.averages[index].assign([1.0] * 3)
    for value in (3.0, 7.0):
        bias.assign([value] * 3)
        average.update()
    expected = (2 * 2.8 + 9 * 7) / 11
    np.testing.assert_allclose(average.averages[index], expected, rtol=1e-6)
    average.swap()
    np.testing.assert_allclose(bias, expected, rtol=1e-6)
    np.testing.assert_allclose(average.averages[index], 7)


def test_16_bit_samples_are_those_in_32768ths():
    """The offset of the logarithm makes another scale another loss."""
    samples = np.random.default_rng(0).integers(-(2**12), 2**12, (6, 14_000)).astype(np.int16)
    losses = []
    for waveforms in (samples, (samples / 32768).astype(np.float32), samples.astype(np.float32)):
        model, _ = training_model()
        losses.append(model.train_on_batch(waveforms, np.arange(6) % 3, return_dict=True)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_two_batches_make_one_update_and_one_average():
    """w − 0.05·(g₁ + g₂)/2, the gradients by a tape at the first weights; the average's momentum is min(0.9, 1/10)."""
    model, _ = training_model(accumulate=2, average=0.9)
    first, second = data(), data()
    second = second[0][::-1] * 0.5, second[1]
    before = [v.numpy() for v in model.trainable_variables]
    expected = [v.copy() for v in before]
    for x, y in (first, second):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        for value, gradient in zip(expected, tape.gradient(loss, model.trainable_variables), strict=True):
            value -= 0.05 * gradient.numpy() / 2
    model.train_on_batch(*first)
    assert model.steps_done == 1
    for variable, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    model.train_on_batch(*second)
    assert model.steps_done == 2
    for variable, value in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-4, atol=1e-6)
    average, bias = model.weight_average, model.get_layer("classifier").bias
    assert float(average.steps) == 1
    index = [variable is bias for variable in average._watched.value].index(True)
    np.testing.assert_allclose(average.averages[index], 0.9 * bias.numpy(), rtol=1e-5, atol=1e-8)  # 0 at first


def test_average_follows_training_with_the_running_statistics_and_is_in_the_checkpoint(tmp_path):
    model, encoder = training_model(average=0.5)
    x, y = data()
    seen = [[v.numpy() for v in model.weight_average._watched.value]]
    for _ in range(4):
        model.train_on_batch(x, y)
        seen.append([v.numpy() for v in model.weight_average._watched.value])
    expected = seen[0]
    for step, weights in enumerate(seen[1:]):
        momentum = min(0.5, (1 + step) / (10 + step))
        expected = [momentum * a + (1 - momentum) * w for a, w in zip(expected, weights, strict=True)]
    for average, value in zip(model.weight_average.averages, expected, strict=True):
        np.testing.assert_allclose(average, value, rtol=1e-4, atol=1e-6)
    names = {v.path for v in model.weight_average._watched.value}
    assert any("moving_mean" in name for name in names)
    # Averages are no weights of the encoder, and come back with a checkpoint.
    assert not any("average" in weight.path for weight in encoder.weights)
    model.save_weights(tmp_path / "checkpoint.weights.h5")
    copy, _ = training_model(average=0.5)
    copy.train_on_batch(x, y)
    copy.load_weights(tmp_path / "checkpoint.weights.h5")
    for ours, theirs in zip(copy.weight_average.averages, model.weight_average.averages, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert float(copy.weight_average.steps) == 4


def test_augmentation_is_in_training_only_and_follows_the_step():
    x, y = data(samples=augment.input_samples(14_000, [0.9, 1.1]))
    steps = [augment.SpeedPerturbation([0.9, 1.1], 14_000), augment.Gain(6.0)]
    chain, mask = augment.WaveformAugmentation(steps), augment.SpecAugment(40, 10)
    model, encoder = training_model(augment=chain, mask=mask, seed=3)
    outputs = model.forward(x).numpy()
    model.optimizer.iterations.assign(1)
    assert np.abs(model.forward(x).numpy() - outputs).max() > 1e-3
    """The same by hand: seed (3, 1), the front end, the mask, the rest of the network in training mode."""
    seed = tf.constant([3, 1])
    spectrograms = encoder.get_layer("spectrogram")(chain(x, seed, training=True))
    masked = mask(spectrograms, seed, training=True)
    rest = keras.Model(model.get_layer("spectrogram").output, model.output)
    np.testing.assert_allclose(model.forward(x), rest(masked, training=True), atol=1e-4)
    assert len(model.trainable_variables) == len({id(v) for v in model.trainable_variables})
    assert np.isfinite(model.train_on_batch(x, y)).all()


def test_two_outputs_take_the_same_labels():
    keras.utils.set_random_seed(0)
    encoder = encoders.build_encoder("vggm", 0.03, 257, compression="log")
    outputs = [encoders.classifier(3)(encoder.output), encoder.output]
    model = TrainingModel(encoder.input, outputs, "training")
    softmax = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.SGD(0.0),
        [softmax, lambda labels, embeddings: tf.reduce_mean(tf.square(embeddings), axis=1)],
        loss_weights=[1.0, 0.5],
        metrics=[["accuracy"], []],
        jit_compile=False,
    )
    x, y = data()
    logits, embeddings = model(x, training=True)
    expected = float(softmax(tf.constant(y), logits)) + 0.5 * float(tf.reduce_mean(tf.square(embeddings)))
    logs = model.fit(x, y, batch_size=6, verbose=0).history
    assert logs["loss"][0] == pytest.approx(expected, rel=1e-4)
    assert "classifier_accuracy" in logs and "gradient_norm" in logs
