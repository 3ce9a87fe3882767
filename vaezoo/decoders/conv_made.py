"""ConvMADE: masked convolutions whose outputs are autoregressive in maps of features.

What a `vaezoo.layers.made.MADE` is to vectors. Kingma et al. (2016), "Improving
Variational Inference with Inverse Autoregressive Flow", section 3.
"""

import keras
import tensorflow as tf

from vaezoo.decoders.scan import Scanner, flatten_columns, push
from vaezoo.layers.causal import CausalConv2D, window_product


@keras.saving.register_keras_serializable(package="vaezoo")
class ConvMADE(keras.layers.Layer):
    """Masked convolutions over maps: what a place and channel gets of those before.

    The order is that of a raster scan, and at a place that of the channels: an output
    sees all channels of the places before it, as far as the kernels reach, and at its
    own place the channels before its own. It has the blind spot of a stack of masked
    kernels, to the upper right. ELU; weight-normalised.

    A call is one pass. `scanner` gives the network place by place, for sampling: in all
    the multiplications of about one pass, and at a place those of its own taps once
    a channel.

    Args:
        event_shape: `(height, width, channels)`, ints.
        hidden_filters: tuple of ints. Widths of the hidden layers, at least one. Unit
            `j` of a place sees its channels before `j mod channels`.
        num_outputs: int. Numbers a place and channel.
        output_scale: float. Standard deviation of the outputs after data-dependent
            initialisation; a small one starts a flow near the identity.
        kernel_size: odd int. Kernel of every layer.

    Raises:
        ValueError: if `event_shape` or `hidden_filters` breaks its rule.
    """

    def __init__(
        self,
        event_shape,
        hidden_filters,
        *,
        num_outputs=1,
        output_scale=0.1,
        kernel_size=3,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if len(event_shape) != 3 or not hidden_filters or min(hidden_filters) < 1:
            raise ValueError(
                "A ConvMADE needs an event (height, width, channels) and at least one "
                f"hidden layer. Received: event_shape={tuple(event_shape)}, "
                f"hidden_filters={tuple(hidden_filters)}. For vectors, use a MADE."
            )
        self.event_shape = tuple(event_shape)
        self.hidden_filters = tuple(hidden_filters)
        self.num_outputs = num_outputs

        def conv(filters, name, *, mask_type="B", **options):
            return CausalConv2D(
                filters,
                kernel_size,
                mask_type=mask_type,
                num_groups=self.event_shape[-1],
                dtype=self.dtype_policy,
                name=name,
                **options,
            )

        # The first excludes a unit's own channel, so that all after it may include it.
        self.hidden = [
            conv(size, f"hidden_{index}", mask_type="B" if index else "A")
            for index, size in enumerate(hidden_filters)
        ]
        # All outputs in one: channel j of it is of the event's channel j mod channels.
        self.outputs = conv(
            num_outputs * self.event_shape[-1], "outputs", init_scale=output_scale
        )

    def build(self, inputs_shape, context_shape=None):
        shape = (None, *self.event_shape)
        for layer in [*self.hidden, self.outputs]:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def compute_output_shape(self, inputs_shape, context_shape=None):
        return tuple(tuple(inputs_shape) for _ in range(self.num_outputs))

    def call(self, inputs, context=None):
        """Map `[batch, height, width, channels]` to the outputs.

        Args:
            inputs: `[batch, *event_shape]`.
            context: `[batch, height, width, hidden_filters[0]]`, added to the first
                hidden layer before its nonlinearity: every output may depend on it. Or
                `None`.

        Returns:
            A tuple of `num_outputs` tensors `[batch, *event_shape]`.

        Raises:
            ValueError: if `inputs` or `context` is of another shape.
        """
        self._check("inputs", inputs, self.event_shape[-1])
        features = inputs
        for index, layer in enumerate(self.hidden):
            features = layer(features)
            if index == 0 and context is not None:
                self._check("context", context, self.hidden_filters[0])
                features += tf.cast(context, features.dtype)
            features = tf.nn.elu(features)
        return self.split(self.outputs(features))

    def split(self, outputs):
        """`[..., num_outputs * channels]` to a tuple of `[..., channels]`."""
        return tuple(tf.split(outputs, self.num_outputs, axis=-1))

    def _check(self, name, tensor, channels):
        expected = (*self.event_shape[:2], channels)
        if tuple(tensor.shape[1:]) != expected:
            rule = ", ".join(map(str, expected))
            raise ValueError(
                f"`{name}` must be [batch, {rule}]. Received: "
                f"shape={tuple(tensor.shape)}. Build the flow for the size of its maps."
            )

    def scanner(self, height, width, *, context=None):
        """The network unrolled for sampling; see `vaezoo.decoders.scan`."""
        return _ConvMADEScanner(self, height, width, context)


class _ConvMADEScanner(Scanner):
    """Row-cached ConvMADE: each layer's sum, but for its taps on the place itself.

    Everything is a list with an item for each layer; `activations` are the inputs of
    all layers but the first, whose input is `x`.
    """

    def __init__(self, network, height, width, context):
        self.height, self.width = height, width
        self.dtype = network.compute_dtype
        self.layers = [*network.hidden, network.outputs]
        kernels = [layer.kernel() for layer in self.layers]
        pairs = list(zip(self.layers, kernels, strict=True))
        self.above = [layer.above_kernel(kernel) for layer, kernel in pairs]
        self.left = [layer.left_kernel(kernel) for layer, kernel in pairs]
        self.centre = [layer.centre_kernel(kernel) for layer, kernel in pairs]
        self.bias = [layer.static_term(kernel) for layer, kernel in pairs]
        self.context = None
        if context is not None:
            self.context = tf.transpose(tf.cast(context, self.dtype), [1, 0, 2, 3])

    def activation_shapes(self, batch):
        return [[batch, layer.num_inputs] for layer in self.layers[1:]]

    def first_row(self, batch):
        rows = [
            tf.zeros([batch, layer.rows, self.width, layer.num_inputs], self.dtype)
            for layer in self.layers
        ]
        return self._context(rows, row=0)

    def _context(self, rows, *, row):
        """The rows above, and what they give to the row `row`."""
        terms = []
        for layer, kernel, bias, above in zip(
            self.layers, self.above, self.bias, rows, strict=True
        ):
            if layer.rows:
                terms.append(window_product(above, kernel, layer.columns) + bias)
            else:
                shape = [tf.shape(above)[0], self.width, layer.filters]
                terms.append(tf.broadcast_to(bias, shape))
        if self.context is not None:
            # The row after the last one is asked for, and not used.
            terms[0] += self.context[tf.minimum(row, self.height - 1)]
        return rows, terms

    def first_column(self, batch):
        return [
            tf.zeros([batch, layer.columns, layer.num_inputs], self.dtype)
            for layer in self.layers
        ]

    def before_pixel(self, context, left, row, column):
        _, terms = context
        return [
            term[:, column]
            + (tf.matmul(flatten_columns(before), kernel) if layer.columns else 0.0)
            for layer, term, before, kernel in zip(
                self.layers, terms, left, self.left, strict=True
            )
        ]

    def pixel(self, pre, x):
        features, activations = x, []
        for index, (term, kernel) in enumerate(zip(pre, self.centre, strict=True)):
            if index:
                features = tf.nn.elu(features)
                activations.append(features)
            features = term + tf.matmul(features, kernel)
        return features, activations

    def after_pixel(self, left, activations, x):
        return [
            push(before, newest, axis=1)
            for before, newest in zip(left, [x, *activations], strict=True)
        ]

    def next_row(self, context, row, xs, activations):
        """The context of row `row + 1`.

        Args:
            xs: `[batch, width, channels]`, the finished row.
            activations: for each layer but the first, `[width, batch, channels]`.
        """
        finished = [xs, *(tf.transpose(part, [1, 0, 2]) for part in activations)]
        rows = [
            push(above, newest, axis=1)
            for above, newest in zip(context[0], finished, strict=True)
        ]
        return self._context(rows, row=row + 1)
