"""ConvMADE: masked convolutions whose outputs are autoregressive in maps of features.

What a `vaezoo.layers.made.MADE` is to vectors. Kingma et al. (2016), "Improving
Variational Inference with Inverse Autoregressive Flow", section 3.
"""

import keras
import tensorflow as tf

from vaezoo.decoders.causal_stack import CausalStackScanner
from vaezoo.layers.causal import CausalConv2D


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


class _ConvMADEScanner(CausalStackScanner):
    """Row-cached ConvMADE."""

    def __init__(self, network, height, width, context):
        layers = [*network.hidden, network.outputs]
        static = [layer.static_term(None) for layer in layers]
        if context is not None:
            static[0] += tf.cast(context, network.compute_dtype)
        super().__init__(
            layers, width=width, dtype=network.compute_dtype, static=static
        )

    def pixel(self, pre, x):
        features, activations = x, []
        for index, (term, kernel) in enumerate(zip(pre, self.centre, strict=True)):
            if index:
                features = tf.nn.elu(features)
                activations.append(features)
            features = term + tf.matmul(features, kernel)
        return features, activations
