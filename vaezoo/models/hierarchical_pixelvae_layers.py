"""The convolutional paths of the hierarchical PixelVAE, between image and latents."""

import keras
import tensorflow as tf

from vaezoo.layers.weight_norm import Conv2D


class ResidualBlock(keras.layers.Layer):
    """`x + BN(conv(elu(conv(elu(x)))))`, of the authors' code; may change the size.

    Down, the second convolution has stride 2; up, the first is a sub-pixel one, which
    computes four times the channels and makes places of them. The shortcut is then a
    weight-normalised 1x1 layer of the same kind. The statistics are those of the global
    batch under a `tf.distribute` strategy.

    Args:
        num_inputs: int. Channels of the input.
        filters: int. Channels of the output.
        resample: "down", to `ceil(size / 2)`; "up", to twice the size; or `None`.
    """

    def __init__(self, num_inputs, filters, resample=None, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.resample = filters, resample
        is_down, is_up = resample == "down", resample == "up"
        strides, copies = 2 if is_down else 1, 4 if is_up else 1
        inner = num_inputs if is_down else filters
        self.inner = _conv(copies * inner, "inner")
        self.outer = _conv(filters, "outer", strides=strides, use_bias=False)
        self.normalization = keras.layers.BatchNormalization(
            epsilon=1e-2, momentum=0.99, synchronized=True, name="normalization"
        )
        self.shortcut = None
        if resample or num_inputs != filters:
            self.shortcut = Conv2D(
                copies * filters, 1, strides=strides, name="shortcut"
            )

    def compute_output_shape(self, input_shape):
        batch, *sizes, _ = input_shape
        scale = {"down": lambda n: -(-n // 2), "up": lambda n: 2 * n, None: int}
        return (batch, *map(scale[self.resample], sizes), self.filters)

    def _resized(self, features):
        return tf.nn.depth_to_space(features, 2) if self.resample == "up" else features

    def call(self, features, training=False):
        """`[batch, height, width, num_inputs]` to the output's size."""
        added = self._resized(self.inner(tf.nn.elu(features)))
        added = self.outer(tf.nn.elu(added))
        added = self.normalization(added, training=training)
        if self.shortcut is not None:
            features = self._resized(self.shortcut(features))
        return features + added


def _conv(filters, name, **options):
    """A 3x3 convolution; He's start, with the mean of the inputs and outputs."""
    return keras.layers.Conv2D(
        filters,
        3,
        padding="same",
        kernel_initializer=keras.initializers.VarianceScaling(
            2.0, mode="fan_avg", distribution="uniform"
        ),
        name=name,
        **options,
    )


class Path(keras.layers.Layer):
    """Residual blocks at a few sizes, each half or double of the one before.

    Args:
        widths: sequence of ints. Channels at each size, in the order of the path; the
            first is that of the input.
        depths: sequence of ints. Blocks at each size, but for the one that gets there.
        resample: "down" or "up".
    """

    def __init__(self, widths, depths, resample, **kwargs):
        super().__init__(**kwargs)
        self.blocks = []
        before = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage:
                name = f"{resample}_{stage}"
                self.blocks.append(ResidualBlock(before, width, resample, name=name))
            self.blocks += [
                ResidualBlock(width, width, name=f"block_{stage}_{index}")
                for index in range(depth)
            ]
            before = width

    def compute_output_shape(self, input_shape):
        for block in self.blocks:
            input_shape = block.compute_output_shape(input_shape)
        return input_shape

    def call(self, features, training=False):
        """`[batch, height, width, k]` to the last size and width."""
        for block in self.blocks:
            features = block(features, training=training)
        return features
