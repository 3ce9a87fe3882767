"""The unmasked stream of a conditional PixelCNN++: maps of what conditions it."""

import keras
import tensorflow as tf

from vaezoo.layers.weight_norm import Conv2D, Conv2DTranspose


@keras.saving.register_keras_serializable(package="vaezoo")
class FeatureStream(keras.layers.Layer):
    """Convolutions as many as a stream of PixelCNN++ has blocks, none of them masked.

    AGAVE (Lucas and Verbeek, 2018, section 4.1): what conditions an image is known
    before its first pixel, so that every pixel may see all of it. Weight-normalised.

    Args:
        filters: int. Width.
        blocks: of each resolution of the way there, and of each of the way back, ints:
            the residual blocks of the network that it goes with.
        strided: bool. Whether that network changes size.
    """

    def __init__(self, filters, blocks, *, strided=True, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        up, down = blocks
        self.first = self._conv("first", 5)
        self.steps, self.is_handed_on = [], []
        for name, sizes in (("up", up), ("down", down)):
            for level, size in enumerate(sizes):
                for index in range(size):
                    self._add(self._conv(f"{name}_{level}_{index}", 3), True)
                if level == len(sizes) - 1:
                    continue
                if name == "up":
                    step = self._conv(f"shrink_{level}", 3, strides=2 if strided else 1)
                elif strided:
                    step = Conv2DTranspose(
                        filters, 3, dtype=self.dtype_policy, name=f"grow_{level}"
                    )
                else:
                    step = self._conv(f"grow_{level}", 3)
                self._add(step, False)

    def _conv(self, name, kernel_size, **options):
        return Conv2D(
            self.filters, kernel_size, dtype=self.dtype_policy, name=name, **options
        )

    def _add(self, step, is_handed_on):
        self.steps.append(step)
        self.is_handed_on.append(is_handed_on)

    def build(self, maps_shape):
        self.first.build(maps_shape)
        shape = (*maps_shape[:-1], self.filters)
        for step in self.steps:
            step.build(shape)

    def call(self, maps):
        """`[batch, height, width, k]` to the maps of each block, in order.

        Returns:
            A list of `[batch, height / s, width / s, filters]`, s of 1, 2 and 4.
        """
        features, handed_on = self.first(maps), []
        for step, is_handed_on in zip(self.steps, self.is_handed_on, strict=True):
            features = step(tf.nn.elu(features))
            if is_handed_on:
                handed_on.append(features)
        return handed_on
