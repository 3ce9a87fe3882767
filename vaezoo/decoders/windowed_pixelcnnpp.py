"""A shallow PixelCNN++ that sees a small window of the image, and maps of all of it."""

import keras
import numpy as np
import tensorflow as tf

from vaezoo.decoders.pixelcnnpp_terms import gate
from vaezoo.decoders.scan import Scanner
from vaezoo.layers.causal import down_shift
from vaezoo.layers.shifted import ShiftedConv2D, concat_elu, right_shift
from vaezoo.layers.weight_norm import Dense

# Name of a window, of so many columns and rows above -> its convolutions in the stream
# of rows and in that of pixels. A row is what a kernel of 2x3 adds to the first one's
# two, and a pixel to the left what a kernel of 1x2 adds.
WINDOWS = {"4x2": (1, 2), "5x3": (2, 2), "7x4": (3, 3)}
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


@keras.saving.register_keras_serializable(package="vaezoo")
class WindowBlock(keras.layers.Layer):
    """A gated residual block of one stream, of at most one convolution over places.

        h   = conv(f(x)) + nin(f(a)),    f = concat_elu
        b,c = nin(f(h))
        x'  = x + b sigmoid(c)

    where `a` is what else the block sees at its own place.

    Args:
        filters: int. Channels of x and x'.
        stream: "down" or "down_right".
        is_spatial: bool. Whether the convolution's kernel is more than 1x1.
    """

    def __init__(self, filters, *, stream, is_spatial, **kwargs):
        super().__init__(**kwargs)
        size = (1, 1)
        if is_spatial:
            size = (2, 3) if stream == "down" else (1, 2)
        policy = self.dtype_policy
        self.first = ShiftedConv2D(
            filters, size, stream=stream, dtype=policy, name="first"
        )
        self.link = Dense(filters, dtype=policy, name="link")
        # A small scale starts the block near the identity.
        self.second = Dense(2 * filters, init_scale=0.1, dtype=policy, name="second")

    def build(self, inputs_shape, links_shape):
        doubled = (*inputs_shape[:-1], 2 * inputs_shape[-1])
        self.first.build(doubled)
        self.link.build((*links_shape[:-1], 2 * links_shape[-1]))
        self.second.build(doubled)

    def compute_output_shape(self, inputs_shape, links_shape):
        return inputs_shape

    def call(self, inputs, links):
        """Map `[batch, height, width, filters]` to the same shape.

        Args:
            inputs: the stream.
            links: `[batch, height, width, k]`.
        """
        features = self.first(concat_elu(inputs)) + self.link(concat_elu(links))
        return inputs + gate(self.second(concat_elu(features)))


@keras.saving.register_keras_serializable(package="vaezoo")
class WindowedPixelCNNPP(keras.layers.Layer):
    """PixelCNN++ without strides, whose few convolutions reach a window by design.

    A stream sees the rows above, another one the pixels to the left and, at the same
    place, the first one. A window of `A x B` is the rectangle of A columns and B rows
    above the pixel, and `ceil((A - 1) / 2)` pixels to its left. Blocks that the window
    does not need a convolution of are 1x1. Every block sees at its own place the
    blocks before the last one of its stream, and the conditioning maps: those are not
    masked, and what the window leaves out of the image has to come through them.

    An output channel sees all colours of the pixels before its own and none of its own,
    so that a head must say how a pixel's colours depend on each other.

    Args:
        num_outputs: int. Output channels a pixel.
        window: a key of `WINDOWS`.
        grayscale: bool. Whether the window is seen without its colours, as
            0.299 R + 0.587 G + 0.114 B.
        filters: int. Width of both streams.
        num_blocks: int, at least 2. Blocks of each stream.
    """

    def __init__(
        self, *, num_outputs, window, grayscale, filters=64, num_blocks=4, **kwargs
    ):
        super().__init__(**kwargs)
        self.filters, self.num_blocks, self.grayscale = filters, num_blocks, grayscale
        num_rows, num_pixels = WINDOWS[window]
        policy = self.dtype_policy
        # The first convolution of each stream is that of where it starts.
        self.rows_above = ShiftedConv2D(
            filters, (2, 3), stream="down", dtype=policy, name="rows_above"
        )
        self.column_left = Dense(filters, dtype=policy, name="column_left")

        def blocks(stream, name, count):
            return [
                WindowBlock(
                    filters,
                    stream=stream,
                    is_spatial=index < count,
                    dtype=policy,
                    name=f"{name}_{index}",
                )
                for index in range(1, num_blocks + 1)
            ]

        self.row_blocks = blocks("down", "rows", num_rows)
        self.pixel_blocks = blocks("down_right", "pixels", num_pixels)
        self.outputs = Dense(num_outputs, dtype=policy, name="outputs")

    def build(self, images_shape, maps_shape):
        sizes = tuple(images_shape[:-1])
        channels = (1 if self.grayscale else images_shape[-1]) + 1
        self.rows_above.build((*sizes, channels))
        self.column_left.build((*sizes, channels))
        features = (*sizes, self.filters)
        pairs = zip(self.row_blocks, self.pixel_blocks, strict=True)
        for index, (rows, pixels) in enumerate(pairs):
            size = index * self.filters + maps_shape[-1]
            rows.build(features, (*sizes, size))
            pixels.build(features, (*sizes, size + self.filters))
        self.outputs.build(features)

    def compute_output_shape(self, images_shape, maps_shape):
        return (*images_shape[:-1], self.outputs.filters)

    def seen(self, images):
        """What the streams start from of `[..., channels]`: with ones for the edge."""
        if self.grayscale:
            weights = tf.constant(_LUMINANCE[:, None], images.dtype)
            images = tf.tensordot(images, weights, 1)
        return tf.concat([images, tf.ones_like(images[..., :1])], axis=-1)

    def call(self, images, maps):
        """Map `[batch, height, width, channels]` to `[..., num_outputs]`.

        Args:
            images: in the head's units.
            maps: `[batch, height, width, num_maps]`.
        """
        images = self.seen(images)
        maps = tf.cast(maps, images.dtype)
        rows = [down_shift(self.rows_above(images))]
        pixels = [rows[0] + right_shift(self.column_left(images))]
        pairs = zip(self.row_blocks, self.pixel_blocks, strict=True)
        for of_rows, of_pixels in pairs:
            links = [*rows[:-1], maps]
            rows.append(of_rows(rows[-1], tf.concat(links, axis=-1)))
            links = [rows[-1], *pixels[:-1], maps]
            pixels.append(of_pixels(pixels[-1], tf.concat(links, axis=-1)))
        return self.outputs(tf.nn.elu(pixels[-1]))

    def scanner(self, height, width, *, maps):
        """The network unrolled for sampling; see `vaezoo.decoders.scan`."""
        return _WindowedScanner(self, height, width, maps)


class _WindowedScanner(Scanner):
    """The stream of rows is computed once a row, that of pixels before each pixel."""

    def __init__(self, network, height, width, maps):
        self.height, self.width = height, width
        self.dtype = network.compute_dtype
        self.filters, self.num_blocks = network.filters, network.num_blocks
        self.seen = network.seen
        self.num_channels = network.column_left.direction.shape[0]  # with the ones

        def affine(layer):
            return layer.kernel(), tf.cast(layer.bias, self.dtype)

        def unrolled(blocks):
            return [
                {name: affine(getattr(block, name)) for name in _LAYERS}
                for block in blocks
            ]

        self.rows_above = affine(network.rows_above)
        self.column_left = affine(network.column_left)
        self.row_blocks = unrolled(network.row_blocks)
        self.pixel_blocks = unrolled(network.pixel_blocks)
        self.outputs = affine(network.outputs)
        self.maps = tf.transpose(tf.cast(maps, self.dtype), [1, 0, 2, 3])

    def _block(self, block, inputs, convolved, links):
        """A block, of its convolution and of what it is linked to."""
        features = convolved + _dense(concat_elu(tf.concat(links, -1)), block["link"])
        return inputs + gate(_dense(concat_elu(features), block["second"]))

    def first_row(self, batch):
        seen = tf.zeros([batch, 2, self.width, self.num_channels], self.dtype)
        one = tf.zeros([batch, self.width, 2 * self.filters], self.dtype)
        start = tf.zeros([batch, self.width, self.filters], self.dtype)
        return self._row(seen, [one] * self.num_blocks, start, 0)

    def _row(self, seen, above, start, row):
        """The stream of rows at `row`.

        Args:
            seen: `[batch, 2, width, channels]`, the two rows above.
            above: what each block convolves of the row above.
            start: `[batch, width, filters]`, where the stream starts.
        """
        # The row after the last one is asked for, and not used.
        maps = self.maps[tf.minimum(row, self.height - 1)]
        rows, inputs = [start], []
        for block, before in zip(self.row_blocks, above, strict=True):
            inputs.append(concat_elu(rows[-1]))
            both = tf.stack([before, inputs[-1]], axis=1)
            convolved = _window(both, block["first"])
            links = [*rows[:-1], maps]
            rows.append(self._block(block, rows[-1], convolved, links))
        return seen, inputs, rows, maps

    def next_row(self, context, row, xs, activations):
        """The context of row `row + 1`; `xs` is `[batch, width, channels]`."""
        seen, inputs, *_ = context
        seen = tf.stack([seen[:, 1], self.seen(xs)], axis=1)
        return self._row(seen, inputs, _window(seen, self.rows_above), row + 1)

    def activation_shapes(self, batch):
        return []  # the stream of pixels leaves nothing to the next row

    def first_column(self, batch):
        x = tf.zeros([batch, self.num_channels], self.dtype)
        one = tf.zeros([batch, 2 * self.filters], self.dtype)
        return [x, [one] * self.num_blocks]

    def before_pixel(self, context, left, row, column):
        _, _, rows, maps = context
        x, lefts = left
        rows, maps = [part[:, column] for part in rows], maps[:, column]
        is_right = tf.cast(column > 0, self.dtype)  # the shift brings zeros to column 0
        pixels, activations = [rows[0] + _dense(x, self.column_left) * is_right], []
        for index, (block, before) in enumerate(
            zip(self.pixel_blocks, lefts, strict=True)
        ):
            activations.append(concat_elu(pixels[-1]))
            kernel, bias = block["first"]
            convolved = tf.matmul(activations[-1], kernel[0, -1]) + bias
            if kernel.shape[1] > 1:
                convolved += tf.matmul(before, kernel[0, 0])
            links = [rows[index + 1], *pixels[:-1], maps]
            pixels.append(self._block(block, pixels[-1], convolved, links))
        return _dense(tf.nn.elu(pixels[-1]), self.outputs), activations

    def pixel(self, pre, x):
        return pre

    def after_pixel(self, left, activations, x):
        return [self.seen(x), activations]


_LAYERS = "first", "link", "second"  # of a block


def _dense(features, layer):
    kernel, bias = layer
    return tf.tensordot(features, kernel, 1) + bias


def _window(rows, layer):
    """A convolution's last row, of a few rows `[batch, n, width, channels]`."""
    kernel, bias = layer
    height, width = kernel.shape[:2]
    padding = [[0, 0], [0, 0], [width // 2, width // 2], [0, 0]]
    rows = tf.pad(rows[:, -height:], padding)
    return tf.nn.conv2d(rows, kernel, strides=1, padding="VALID")[:, 0] + bias
