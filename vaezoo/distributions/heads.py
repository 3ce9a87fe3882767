"""Likelihood heads: from a pixel's parameters to a distribution of its channels.

A head scores the channels of a pixel and turns uniform noise into a draw of them. Its
interface, for one image shape:

    num_channels, num_outputs, num_uniforms   # a pixel: channels, parameters, noise
    steps_per_pixel      # 1, or num_channels where a channel's parameters depend on
                         # the channels before it through the network
    normalize(values)                          # levels -> the network's input
    channel_log_probs(params, values)          # [..., num_outputs] -> [..., channels],
                                               # nats, given the channels before
    log_prob(params, values)                   # [...]: their sum
    draw(params, uniforms, *, values, step, temperature)     # -> [batch, channels]
"""

import math

import keras
import numpy as np
import tensorflow as tf

# Bounds of a logistic's parameters, in units of the levels scaled to [-1, 1], far
# beyond what tells levels apart: within them no finite parameter makes a probability 0
# or a gradient infinite. The lower one of the scales is PixelCNN++'s.
_MAX_LOC = 1e20
_MIN_LOG_SCALE, _MAX_LOG_SCALE = -7.0, 30.0


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

    def channel_log_probs(self, params, values):
        """Nats a channel: `[..., channels]` logits and values."""
        # x log p + (1 - x) log(1 - p), stable for logits of any size.
        return values * params - tf.nn.softplus(params)

    def log_prob(self, params, values):
        """Nats a pixel: `[..., channels]` logits and values to `[...]`."""
        return tf.reduce_sum(self.channel_log_probs(params, values), axis=-1)

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

    def channel_log_probs(self, params, values):
        """Nats a channel: `[..., num_outputs]` and `[..., channels]`."""
        return -tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=tf.cast(values, tf.int32), logits=self._logits(params)
        )

    def log_prob(self, params, values):
        """Nats a pixel: `[..., num_outputs]` and `[..., channels]` to `[...]`."""
        return tf.reduce_sum(self.channel_log_probs(params, values), axis=-1)

    def draw(self, params, uniforms, *, values, step, temperature):
        """Draw channel `step` from logits / temperature; keep the other `values`."""
        logits = self._logits(params)[:, step] / temperature
        # Unnormalised, so that the last step of the CDF is compared with itself.
        cdf = tf.cumsum(tf.exp(logits - tf.reduce_max(logits, -1, keepdims=True)), -1)
        below = cdf <= uniforms[:, step : step + 1] * cdf[:, -1:]
        drawn = tf.reduce_sum(tf.cast(below, tf.float32), axis=-1, keepdims=True)
        drawn = tf.minimum(drawn, self.levels - 1.0)
        return tf.concat([values[:, :step], drawn, values[:, step + 1 :]], axis=-1)


def _level_log_probs(scaled, loc, log_scale, levels, *, edge_bins=True):
    """Nats of levels under a logistic that is rounded to them.

    A level has the mass of the bin of one level's width around it, and the first and
    the last one all that lies beyond:

        sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b))

    which has no cancellation, at any place and scale.

    Args:
        scaled: float32, levels scaled to [-1, 1].
        loc, log_scale: float32 of shapes that broadcast with it, in the same units.
        levels: int.
        edge_bins: bool. Whether the ends get the mass beyond; without, the levels'
            masses sum to less than 1.

    Returns:
        float32 of the broadcast shape.
    """
    half = 1.0 / (levels - 1)
    inverse = tf.exp(-log_scale)
    upper = (scaled - loc + half) * inverse
    lower = (scaled - loc - half) * inverse
    log_below = tf.math.log_sigmoid(upper)
    log_above = tf.math.log_sigmoid(-lower)
    width = tf.math.log(-tf.math.expm1(-2.0 * half * inverse))
    inside = log_below + log_above + width
    if not edge_bins:
        return inside
    end = 1.0 - half  # between the last level and the one before it
    return tf.where(scaled < -end, log_below, tf.where(scaled > end, log_above, inside))


def _draw_level(loc, log_scale, uniforms, levels, temperature):
    """The level, a float32, whose bin holds a logistic's quantile."""
    quantile = tf.math.log(uniforms) - tf.math.log1p(-uniforms)
    value = loc + tf.exp(log_scale) * (temperature * quantile)
    level = tf.floor((value + 1.0) * (0.5 * (levels - 1)) + 0.5)
    return tf.clip_by_value(level, 0.0, levels - 1.0)


class LogisticMixture:
    """Channels of ordered levels: a mixture of rounded logistics (PixelCNN++, 2.1-2.2).

    The channels of a pixel share a component, and a channel's location is linear in the
    channels before it:

        m_c' = m_c + sum over b < c of tanh(a_cb) x_b

    A component is drawn by its inverse CDF, then each channel by a logistic's quantile,
    rounded to the nearest level before the next channel sees it: the distribution that
    is scored.

    Args:
        num_channels: int.
        levels: int. Values of a channel.
        num_components: int.
    """

    steps_per_pixel = 1

    def __init__(self, num_channels, levels=256, *, num_components=10):
        self.num_channels = num_channels
        self.levels = levels
        self.num_components = num_components
        num_pairs = num_channels * (num_channels - 1) // 2
        self._sizes = [1, num_channels, num_channels, num_pairs]
        lowest = [-np.inf, -_MAX_LOC, _MIN_LOG_SCALE, -np.inf]
        highest = [np.inf, _MAX_LOC, _MAX_LOG_SCALE, np.inf]
        self._bounds = [
            np.repeat(bound, self._sizes).astype(np.float32)[:, None]
            for bound in (lowest, highest)
        ]
        self.num_outputs = num_components * sum(self._sizes)
        self.num_uniforms = 1 + num_channels

    def normalize(self, values):
        """The network sees levels scaled to [-1, 1]."""
        return values * (2.0 / (self.levels - 1)) - 1.0

    def _parts(self, params):
        """Logits, then locations, log scales and coefficients: `[..., parts, K]`."""
        shape = tf.concat([tf.shape(params)[:-1], [-1, self.num_components]], 0)
        return tf.clip_by_value(tf.reshape(params, shape), *self._bounds)

    def _split(self, parts):
        """A list of parts, but for the logits, to lists by channel and by pair."""
        channels = self.num_channels
        coefficients = list(map(tf.tanh, parts[2 * channels :]))
        return parts[:channels], parts[channels : 2 * channels], coefficients

    def _loc(self, channel, locs, coefficients, scaled):
        """The locations of a channel given the ones before: `[..., K]`."""
        loc = locs[channel]
        first = channel * (channel - 1) // 2
        for before in range(channel):
            loc += coefficients[first + before] * scaled[..., before, None]
        return loc

    def channel_log_probs(self, params, values):
        """Nats a channel: `[..., num_outputs]` and `[..., channels]`."""
        logits, *parts = tf.unstack(self._parts(params), sum(self._sizes), axis=-2)
        locs, log_scales, coefficients = self._split(parts)
        scaled = self.normalize(values)
        # Of the component and the channels so far.
        joint = tf.nn.log_softmax(logits)
        totals = [tf.zeros_like(joint[..., 0])]
        for channel in range(self.num_channels):
            joint += _level_log_probs(
                scaled[..., channel, None],
                self._loc(channel, locs, coefficients, scaled),
                log_scales[channel],
                self.levels,
            )
            totals.append(tf.reduce_logsumexp(joint, axis=-1))
        totals = tf.stack(totals, axis=-1)
        return totals[..., 1:] - totals[..., :-1]

    def log_prob(self, params, values):
        """Nats a pixel: `[..., num_outputs]` and `[..., channels]` to `[...]`."""
        return tf.reduce_sum(self.channel_log_probs(params, values), axis=-1)

    def draw(self, params, uniforms, *, values, step, temperature):
        """Draw all channels; the temperature is of the component and the scales."""
        parts = self._parts(params)
        logits = parts[:, 0]
        logits = (logits - tf.reduce_max(logits, -1, keepdims=True)) / temperature
        # Unnormalised, so that the last step of the CDF is compared with itself.
        cdf = tf.cumsum(tf.exp(logits), -1)
        below = cdf <= uniforms[:, :1] * cdf[:, -1:]
        component = tf.reduce_sum(tf.cast(below, tf.int32), axis=-1)
        component = tf.minimum(component, self.num_components - 1)
        chosen = tf.one_hot(component, self.num_components)[:, None, :]
        chosen = tf.reduce_sum(parts * chosen, axis=-1, keepdims=True)
        _, *parts = tf.unstack(chosen, sum(self._sizes), axis=1)
        locs, log_scales, coefficients = self._split(parts)
        drawn = values[:, :0]
        for channel in range(self.num_channels):
            level = _draw_level(
                self._loc(channel, locs, coefficients, self.normalize(drawn)),
                log_scales[channel],
                uniforms[:, channel + 1 : channel + 2],
                self.levels,
                temperature,
            )
            drawn = tf.concat([drawn, level], axis=-1)
        return drawn


class Logistic:
    """Channels of ordered levels, each a rounded logistic of its own.

    Output `k` of a pixel is the location (the first `num_channels`) or the log scale of
    channel `k mod num_channels`, in units of the levels scaled to [-1, 1].

    Args:
        num_channels: int.
        levels: int. Values of a channel.
        edge_bins: bool. Whether the first and the last level have the mass beyond; the
            IAF authors' code has them without, which scores less than all of the mass
            (a valid bound). Draws are the same.
    """

    steps_per_pixel = 1

    def __init__(self, num_channels, levels=256, *, edge_bins=True):
        self.num_channels = num_channels
        self.levels = levels
        self.edge_bins = edge_bins
        self.num_outputs = 2 * num_channels
        self.num_uniforms = num_channels

    def normalize(self, values):
        """The network sees levels scaled to [-1, 1]."""
        return values * (2.0 / (self.levels - 1)) - 1.0

    def _split(self, params):
        loc, log_scale = tf.split(params, 2, axis=-1)
        loc = tf.clip_by_value(loc, -_MAX_LOC, _MAX_LOC)
        return loc, tf.clip_by_value(log_scale, _MIN_LOG_SCALE, _MAX_LOG_SCALE)

    def channel_log_probs(self, params, values):
        """Nats a channel: `[..., num_outputs]` and `[..., channels]`."""
        loc, log_scale = self._split(params)
        scaled = self.normalize(values)
        return _level_log_probs(
            scaled, loc, log_scale, self.levels, edge_bins=self.edge_bins
        )

    def log_prob(self, params, values):
        """Nats a pixel: `[..., num_outputs]` and `[..., channels]` to `[...]`."""
        return tf.reduce_sum(self.channel_log_probs(params, values), axis=-1)

    def draw(self, params, uniforms, *, values, step, temperature):
        """Draw all channels; the temperature is of the scales."""
        loc, log_scale = self._split(params)
        return _draw_level(loc, log_scale, uniforms, self.levels, temperature)


def unit_scale(raw):
    """`(softsign(raw) + 1) / 2`, a standard deviation in (0, 1), float32; .5 at 0."""
    raw = tf.cast(raw, tf.float32)
    tail = 0.5 / (1.0 + tf.abs(raw))  # of either side, without cancellation
    return tf.where(raw < 0, tail, 1.0 - tail)


class Normal:
    """Real channels, each a normal: of maps of latents. Its noise is normal.

    Output `k` of a place is the raw location (the first `num_channels`) or the raw
    scale of channel `k mod num_channels`; with PixelVAE's authors' code

        loc = 2 softsign(raw / 2),    scale = (softsign(raw) + 1) / 2

    Args:
        num_channels: int. The channels of a place are independent given those before.
        min_scale: float or float32 scalar, the least scale.
    """

    steps_per_pixel = 1

    def __init__(self, num_channels, *, min_scale=0.0):
        self.num_channels = self.num_uniforms = num_channels
        self.num_outputs = 2 * num_channels
        self.min_scale = min_scale

    def normalize(self, values):
        """The network sees the values."""
        return values

    def loc_and_scale(self, params):
        """`[..., num_outputs]` to two of `[..., channels]`, float32."""
        loc, scale = tf.split(tf.cast(params, tf.float32), 2, axis=-1)
        scale = tf.maximum(unit_scale(scale), self.min_scale)
        return 2.0 * tf.nn.softsign(loc / 2.0), scale

    def channel_log_probs(self, params, values):
        """Nats a channel: `[..., num_outputs]` and `[..., channels]`."""
        loc, scale = self.loc_and_scale(params)
        standard = (values - loc) / scale
        constant = 0.5 * math.log(2.0 * math.pi)
        return -0.5 * tf.square(standard) - tf.math.log(scale) - constant

    def log_prob(self, params, values):
        """Nats a place: `[..., num_outputs]` and `[..., channels]` to `[...]`."""
        return tf.reduce_sum(self.channel_log_probs(params, values), axis=-1)

    def draw(self, params, noise, *, values, step, temperature):
        """Draw all channels from normal noise; the temperature is of the scales."""
        loc, scale = self.loc_and_scale(params)
        return loc + scale * temperature * noise
