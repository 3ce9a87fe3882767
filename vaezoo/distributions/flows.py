"""Autoregressive flows of vectors and of maps: TFP bijectors over MADE networks.

One step maps noise to an event, `y_i = f(x_i; y_1, ..., y_{i-1})`. Its inverse is
parallel, one pass of the network; its forward direction is sequential. Hence

    prior      z = flow(eps): density parallel, sampling sequential (AF)
    posterior  z = flow^-1(eps): sampling parallel (IAF)

Chen et al. (2017), "Variational Lossy Autoencoder", section 3.2: the two are one
bijector and its `tfb.Invert`.
"""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from vaezoo import checks, inference
from vaezoo.decoders import scan as scans

tfb = tfp.bijectors
tfd = tfp.distributions

# Transform of a step -> outputs of its network for each dimension.
NUM_OUTPUTS = {"mean_only": 1, "affine": 2, "damped": 2, "gated": 2}
_DAMPING = 0.1  # of the outputs, in a damped step


class AutoregressiveStep(tfb.Bijector):
    """One step of an autoregressive flow over events of the network's `event_shape`.

    Vectors `[batch, d]`, or maps `[batch, height, width, channels]`, whose order is
    that of the raster and, at a place, of the channels. The inverse is
    `x = scale * y + shift`, where `scale` and `shift` of dimension `i` depend on
    `y_1, ..., y_{i-1}` by a network with outputs m and s:

    - `"mean_only"`: `x = y - m`. The log-determinant is 0.
    - `"affine"`: `x = (y - m) exp(-s)`.
    - `"damped"`: `x = (y - 0.1 m) exp(-0.1 s)`, which with networks whose outputs start
      at unit scale is that of the code of Kingma et al. (2016): slower than an affine
      step of small outputs to leave the identity.
    - `"gated"`: `x = sigma y + (1 - sigma) m`, `sigma = sigmoid(s + 2)` (Kingma et
      al., 2016, equations 13 and 14).

    Cost: `inverse` and its log-determinant, of the same event, one pass of the
    network together. `forward` of vectors, `d` sequential steps that add up to one
    pass; of maps, the row-cached scan, `height * width * channels` steps that add up to
    one pass and once a channel the taps on its place.

    Args:
        network: a `vaezoo.layers.made.MADE` or a `vaezoo.decoders.conv_made.ConvMADE`
            with the transform's `NUM_OUTPUTS`.
        transform: one of the above.
        context: `[batch, ...]`, as of the network's call, where it takes one.
    """

    def __init__(self, network, *, transform, context=None, name="autoregressive_step"):
        self._network = network
        self._transform = transform
        self._context = context
        self._event_ndims = len(network.event_shape)
        self._last = None  # event and coefficients of the last inverse pass
        super().__init__(
            forward_min_event_ndims=self._event_ndims,
            is_constant_jacobian=transform == "mean_only",
            # With parameters, TFP would take two steps over one network for equal and
            # share what they have computed, also from weights that have changed since.
            parameters=None,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype):
        return {}

    def _coefficients(self, outputs):
        """Scale (`None` for 1) and shift of the inverse, float32."""
        outputs = [tf.cast(output, tf.float32) for output in outputs]
        if self._transform == "mean_only":
            return None, -outputs[0]
        if self._transform == "damped":
            outputs = [_DAMPING * output for output in outputs]
        if self._transform in ("affine", "damped"):
            scale = tf.exp(-inference.bounded_log_scale(outputs[1]))
            return scale, -outputs[0] * scale
        scale = tf.sigmoid(outputs[1] + 2.0)
        return scale, (1.0 - scale) * outputs[0]

    def _coefficients_of(self, y):
        # The inverse and its log-determinant are asked for one after the other.
        if self._last is None or self._last[0] is not y:
            outputs = self._network(y, context=self._context)
            self._last = y, self._coefficients(outputs)
        return self._last[1]

    def _inverse(self, y):
        scale, shift = self._coefficients_of(y)
        return (y if scale is None else y * scale) + shift

    def _inverse_log_det_jacobian(self, y):
        if self._transform == "mean_only":
            return tf.zeros([], y.dtype)
        axes = list(range(-self._event_ndims, 0))
        return tf.reduce_sum(self.inverse_log_scale(y), axis=axes)

    def inverse_log_scale(self, y):
        """Terms of the inverse's log-determinant, of the shape of `y`."""
        scale, _ = self._coefficients_of(y)
        return tf.zeros_like(y) if scale is None else tf.math.log(scale)

    def _forward(self, x):
        return self._draw_vectors(x) if self._event_ndims == 1 else self._draw_maps(x)

    def value(self, noise, outputs):
        """`y` of noise and of the network's outputs where it is, of the same shape."""
        scale, shift = self._coefficients(outputs)
        value = noise - shift
        return value if scale is None else value / scale

    def _draw_maps(self, noise):
        conditioning = {} if self._context is None else {"context": self._context}
        return scans.row_cached_scan(
            self._network,
            _NoiseHead(self._network, self.value),
            noise,
            temperature=tf.ones([tf.shape(noise)[0], 1]),
            conditioning=conditioning,
        )

    def _draw_vectors(self, x):
        size = self._network.event_size
        network = self._network.sequential(self._context)
        noise = tf.transpose(x)

        def draw_next(index, state, values):
            value = self.value(noise[index], network.outputs(state, index))
            state = network.push(state, index, value)
            return index + 1, state, values.write(index, value)

        values = tf.TensorArray(x.dtype, size, element_shape=[x.shape[0]])
        _, _, values = tf.while_loop(
            lambda index, *_: index < size,
            draw_next,
            (0, network.first(tf.shape(x)[0]), values),
            maximum_iterations=size,
        )
        return tf.transpose(values.stack())


class _NoiseHead:
    """The head of a scan that turns a flow's noise into its values.

    See `vaezoo.distributions.heads` for the interface. Its noise is the flow's, normal
    where the distribution pushed through it is; its temperature is in that noise.
    """

    def __init__(self, network, value):
        self.num_channels = self.num_uniforms = network.event_shape[-1]
        self.steps_per_pixel = self.num_channels
        self._network, self._value = network, value

    def normalize(self, values):
        return values

    def draw(self, params, noise, *, values, step, temperature):
        here = slice(step, step + 1)
        outputs = [output[:, here] for output in self._network.split(params)]
        drawn = self._value(noise[:, here], outputs)
        return tf.concat([values[:, :step], drawn, values[:, step + 1 :]], axis=-1)


def _reversal(event_shape):
    """Bijectors that together reverse the order of an event: each of its axes."""
    return [
        tfb.Permute(np.arange(size)[::-1].copy(), axis=axis - len(event_shape))
        for axis, size in enumerate(event_shape)
    ]


def autoregressive_flow(networks, *, transform, context=None, reverse_every=1):
    """A chain of autoregressive steps, the order reversed between them.

    Args:
        networks: list of networks as of `AutoregressiveStep`, of one event shape, at
            least one. The first is the nearest to the event, the last the nearest to
            the noise.
        transform, context: as of `AutoregressiveStep`.
        reverse_every: int, at least 1. Steps of one order, before it is reversed.

    Returns:
        A bijector from noise to events, `[batch, ...]`. `inverse` passes each network
        once; `forward` takes as many sequential steps a network as an event has
        dimensions.

    Raises:
        ValueError: if `transform` is unknown.
    """
    checks.choice("transform", transform, NUM_OUTPUTS)
    chain = []
    for index, network in enumerate(networks):
        if index and index % reverse_every == 0:
            chain += _reversal(network.event_shape)
            if context is not None and len(network.event_shape) == 3:
                context = tf.reverse(context, [1, 2])  # maps lie where the event's do
        chain.append(AutoregressiveStep(network, transform=transform, context=context))
    return tfb.Chain(chain)


class FlowDistribution(tfd.TransformedDistribution):
    """A distribution pushed through a flow; `mean` is where the flow takes its mean.

    That point is not the mean of the pushed distribution, which has no closed form.
    """

    def _mean(self, **kwargs):
        return self.bijector.forward(self.distribution.mean())
