"""Vectors for the levels of an image."""

import keras
import tensorflow as tf


@tf.custom_gradient
def _look_up(levels, table):
    """Rows of `table` at levels, whole floats; their slope is between neighbours."""
    index = tf.cast(tf.round(levels), tf.int32)

    def gradient(upstream):
        last = table.shape[0] - 1
        after = tf.gather(table, tf.minimum(index + 1, last))
        slope = after - tf.gather(table, tf.maximum(index - 1, 0))
        by_levels = tf.reduce_sum(tf.cast(upstream * slope, levels.dtype), axis=-1)
        by_table = tf.math.unsorted_segment_sum(
            tf.reshape(upstream, [-1, table.shape[1]]),
            tf.reshape(index, [-1]),
            table.shape[0],
        )
        return by_levels, by_table

    return tf.gather(table, index), gradient


@keras.saving.register_keras_serializable(package="vaezoo")
class LevelEmbedding(keras.layers.Layer):
    """A trained vector for each level, the same one in every channel.

    Maps levels scaled to [-1, 1], `[..., channels]`, to `[..., size * channels]`;
    feature `j` is of channel `j mod channels`, as masked layers order them. The
    gradient by a level is between its neighbours' vectors, so that it shows what
    depends on it.

    Args:
        levels: int. Values of a channel.
        size: int. Size of a vector.
    """

    def __init__(self, levels, size, **kwargs):
        super().__init__(**kwargs)
        self.levels, self.size = levels, size

    def build(self, input_shape):
        self.table = self.add_weight(
            name="table",
            shape=[self.levels, self.size],
            initializer=keras.initializers.RandomNormal(stddev=1.0),
        )

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.size * input_shape[-1])

    def call(self, values):
        return self.lookup(values, tf.convert_to_tensor(self.table))

    def lookup(self, values, table):
        """`call`, with the table as a tensor `[levels, size]`."""
        levels = (tf.cast(values, tf.float32) + 1.0) * (0.5 * (self.levels - 1))
        vectors = tf.linalg.matrix_transpose(_look_up(levels, table))
        sizes = [tf.shape(values)[:-1], [self.size * values.shape[-1]]]
        vectors = tf.reshape(vectors, tf.concat(sizes, 0))
        return tf.ensure_shape(vectors, self.compute_output_shape(values.shape))
