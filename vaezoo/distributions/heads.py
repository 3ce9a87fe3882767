"""Likelihood heads: from a pixel's parameters to a distribution of its channels.

A head scores the channels of a pixel and turns uniform noise into a draw of them. Its
interface, for one image shape:

    num_channels, num_outputs, num_uniforms   # a pixel: channels, parameters, noise
    steps_per_pixel      # 1, or num_channels where a channel's parameters depend on
                         # the channels before it through the network
    normalize(values)                          # levels -> the network's input
    log_prob(params, values)                   # [..., num_outputs] -> [...], nats
    draw(params, uniforms, *, values, step, temperature)     # -> [batch, channels]
"""

import math

import keras
import tensorflow as tf


class Bernoulli:
    """Binary channels, one logit each; 1 where the uniform noise is below `p`.

    Args:
        num_channels: int. With more than one, a channel's logit depends on the
            channels before it, so a pixel takes that many steps.
    """

    def __init__(self, num_channels):
        self.num_channels = num_channels
        self.num_outputs = num_channels
        self.num_uniforms = num_channels
        self.steps_per_pixel = num_channels

    def normalize(self, values):
        """The network sees {0, 1}."""
        return values

    def log_prob(self, params, values):
        """Nats a pixel: `[..., channels]` logits and values to `[...]`."""
        # x log p + (1 - x) log(1 - p), stable for logits of any size.
        log_probs = values * params - tf.nn.softplus(params)
        return tf.reduce_sum(log_probs, axis=-1)

    def draw(self, params, uniforms, *, values, step, temperature):
        """Draw channel `step` from logits / temperature; keep the other `values`."""
        drawn = tf.cast(uniforms < tf.sigmoid(params / temperature), tf.float32)
        return tf.concat(
            [values[:, :step], drawn[:, step : step + 1], values[:, step + 1 :]], -1
        )


class Categorical:
    """Channels of `levels` values, a probability for each value.

    Output `k` of a pixel is the logit of level `k // num_channels` of channel
    `k mod num_channels`, so that each belongs to the colour it stands for. A value is
    drawn by its inverse CDF.

    Args:
        num_channels: int. With more than one, a channel's logits depend on the
            channels before it, so a pixel takes that many steps.
        levels: int. Values of a channel.
    """

    def __init__(self, num_channels, levels=256):
        self.num_channels = num_channels
        self.levels = levels
        self.num_outputs = num_channels * levels
        self.num_uniforms = num_channels
        self.steps_per_pixel = num_channels

    def normalize(self, values):
        """The network sees levels scaled to [-1, 1]."""
        return values * (2.0 / (self.levels - 1)) - 1.0

    def smooth_kernel(self, shape, dtype=None):
        """A first kernel of the output layer that is smooth over the levels.

        With a plain start, training has to learn that a level is next to the next one,
        for each of them. Here the logits of a colour are

            w[f, k] = sum over m of a[f, m] cos(pi m (k + 1/2) / levels) / m

        with `m` from 1 to a quarter of the levels and `a ~ N(0, 0.18^2)`.

        Args:
            shape: `(..., features, num_outputs)`.
            dtype: of the result; float32 where `None`.
        """
        count = max(1, self.levels // 4 - 1)
        waves = tf.range(1.0, count + 1.0)
        places = (tf.range(float(self.levels)) + 0.5) / self.levels
        basis = tf.cos(math.pi * waves[:, None] * places) / waves[:, None]
        normal = keras.initializers.RandomNormal(stddev=0.18)
        amplitudes = normal([*shape[:-1], self.num_channels, count])
        kernel = tf.einsum("...cm,mk->...kc", amplitudes, basis)
        return tf.cast(tf.reshape(kernel, shape), dtype or tf.float32)

    def level_logits(self, images):
        """Logits of how often each level is in each channel, `[num_outputs]`.

        Args:
            images: integers `[batch, height, width, channels]`. Each level counts once
                more than it is there, so that none is impossible.
        """
        here = tf.one_hot(images, self.levels, axis=3)  # [..., levels, channels]
        counts = 1.0 + tf.reduce_sum(here, axis=[0, 1, 2])
        return tf.reshape(tf.math.log(counts / tf.reduce_sum(counts, axis=0)), [-1])

    def _logits(self, params):
        """`[..., num_outputs]` to `[..., channels, levels]`."""
        shape = tf.concat([tf.shape(params)[:-1], [self.levels, self.num_channels]], 0)
        return tf.linalg.matrix_transpose(tf.reshape(params, shape))

    def log_prob(self, params, values):
        """Nats a pixel: `[..., num_outputs]` and `[..., channels]` to `[...]`."""
        log_probs = -tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=tf.cast(values, tf.int32), logits=self._logits(params)
        )
        return tf.reduce_sum(log_probs, axis=-1)

    def draw(self, params, uniforms, *, values, step, temperature):
        """Draw channel `step` from logits / temperature; keep the other `values`."""
        logits = self._logits(params)[:, step] / temperature
        # Unnormalised, so that the last step of the CDF is compared with itself.
        cdf = tf.cumsum(tf.exp(logits - tf.reduce_max(logits, -1, keepdims=True)), -1)
        below = cdf <= uniforms[:, step : step + 1] * cdf[:, -1:]
        drawn = tf.reduce_sum(tf.cast(below, tf.float32), axis=-1, keepdims=True)
        drawn = tf.minimum(drawn, self.levels - 1.0)
        return tf.concat([values[:, :step], drawn, values[:, step + 1 :]], axis=-1)
