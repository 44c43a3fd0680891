"""The model that is trained: an encoder and its heads, its augmentation, and what a step does beside Keras's own."""

import keras
import tensorflow as tf

from vggvox_tf import audio, devices


class TrainingModel(keras.Model):
    """A functional model whose training steps augment, average the weights and measure the gradient.

    Made and compiled in the scope of a tf.distribute.Strategy of several replicas, it is to have a heads.GlobalBatch
    before its heads; see devices.py.

    Layers are shared with the model that the inputs and outputs come from, which is the one to save: nothing that is
    done here is part of the encoder.

    `gradient_norm` in the logs of training is √(Σ g²) over all trainable kernels, of the gradient as the optimizer
    takes it (before weight decay), averaged over the steps of an epoch. With several replicas it is estimated by R
    times that of each one's part of the batch, which noise makes larger than the norm of the whole batch's gradient.

    Args:
      augment: called with (waveforms, seed, training=True) before the front end; None leaves them as they are.
      mask: the same with spectrograms (B, F, T, 1), between the front end and the trunk.
      seed: of the augmentation, which is a function of (seed, step).
      average: momentum of the weights' exponential moving average; 0 keeps none. See WeightAverage.
    """

    def __init__(self, inputs, outputs, name="training", augment=None, mask=None, seed=0, average=0.0):
        super().__init__(inputs, outputs, name=name)
        self.gradient_norm = keras.metrics.Mean("gradient_norm")
        self._augment = _Untracked(augment)
        self._mask = _Untracked(mask)
        if mask:
            spectrograms = self.get_layer("spectrogram").output
            halves = keras.Model(inputs, spectrograms), keras.Model(spectrograms, outputs)
            self._halves = _Untracked(halves)
        self._seed = seed
        self.weight_average = WeightAverage(self, average) if average else None

    def forward(self, waveforms):
        """The outputs for a training batch, augmented as the seed and the number of steps done say."""
        seed = tf.stack([self._seed, tf.cast(self.optimizer._iterations, tf.int32)])
        if self.replicas > 1:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            seed = tf.random.experimental.stateless_fold_in(seed, replica)
        if self._augment.value:
            waveforms = self._augment.value(waveforms, seed, training=True)
        if not self._mask.value:
            return self(waveforms, training=True)
        front_end, trunk = self._halves.value
        spectrograms = self._mask.value(front_end(waveforms, training=True), seed, training=True)
        return trunk(spectrograms, training=True)

    def train_step(self, data):
        waveforms, speakers, _ = keras.utils.unpack_x_y_sample_weight(data)
        if waveforms.dtype == tf.int16:  # as the pipeline has them: half of the way to the device
            waveforms = tf.cast(waveforms, tf.float32) / audio.FULL_SCALE
        with tf.GradientTape() as tape:
            outputs = self.forward(waveforms)
            speakers = devices.global_rows(speakers)
            labels = [speakers] * len(outputs) if isinstance(outputs, list | tuple) else speakers
            # Keras's convention: a replica's loss is divided by their number, and the gradients are summed.
            loss = self.compute_loss(waveforms, labels, outputs, training=True)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        if self.weight_average:
            batches = self.optimizer.gradient_accumulation_steps or 1
            if batches == 1:
                self.weight_average.update()
            else:
                tf.cond(self.optimizer._iterations % batches == 0, self.weight_average.update, lambda: None)
        # Kernels only: where a batch norm scale's gradient (a·b) is used for more than the product with the learning
        # rate, TensorFlow no longer multiplies in the order a·(b·rate), and the weights come out rounded differently.
        norm = tf.linalg.global_norm([g for g in gradients if g.shape.rank > 1])
        self.gradient_norm.update_state(self.replicas * norm)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(self.replicas * loss)
        return self.compute_metrics(waveforms, labels, outputs)

    @property
    def steps_done(self):
        """Batches trained on since the beginning of the run."""
        # Keras's `iterations` counts the updates, fewer where gradients are accumulated.
        return int(self.optimizer._iterations.numpy())

    @property
    def replicas(self):
        return self.distribute_strategy.num_replicas_in_sync

    def build_variables(self, rows, samples):
        """Makes the variables of metrics and optimizer, which several replicas need before their first step.

        Args:
          rows, samples: size of a replica's part of a batch.
        """
        labels = [tf.zeros([rows], tf.int32)] * len(self.outputs)
        self._symbolic_build(data_batch=(tf.zeros([rows, samples]), labels if len(labels) > 1 else labels[0]))
        self.optimizer.build(self.trainable_variables)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Keras's own takes a batch of the iterator for what build_variables does, which fails with several workers.

        It reduces the batch across workers (keras issue 20585), and would wait for mined pairs for ever.
        """

    def make_train_function(self, force=False):
        """Keras's own, but for several replicas one that can reduce the logs of several workers.

        Keras reduces them along axis 0, which scalars do not have (keras issue 20585).
        """
        if self.replicas == 1:
            return super().make_train_function(force)

        @tf.function(jit_compile=False)
        def train(iterator):
            distribution = self.distribute_strategy
            logs = distribution.run(self.train_step, [next(iterator)])
            return {name: distribution.reduce("MEAN", value, axis=None) for name, value in logs.items()}

        self.train_function = train


class _Untracked:
    """Hides layers from Keras, which would count the attributes of a model among its layers, and save them."""

    def __init__(self, value):
        self.value = value


class WeightAverage(keras.layers.Layer):
    """Exponential moving averages of a model's weights, a ← m·a + (1 − m)·w after every step (Polyak, Juditsky 1992).

    Of batch norm's running statistics as well, which belong to the weights that they were measured with; the `use_ema`
    of Keras's optimizers leaves those out. The momentum is min(m, (1 + n) / (10 + n)) at step n, so that the average
    forgets the first weights in a short run as well.
    """

    def __init__(self, model, momentum):
        super().__init__(name="weight_average")
        self.momentum = momentum
        self._watched = _Untracked([v for v in model.weights if v.dtype == "float32"])
        self.averages = [
            self.add_weight(
                v.shape, lambda *_, v=v, **__: v.value, trainable=False, aggregation="mean", name=f"average_{n}"
            )
            for n, v in enumerate(self._watched.value)
        ]
        self.steps = self.add_weight((), "zeros", trainable=False, aggregation="mean", name="steps")

    def update(self):
        """Takes a step's new weights into the averages."""
        momentum = tf.minimum(self.momentum, (1 + self.steps) / (10 + self.steps))
        self.steps.assign_add(1)
        for average, variable in zip(self.averages, self._watched.value, strict=True):
            average.assign_add((1 - momentum) * (variable - average))

    def swap(self):
        """Exchanges the weights and their averages."""
        for average, variable in zip(self.averages, self._watched.value, strict=True):
            value = variable.numpy()
            variable.assign(average)
            average.assign(value)
