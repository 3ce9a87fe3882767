"""MADE: a dense network whose outputs are autoregressive in its inputs.

Germain et al. (2015), "MADE: Masked Autoencoder for Distribution Estimation".
"""

import keras
import numpy as np
import tensorflow as tf

from vaezoo.layers.weight_norm import Dense


class MaskedDense(Dense):
    """Weight-normalised dense layer, `[batch, d]` to `[batch, filters]`, masked.

    A unit sees the inputs of at most its own degree; one that no input reaches gives
    its bias.

    Args:
        below: int array `[d]`, the degrees of the inputs.
        degrees: int array `[filters]`, those of the units.
    """

    def __init__(self, below, degrees, **kwargs):
        super().__init__(len(degrees), **kwargs)
        self._below, self._degrees = below, degrees

    def build(self, input_shape):
        self.add_direction([input_shape[-1], self.filters], mask=self._mask(np))

    def _mask(self, xp):
        """Of NumPy's or of TensorFlow's operations: a graph does not hold it."""
        visible = xp.reshape(self._below, [-1, 1]) <= xp.reshape(self._degrees, [1, -1])
        return xp.where(visible, 1.0, 0.0)

    def taps(self):
        return self.direction * self._mask(tf)


@keras.saving.register_keras_serializable(package="vaezoo")
class MADE(keras.layers.Layer):
    """Masked dense network: output `i` depends on inputs `1, ..., i - 1` alone.

    Input `i` has degree `i`; hidden unit `j` has degree `1 + j mod (d - 1)` and sees
    units of at most its own degree; output `i` sees hidden units of a lower degree.
    ReLU; weight-normalised.

    A call is one pass. `sequential()` gives the network unit by unit, for sampling:
    in all `d` steps each unit is computed once, when the last input it sees is known,
    so drawing a vector costs the multiplications of one pass, not of `d`.

    Args:
        event_size: int, at least 2. The dimension d.
        hidden_sizes: tuple of ints. Widths of the hidden layers, at least one.
        num_outputs: int. Numbers an input dimension, each from a layer of its own.
        context_size: int. Size of a vector that every output may depend on; it enters
            the first hidden layer (Kingma et al., 2016). 0 for none.

    Raises:
        ValueError: if `event_size` or `hidden_sizes` breaks its rule.
    """

    def __init__(
        self, event_size, hidden_sizes, *, num_outputs=1, context_size=0, **kwargs
    ):
        super().__init__(**kwargs)
        if event_size < 2 or not hidden_sizes or min(hidden_sizes) < 1:
            raise ValueError(
                "A MADE needs an event of at least 2 dimensions and at least one "
                f"hidden layer. Received: event_size={event_size}, "
                f"hidden_sizes={tuple(hidden_sizes)}. Use a larger event, or no flow."
            )
        self.event_size = event_size
        self.event_shape = (event_size,)
        self.hidden_sizes = tuple(hidden_sizes)
        self.context_size = context_size
        inputs = np.arange(1, event_size + 1)
        below = inputs
        self.hidden = []
        for index, size in enumerate(hidden_sizes):
            degrees = 1 + np.arange(size) % (event_size - 1)
            self.hidden.append(
                MaskedDense(
                    below, degrees, dtype=self.dtype_policy, name=f"hidden_{index}"
                )
            )
            below = degrees
        # A small scale starts a flow near the identity.
        self.heads = [
            MaskedDense(
                below,
                inputs - 1,  # an output sees none of its own degree
                init_scale=0.1,
                dtype=self.dtype_policy,
                name=f"output_{index}",
            )
            for index in range(num_outputs)
        ]
        self.context = None
        if context_size:
            self.context = Dense(
                hidden_sizes[0], dtype=self.dtype_policy, name="context"
            )

    def build(self, inputs_shape, context_shape=None):
        sizes = [self.event_size, *self.hidden_sizes]
        for index, (layer, size) in enumerate(zip(self.hidden, sizes, strict=False)):
            layer.build([None, size])
            if index == 0 and self.context is not None:
                self.context.build([None, self.context_size])
        for head in self.heads:
            head.build([None, sizes[-1]])

    def compute_output_shape(self, inputs_shape, context_shape=None):
        return tuple(tuple(inputs_shape) for _ in self.heads)

    def call(self, inputs, context=None):
        """Map `[batch, d]`, and a context `[batch, context_size]`, to the outputs.

        Returns:
            A tuple of `num_outputs` tensors `[batch, d]`.

        Raises:
            ValueError: if a last dimension is not `event_size` or `context_size`.
        """
        self._check("inputs", inputs, self.event_size)
        features = inputs
        for index, layer in enumerate(self.hidden):
            features = layer(features)
            if index == 0:
                features += self._context_term(context)
            features = tf.nn.relu(features)
        return tuple(head(features) for head in self.heads)

    def _context_term(self, context):
        if self.context is None:
            return 0.0
        self._check("context", context, self.context_size)
        return self.context(context)

    def _check(self, name, tensor, size):
        if tensor is None or tensor.shape[-1] != size:
            received = None if tensor is None else tuple(tensor.shape)
            raise ValueError(
                f"`{name}` must be [batch, {size}]. Received: shape={received}. "
                "Build the flow for the size of its vectors."
            )

    def sequential(self, context=None):
        """The network unit by unit: effective weights are computed here, once.

        Returns:
            A `SequentialMADE`.
        """
        return SequentialMADE(self, context)


class SequentialMADE:
    """A MADE whose inputs arrive one at a time.

        state = made.first(batch)
        outputs = made.outputs(state, i)       # of input i, list of [batch]
        state = made.push(state, i, value)     # input i, [batch]

    The state holds every layer's sum of the units so far, not yet activated. Hidden
    units are sorted by degree, so that the units of one degree are a slice.
    """

    def __init__(self, network, context):
        self.dtype = network.compute_dtype
        self._num_degrees = network.event_size - 1
        self._num_hidden = len(network.hidden)
        layers = [*network.hidden, *network.heads]
        kernels = [layer.kernel() for layer in layers]
        biases = [tf.cast(layer.bias, self.dtype) for layer in layers]
        biases[0] += network._context_term(context)
        hidden = range(self._num_hidden)
        for layer in hidden:  # what comes into the layer
            kernels[layer] = self._sorted(kernels[layer])
            biases[layer] = self._sorted(biases[layer])
        self._biases = biases
        # Rows of each kernel by the degree of the units below: [degree, unit, out].
        self._kernels = [kernels[0][:, None]]
        for kernel in kernels[1:]:
            rows = tf.transpose(self._sorted(tf.transpose(kernel)))
            shape = [self._num_degrees, -1, rows.shape[-1]]
            self._kernels.append(tf.reshape(rows, shape))

    def _sorted(self, tensor):
        """Sort the last axis by degree, each degree padded with zeros to one size.

        Unit `j` has degree `j mod num_degrees`.
        """
        size = tensor.shape[-1]
        units = -(-size // self._num_degrees)
        padding = [[0, 0]] * (tensor.shape.rank - 1)
        tensor = tf.pad(tensor, [*padding, [0, units * self._num_degrees - size]])
        strided = tf.reshape(tensor, [-1, units, self._num_degrees])
        return tf.reshape(tf.transpose(strided, [0, 2, 1]), tf.shape(tensor))

    def first(self, batch):
        """State before the first input: the biases, `[batch, units]` each."""
        return [tf.broadcast_to(bias, [batch, bias.shape[-1]]) for bias in self._biases]

    def outputs(self, state, index):
        """Outputs for input `index`, a list of `[batch]`."""
        return [total[:, index] for total in state[self._num_hidden :]]

    def push(self, state, index, value):
        """State once input `index` is known: `value`, `[batch]`."""
        state = list(state)
        state[0] += tf.cast(value, self.dtype)[:, None] * self._kernels[0][index]
        # The units whose last input this is; nothing sees the last input.
        degree = tf.minimum(index, self._num_degrees - 1)
        for layer in range(self._num_hidden):
            width = self._kernels[layer + 1].shape[1]
            totals = tf.slice(state[layer], [0, degree * width], [-1, width])
            units = tf.nn.relu(totals)
            above = range(layer + 1, layer + 2)
            if layer == self._num_hidden - 1:
                above = range(self._num_hidden, len(state))
            for target in above:
                state[target] += tf.matmul(units, self._kernels[target][degree])
        return state
