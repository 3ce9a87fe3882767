"""Dropout keyed by row, the same on one replica as on many."""

import keras
import tensorflow as tf

from vaezoo import sampling


@keras.saving.register_keras_serializable(package="vaezoo")
class Dropout(keras.layers.Layer):
    """Dropout whose mask is a pure function of each row's seed.

    Keras's own draws the same mask on every replica, from a state that is not
    saved with the weights; this one holds no state.

    Args:
        rate: float in [0, 1). Fraction of the features set to 0.

    Raises:
        ValueError: if `rate` is outside [0, 1).
    """

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(
                f"`rate` must be at least 0 and below 1. Received: rate={rate}. "
                "It is the fraction of features that are dropped."
            )
        self.rate = rate

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, inputs, *, seeds=None, training=False):
        """Drop features of `inputs`, `[batch, ...]`, where `training`.

        Args:
            inputs: float tensor `[batch, ...]` of static shape but for the batch.
            seeds: int64 `[batch]`, one a row; needed where `training`.
            training: bool.
        """
        if not training or self.rate == 0:
            return inputs
        noise = sampling.row_uniforms(seeds, inputs.shape[1:], self.path)
        keep = tf.cast(noise >= self.rate, inputs.dtype)
        return inputs * keep / (1 - self.rate)
