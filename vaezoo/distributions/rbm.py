"""A restricted Boltzmann machine, both sides of which are seen.

Over binary vectors z = (left, right), the concatenated two sides of a bipartite graph,

    log p(z) = -E(z) - log Z,    -E(z) = a . left + b . right + left' W right

Sadeghi et al. (2019), "PixelVAE++", section 2.1. Given one side, the units of the other
are independent, and the sum over them has a closed form. log Z has none: it is
enumerated (`RBM.exact_log_z`) or estimated (`vaezoo.distributions.annealing`).
"""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from vaezoo import checks, sampling

tfd = tfp.distributions

NUM_UPDATES = 2_000  # Gibbs updates of a sample, unless told otherwise
MAX_ENUMERATED = 20  # units of the smaller side
UPDATES_PER_BLOCK = 16  # for which noise is drawn at once; samples depend on it

_STATES_AT_ONCE = 2**12  # of the enumerated side


class RBM(tfd.Distribution):
    """A Boltzmann machine over binary vectors `[left + right]`, float32 0 and 1.

    All is computed in float32. Variables under a policy of lower precision must not be
    cast on the way here: make Keras's with `autocast=False`.

    Args:
        weights: float32 `[left, right]`, W; a tensor or a variable, as the others.
        left_bias: float32 `[left]`, a.
        right_bias: float32 `[right]`, b.
        log_z: float32 scalar, nats; needed by `log_prob` and `kl_from` alone.
        log_z_known: bool scalar. Whether `log_z` is that of these weights.

    Raises:
        ValueError: a side has no units, or the shapes do not fit together.
    """

    def __init__(
        self,
        weights,
        left_bias,
        right_bias,
        *,
        log_z=0.0,
        log_z_known=False,
        name="RBM",
    ):
        parameters = dict(locals())
        self.num_left, self.num_right = _sizes(weights, left_bias, right_bias)
        self._weights = weights
        self._left_bias = left_bias
        self._right_bias = right_bias
        self._log_z = log_z
        self._log_z_known = log_z_known
        super().__init__(
            dtype=tf.float32,
            reparameterization_type=tfd.NOT_REPARAMETERIZED,
            validate_args=False,
            allow_nan_stats=False,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype, num_classes=None):
        return {}

    def _batch_shape(self):
        return tf.TensorShape([])

    def _batch_shape_tensor(self):
        return tf.constant([], tf.int32)

    def _event_shape(self):
        return tf.TensorShape([self.num_left + self.num_right])

    def _event_shape_tensor(self):
        return tf.constant([self.num_left + self.num_right], tf.int32)

    @property
    def weights(self):
        """W, float32 `[left, right]`."""
        return tf.cast(self._weights, tf.float32)

    @property
    def left_bias(self):
        """a, float32 `[left]`."""
        return tf.cast(self._left_bias, tf.float32)

    @property
    def right_bias(self):
        """b, float32 `[right]`."""
        return tf.cast(self._right_bias, tf.float32)

    def split(self, values):
        """Values `[..., left + right]` as `[..., left]` and `[..., right]`."""
        return tf.split(values, [self.num_left, self.num_right], axis=-1)

    def right_logits(self, left):
        """Logits of the right side given the left one, `[..., right]`."""
        return self.right_bias + tf.matmul(left, self.weights)

    def left_logits(self, right):
        """Logits of the left side given the right one, `[..., left]`."""
        return self.left_bias + tf.matmul(right, self.weights, transpose_b=True)

    def energy(self, values):
        """E, nats, of binary or relaxed values.

        E is linear in each unit. So E of the probabilities of independent units is the
        mean of E over their draws; likewise with one side drawn and the probabilities
        of the other given it.

        Args:
            values: float `[batch, left + right]`.

        Returns:
            float32 `[batch]`.
        """
        left, right = self.split(tf.cast(values, tf.float32))
        return -tf.reduce_sum(left * self.left_bias, axis=-1) - tf.reduce_sum(
            self.right_logits(left) * right, axis=-1
        )

    def left_log_marginal(self, left):
        """`log sum over right of exp(-E(left, right))`, nats: `log p(left) + log Z`.

        Args:
            left: float `[batch, left]`.

        Returns:
            float32 `[batch]`.
        """
        left = tf.cast(left, tf.float32)
        return tf.reduce_sum(left * self.left_bias, axis=-1) + tf.reduce_sum(
            tf.nn.softplus(self.right_logits(left)), axis=-1
        )

    @property
    def log_z(self):
        """log Z, float32 scalar, nats; refused where it is not known.

        Raises:
            ValueError: log Z is not known, eagerly or as a constant of the graph. Else
                the graph asserts it.
        """
        raise NotImplementedError

    def log_z_surrogate(self, chains):
        """What has the gradient of log Z, where `chains` are draws of the model.

        The mean of `left_log_marginal` over the chains, through which no gradient flows
        back: that of -E, averaged over the right side in closed form. **The value means
        nothing**; it belongs into a loss and into no report.

        Args:
            chains: `[num_chains, left]`, 0 and 1, of any dtype: the left sides.

        Returns:
            float32 scalar.
        """
        raise NotImplementedError

    def first_chains(self, seeds):
        """The left sides that chains start from: fair bits.

        Args:
            seeds: int64 `[num_chains]`.

        Returns:
            float32 `[num_chains, left]`.
        """
        raise NotImplementedError

    def update_chains(self, chains, seed, *, num_sweeps):
        """Carry persistent chains on: block Gibbs sweeps of all chains together.

        Cost: two products `[num_chains, left] x [left, right]` a sweep, and
        `num_chains * (left + right)` uniforms.

        Args:
            chains: `[num_chains, left]`, 0 and 1, of any dtype: the left sides.
            seed: int64 scalar. Another one every time.
            num_sweeps: int.

        Returns:
            The chains, of the same shape and dtype, without gradient.

        Raises:
            ValueError: `num_sweeps` is not positive.
        """
        raise NotImplementedError

    def gibbs(self, seeds, *, num_updates, temperature=None, left=None):
        """Draws by block Gibbs sampling; row `i` depends on `seeds[i]` alone.

        An update draws the right side given the left one, then the left side given the
        right one. Noise is drawn for a few updates at once, keyed by the row's seed and
        the block of updates, so memory does not grow with their number, and a longer
        chain passes through the draws of a shorter one. Call it outside XLA.

        Cost: as of `update_chains`.

        Args:
            seeds: int64 `[batch]`.
            num_updates: int, or int tensor, at least 1.
            temperature: float32 `[batch]`, above 0, by which E is divided; 1 where
                `None`.
            left: `[batch, left]`, 0 and 1: the left sides to start from; fair bits from
                the seeds where `None`.

        Returns:
            float32 `[batch, left + right]`.

        Raises:
            ValueError: `num_updates` is not positive; the graph asserts it of a tensor.
        """
        raise NotImplementedError

    def kl_from(self, logits, *, left=None):
        """`KL(q || p)` in nats of independent Bernoulli units, in closed form.

        Args:
            logits: float `[batch, left + right]`, of q.
            left: `[batch, left]`, 0 and 1. Where the logits of the right side depend on
                a draw of the left one: that draw. The mean over draws is then the KL
                divergence.

        Returns:
            float32 `[batch]`.

        Raises:
            ValueError: as of `log_z`.
        """
        raise NotImplementedError

    def exact_log_z(self):
        """log Z by enumeration of the smaller side, float64 scalar, nats.

        Cost: two to the power of its units times the units of the other side.

        Raises:
            ValueError: the smaller side has more than `MAX_ENUMERATED` units.
        """
        raise NotImplementedError


def _sizes(weights, left_bias, right_bias):
    shapes = [tuple(tf.shape(v).numpy()) for v in (weights, left_bias, right_bias)]
    return shapes[0]
