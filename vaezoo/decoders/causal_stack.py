"""The row-cached scan of masked convolutions that are wired in any way."""

import tensorflow as tf

from vaezoo.decoders.scan import Scanner, flatten_columns, push
from vaezoo.layers.causal import window_product


class CausalStackScanner(Scanner):
    """Row-cached masked convolutions: each one's sum, but for its taps on the place.

    A subclass has `pixel(pre, x)`, which is given those sums, a list with an item for
    each layer and each of `extras`, and returns the parameters and the inputs of all
    layers but the first, whose input is `inputs(x)`.

    Args:
        layers: list of `vaezoo.layers.causal.CausalConv2D`, built.
        width: int, of the maps.
        dtype: that of the computation.
        static: for each layer, what does not change in a scan: `[filters]`, or by
            place, `[batch, height, width, filters]`; see `CausalConv2D.static_term`.
        extras: list of more that `pixel` is to get, as `static`.
    """

    def __init__(self, layers, *, width, dtype, static, extras=()):
        self.width, self.dtype = width, dtype
        self.layers = layers
        pairs = [(layer, layer.kernel()) for layer in layers]
        self.above = [layer.above_kernel(kernel) for layer, kernel in pairs]
        self.left = [layer.left_kernel(kernel) for layer, kernel in pairs]
        self.centre = [layer.centre_kernel(kernel) for layer, kernel in pairs]
        self.static, self.extras = (
            [by_row if by_row.shape.rank == 1 else _by_row(by_row) for by_row in terms]
            for terms in (static, extras)
        )

    def inputs(self, x):
        """The first layer's input at places: `[..., channels]` to `[..., k]`."""
        return x

    def activation_shapes(self, batch):
        return [[batch, layer.num_inputs] for layer in self.layers[1:]]

    def first_row(self, batch):
        rows = [
            tf.zeros([batch, layer.rows, self.width, layer.num_inputs], self.dtype)
            for layer in self.layers
        ]
        return self._context(rows, row=0)

    def _context(self, rows, *, row):
        """The rows above, and for each layer what they contribute to the row `row`."""
        batch = tf.shape(rows[0])[0]

        def whole_row(static):
            if static.shape.rank == 1:
                static = tf.broadcast_to(static, [batch, self.width, static.shape[0]])
                return static
            # The row after the last one is asked for, and not used.
            return static[tf.minimum(row, static.shape[0] - 1)]

        terms = []
        for layer, kernel, static, above in zip(
            self.layers, self.above, self.static, rows, strict=True
        ):
            term = whole_row(static)
            if layer.rows:
                term += window_product(above, kernel, layer.columns)
            terms.append(term)
        return rows, terms + [whole_row(extra) for extra in self.extras]

    def first_column(self, batch):
        return [
            tf.zeros([batch, layer.columns, layer.num_inputs], self.dtype)
            for layer in self.layers
        ]

    def before_pixel(self, context, left, row, column):
        pre = [term[:, column] for term in context[1]]
        for index, (layer, before) in enumerate(zip(self.layers, left, strict=True)):
            if layer.columns:
                pre[index] += tf.matmul(flatten_columns(before), self.left[index])
        return pre

    def after_pixel(self, left, activations, x):
        return [
            push(before, newest, axis=1)
            for before, newest in zip(left, [self.inputs(x), *activations], strict=True)
        ]

    def next_row(self, context, row, xs, activations):
        """The context of row `row + 1`.

        Args:
            xs: `[batch, width, channels]`, the finished row.
            activations: for each layer but the first, `[width, batch, channels]`.
        """
        finished = [tf.transpose(part, [1, 0, 2]) for part in activations]
        rows = [
            push(above, newest, axis=1)
            for above, newest in zip(
                context[0], [self.inputs(xs), *finished], strict=True
            )
        ]
        return self._context(rows, row=row + 1)


def _by_row(maps):
    """`[batch, height, width, k]` to `[height, batch, width, k]`."""
    return tf.transpose(maps, [1, 0, 2, 3])
