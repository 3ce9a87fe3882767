"""Latents, the terms of the ELBO, and the streaming importance-weighted bound."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf
import tensorflow_probability as tfp

from vaezoo import sampling

tfd = tfp.distributions


@dataclasses.dataclass(frozen=True)
class Latent:
    """A draw of one latent and the two distributions that score it.

    Args:
        value: the draw, `[batch, ...]`.
        posterior: `q(z | x)`, a `tfd.Distribution` of batch shape `[batch]`.
        prior: `p(z)`, or `p(z | latents above)`, likewise.
        kl: closed-form KL divergence `[batch]` in nats, where the model knows one
            that TFP does not; or a function without arguments that computes it. Of a
            latent whose free bits are by group, such as a feature map, `[batch,
            groups]`; it may then be an estimate at the draw.
        training_kl: what a training step has in its place, `[batch]`, where that is
            another: a surrogate, which need not be a KL divergence.
    """

    value: tf.Tensor
    posterior: tfd.Distribution
    prior: tfd.Distribution
    kl: tf.Tensor | Callable[[], tf.Tensor] | None = None
    training_kl: tf.Tensor | None = None

    def log_ratio(self):
        """`log p(z) - log q(z | x)` at the draw, nats `[batch]`."""
        return self.prior.log_prob(self.value) - self.posterior.log_prob(self.value)

    def kl_divergence(self, *, training=False):
        """`KL(q || p)` in nats `[batch]`: closed form if known, else at the draw.

        Args:
            training: bool. Whether to give `training_kl`, if there is one.
        """
        return tf.reduce_sum(self.group_kls(training=training), axis=-1)

    def group_kls(self, *, training=False):
        """The terms of `kl_divergence`, `[batch, groups]`: one, where it has no groups.

        Args:
            training: bool. As of `kl_divergence`.
        """
        kls = self._kl(training)
        return kls if kls.shape.rank == 2 else kls[:, None]

    def _kl(self, training):
        if training and self.training_kl is not None:
            return self.training_kl
        if self.kl is not None:
            return self.kl() if callable(self.kl) else self.kl
        try:
            return tfd.kl_divergence(self.posterior, self.prior)
        except NotImplementedError:
            return -self.log_ratio()


def diagonal_normal(loc, scale, *, event_ndims=1):
    """`N(loc, scale^2)` over the last `event_ndims` axes, in float32."""
    return tfd.Independent(
        tfd.Normal(tf.cast(loc, tf.float32), tf.cast(scale, tf.float32)),
        reinterpreted_batch_ndims=event_ndims,
    )


def bounded(values, limit):
    """Values within +-`limit`, float32, with the gradient of the identity.

    The gradient passes beyond the limits, so that a value comes back.
    """
    values = tf.cast(values, tf.float32)
    within = tf.clip_by_value(values, -limit, limit)
    return tf.stop_gradient(within) + (values - tf.stop_gradient(values))


def bounded_log_scale(log_scale):
    """Log scales within +-10, as of `bounded`.

    Early in a KL warm-up nothing holds a posterior's scale; unbounded, its KL term
    overflows, and 0 times infinity is NaN.
    """
    return bounded(log_scale, 10.0)


def kl_weight(step, kl_warmup_steps, start=0.0):
    """KL warm-up: linear from `start` to 1 over the steps; 1 without warm-up."""
    if not kl_warmup_steps:
        return tf.constant(1.0)
    done = tf.minimum(1.0, tf.cast(step, tf.float32) / float(kl_warmup_steps))
    return start + (1.0 - start) * done


def free_bits(kl, mean_kl, free_bits_nats):
    """The KL term as trained on: `max(free_bits_nats, batch mean)` for each group.

    Kingma et al. (2016), equation 15. The maximum is over the mean of the whole
    batch, not over rows, so rows are replaced together.

    Args:
        kl: float32 `[batch]`, nats of a group; or `[batch, groups]`.
        mean_kl: float32 scalar, the mean over the whole (global) batch; or `[groups]`.
        free_bits_nats: float, a group's allowance.

    Returns:
        float32 of the shape of `kl`, whose batch means are the maxima.
    """
    above = tf.cast(tf.stop_gradient(mean_kl) > free_bits_nats, tf.float32)
    return above * kl + (1.0 - above) * free_bits_nats


def soft_free_bits(weight, mean_kl, soft_free_bits_nats, *, tolerance=0.05, step=0.1):
    """The next weight of the KL term, steered so that the KL stays near a target.

    Chen et al. (2017), appendix C (second version): the weight grows by a tenth, up to
    1, where the KL is more than 5 % above the target, and shrinks where it is below.

    Args:
        weight: float32 scalar in (0, 1], the weight of this step.
        mean_kl: float32 scalar, nats, the mean over the whole (global) batch.
        soft_free_bits_nats: float, the target.
        tolerance: float. Relative width of the band where the weight rests.
        step: float. Relative change of the weight.

    Returns:
        float32 scalar in (0, 1].
    """
    above = mean_kl > soft_free_bits_nats * (1.0 + tolerance)
    below = mean_kl < soft_free_bits_nats
    raised = tf.minimum(1.0, weight * (1.0 + step))
    return tf.where(above, raised, tf.where(below, weight / (1.0 + step), weight))


def importance_weighted_bound(log_weight, seeds, num_importance_samples, *, chunk):
    """Streaming bound `L_K = log mean_k exp(log w_k)` (Burda et al., 2016).

    Keeps a running maximum and a scaled sum in float64, so memory does not grow
    with the number of samples. Sample `k` of row `i` is drawn from
    `fold_in(seeds[i], k)`: its value does not depend on the chunk size.

    Args:
        log_weight: function from seeds int64 `[batch * chunk]` (row-major: the
            samples of an image are neighbours) to `log p(x, z) - log q(z | x)` in
            nats, `[batch * chunk]`.
        seeds: int64 `[batch]`.
        num_importance_samples: int or int tensor, K.
        chunk: int. Importance samples of an image computed at once.

    Returns:
        float32 `[batch]`, nats.
    """
    total = tf.cast(num_importance_samples, tf.int64)
    batch = tf.shape(seeds)[0]

    def add_chunk(start, maximum, scaled_sum):
        samples = start + tf.range(chunk, dtype=tf.int64)
        row_seeds = sampling.fold_in(seeds[:, None], samples[None, :])
        log_weights = tf.cast(log_weight(tf.reshape(row_seeds, [-1])), tf.float64)
        log_weights = tf.reshape(log_weights, [batch, chunk])
        log_weights = tf.where(samples < total, log_weights, nothing)
        new_maximum = tf.maximum(maximum, tf.reduce_max(log_weights, axis=1))
        scaled_sum = scaled_sum * tf.exp(maximum - new_maximum) + tf.reduce_sum(
            tf.exp(log_weights - new_maximum[:, None]), axis=1
        )
        return start + chunk, new_maximum, scaled_sum

    zeros = tf.zeros([batch], tf.float64)
    # Finite, for those who have TensorFlow look for infinities.
    nothing = tf.constant(-1e300, tf.float64)
    _, maximum, scaled_sum = tf.while_loop(
        lambda start, *_: start < total,
        add_chunk,
        (tf.constant(0, tf.int64), zeros + nothing, zeros),
        shape_invariants=(
            tf.TensorShape([]),
            tf.TensorShape([None]),
            tf.TensorShape([None]),
        ),
        parallel_iterations=1,
    )
    bound = maximum + tf.math.log(scaled_sum) - tf.math.log(tf.cast(total, tf.float64))
    return tf.cast(bound, tf.float32)
