"""Gated PixelCNN, without a blind spot: a vertical and a horizontal stack."""

import keras
import tensorflow as tf

from vaezoo.decoders.scan import Scanner, affine, flatten_columns, push
from vaezoo.layers.causal import CausalConv2D, VerticalConv2D, down_shift
from vaezoo.layers.weight_norm import Dense


def gate(inputs):
    """`tanh(a) sigmoid(b)` for the halves a, b of the last axis."""
    features, gates = tf.split(inputs, 2, axis=-1)
    return tf.tanh(features) * tf.sigmoid(gates)


@keras.saving.register_keras_serializable(package="vaezoo")
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
                dtype=self.dtype_policy,
                name=f"block_{index}",
            )
            for index in range(num_layers)
        ]
        self.head = [
            GatedPointwise(
                width,
                num_colours=num_colours,
                conditional=code_size > 0,
                dtype=self.dtype_policy,
                name=f"head_{index}",
            )
            for index, width in enumerate(head_filters)
        ]
        self.outputs = CausalConv2D(
            num_outputs,
            1,
            mask_type="B",
            num_groups=num_colours,
            dtype=self.dtype_policy,
            name="outputs",
        )

    def build(self, images_shape, maps_shape=None, code_shape=None):
        num_maps = 0 if maps_shape is None else maps_shape[-1]
        features = [*images_shape[:-1], images_shape[-1] + num_maps]
        for block in self.blocks:
            block.build(features, features, code_shape)
            features, _ = block.compute_output_shape(features, features)
        for layer in self.head:
            layer.build(features, code_shape)
            features = layer.compute_output_shape(features)
        self.outputs.build(features)

    def compute_output_shape(self, images_shape, maps_shape=None, code_shape=None):
        return self.outputs.compute_output_shape(images_shape)

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
        """The network unrolled for sampling; see `vaezoo.decoders.scan`."""
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
        self.filters = filters
        self.residual = residual
        self.vertical = VerticalConv2D(
            2 * filters,
            kernel_size,
            num_maps=num_maps,
            dtype=self.dtype_policy,
            name="vertical",
        )
        self.horizontal = CausalConv2D(
            2 * filters,
            (1, kernel_size),
            mask_type=mask_type,
            num_groups=num_colours,
            copies=2,
            num_maps=num_maps,
            mask_maps=mask_maps,
            dtype=self.dtype_policy,
            name="horizontal",
        )
        self.link = Dense(2 * filters, dtype=self.dtype_policy, name="link")
        self.project = CausalConv2D(
            filters,
            1,
            mask_type="B",
            num_groups=num_colours,
            dtype=self.dtype_policy,
            name="project",
        )
        if conditional:
            self.vertical_code = Dense(
                2 * filters, dtype=self.dtype_policy, name="vertical_code"
            )
            self.horizontal_code = Dense(
                2 * filters, dtype=self.dtype_policy, name="horizontal_code"
            )

    def build(self, vertical_shape, horizontal_shape, code_shape=None):
        self.vertical.build(vertical_shape)
        above = self.vertical.compute_output_shape(vertical_shape)
        self.horizontal.build(horizontal_shape)
        self.link.build(above)
        if code_shape is not None:
            self.vertical_code.build(code_shape)
            self.horizontal_code.build(code_shape)
        self.project.build([*above[:-1], self.filters])

    def compute_output_shape(self, vertical_shape, horizontal_shape, code_shape=None):
        shape = (*vertical_shape[:-1], self.filters)
        return shape, shape

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
        self.filters = filters
        self.conv = CausalConv2D(
            2 * filters,
            1,
            mask_type="B",
            num_groups=num_colours,
            copies=2,
            dtype=self.dtype_policy,
            name="conv",
        )
        if conditional:
            self.code = Dense(2 * filters, dtype=self.dtype_policy, name="code")

    def build(self, inputs_shape, code_shape=None):
        self.conv.build(inputs_shape)
        if code_shape is not None:
            self.code.build(code_shape)

    def compute_output_shape(self, inputs_shape, code_shape=None):
        return (*inputs_shape[:-1], self.filters)

    def call(self, inputs, code=None):
        outputs = self.conv(inputs)
        if code is not None:
            outputs += self.code(code)[:, None, None, :]
        return gate(outputs)


class _GatedPixelCNNScanner(Scanner):
    """Row-cached Gated PixelCNN: the vertical stack a row, the horizontal a pixel."""

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
        self.project = [affine(block.project) for block in self.blocks]
        self.head = [
            (*affine(layer.conv), 0.0 if code is None else layer.code(code))
            for layer in network.head
        ]
        self.outputs = affine(network.outputs)

    def activation_shapes(self, batch):
        return []

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

    def before_pixel(self, context, left, row, column):
        terms = context[1]
        pre = [terms[0][:, column]]
        if self.blocks[0].horizontal.columns:
            pre[0] += tf.matmul(flatten_columns(left[0]), self.first_left)
        if len(self.blocks) > 1:
            block_terms = terms[1][:, :, column]
            if self.blocks[1].horizontal.columns:
                block_terms += tf.matmul(flatten_columns(left[1]), self.left)
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
        return params, ([tf.stack(activations)] if activations else [])

    def after_pixel(self, left, activations, x):
        pushed = [push(left[0], x, axis=1)]
        if len(self.blocks) > 1:
            pushed.append(push(left[1], activations[0], axis=2))
        return pushed

    def next_row(self, context, row, xs, activations):
        """Context of row `row + 1`; see `_PixelCNNScanner.next_row`."""
        rows, links, features = [], [], xs
        for index, block in enumerate(self.blocks):
            rows.append(push(context[0][index], features, axis=1))
            above = (
                block.vertical.row(rows[-1], self.vertical[index])
                + self.vertical_static[index]
            )
            if index == 0 and self.has_maps:
                above += self.vertical_maps[row]
            links.append(tf.matmul(above, self.link[index]))
            features = gate(above + self.vertical_code[index])
        return rows, self._terms(links, row=row + 1)
