"""Plain masked PixelCNN: from an image to each pixel's parameters."""

import keras
import tensorflow as tf

from vaezoo.decoders.scan import Scanner, flatten_columns, push
from vaezoo.decoders.wavefront import PixelCNNWavefront
from vaezoo.layers.causal import CausalConv2D, window_product


@keras.saving.register_keras_serializable(package="vaezoo")
class PixelCNN(keras.layers.Layer):
    """Plain masked PixelCNN (van den Oord et al., 2016a), residual.

    A type-A convolution, then `num_layers - 1` residual type-B convolutions, then
    1x1 convolutions; between them, where asked for, residual 1x1 blocks. It has a
    blind spot to the upper right, which the gated network does not have.

    Args:
        num_colours: int. Channels of the image, generated in order within a pixel.
        num_outputs: int. Output channels a pixel; channel `k` belongs to colour
            `k mod num_colours`.
        filters: int. Width of the masked layers.
        num_layers: int, at least 1. Masked spatial layers, the first included.
        kernel_size: odd int. Kernel of the type-B layers.
        first_kernel_size: odd int. Kernel of the type-A layer.
        head_filters: tuple of ints. Widths of the 1x1 layers before the last.
        num_maps: int. Conditioning channels concatenated to the image.
        mask_maps: bool. Whether the first layer masks them as it masks the image.
        activation: name of a Keras activation, applied before every layer but the
            first.
        tied: bool. Whether the type-B layers share one kernel's direction.
        pointwise_after: tuple of ints. Numbers of masked layers after which there
            are two residual blocks of two 1x1 convolutions each.
        block_size: int. Type-B layers in a residual block.
        normalized: bool. Whether the layers are weight-normalised.
        output_initializer: function of a shape and a dtype to the first kernel of the
            last layer, or `None` for that of the others.
    """

    def __init__(
        self,
        *,
        num_colours,
        num_outputs,
        filters,
        num_layers,
        kernel_size,
        first_kernel_size,
        head_filters,
        num_maps=0,
        mask_maps=True,
        activation="relu",
        tied=False,
        pointwise_after=(),
        block_size=1,
        normalized=True,
        output_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_colours = num_colours
        self.filters = filters
        self.block_size = block_size
        self.activation = keras.activations.get(activation)

        def conv(width, size, mask_type, name, **options):
            return CausalConv2D(
                width,
                size,
                mask_type=mask_type,
                num_groups=num_colours,
                normalized=normalized,
                dtype=self.dtype_policy,
                name=name,
                **options,
            )

        self.first = conv(
            filters,
            first_kernel_size,
            "A",
            "first",
            num_maps=num_maps,
            mask_maps=mask_maps,
        )
        self.blocks = [
            conv(filters, kernel_size, "B", f"block_{index}")
            for index in range(1, num_layers)
        ]
        if tied:
            for block in self.blocks[1:]:
                block.tie(self.blocks[0])
        # For each masked layer, the residual 1x1 blocks after it: pairs of layers.
        self.pointwise = [
            [
                [conv(filters, 1, "B", f"pointwise_{layer}_{i}_{j}") for j in range(2)]
                for i in range(2 if layer in pointwise_after else 0)
            ]
            for layer in range(1, num_layers + 1)
        ]
        self.head = [
            conv(width, 1, "B", f"head_{index}")
            for index, width in enumerate(head_filters)
        ]
        self.outputs = conv(
            num_outputs,
            1,
            "B",
            f"head_{len(head_filters)}",
            direction_initializer=output_initializer,
        )

    def build(self, images_shape, maps_shape=None):
        sizes = images_shape[:-1]
        num_maps = 0 if maps_shape is None else maps_shape[-1]
        self.first.build([*sizes, images_shape[-1] + num_maps])
        features = [*sizes, self.filters]
        for index, residual_blocks in enumerate(self.pointwise):
            if index:
                self.blocks[index - 1].build(features)
            for inner, outer in residual_blocks:
                inner.build(features)
                outer.build(features)
        for layer in [*self.head, self.outputs]:
            layer.build(features)
            features = layer.compute_output_shape(features)

    def compute_output_shape(self, images_shape, maps_shape=None):
        return self.outputs.compute_output_shape(images_shape)

    def call(self, images, maps=None):
        """Map `[batch, height, width, channels]` to `[..., num_outputs]`."""
        inputs = images if maps is None else tf.concat([images, maps], axis=-1)
        activation = self.activation
        features = self.first(inputs)
        shortcut = features
        for index, residual_blocks in enumerate(self.pointwise):
            if index:
                features = self.blocks[index - 1](activation(features))
                if index % self.block_size == 0:
                    features += shortcut
                    shortcut = features
            for inner, outer in residual_blocks:
                features += outer(activation(inner(activation(features))))
                shortcut = features
        for layer in [*self.head, self.outputs]:
            features = layer(activation(features))
        return features

    def forget_conditioning(self):
        """Set the weights of the conditioning maps to 0: the image alone is seen."""
        self.first.forget_maps()

    def scanner(self, height, width, *, maps=None, code=None):
        """The network unrolled for sampling; see `vaezoo.decoders.scan`."""
        return _PixelCNNScanner(self, height, width, maps)

    def wavefront(self, height, width, *, maps=None, code=None):
        """The network unrolled along a wavefront; see `vaezoo.decoders.wavefront`."""
        return PixelCNNWavefront(_PixelCNNScanner(self, height, width, maps))


def _pointwise(layer):
    """Kernel `[channels, filters]` and bias of a 1x1 layer."""
    return layer.centre_kernel(layer.kernel()), layer.static_term(None)


class _PixelCNNScanner(Scanner):
    """Row-cached PixelCNN: the type-B layers, all of one shape, are batched."""

    def __init__(self, network, height, width, maps):
        self.height, self.width = height, width
        self.dtype = network.compute_dtype
        self.num_colours = network.num_colours
        self.filters = network.filters
        self.first, self.blocks = network.first, network.blocks

        kernel = self.first.kernel()
        self.first_above = self.first.above_kernel(kernel)
        self.first_left = self.first.left_kernel(kernel)
        self.first_centre = self.first.centre_kernel(kernel)
        static = self.first.static_term(kernel, maps)
        # [height, batch, width, filters] with maps, else one row for all.
        self.first_static = (
            static if maps is None else tf.transpose(static, [1, 0, 2, 3])
        )
        self.has_maps = maps is not None

        if self.blocks:
            kernels = [block.kernel() for block in self.blocks]
            pairs = list(zip(self.blocks, kernels, strict=True))
            self.above = tf.stack([b.above_kernel(k) for b, k in pairs])
            self.left = tf.stack([b.left_kernel(k) for b, k in pairs])
            self.centre = [b.centre_kernel(k) for b, k in pairs]
            bias = tf.stack([b.static_term(k) for b, k in pairs])
            self.bias = bias[:, None, None, :]
        self.activation = network.activation
        self.block_size = network.block_size
        self.pointwise = [
            [[_pointwise(layer) for layer in pair] for pair in pairs]
            for pairs in network.pointwise
        ]
        self.head = [_pointwise(layer) for layer in [*network.head, network.outputs]]

    def activation_shapes(self, batch):
        return [[len(self.blocks), batch, self.filters]] if self.blocks else []

    def first_row(self, batch):
        num_blocks = len(self.blocks)
        rows = [
            tf.zeros([batch, self.first.rows, self.width, self.num_colours], self.dtype)
        ]
        if self.blocks:
            shape = [num_blocks, batch, self.blocks[0].rows, self.width, self.filters]
            rows.append(tf.zeros(shape, self.dtype))
        return self._context(rows, row=0)

    def _context(self, rows, *, row):
        first = self.first_static
        if self.has_maps:  # the row after the last one is asked for, and not used
            first = first[tf.minimum(row, self.height - 1)]
        if self.first.rows:
            first += window_product(rows[0], self.first_above, self.first.columns)
        else:
            first += tf.zeros_like(rows[0][:, :1, :, :1])[:, 0]
        terms = [first]
        if self.blocks:
            block = self.blocks[0]
            if block.rows:
                terms.append(
                    window_product(rows[1], self.above, block.columns) + self.bias
                )
            else:
                shape = [len(self.blocks), tf.shape(first)[0], self.width, self.filters]
                terms.append(tf.broadcast_to(self.bias, shape))
        return rows, terms

    def first_column(self, batch):
        left = [tf.zeros([batch, self.first.columns, self.num_colours], self.dtype)]
        if self.blocks:
            shape = [len(self.blocks), batch, self.blocks[0].columns, self.filters]
            left.append(tf.zeros(shape, self.dtype))
        return left

    def before_pixel(self, context, left, row, column):
        terms = context[1]
        pre = [terms[0][:, column]]
        if self.first.columns:
            pre[0] += tf.matmul(flatten_columns(left[0]), self.first_left)
        if self.blocks:
            block_terms = terms[1][:, :, column]
            if self.blocks[0].columns:
                block_terms += tf.matmul(flatten_columns(left[1]), self.left)
            pre += tf.unstack(block_terms, num=len(self.blocks))
        return pre

    def pixel(self, pre, x):
        features = pre[0]
        if self.first.sees_centre:
            features += tf.matmul(x, self.first_centre)
        activations = []
        shortcut = features
        for index, residual_blocks in enumerate(self.pointwise):
            if index:
                activations.append(self.activation(features))
                centre = self.centre[index - 1]
                features = pre[index] + tf.matmul(activations[-1], centre)
                if index % self.block_size == 0:
                    features += shortcut
                    shortcut = features
            for (kernel, bias), (outer_kernel, outer_bias) in residual_blocks:
                inner = tf.matmul(self.activation(features), kernel) + bias
                outer = tf.matmul(self.activation(inner), outer_kernel)
                features += outer + outer_bias
                shortcut = features
        for kernel, bias in self.head:
            features = tf.matmul(self.activation(features), kernel) + bias
        return features, ([tf.stack(activations)] if activations else [])

    def after_pixel(self, left, activations, x):
        pushed = [push(left[0], x, axis=1)]
        if self.blocks:
            pushed.append(push(left[1], activations[0], axis=2))
        return pushed

    def next_row(self, context, row, xs, activations):
        """Context of row `row + 1` from row `row`.

        Args:
            xs: `[batch, width, channels]`, the finished row.
            activations: a list of `[width, blocks, batch, filters]`, as of `pixel`.
        """
        rows = [push(context[0][0], xs, axis=1)]
        if self.blocks:
            finished = tf.transpose(activations[0], [1, 2, 0, 3])
            rows.append(push(context[0][1], finished, axis=2))
        return self._context(rows, row=row + 1)
