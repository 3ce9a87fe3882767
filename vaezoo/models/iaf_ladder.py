"""The ladder of latent maps of the ResNet VAE with inverse autoregressive flow.

Kingma et al. (2016), "Improving Variational Inference with Inverse Autoregressive
Flow", arXiv 1606.04934, section 5.2 and appendix C; layer sizes are of the authors'
code. All is weight-normalised, and starts at a tenth of unit scale, as does that code.
"""

import math

import keras
import tensorflow as tf

from vaezoo import inference, sampling
from vaezoo.decoders.conv_made import ConvMADE
from vaezoo.distributions import flows
from vaezoo.layers.weight_norm import Conv2D, Conv2DTranspose
from vaezoo.models.vae import VAE

_INIT_SCALE = 0.1
_RESIDUAL_SCALE = 0.1  # of what a block adds
# Of a pixel's logistic before training: its standard deviation is .25 of the range.
_FIRST_LOG_SCALE = math.log(0.25 * math.sqrt(3) / math.pi)


def _conv(filters, kernel_size, name, **options):
    return Conv2D(filters, kernel_size, init_scale=_INIT_SCALE, name=name, **options)


@keras.saving.register_keras_serializable(package="vaezoo")
class LadderLevel(keras.layers.Layer):
    """A level: a residual block of the way up, one of the way down, and its latent's.

    Args:
        size: `(height, width)` of its maps.
        filters: int. Feature maps of both ways.
        latent_filters: int. Maps of the latent.
    """

    def __init__(self, size, filters, latent_filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self._shape = (None, *size, filters)
        latent, double = latent_filters, 2 * latent_filters
        self._up_parts = [latent, latent, filters, filters]
        self._down_parts = [latent, latent, latent, latent, filters, filters]
        self.up_first = _conv(double + 2 * filters, 3, "up_first")
        self.up_second = _conv(filters, 3, "up_second")
        self.down_first = _conv(2 * double + 2 * filters, 3, "down_first")
        self.down_second = _conv(filters, 3, "down_second")
        self.flow = ConvMADE(
            (*size, latent),
            (filters, filters),
            num_outputs=flows.NUM_OUTPUTS["damped"],
            output_scale=_INIT_SCALE,
            name="flow",
        )

    def build(self, input_shape=None):
        *sizes, filters = self._shape
        latent = self.flow.event_shape[-1]
        for layer in (self.up_first, self.up_second, self.down_first):
            layer.build(self._shape)
        self.down_second.build((*sizes, latent + filters))
        self.flow.build((*sizes, latent))

    def up(self, features):
        """One block up: the features above, and what the posterior gets of the image.

        Args:
            features: `[batch, height, width, filters]`.

        Returns:
            features: the same shape.
            evidence: location, log scale `[batch, height, width, latent_filters]` and
                context `[batch, height, width, filters]`.
        """
        hidden = self.up_first(tf.nn.elu(features))
        *evidence, hidden = tf.split(hidden, self._up_parts, axis=-1)
        added = self.up_second(tf.nn.elu(hidden))
        return features + _RESIDUAL_SCALE * added, tuple(evidence)

    def down(self, features):
        """What the way down gives to the latent, before it is drawn.

        Returns:
            prior: its location and log scale.
            posterior: what is added to location and log scale, and to the context, of
                the image's evidence.
            kept: `[batch, height, width, filters]`, for `merge`.
        """
        hidden = self.down_first(tf.nn.elu(features))
        *prior, loc, log_scale, context, kept = tf.split(
            hidden, self._down_parts, axis=-1
        )
        return prior, (loc, log_scale, context), kept

    def merge(self, features, kept, value):
        """The features below, once the latent is drawn."""
        hidden = tf.concat([tf.cast(value, kept.dtype), kept], axis=-1)
        added = self.down_second(tf.nn.elu(hidden))
        return features + _RESIDUAL_SCALE * added


@keras.saving.register_keras_serializable(package="vaezoo")
class IAFLadder(keras.layers.Layer):
    """Levels of latent maps, half the image's size, and an image f(z) that they give.

        p(z) = p(z_L) p(z_{L-1} | z_L) ... p(z_1 | z_2, ..., z_L)
        q(z | x), from the top down too, each level by an inverse autoregressive flow

    All levels have one size. A posterior's flow is a step of masked convolutions:

        z = (z0 - 0.1 m(z0)) exp(-0.1 s(z0)),    z0 ~ N(loc, scale^2)
        log q(z | x) = log q(z0) + 0.1 sum s(z0)

    f(z) lies within the range of pixels scaled to +-1/2, and has the location of each
    channel's logistic; its scale is one for each channel.

    Args:
        image_shape: `(height, width, channels)`, sizes that are even.
        levels: int. Values of a channel of the image.
        num_levels, filters, latent_filters: ints. Levels, feature maps, latent maps.
        stride: 1, 2 or 4: f(z) has the image's size by it.
        output_channels: int, of f(z).
    """

    def __init__(
        self,
        image_shape,
        levels,
        *,
        num_levels,
        filters,
        latent_filters,
        stride=1,
        output_channels,
        **kwargs,
    ):
        super().__init__(**kwargs)
        height, width, _ = image_shape
        self._image_shape = image_shape
        self._image_levels = levels
        self._size = (height // 2, width // 2)
        self.filters = filters
        self.latent_shape = (*self._size, latent_filters)
        self.encoder = _conv(filters, 5, "encoder", strides=2)
        # From the image up; named as the latents are.
        self.levels = [
            LadderLevel(self._size, filters, latent_filters, name=f"level_{index}")
            for index in range(1, num_levels + 1)
        ]
        if stride == 1:
            self.decoder = Conv2DTranspose(
                output_channels, 5, init_scale=_INIT_SCALE, name="decoder"
            )
        else:
            self.decoder = _conv(output_channels, 5, "decoder", strides=stride // 2)

    @property
    def names(self):
        """The latents' names, from the top down."""
        return [f"z{index}" for index in range(len(self.levels), 0, -1)]

    def build(self, input_shape=None):
        features = (None, *self._size, self.filters)
        self.encoder.build((None, *self._image_shape))
        for level in self.levels:
            level.build()
        self.decoder.build(features)
        self.top = self.add_weight(name="top", shape=[self.filters])
        self.log_scale = self.add_weight(
            name="log_scale",
            shape=[self.decoder.filters],
            initializer=keras.initializers.Constant(_FIRST_LOG_SCALE),
            autocast=False,
        )

    def features(self, images):
        """The evidence of each level: a list, from the bottom up, as of `up`."""
        images = (tf.cast(images, tf.float32) + 0.5) / self._image_levels - 0.5
        features, evidence = self.encoder(images), []
        for level in self.levels:
            features, of_level = level.up(features)
            evidence.append(of_level)
        return evidence

    def infer(self, features, seeds):
        """The latents drawn from the posterior, a dict from the top down; and f(z)."""
        noise = self._noise(seeds)
        latents, names = {}, self.names[::-1]

        def draw(index, prior, correction):
            latent = _posterior_draw(
                self.levels[index].flow,
                prior,
                correction,
                features[index],
                noise[index],
            )
            latents[names[index]] = latent
            return latent.value

        f = self._descend(draw, tf.shape(seeds)[0])
        return latents, f

    def generate(self, seeds, temperature):
        """The latents drawn from the prior, a dict from the top down; and f(z).

        Args:
            seeds: int64 `[batch]`, or a dict of such by latent.
            temperature: float32 `[batch]`.
        """
        noise = temperature[:, None, None, None] * tf.stack(self._noise(seeds))
        values, names = {}, self.names[::-1]

        def draw(index, prior, correction):
            loc, log_scale = prior
            scale = tf.exp(inference.bounded_log_scale(log_scale))
            value = tf.cast(loc, tf.float32) + scale * noise[index]
            values[names[index]] = value
            return value

        f = self._descend(draw, tf.shape(temperature)[0])
        return values, f

    def decode(self, values):
        """f(z) of draws, a dict: float32 `[batch, height, width, output_channels]`."""
        bottom_up = [values[name] for name in reversed(self.names)]
        return self._descend(
            lambda index, prior, correction: bottom_up[index],
            tf.shape(bottom_up[0])[0],
        )

    def _noise(self, seeds):
        """Noise of each level from the bottom up, `[batch, *latent_shape]`."""
        return sampling.row_normals_of(seeds, self.latent_shape, self.names[::-1])

    def _descend(self, draw, batch_size):
        top = tf.cast(self.top, self.compute_dtype)
        features = tf.broadcast_to(top, [batch_size, *self._size, self.filters])
        for index in reversed(range(len(self.levels))):
            level = self.levels[index]
            prior, correction, kept = level.down(features)
            features = level.merge(features, kept, draw(index, prior, correction))
        limit = 0.5 * (1.0 - 1.0 / self._image_levels)  # the end levels' centres
        return inference.bounded(self.decoder(tf.nn.elu(features)), limit)

    def logistics(self, f, levels):
        """Parameters of `heads.Logistic(channels, levels)`, at f(z)'s size.

        Equation 10 of Lucas and Verbeek (2018): with levels' bins `[k, k + 1) / levels
        - 1/2`, of which the head has the centres.

        Args:
            f: float32 `[batch, height, width, channels]`.
            levels: int, the values of a channel there.

        Returns:
            float32 `[batch, height, width, 2 channels]`.
        """
        unit = 2.0 / (levels - 1)
        loc = (levels * (f + 0.5) - 0.5) * unit - 1.0
        log_scale = tf.convert_to_tensor(self.log_scale) + math.log(levels * unit)
        return tf.concat([loc, tf.broadcast_to(log_scale, tf.shape(loc))], axis=-1)


class LadderVAE(VAE):
    """A VAE whose latents are those of `self.ladder`, an `IAFLadder`.

    The context of a pass is f(z), which is computed once.
    """

    ladder: IAFLadder

    def features(self, images, *, training=False):
        """The evidence of each level."""
        return self.ladder.features(images)

    def infer(self, features, *, seeds, training=False):
        """`z_L, ..., z_1 ~ q(z | x)`, the top level first, and f(z)."""
        return self.ladder.infer(features, seeds)

    def generate(self, seeds, *, temperature):
        """`z_L, ..., z_1 ~ p(z)`, the top level first, and f(z)."""
        return self.ladder.generate(seeds, temperature)

    def decoded(self, values, context):
        """f(z): the context of a pass, or, where it is `None`, of the draws."""
        return self.ladder.decode(values) if context is None else context


def _posterior_draw(network, prior, correction, evidence, noise):
    """A level's latent: the prior, the posterior that is its flow, and a draw."""
    loc, log_scale, context = (
        tf.cast(above, tf.float32) + tf.cast(below, tf.float32)
        for above, below in zip(correction, evidence, strict=True)
    )
    before = inference.diagonal_normal(
        loc, tf.exp(inference.bounded_log_scale(log_scale)), event_ndims=3
    )
    prior_loc, prior_log_scale = prior
    prior = inference.diagonal_normal(
        prior_loc,
        tf.exp(inference.bounded_log_scale(prior_log_scale)),
        event_ndims=3,
    )
    step = flows.AutoregressiveStep(network, transform="damped", context=context)
    base = before.distribution
    start = base.loc + base.scale * noise
    posterior = flows.FlowDistribution(before, flows.tfb.Invert(step))
    value = posterior.bijector.forward(start)
    # At the draw, by map: no closed form is known of what the flow leaves.
    log_q_over_p = (
        base.log_prob(start)
        - step.inverse_log_scale(start)
        - prior.distribution.log_prob(value)
    )
    return inference.Latent(
        value, posterior, prior, kl=tf.reduce_sum(log_q_over_p, axis=[1, 2])
    )
