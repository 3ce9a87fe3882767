"""PixelCNN networks: from an image to the parameters of each pixel's distribution.

`network(images, maps=None, code=None)` is one pass over a whole image.
`network.scanner(height, width, maps=, code=)` is the same network unrolled for
sampling: effective weights and conditioning are computed once, then

    context = scanner.first_row(batch)         # all that a row needs of those above
    left = scanner.first_column(batch)         # activations to the left, all zero
    pre = scanner.before_pixel(context, left, column)
    params, activations = scanner.pixel(pre, x)
    left = scanner.after_pixel(left, activations, x)
    context = scanner.next_row(context, row, xs, activations)

`pixel` alone is sequential layer by layer; everything else is one batched product
for all layers of the same shape. A scan computes what one pass over the whole
image computes: the tests hold every network to that.
"""

import keras
import tensorflow as tf

from vaezoo.layers.causal import (
    CausalConv2D,
    VerticalConv2D,
    down_shift,
    window_product,
)
from vaezoo.layers.weight_norm import Dense


def gate(inputs):
    """`tanh(a) sigmoid(b)` for the halves a, b of the last axis."""
    features, gates = tf.split(inputs, 2, axis=-1)
    return tf.tanh(features) * tf.sigmoid(gates)


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
            for index, width in enumerate((*head_filters, num_outputs))
        ]

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
        for layer in self.head:
            features = layer(activation(features))
        return features

    def scanner(self, height, width, *, maps=None, code=None):
        """The network unrolled for sampling; see the module's docstring."""
        return _PixelCNNScanner(self, height, width, maps)


def _pointwise(layer):
    """Kernel `[channels, filters]` and bias of a 1x1 layer."""
    return layer.centre_kernel(layer.kernel()), layer.static_term(None)


class _PixelCNNScanner:
    """Row-cached PixelCNN: the type-B layers, all of one shape, are batched."""

    def __init__(self, network, height, width, maps):
        self.height, self.width = height, width
        self.dtype = network.compute_dtype
        self.num_colours = network.num_colours
        self.filters = network.filters
        self.first, self.blocks = network.first, network.blocks
        self.keeps_activations = bool(self.blocks)

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
        self.head = [_pointwise(layer) for layer in network.head]

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

    def before_pixel(self, context, left, column):
        terms = context[1]
        pre = [terms[0][:, column]]
        if self.first.columns:
            pre[0] += tf.matmul(_flatten_columns(left[0]), self.first_left)
        if self.blocks:
            block_terms = terms[1][:, :, column]
            if self.blocks[0].columns:
                block_terms += tf.matmul(_flatten_columns(left[1]), self.left)
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
        return features, (tf.stack(activations) if activations else None)

    def after_pixel(self, left, activations, x):
        pushed = [_push(left[0], x, axis=1)]
        if self.blocks:
            pushed.append(_push(left[1], activations, axis=2))
        return pushed

    def next_row(self, context, row, xs, activations):
        """Context of row `row + 1` from row `row`.

        Args:
            xs: `[batch, width, channels]`, the finished row.
            activations: `[width, blocks, batch, filters]`, as `pixel` gave them.
        """
        rows = [_push(context[0][0], xs, axis=1)]
        if self.blocks:
            finished = tf.transpose(activations, [1, 2, 0, 3])
            rows.append(_push(context[0][1], finished, axis=2))
        return self._context(rows, row=row + 1)


class GatedPixelCNN(keras.layers.Layer):
    """Gated PixelCNN without a blind spot (van den Oord et al., 2016b).

    Each layer has a vertical stack, which sees the rows above whole, and a
    horizontal stack, which sees the row to the left and the vertical stack one row
    up. The first layer is of type A without residual; the others are of type B,
    with a residual connection in the horizontal stack.

    Args:
        num_colours, num_outputs, num_layers, kernel_size, first_kernel_size,
            num_maps, mask_maps: as in `PixelCNN`.
        filters: int. Width of both stacks.
        head_filters: tuple of ints. Widths of the gated 1x1 layers before the last.
        code_size: int. Size of a code vector added to every gate, 0 for none.
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
        code_size=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_colours = num_colours
        self.filters = filters
        self.blocks = [
            GatedBlock(
                filters,
                kernel_size if index else first_kernel_size,
                mask_type="B" if index else "A",
                num_colours=num_colours,
                num_maps=0 if index else num_maps,
                mask_maps=mask_maps,
                conditional=code_size > 0,
                residual=index > 0,
                name=f"block_{index}",
            )
            for index in range(num_layers)
        ]
        self.head = [
            GatedPointwise(
                width,
                num_colours=num_colours,
                conditional=code_size > 0,
                name=f"head_{index}",
            )
            for index, width in enumerate(head_filters)
        ]
        self.outputs = CausalConv2D(
            num_outputs, 1, mask_type="B", num_groups=num_colours, name="outputs"
        )

    def call(self, images, maps=None, code=None):
        """Map `[batch, height, width, channels]` to `[..., num_outputs]`."""
        inputs = images if maps is None else tf.concat([images, maps], axis=-1)
        vertical = horizontal = inputs
        for block in self.blocks:
            vertical, horizontal = block(vertical, horizontal, code=code)
        for layer in self.head:
            horizontal = layer(horizontal, code=code)
        return self.outputs(horizontal)

    def scanner(self, height, width, *, maps=None, code=None):
        """The network unrolled for sampling; see the module's docstring."""
        return _GatedPixelCNNScanner(self, height, width, maps, code)


class GatedBlock(keras.layers.Layer):
    """One layer of the Gated PixelCNN: its vertical and its horizontal stack.

        a_v = vertical_conv(v)                        v' = gate(a_v + V z)
        a_h = horizontal_conv(h) + link(shift(a_v))   h' = project(gate(a_h + H z))

    with `h' + h` instead of `h'` where `residual`. The code's terms `V z` and `H z`
    are absent without a code. The vertical output of the last layer is not used.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        *,
        mask_type,
        num_colours,
        num_maps,
        mask_maps,
        conditional,
        residual,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.residual = residual
        self.vertical = VerticalConv2D(
            2 * filters, kernel_size, num_maps=num_maps, name="vertical"
        )
        self.horizontal = CausalConv2D(
            2 * filters,
            (1, kernel_size),
            mask_type=mask_type,
            num_groups=num_colours,
            copies=2,
            num_maps=num_maps,
            mask_maps=mask_maps,
            name="horizontal",
        )
        self.link = Dense(2 * filters, name="link")
        self.project = CausalConv2D(
            filters, 1, mask_type="B", num_groups=num_colours, name="project"
        )
        if conditional:
            self.vertical_code = Dense(2 * filters, name="vertical_code")
            self.horizontal_code = Dense(2 * filters, name="horizontal_code")

    def call(self, vertical, horizontal, code=None):
        above = self.vertical(vertical)
        row = self.horizontal(horizontal) + self.link(down_shift(above))
        if code is not None:
            above += self.vertical_code(code)[:, None, None, :]
            row += self.horizontal_code(code)[:, None, None, :]
        outputs = self.project(gate(row))
        return gate(above), outputs + horizontal if self.residual else outputs


class GatedPointwise(keras.layers.Layer):
    """`gate(W h + Z z)` at every pixel; the code's term is absent without a code."""

    def __init__(self, filters, *, num_colours, conditional, **kwargs):
        super().__init__(**kwargs)
        self.conv = CausalConv2D(
            2 * filters,
            1,
            mask_type="B",
            num_groups=num_colours,
            copies=2,
            name="conv",
        )
        if conditional:
            self.code = Dense(2 * filters, name="code")

    def call(self, inputs, code=None):
        outputs = self.conv(inputs)
        if code is not None:
            outputs += self.code(code)[:, None, None, :]
        return gate(outputs)


class _GatedPixelCNNScanner:
    """Row-cached Gated PixelCNN: the vertical stack a row, the horizontal a pixel."""

    keeps_activations = False

    def __init__(self, network, height, width, maps, code):
        self.height, self.width = height, width
        self.dtype = network.compute_dtype
        self.num_colours = network.num_colours
        self.filters = network.filters
        self.blocks = network.blocks

        def code_term(layer, axis):
            return 0.0 if code is None else tf.expand_dims(layer(code), axis)

        first = self.blocks[0]
        vertical = [block.vertical.kernel() for block in self.blocks]
        self.vertical = list(vertical)
        self.vertical_static = [
            block.vertical.static_term(kernel)
            for block, kernel in zip(self.blocks, vertical, strict=True)
        ]
        self.vertical_code = [
            code_term(getattr(block, "vertical_code", None), 1) for block in self.blocks
        ]
        self.link = [block.link.kernel() for block in self.blocks]

        horizontal = [block.horizontal.kernel() for block in self.blocks]
        # Added to the link's product: its bias, the horizontal stack's, the code's.
        self.row_static = [
            tf.cast(block.link.bias, self.dtype)
            + block.horizontal.static_term(kernel)
            + code_term(getattr(block, "horizontal_code", None), 1)
            for block, kernel in zip(self.blocks, horizontal, strict=True)
        ]
        self.has_maps = maps is not None
        if self.has_maps:  # [height, batch, width, 2 filters]
            self.vertical_maps = tf.transpose(
                first.vertical.static_term(vertical[0], maps)
                - first.vertical.static_term(vertical[0]),
                [1, 0, 2, 3],
            )
            self.row_maps = tf.transpose(
                first.horizontal.static_term(horizontal[0], maps)
                - first.horizontal.static_term(horizontal[0]),
                [1, 0, 2, 3],
            )
        self.first_left = first.horizontal.left_kernel(horizontal[0])
        self.first_centre = first.horizontal.centre_kernel(horizontal[0])
        rest = list(zip(self.blocks[1:], horizontal[1:], strict=True))
        if rest:
            self.left = tf.stack([b.horizontal.left_kernel(k) for b, k in rest])
        self.centre = [b.horizontal.centre_kernel(k) for b, k in rest]
        self.project = [_affine(block.project) for block in self.blocks]
        self.head = [
            (*_affine(layer.conv), 0.0 if code is None else layer.code(code))
            for layer in network.head
        ]
        self.outputs = _affine(network.outputs)

    def first_row(self, batch):
        rows = []
        for index, block in enumerate(self.blocks):
            channels = self.filters if index else self.num_colours
            shape = [batch, block.vertical.rows + 1, self.width, channels]
            rows.append(tf.zeros(shape, self.dtype))
        # The vertical stack shifted down is zero on row 0: the link adds its bias.
        zeros = tf.zeros([batch, self.width, 2 * self.filters], self.dtype)
        return rows, self._terms([zeros] * len(self.blocks), row=0)

    def _terms(self, links, *, row):
        links = [
            link + static for link, static in zip(links, self.row_static, strict=True)
        ]
        if self.has_maps:  # the row after the last one is asked for, and not used
            links[0] += self.row_maps[tf.minimum(row, self.height - 1)]
        return [links[0], *([tf.stack(links[1:])] if len(links) > 1 else [])]

    def first_column(self, batch):
        columns = self.blocks[0].horizontal.columns
        left = [tf.zeros([batch, columns, self.num_colours], self.dtype)]
        if len(self.blocks) > 1:
            columns = self.blocks[1].horizontal.columns
            shape = [len(self.blocks) - 1, batch, columns, self.filters]
            left.append(tf.zeros(shape, self.dtype))
        return left

    def before_pixel(self, context, left, column):
        terms = context[1]
        pre = [terms[0][:, column]]
        if self.blocks[0].horizontal.columns:
            pre[0] += tf.matmul(_flatten_columns(left[0]), self.first_left)
        if len(self.blocks) > 1:
            block_terms = terms[1][:, :, column]
            if self.blocks[1].horizontal.columns:
                block_terms += tf.matmul(_flatten_columns(left[1]), self.left)
            pre += tf.unstack(block_terms, num=len(self.blocks) - 1)
        return pre

    def pixel(self, pre, x):
        first = pre[0]
        if self.blocks[0].horizontal.sees_centre:
            first += tf.matmul(x, self.first_centre)
        kernel, bias = self.project[0]
        features = tf.matmul(gate(first), kernel) + bias
        activations = []
        for term, centre, (kernel, bias) in zip(
            pre[1:], self.centre, self.project[1:], strict=True
        ):
            activations.append(features)
            gated = gate(term + tf.matmul(features, centre))
            features += tf.matmul(gated, kernel) + bias
        for kernel, bias, code in self.head:
            features = gate(tf.matmul(features, kernel) + bias + code)
        kernel, bias = self.outputs
        params = tf.matmul(features, kernel) + bias
        return params, (tf.stack(activations) if activations else None)

    def after_pixel(self, left, activations, x):
        pushed = [_push(left[0], x, axis=1)]
        if len(self.blocks) > 1:
            pushed.append(_push(left[1], activations, axis=2))
        return pushed

    def next_row(self, context, row, xs, activations):
        """Context of row `row + 1`; see `_PixelCNNScanner.next_row`."""
        rows, links, features = [], [], xs
        for index, block in enumerate(self.blocks):
            rows.append(_push(context[0][index], features, axis=1))
            above = (
                block.vertical.row(rows[-1], self.vertical[index])
                + self.vertical_static[index]
            )
            if index == 0 and self.has_maps:
                above += self.vertical_maps[row]
            links.append(tf.matmul(above, self.link[index]))
            features = gate(above + self.vertical_code[index])
        return rows, self._terms(links, row=row + 1)


def _affine(layer):
    """Effective `[channels, filters]` weights and bias of a 1x1 masked layer."""
    kernel = layer.kernel()
    return layer.centre_kernel(kernel), layer.static_term(kernel)


def _flatten_columns(left):
    """`[..., columns, channels]` to `[..., columns * channels]`, leftmost first."""
    shape = tf.shape(left)
    size = left.shape[-2] * left.shape[-1]
    return tf.reshape(left, tf.concat([shape[:-2], [size]], 0))


def _push(window, newest, *, axis):
    """Drop the oldest entry of `window` along `axis` and append `newest`."""
    if window.shape[axis] == 0:
        return window
    keep = [slice(None)] * axis + [slice(1, None)]
    return tf.concat([window[tuple(keep)], tf.expand_dims(newest, axis)], axis)
