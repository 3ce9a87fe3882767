"""PixelVAE++'s encoders of its three groups of latents, and what decodes them.

Section 2.2 and table 2. All are weight-normalised, with ELU.
"""

import keras
import tensorflow as tf

from vaezoo.layers.weight_norm import Conv2D, Conv2DTranspose, Dense

_WIDTH = 64  # of the encoder and of most of f(z1)
_FEATURES = 512  # of f(z1) at its one position


def _flat(features):
    return tf.reshape(features, [tf.shape(features)[0], _volume(features.shape[1:])])


def _volume(shape):
    return int(tf.TensorShape(shape).num_elements())


class ImageEncoder(keras.layers.Layer):
    """q(z1 | x): four times a convolution that halves and one that does not; dense."""

    def __init__(self, num_outputs, *, init_scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.convolutions = []
        for index in range(4):
            for name, strides in (("down", 2), ("conv", 1)):
                self.convolutions.append(
                    Conv2D(
                        _WIDTH,
                        3,
                        strides=strides,
                        activation="elu",
                        name=f"{name}_{index}",
                    )
                )
        self.parameters = Dense(num_outputs, init_scale=init_scale, name="parameters")

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.parameters.filters)

    def call(self, images):
        """Images `[batch, height, width, channels]` to parameters `[batch, n]`."""
        features = images
        for layer in self.convolutions:
            features = layer(features)
        return self.parameters(_flat(features))


class MapDecoder(keras.layers.Layer):
    """f(z1): from one position to maps of the image's shape, doubling."""

    def __init__(self, image_shape, **kwargs):
        super().__init__(**kwargs)
        height, width, channels = image_shape
        self.sizes = [(height, width)]
        while max(self.sizes[0]) > 1:
            self.sizes.insert(0, tuple(-(-side // 2) for side in self.sizes[0]))
        self.dense = Dense(_FEATURES, activation="elu", name="dense")
        num = len(self.sizes) - 1
        widths = [_WIDTH] * (num - 2) + [16] * (num > 1)
        self.stages = [
            (
                Conv2DTranspose(filters, 3, activation="elu", name=f"double_{index}"),
                Conv2D(filters, 3, activation="elu", name=f"conv_{index}"),
            )
            for index, filters in enumerate(widths)
        ]
        self.layers_of_stages = [layer for stage in self.stages for layer in stage]
        self.outputs = Conv2DTranspose(channels, 3, name="outputs")

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.sizes[-1], self.outputs.filters)

    def call(self, code):
        """z1 `[batch, size]` to maps `[batch, height, width, channels]`."""
        features = self.dense(code)[:, None, None, :]
        for (double, conv), size in zip(self.stages, self.sizes[1:-1], strict=True):
            features = conv(double(features)[:, : size[0], : size[1]])
        height, width = self.sizes[-1]
        return self.outputs(features)[:, :height, :width]


class CodeEncoder(keras.layers.Layer):
    """q(z2 | x): a convolution to one map of half the size; dense."""

    def __init__(self, num_outputs, *, init_scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.conv = Conv2D(1, 3, strides=2, activation="elu", name="conv")
        self.parameters = Dense(num_outputs, init_scale=init_scale, name="parameters")

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.parameters.filters)

    def call(self, images):
        """Images `[batch, height, width, channels]` to parameters `[batch, n]`."""
        return self.parameters(_flat(self.conv(images)))


class NodeEncoder(keras.layers.Layer):
    """q(z3 | x, z1, z2) of a node: one map of a quarter of the image's size; dense.

    Args:
        num_outputs: int.
        strides: int. How much larger the node's map is.
    """

    def __init__(self, num_outputs, *, strides, init_scale=1.0, **kwargs):
        super().__init__(**kwargs)
        size = 4 if strides == 4 else 3
        self.conv = Conv2D(1, size, strides=strides, activation="elu", name="conv")
        self.parameters = Dense(num_outputs, init_scale=init_scale, name="parameters")

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.parameters.filters)

    def call(self, node):
        """A node `[batch, height, width, filters]` to parameters `[batch, n]`."""
        return self.parameters(_flat(self.conv(tf.nn.elu(node))))


class NodeDecoder(keras.layers.Layer):
    """f(z3) of a node: dense to one map, and a convolution to the node's size.

    Args:
        size: pair of ints, of that one map.
        filters: int. Maps of the result.
        strides: int. How much larger the node's map is.
    """

    def __init__(self, size, filters, *, strides, **kwargs):
        super().__init__(**kwargs)
        self.size = size
        self.strides = strides
        self.dense = Dense(_volume(size), activation="elu", name="dense")
        if strides == 1:
            self.conv = Conv2D(filters, 3, name="conv")
        else:
            kernel_size = 4 if strides == 4 else 3
            self.conv = Conv2DTranspose(
                filters, kernel_size, strides=strides, name="conv"
            )

    def compute_output_shape(self, input_shape):
        sides = (side * self.strides for side in self.size)
        return (input_shape[0], *sides, self.conv.filters)

    def call(self, values):
        """z3 `[batch, n]` to `[batch, height, width, filters]`."""
        maps = tf.reshape(self.dense(values), [-1, *self.size, 1])
        return self.conv(maps)
