"""A learning rate that rises over the first steps of training."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="vaezoo")
class LearningRateWarmup(keras.optimizers.schedules.LearningRateSchedule):
    """Multiplies a learning rate by `min(1, (step + 1) / warmup_steps)`.

    Args:
        learning_rate: float, or a schedule, which begins with the warm-up.
        warmup_steps: int, at least 1.
    """

    def __init__(self, learning_rate, warmup_steps):
        super().__init__()
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        rate = self.learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = rate(step)
        done = (tf.cast(step, tf.float32) + 1.0) / float(self.warmup_steps)
        return rate * tf.minimum(1.0, done)

    def get_config(self):
        """Arguments of the constructor."""
        rate = self.learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = keras.optimizers.schedules.serialize(rate)
        return {"learning_rate": rate, "warmup_steps": self.warmup_steps}

    @classmethod
    def from_config(cls, config):
        """The inverse of `get_config`."""
        rate = config["learning_rate"]
        if isinstance(rate, dict):
            rate = keras.optimizers.schedules.deserialize(rate)
        return cls(rate, config["warmup_steps"])
