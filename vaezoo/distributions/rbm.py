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
        return _float32(self._weights)

    @property
    def left_bias(self):
        """Biases a, float32 `[left]`."""
        return _float32(self._left_bias)

    @property
    def right_bias(self):
        """Biases b, float32 `[right]`."""
        return _float32(self._right_bias)

    def snapshot(self):
        """The RBM of the weights as they are now: tensors, without gradient.

        What runs long sees one state of the variables, and reads them once.
        """
        return RBM(*self.parameters_now())

    def parameters_now(self):
        """The weights and the biases, float32 tensors, without gradient."""
        parameters = (self.weights, self.left_bias, self.right_bias)
        return tuple(map(tf.stop_gradient, parameters))

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
            values: float `[..., left + right]`.

        Returns:
            float32 `[...]`.
        """
        left, right = self.split(_float32(values))
        right_logits = self.right_bias + tf.tensordot(left, self.weights, axes=1)
        return -tf.reduce_sum(left * self.left_bias, axis=-1) - tf.reduce_sum(
            right_logits * right, axis=-1
        )

    def _unnormalized_log_prob(self, values):
        return -self.energy(values)

    def _log_prob(self, values):
        is_binary = tf.reduce_all((values == 0) | (values == 1))
        values = _asserted(
            values,
            is_binary,
            checks.binary_rule("values"),
            "others",
            "Relaxed values have an `energy`, and no probability.",
        )
        return -self.energy(values) - self.log_z

    def left_log_marginal(self, left):
        """`log sum over right of exp(-E(left, right))`, nats: `log p(left) + log Z`.

        Args:
            left: float `[batch, left]`.

        Returns:
            float32 `[batch]`.
        """
        left = _float32(left)
        return tf.reduce_sum(left * self.left_bias, axis=-1) + tf.reduce_sum(
            tf.nn.softplus(self.right_logits(left)), axis=-1
        )

    @property
    def log_z(self):
        """Log Z, float32 scalar, nats; refused where it is not known.

        Raises:
            ValueError: log Z is not known, eagerly or as a constant of the graph. Else
                the graph asserts it.
        """
        return _asserted(
            _float32(self._log_z),
            tf.convert_to_tensor(self._log_z_known),
            "`log_z` must be known for a probability under an RBM; training changes "
            "it and leaves it unknown.",
            "log_z_known=False",
            "Estimate it with `vaezoo.distributions.annealing.forward_log_z`.",
        )

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
        return tf.reduce_mean(self.left_log_marginal(tf.stop_gradient(chains)))

    def first_chains(self, seeds):
        """The left sides that chains start from: fair bits.

        Args:
            seeds: int64 `[num_chains]`.

        Returns:
            float32 `[num_chains, left]`.
        """
        return _fair_bits(tf.cast(seeds, tf.int64), self.num_left)

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
        num_sweeps = _positive("num_sweeps", num_sweeps)
        rbm = self.snapshot()
        seed = tf.cast(seed, tf.int64)
        num = tf.shape(chains)[0]

        def carry_on(sweep, left):
            # A draw a side: to split one would copy it, a fifth of the time.
            uniforms = [
                tf.random.stateless_uniform(
                    [num, size], tf.stack([seed, 2 * tf.cast(sweep, tf.int64) + side])
                )
                for side, size in enumerate((self.num_left, self.num_right))
            ]
            left, _ = rbm.sweep(left, uniforms)
            return sweep + 1, left

        _, left = tf.while_loop(
            lambda sweep, _: sweep < num_sweeps,
            carry_on,
            (0, tf.cast(chains, tf.float32)),
            shape_invariants=(tf.TensorShape([]), chains.shape),
            parallel_iterations=1,
        )
        return tf.cast(left, chains.dtype)

    def sweep(self, left, uniforms, inverse_temperature=None):
        """One update: the right side given the left one, then the left one given it.

        Args:
            left: float32 `[batch, left]`, 0 and 1.
            uniforms: float32 `[batch, left]` and `[batch, right]` in [0, 1).
            inverse_temperature: float32 that broadcasts with `[batch, 1]`, by which E
                is multiplied; 1 where `None`.

        Returns:
            The sides: float32 `[batch, left]` and `[batch, right]`.
        """

        def probabilities(logits):
            if inverse_temperature is not None:
                logits *= inverse_temperature
            return tf.sigmoid(logits)

        for_left, for_right = uniforms
        right = _bits(probabilities(self.right_logits(left)), for_right)
        return _bits(probabilities(self.left_logits(right)), for_left), right

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
        num_updates = _positive("num_updates", num_updates)
        rbm = self.snapshot()
        left = self.first_chains(seeds) if left is None else _float32(left)
        inverse_temperature = None
        if temperature is not None:
            inverse_temperature = 1.0 / _float32(temperature)[:, None]
        size = self.num_left + self.num_right

        def update_block(first, left, right):
            block = sampling.fold_in(seeds, first // UPDATES_PER_BLOCK)
            uniforms = sampling.row_uniforms(block, [UPDATES_PER_BLOCK, size], "gibbs")
            stop = tf.minimum(first + UPDATES_PER_BLOCK, num_updates)

            def update(index, left, _):
                noise = rbm.split(uniforms[:, index - first])
                return index + 1, *rbm.sweep(left, noise, inverse_temperature)

            return loop(update, (first, left, right), stop)

        def loop(body, state, stop):
            return tf.while_loop(
                lambda index, *_: index < stop,
                body,
                state,
                shape_invariants=(
                    tf.TensorShape([]),
                    tf.TensorShape([None, self.num_left]),
                    tf.TensorShape([None, self.num_right]),
                ),
                parallel_iterations=1,
            )

        right = tf.zeros([tf.shape(left)[0], self.num_right])
        _, left, right = loop(update_block, (0, left, right), num_updates)
        return tf.ensure_shape(tf.concat([left, right], -1), [*seeds.shape, size])

    def _sample_n(self, n, seed=None):
        """`gibbs` of `NUM_UPDATES` updates: approximate draws."""
        seed = tf.bitcast(tfp.random.sanitize_seed(seed), tf.int64)
        seeds = sampling.fold_in(seed, tf.range(n, dtype=tf.int64))
        return self.gibbs(seeds, num_updates=NUM_UPDATES)

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
        logits = _float32(logits)
        probabilities = tf.sigmoid(logits)
        negative_entropy = tf.reduce_sum(
            probabilities * logits - tf.nn.softplus(logits), axis=-1
        )
        if left is not None:
            _, right = self.split(probabilities)
            probabilities = tf.concat([_float32(left), right], axis=-1)
        return negative_entropy + self.energy(probabilities) + self.log_z

    def exact_log_z(self):
        """The log Z by enumeration of the smaller side: float64 scalar, nats.

        Cost: two to the power of its units, times the units of both sides. It is
        differentiable.

        Raises:
            ValueError: the smaller side has more than `MAX_ENUMERATED` units.
        """
        num = min(self.num_left, self.num_right)
        if num > MAX_ENUMERATED:
            raise checks.refusal(
                f"The smaller side must have at most {MAX_ENUMERATED} units for log Z "
                "by enumeration.",
                f"{self.num_left} and {self.num_right} units",
                "Estimate it with `vaezoo.distributions.annealing.forward_log_z`.",
            )
        parameters = self.weights, self.left_bias, self.right_bias
        weights, bias, other_bias = (tf.cast(p, tf.float64) for p in parameters)
        if self.num_right < self.num_left:
            weights, bias, other_bias = tf.transpose(weights), other_bias, bias
        parts = []
        for first in range(0, 2**num, _STATES_AT_ONCE):
            states = np.arange(first, min(first + _STATES_AT_ONCE, 2**num))
            bits = tf.constant(states[:, None] >> np.arange(num) & 1, tf.float64)
            logits = other_bias + tf.matmul(bits, weights)
            terms = tf.linalg.matvec(bits, bias)
            terms += tf.reduce_sum(tf.nn.softplus(logits), axis=-1)
            parts.append(tf.reduce_logsumexp(terms))
        return tf.reduce_logsumexp(tf.stack(parts))


def _sizes(weights, left_bias, right_bias):
    """Units of the two sides: the shape of the weights, where all is as it must be."""
    shapes = [tuple(v.shape) for v in (weights, left_bias, right_bias)]
    sizes = shapes[0]
    if len(sizes) != 2 or 0 in sizes or shapes[1:] != [sizes[:1], sizes[1:]]:
        raise checks.refusal(
            "An RBM must have `weights` [left, right], `left_bias` [left] and "
            "`right_bias` [right], with at least one unit a side.",
            f"shapes {', '.join(map(str, shapes))}",
        )
    return sizes


def _float32(value):
    return tf.cast(tf.convert_to_tensor(value), tf.float32)


# A graph of its own: of thousands of rows, eagerly, it would take seconds.
@tf.function(autograph=False, reduce_retracing=True)
def _fair_bits(seeds, num):
    return _bits(0.5, sampling.row_uniforms(seeds, [num], "gibbs_start"))


def _bits(probabilities, uniforms):
    return tf.cast(uniforms < probabilities, tf.float32)


def _positive(name, count):
    """A count, checked: an int, or a tensor of which a graph may know no more."""
    known = tf.get_static_value(count) if tf.is_tensor(count) else count
    if known is not None:
        return checks.integer(name, known)
    rule = f"`{name}` must be a positive integer."
    return _asserted(tf.cast(count, tf.int32), count > 0, rule, "0 or below")


def _asserted(value, holds, rule, received, advice=""):
    """The value, if a rule holds, else its refusal: of Python where that is known."""
    refusal = checks.refusal(rule, received, advice)
    known = tf.get_static_value(holds)
    if known is None:
        with tf.control_dependencies([tf.debugging.Assert(holds, [str(refusal)])]):
            return tf.identity(value)
    if not known:
        raise refusal
    return value
