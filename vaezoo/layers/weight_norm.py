"""Weight-normalised layers with data-dependent initialisation.

Every layer here computes `y = x * w + b` for a linear map `*` and

    w = g v / ||v||,    ||v||^2 = sum of v^2 over the inputs of one output unit

(Salimans and Kingma, 2016, equation 2), with `v ~ N(0, 0.05^2)` and `b = 0`.
Inside `data_dependent_init()` a call first sets `g` and `b` so that the layer's
output has mean 0 and standard deviation `init_scale` on that batch (section 3 of
the same paper), then goes on with the values it has set; layers are therefore
initialised in the order in which the network calls them.
"""

import contextlib
import math
import weakref

import keras
import numpy as np
import tensorflow as tf

_MIN_VARIANCE = 1e-8  # below it a unit is constant on the batch: leave its gain alone
_initializing = False


@contextlib.contextmanager
def data_dependent_init():
    """Within this context, weight-normalised layers initialise themselves.

    Run the model eagerly on one batch inside it. Not thread-safe, not for graphs.
    """
    global _initializing
    _initializing = True
    try:
        yield
    finally:
        _initializing = False


class WeightNormalized(keras.layers.Layer):
    """Base of the weight-normalised layers: variables, norm, initialisation.

    A subclass creates its variables with `add_direction` and implements
    `linear(inputs, kernel)`.

    Args:
        filters: int. Number of output channels.
        activation: function applied to the output, or `None`.
        init_scale: float. Standard deviation of the output after data-dependent
            initialisation.
        normalized: bool. Without, `w = v`, started as in He et al. (2015) with the
            inputs that are not masked; there is no gain, and nothing is initialised
            on data.
        direction_initializer: function of a shape and a dtype to the first `v`, or
            `None` for the above; what is masked starts at 0 all the same.
    """

    def __init__(
        self,
        filters,
        *,
        activation=None,
        init_scale=1.0,
        normalized=True,
        direction_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.normalized = normalized
        self.activation = keras.activations.get(activation)
        self.init_scale = init_scale
        self.direction_initializer = direction_initializer
        self._tied_to = None

    def tie(self, layer):
        """Share the direction `v` of `layer`, built before; `g` and `b` stay one's own.

        The convention of the IAF authors' code: tied layers differ in scale and bias.
        """
        self._tied_to = weakref.ref(layer)  # not a sublayer, so not tracked

    def add_direction(self, shape, *, output_axis=-1, mask=1.0):
        """Create `v` of `shape`, 0 outside `mask`, and `g` and `b` of `[filters]`."""
        self._norm_axes = [
            axis for axis in range(len(shape)) if axis != output_axis % len(shape)
        ]
        self._gain_shape = [
            size if axis == output_axis % len(shape) else 1
            for axis, size in enumerate(shape)
        ]
        stddev = 0.05
        if not self.normalized:
            fan_in = np.sum(np.broadcast_to(mask, shape)) / self.filters
            stddev = math.sqrt(2.0 / max(fan_in, 1.0))
        initializer = self.direction_initializer
        if initializer is None:
            initializer = keras.initializers.RandomNormal(stddev=stddev)
        # The norm is taken in float32 under every precision policy.
        if self._tied_to is None:
            self.direction = self.add_weight(
                name="direction",
                shape=shape,
                initializer=lambda shape, dtype: initializer(shape, dtype) * mask,
                autocast=False,
            )
        else:
            self.direction = self._tied_to().direction
        self.gain = None
        if self.normalized:
            self.gain = self.add_weight(
                name="gain", shape=[self.filters], initializer="ones", autocast=False
            )
        self.bias = self.add_weight(
            name="bias", shape=[self.filters], initializer="zeros"
        )

    def taps(self):
        """The part of `v` in use; masked layers crop and mask it here."""
        return tf.convert_to_tensor(self.direction)

    def kernel(self):
        """The effective weights `g v / ||v||`, in the compute dtype."""
        if not self.normalized:
            return tf.cast(self.taps(), self.compute_dtype)
        return tf.cast(
            self._unit_kernel() * tf.reshape(self.gain, self._gain_shape),
            self.compute_dtype,
        )

    def _unit_kernel(self):
        taps = self.taps()
        squares = tf.reduce_sum(tf.square(taps), axis=self._norm_axes, keepdims=True)
        # The floor is under the root, so a fully masked unit gives 0, not NaN.
        return taps * tf.math.rsqrt(tf.maximum(squares, 1e-12))

    def linear(self, inputs, kernel):
        """Apply the linear map with the effective weights `kernel`."""
        raise NotImplementedError

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def call(self, inputs):
        if _initializing and self.normalized:
            self._initialize(inputs)
        outputs = self.linear(inputs, self.kernel()) + self.bias
        return self.activation(outputs)

    def _initialize(self, inputs):
        outputs = self.linear(inputs, tf.cast(self._unit_kernel(), self.compute_dtype))
        axes = list(range(outputs.shape.rank - 1))
        mean, variance = tf.nn.moments(tf.cast(outputs, tf.float32), axes)
        gain = self.init_scale * tf.math.rsqrt(variance + 1e-10)
        gain = tf.where(variance > _MIN_VARIANCE, gain, self.init_scale)
        self.gain.assign(gain)
        self.bias.assign(-mean * gain)


def pointwise(inputs, kernel):
    """`[batch, ..., d]` times `[d, filters]`, as one product of two matrices.

    Several times faster than `tf.matmul` on a tensor of rank 4.
    """
    if inputs.shape.rank == 2:
        return tf.matmul(inputs, kernel)
    outputs = tf.matmul(tf.reshape(inputs, [-1, inputs.shape[-1]]), kernel)
    sizes = inputs.shape[1:-1].as_list()
    if None in sizes:
        sizes = tf.unstack(tf.shape(inputs))[1:-1]
    return tf.reshape(outputs, [-1, *sizes, kernel.shape[-1]])


@keras.saving.register_keras_serializable(package="vaezoo")
class Dense(WeightNormalized):
    """Weight-normalised dense layer: `[..., d]` to `[..., filters]`."""

    def build(self, input_shape):
        self.add_direction([input_shape[-1], self.filters])

    def linear(self, inputs, kernel):
        return pointwise(inputs, kernel)


@keras.saving.register_keras_serializable(package="vaezoo")
class Conv2D(WeightNormalized):
    """Weight-normalised convolution with zero padding to `ceil(size / strides)`.

    Maps `[batch, height, width, channels]` to
    `[batch, ceil(height / strides), ceil(width / strides), filters]`.
    """

    def __init__(self, filters, kernel_size, *, strides=1, **kwargs):
        super().__init__(filters, **kwargs)
        self.kernel_size = kernel_size
        self.strides = strides

    def build(self, input_shape):
        size = self.kernel_size
        self.add_direction([size, size, input_shape[-1], self.filters])

    def compute_output_shape(self, input_shape):
        batch, *sizes, _ = input_shape
        sizes = [None if size is None else -(-size // self.strides) for size in sizes]
        return (batch, *sizes, self.filters)

    def linear(self, inputs, kernel):
        return tf.nn.conv2d(inputs, kernel, strides=self.strides, padding="SAME")


@keras.saving.register_keras_serializable(package="vaezoo")
class Conv2DTranspose(WeightNormalized):
    """Weight-normalised transposed convolution: height and width times `strides`.

    Maps `[batch, height, width, channels]` to
    `[batch, strides * height, strides * width, filters]`. The kernel's layout is
    `[size, size, filters, channels]`, and its norm is over all but `filters`.
    """

    def __init__(self, filters, kernel_size, *, strides=2, **kwargs):
        super().__init__(filters, **kwargs)
        self.kernel_size = kernel_size
        self.strides = strides

    def build(self, input_shape):
        size = self.kernel_size
        self.add_direction([size, size, self.filters, input_shape[-1]], output_axis=2)

    def compute_output_shape(self, input_shape):
        batch, *sizes, _ = input_shape
        sizes = [None if size is None else self.strides * size for size in sizes]
        return (batch, *sizes, self.filters)

    def linear(self, inputs, kernel):
        batch, height, width = tf.unstack(tf.shape(inputs)[:3])
        outputs = tf.nn.conv2d_transpose(
            inputs,
            kernel,
            output_shape=[
                batch,
                self.strides * height,
                self.strides * width,
                self.filters,
            ],
            strides=self.strides,
            padding="SAME",
        )
        return tf.ensure_shape(outputs, self.compute_output_shape(inputs.shape))
