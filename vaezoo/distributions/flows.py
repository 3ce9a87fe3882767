"""Autoregressive flows: TFP bijectors over MADE networks.

One step maps noise to a vector, `y_i = f(x_i; y_1, ..., y_{i-1})`. Its inverse is
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

tfb = tfp.bijectors
tfd = tfp.distributions

# Transform of a step -> outputs of its network for each dimension.
NUM_OUTPUTS = {"mean_only": 1, "affine": 2, "gated": 2}


class AutoregressiveStep(tfb.Bijector):
    """One step of an autoregressive flow over vectors `[batch, d]`.

    The inverse is `x = scale * y + shift`, where `scale` and `shift` of dimension `i`
    depend on `y_1, ..., y_{i-1}` by a MADE with outputs m and s:

    - `"mean_only"`: `x = y - m`. The log-determinant is 0.
    - `"affine"`: `x = (y - m) exp(-s)`.
    - `"gated"`: `x = sigma y + (1 - sigma) m`, `sigma = sigmoid(s + 2)` (Kingma et
      al., 2016, equations 13 and 14).

    Cost: `inverse` and its log-determinant, of the same vector, one pass of the
    network together; `forward`, `d` sequential steps that add up to one pass.

    Args:
        network: a `vaezoo.layers.made.MADE` with the transform's `NUM_OUTPUTS`.
        transform: one of the above.
        context: `[batch, context_size]`, where the network takes it.
    """

    def __init__(self, network, *, transform, context=None, name="autoregressive_step"):
        self._network = network
        self._transform = transform
        self._context = context
        self._last = None  # vector and coefficients of the last inverse pass
        super().__init__(
            forward_min_event_ndims=1,
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
        if self._transform == "affine":
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
        return tf.reduce_sum(tf.math.log(self._coefficients_of(y)[0]), axis=-1)

    def _forward(self, x):
        size = self._network.event_size
        network = self._network.sequential(self._context)
        noise = tf.transpose(x)

        def draw_next(index, state, values):
            outputs = network.outputs(state, index)
            scale, shift = self._coefficients(outputs)
            value = noise[index] - shift
            value = value if scale is None else value / scale
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


def autoregressive_flow(networks, *, transform, context=None):
    """A chain of autoregressive steps, the order reversed between them.

    Args:
        networks: list of MADEs, at least one. The first is the nearest to the vector,
            the last the nearest to the noise.
        transform, context: as of `AutoregressiveStep`.

    Returns:
        A bijector from noise `[batch, d]` to vectors `[batch, d]`. `inverse` passes
        each network once; `forward` takes `d` sequential steps a network.

    Raises:
        ValueError: if `transform` is unknown.
    """
    checks.choice("transform", transform, NUM_OUTPUTS)
    size = networks[0].event_size
    chain = []
    for network in networks:
        if chain:
            chain.append(tfb.Permute(np.arange(size)[::-1].copy(), axis=-1))
        chain.append(AutoregressiveStep(network, transform=transform, context=context))
    return tfb.Chain(chain)


class FlowDistribution(tfd.TransformedDistribution):
    """A distribution pushed through a flow; `mean` is where the flow takes its mean.

    That point is not the mean of the pushed distribution, which has no closed form.
    """

    def _mean(self, **kwargs):
        return self.bijector.forward(self.distribution.mean())
