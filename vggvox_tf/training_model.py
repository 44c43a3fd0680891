"""The model that is trained: an encoder, with a classifier or not, whose training step also measures the gradient."""

import keras
import tensorflow as tf


class TrainingModel(keras.Model):
    """A functional model, TrainingModel(inputs, outputs), that adds `gradient_norm` to the logs of training.

    That is √(Σ g²) over all trainable kernels, of the gradient as the optimizer takes it (before weight decay),
    averaged over the steps of an epoch. The step is Keras's own in every other way. Layers are shared with the model
    that the inputs and outputs come from, which is the one to save.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gradient_norm = keras.metrics.Mean("gradient_norm")

    def train_step(self, data):
        waveforms, speakers = data
        with tf.GradientTape() as tape:
            outputs = self(waveforms, training=True)
            loss = self.compute_loss(waveforms, speakers, outputs, training=True)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        # Kernels only: where a batch norm scale's gradient (a·b) is used for more than the product with the learning
        # rate, TensorFlow no longer multiplies in the order a·(b·rate), and the weights come out rounded differently.
        self.gradient_norm.update_state(tf.linalg.global_norm([g for g in gradients if g.shape.rank > 1]))
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            elif metric is not self.gradient_norm:
                metric.update_state(speakers, outputs)
        return self.get_metrics_result()
