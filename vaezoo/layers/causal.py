"""Masked convolutions in raster order.

A pixel may depend on the rows above it and on its own row to the left; inside a
pixel, colours are generated in order, and channel `j` belongs to colour
`j mod num_groups`. Two kinds of layer:

- `VerticalConv2D`, a *row layer*: sees its own row whole, so its output must be
  shifted down by one before it may meet the row being generated. `row` computes
  one row from the rows cached.
- `CausalConv2D`, a *pixel layer*: its output at a pixel is split into what the
  rows above contribute (`above`, once a row) and what the pixel's own row
  contributes (`left_kernel`, `centre_kernel`, once a pixel).

Each kernel is one variable of the full size, sliced when it is used: a masked tap
is never read, starts at 0, stays 0, and is left out of the weight norm.
"""

import keras
import numpy as np
import tensorflow as tf

from vaezoo.layers.weight_norm import WeightNormalized, pointwise


@tf.custom_gradient
def convolve(images, kernel):
    """Convolution without padding, `[b, h, w, i] * [kh, kw, i, o]`.

    Its gradient by the images is a convolution of the padded gradient with the
    flipped kernel, which on a CPU is faster than the op TensorFlow uses.
    """
    outputs = tf.nn.conv2d(images, kernel, strides=1, padding="VALID")

    def gradient(upstream):
        rows, columns = kernel.shape[0] - 1, kernel.shape[1] - 1
        flipped = tf.transpose(kernel[::-1, ::-1], [0, 1, 3, 2])
        padding = [[0, 0], [rows, rows], [columns, columns], [0, 0]]
        by_images = tf.nn.conv2d(
            tf.pad(upstream, padding), flipped, strides=1, padding="VALID"
        )
        by_kernel = tf.raw_ops.Conv2DBackpropFilter(
            input=images,
            filter_sizes=tf.shape(kernel),
            out_backprop=upstream,
            strides=[1, 1, 1, 1],
            padding="VALID",
        )
        return by_images, by_kernel

    return outputs, gradient


def down_shift(images):
    """Shift `[batch, height, width, channels]` down by one row of zeros."""
    return tf.pad(images[:, :-1], [[0, 0], [1, 0], [0, 0], [0, 0]])


def colour_groups(num_channels, num_groups, copies=1):
    """Colour of each channel: `j mod num_groups`, restarted for each copy.

    A layer whose output is split into two halves that are multiplied (a gate)
    has two copies, so that only channels of one colour meet.
    """
    return np.tile(np.arange(num_channels // copies) % num_groups, copies)


@keras.saving.register_keras_serializable(package="vaezoo")
class CausalConv2D(WeightNormalized):
    """Masked convolution of type A or B, weight-normalised.

    Type A excludes the current (sub-)pixel, type B includes it. Its input is the
    image's features, `[batch, height, width, channels]`, and with `num_maps` also
    that many channels of conditioning maps at the end of the channel axis: they
    are known before the first pixel, so `mask_maps=False` frees them of the mask.

    Args:
        filters: int. Number of output channels.
        kernel_size: odd int, or a pair of odd ints `(height, width)`.
        mask_type: `"A"` or `"B"`.
        num_groups: int. Number of colours in the causal order.
        copies: int. See `colour_groups`.
        num_maps: int. Number of conditioning channels in the input.
        mask_maps: bool. Whether the conditioning channels are masked like the rest.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        *,
        mask_type,
        num_groups=1,
        copies=1,
        num_maps=0,
        mask_maps=True,
        **kwargs,
    ):
        super().__init__(filters, **kwargs)
        if isinstance(kernel_size, int):
            kernel_size = (kernel_size, kernel_size)
        if any(size % 2 == 0 for size in kernel_size):
            raise ValueError(
                "A masked kernel must have odd sizes, so that it has a centre. "
                f"Received: kernel_size={kernel_size}. Use the next odd size."
            )
        if mask_type not in ("A", "B"):
            raise ValueError(
                "`mask_type` must be 'A' (excludes the current pixel) or 'B' "
                f"(includes it). Received: mask_type={mask_type!r}"
            )
        self.kernel_size = kernel_size
        self.mask_type = mask_type
        self.num_groups = num_groups
        self.copies = copies
        self.num_maps = num_maps
        self.mask_maps = mask_maps

    def build(self, input_shape):
        height, width = self.kernel_size
        self.rows, self.columns = height // 2, width // 2  # above, to the left
        self.num_inputs = input_shape[-1] - self.num_maps
        shape = [height, width, input_shape[-1], self.filters]
        self.add_direction(shape, mask=self._mask(np))

    def _mask(self, xp):
        """What is read of the kernel, of NumPy's or of TensorFlow's operations.

        A graph computes it from a few numbers: as a constant it would take as much of
        every graph as the kernel itself.
        """
        height, width = self.kernel_size
        before = np.zeros([height, width, 1, 1], np.float32)
        before[: self.rows] = 1
        before[self.rows, : self.columns] = 1
        centre = np.zeros([height, width, 1, 1], np.float32)
        centre[self.rows, self.columns] = 1
        num_inputs = self.num_inputs + self.num_maps
        inputs = xp.reshape(colour_groups(num_inputs, self.num_groups), [-1, 1])
        outputs = xp.reshape(
            colour_groups(self.filters, self.num_groups, self.copies), [1, -1]
        )
        visible = inputs < outputs if self.mask_type == "A" else inputs <= outputs
        mask = before + centre * xp.where(visible, 1.0, 0.0)
        if self.num_maps and not self.mask_maps:
            is_map = xp.reshape(np.arange(num_inputs) >= self.num_inputs, [-1, 1])
            mask = xp.where(is_map, 1.0, mask)
        return mask

    @property
    def sees_centre(self):
        """Whether any channel at the current pixel is visible."""
        return self.mask_type == "B" or self.num_groups > 1

    def taps(self):
        return self.direction * self._mask(tf)

    def linear(self, inputs, kernel):
        if inputs.shape[-1] == self.num_inputs:  # without the maps
            return self._convolve(inputs, kernel[:, :, : self.num_inputs])
        if self.num_maps and not self.mask_maps:
            images, maps = tf.split(inputs, [self.num_inputs, self.num_maps], axis=-1)
            return self._convolve(
                images, kernel[:, :, : self.num_inputs]
            ) + self._maps_term(maps, kernel)
        return self._convolve(inputs, kernel)

    def _convolve(self, images, kernel):
        """Convolve with the taps at or before the centre only (cheaper)."""
        if self.kernel_size == (1, 1):
            return pointwise(images, kernel[0, 0])
        pad_right = self.columns
        kernel = kernel[: self.rows + 1]
        if self.rows == 0:
            kernel = kernel[:, : self.columns + 1]
            pad_right = 0
        images = tf.pad(
            images,
            [[0, 0], [self.rows, 0], [self.columns, pad_right], [0, 0]],
        )
        return convolve(images, kernel)

    def forget_maps(self):
        """Set the weights of the conditioning maps to 0."""
        kept = tf.range(self.direction.shape[2])[:, None] < self.num_inputs
        self.direction.assign(self.direction * tf.cast(kept, self.direction.dtype))

    def _maps_term(self, maps, kernel):
        kernel = kernel[:, :, self.num_inputs :]
        if self.mask_maps:
            return self._convolve(maps, kernel)
        return tf.nn.conv2d(maps, kernel, strides=1, padding="SAME")

    # What the row-cached scan needs. `kernel` is `self.kernel()`, computed once.

    def static_term(self, kernel, maps=None):
        """What never changes in a scan: the bias, and the conditioning maps' part.

        Returns `[filters]`, or `[batch, height, width, filters]` with `maps`.
        """
        bias = tf.cast(self.bias, self.compute_dtype)
        return bias if maps is None else self._maps_term(maps, kernel) + bias

    def above_kernel(self, kernel):
        """Taps on the rows above, `[rows * width * channels, filters]`."""
        kernel = kernel[: self.rows, :, : self.num_inputs]
        return tf.reshape(kernel, [-1, self.filters])

    def left_kernel(self, kernel):
        """Taps on the columns to the left, `[columns * channels, filters]`."""
        kernel = kernel[self.rows, : self.columns, : self.num_inputs]
        return tf.reshape(kernel, [-1, self.filters])

    def centre_kernel(self, kernel):
        """Taps on the current pixel, `[channels, filters]`."""
        return kernel[self.rows, self.columns, : self.num_inputs]


@keras.saving.register_keras_serializable(package="vaezoo")
class VerticalConv2D(WeightNormalized):
    """Convolution over the rows up to and including the current one, whole.

    The vertical stack of the Gated PixelCNN (van den Oord et al., 2016b, section
    2.2). Maps `[batch, height, width, channels]` to
    `[batch, height, width, filters]`; the output at row `r` depends on rows `<= r`.
    """

    def __init__(self, filters, kernel_size, *, num_maps=0, **kwargs):
        super().__init__(filters, **kwargs)
        self.kernel_size = kernel_size
        self.num_maps = num_maps

    def build(self, input_shape):
        size = self.kernel_size
        self.rows = self.columns = size // 2
        self.num_inputs = input_shape[-1] - self.num_maps
        shape = [size, size, input_shape[-1], self.filters]
        mask = np.zeros(shape, np.float32)
        mask[: self.rows + 1] = 1
        self.add_direction(shape, mask=mask)

    def taps(self):
        return self.direction[: self.rows + 1]

    def linear(self, inputs, kernel):
        padding = [[0, 0], [self.rows, 0], [self.columns, self.columns], [0, 0]]
        return convolve(tf.pad(inputs, padding), kernel)

    def static_term(self, kernel, maps=None):
        """Bias `[filters]`, plus the maps' part `[batch, height, width, filters]`."""
        bias = tf.cast(self.bias, self.compute_dtype)
        if maps is None:
            return bias
        return self.linear(maps, kernel[:, :, self.num_inputs :]) + bias

    def row(self, rows, kernel):
        """One row of the output, without its static term.

        Args:
            rows: `[batch, size // 2 + 1, width, channels]`, the current row last.
            kernel: `self.kernel()`.

        Returns:
            `[batch, width, filters]`.
        """
        return window_product(
            rows,
            tf.reshape(kernel[:, :, : self.num_inputs], [-1, self.filters]),
            self.columns,
        )


def window_product(rows, kernel, columns):
    """A convolution of a few whole rows into one, as a matrix product.

    Args:
        rows: `[..., batch, num_rows, width, channels]`.
        kernel: `[..., num_rows * (2 columns + 1) * channels, filters]`.
        columns: int. Zero columns to pad with on either side.

    Returns:
        `[..., batch, width, filters]`.
    """
    shape = tf.shape(rows)
    num_rows, width = rows.shape[-3], rows.shape[-2]
    padding = [[0, 0]] * (rows.shape.rank - 2) + [[columns, columns], [0, 0]]
    padded = tf.pad(rows, padding)
    patches = tf.concat(
        [
            padded[..., row, column : column + width, :]
            for row in range(num_rows)
            for column in range(2 * columns + 1)
        ],
        axis=-1,
    )
    leading = shape[:-4]
    flat = tf.reshape(
        patches, tf.concat([leading, [shape[-4] * width, patches.shape[-1]]], 0)
    )
    filters = kernel.shape[-1]
    return tf.reshape(
        tf.matmul(flat, kernel),
        tf.concat([leading, [shape[-4], width, filters]], 0),
    )
