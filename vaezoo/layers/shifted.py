"""Shifted convolutions in raster order: causal by padding, without a mask.

Salimans et al. (2017), "PixelCNN++", section 2.3. Two streams see the pixels before the
current one:

- *down*: an output sees rows up to its own, and as many columns to either side. Shifted
  down by a row, it sees the rows above whole.
- *down-right*: an output sees rows up to its own, and in all of them the columns up to
  its own. Its neighbours in both directions come before it.

With strides of 2 an output at `(r, c)` stands for the inputs up to `(2r, 2c)`; the
transposed convolution brings it back to the four positions from there on.
"""

import keras
import tensorflow as tf

from vaezoo.layers.causal import convolve
from vaezoo.layers.weight_norm import Conv2D, Conv2DTranspose


def concat_elu(features):
    """`elu` of the features and of their negatives: twice the channels."""
    return tf.nn.elu(tf.concat([features, -features], axis=-1))


def right_shift(images):
    """Shift `[batch, height, width, channels]` right by one column of zeros."""
    return tf.pad(images[:, :, :-1], [[0, 0], [0, 0], [1, 0], [0, 0]])


@keras.saving.register_keras_serializable(package="vaezoo")
class ShiftedConv2D(Conv2D):
    """Weight-normalised convolution of the down or the down-right stream.

    Maps `[batch, height, width, channels]` to `[batch, ceil(height / strides),
    ceil(width / strides), filters]`.

    Args:
        filters: int. Number of output channels.
        kernel_size: pair of ints `(height, width)`; the width odd in the down stream.
        stream: "down" or "down_right".
        strides: 1 or 2.
    """

    def __init__(self, filters, kernel_size, *, stream, strides=1, **kwargs):
        super().__init__(filters, tuple(kernel_size), strides=strides, **kwargs)
        self.stream = stream
        rows, columns = self.kernel_size
        # Zeros before and after: an output sees nothing below it.
        right = columns // 2 if stream == "down" else 0
        self.padding = [[0, 0], [rows - 1, 0], [columns - 1 - right, right], [0, 0]]

    def build(self, input_shape):
        self.add_direction([*self.kernel_size, input_shape[-1], self.filters])

    def linear(self, inputs, kernel):
        inputs = tf.pad(inputs, self.padding)
        if self.strides == 1:
            return convolve(inputs, kernel)
        return tf.nn.conv2d(inputs, kernel, strides=self.strides, padding="VALID")


@keras.saving.register_keras_serializable(package="vaezoo")
class ShiftedConv2DTranspose(Conv2DTranspose):
    """Weight-normalised transposed convolution that doubles a stream's maps.

    Maps `[batch, height, width, channels]` to `[batch, 2 height, 2 width, filters]`.
    An output at `(r, c)` sees no input after `(r // 2, c // 2)` of its own stream: all
    columns of the row in the down stream, one position in the down-right stream.

    Args:
        filters: int. Number of output channels.
        stream: "down" (a kernel of 2x3) or "down_right" (2x2).
    """

    def __init__(self, filters, *, stream, **kwargs):
        kernel_size = (2, 3) if stream == "down" else (2, 2)
        super().__init__(filters, kernel_size, **kwargs)
        self.stream = stream

    def build(self, input_shape):
        self.add_direction(
            [*self.kernel_size, self.filters, input_shape[-1]], output_axis=2
        )

    def linear(self, inputs, kernel):
        batch, height, width = tf.unstack(tf.shape(inputs)[:3])
        extra = self.kernel_size[1] - 2  # a column on the left, cut off again
        outputs = tf.nn.conv2d_transpose(
            inputs,
            kernel,
            output_shape=[batch, 2 * height, 2 * width + extra, self.filters],
            strides=2,
            padding="VALID",
        )
        outputs = outputs[:, :, extra:]
        return tf.ensure_shape(outputs, self.compute_output_shape(inputs.shape))
