"""What changes from step to step by plan: the learning rate, and how many steps fit into a time budget."""

import math

import keras
import tensorflow as tf


def learning_rate(kind, first, last, steps, warmup_steps=0, cycles=1):
    """The learning rate of each of a run's steps.

    Args:
      kind: "exponential": log-linear from `first` to `last`, as in VoxCeleb1. "cosine": half a cosine from `first` to
        `last` (Loshchilov and Hutter 2017, equation 5, without restarts). "cyclic": `cycles` triangles from `last` up
        to `first` and back (Smith 2017, section 3).
      steps: of the whole run, warm-up included.
      warmup_steps: over which the rate rises linearly to what the schedule says (Goyal et al. 2017, section 2.2).
    """
    if kind == "exponential":
        schedule = keras.optimizers.schedules.ExponentialDecay(first, steps, last / first)
    elif kind == "cosine":
        schedule = keras.optimizers.schedules.CosineDecay(first, steps, alpha=last / first)
    else:
        schedule = Triangles(first, last, steps / cycles)
    return WarmUp(schedule, warmup_steps) if warmup_steps else schedule


@keras.saving.register_keras_serializable(package="vggvox_tf")
class Triangles(keras.optimizers.schedules.LearningRateSchedule):
    """Linearly from `low` to `high` and back in every `period` steps (Smith 2017, section 3)."""

    def __init__(self, high, low, period):
        self.high = high
        self.low = low
        self.period = period

    def __call__(self, step):
        phase = tf.math.floormod(tf.cast(step, tf.float32) / self.period, 1.0)
        return self.low + (self.high - self.low) * (1 - tf.abs(2 * phase - 1))

    def get_config(self):
        return {"high": self.high, "low": self.low, "period": self.period}


@keras.saving.register_keras_serializable(package="vggvox_tf")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Another schedule times (step + 1) / steps, until that is 1."""

    def __init__(self, schedule, steps):
        self.schedule = schedule
        self.steps = steps

    def __call__(self, step):
        return self.schedule(step) * tf.minimum((tf.cast(step, tf.float32) + 1) / self.steps, 1.0)

    def get_config(self):
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "steps": self.steps}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["steps"])


def steps_in_time(seconds, epochs, seconds_per_step, seconds_per_epoch):
    """Steps of each epoch so that `epochs` epochs, each with an evaluation, end within `seconds`.

    Args:
      seconds_per_epoch: that an epoch takes beside its steps.

    Raises:
      ValueError: not even one step an epoch fits.
    """
    steps = math.floor((seconds / epochs - seconds_per_epoch) / seconds_per_step)
    if steps < 1:
        raise ValueError(
            f"{seconds:.0f} s are too short for {epochs} epochs: one takes {seconds_per_epoch:.1f} s beside its steps, "
            f"and a step {seconds_per_step:.2f} s"
        )
    return steps
