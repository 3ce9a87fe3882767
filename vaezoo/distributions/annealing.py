"""The log Z of an RBM by annealed importance sampling (Neal, 2001).

Chains pass from the uniform distribution (inverse temperature 0, whose log Z is known)
to the model (1), and gather the weights of the way:

    F_t(left) = t a . left + sum over right units of softplus(t (b + W' left))
    log w     = sum over k of F_{t_k}(left_{k-1}) - F_{t_{k-1}}(left_{k-1})
    log Z     = (left + right) log 2 + log mean w

The mean of w is right whatever the number of temperatures, so the mean of this log Z is
at most the true one (Jensen), and a likelihood computed with it comes out too good. The
way back, from draws of the model, errs to the other side (Burda et al., 2015,
"Accurate and conservative estimates of MRF log-likelihood using reverse annealing"):
the two bracket log Z, if the draws are of the model.
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from vaezoo import checks, sampling, terminal
from vaezoo.distributions.rbm import NUM_UPDATES, RBM

_SWEEPS_PER_BLOCK = 16  # for which noise is drawn at once; the result depends on it


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What annealing found log Z to be.

    Args:
        value: float, nats.
        standard_error: float, nats, of `value`, by the delta method. Too small where
            the effective sample size is.
        effective_sample_size: float, `(sum w)^2 / sum w^2`: how many chains the mean is
            of, 1 to their number.
    """

    value: float
    standard_error: float
    effective_sample_size: float


@dataclasses.dataclass(frozen=True)
class Bracket:
    """Bounds of log Z: from below (in the mean) and from above.

    Args:
        forward: `Estimate` whose mean is at most log Z.
        reverse: `Estimate` whose mean is at least log Z, if its draws were the model's.
    """

    forward: Estimate
    reverse: Estimate

    @property
    def width(self):
        """`reverse - forward`, nats; noise can make it negative."""
        return self.reverse.value - self.forward.value


def forward_log_z(
    rbm,
    *,
    num_chains=1_000,
    num_temperatures=1_000,
    num_sweeps=1,
    seed=0,
    chunk=1_000,
    verbose=0,
):
    """Estimate log Z from the uniform distribution on; its mean is at most log Z.

    Cost: `num_chains * num_temperatures * num_sweeps` Gibbs sweeps; memory of one chunk
    of chains.

    Args:
        rbm: the `RBM`.
        num_chains: int.
        num_temperatures: int. Steps of inverse temperature, of equal size.
        num_sweeps: int. Gibbs sweeps at each.
        seed: int. Chain `i` depends on `row_seeds(seed, num_chains)[i]` alone.
        chunk: int. Chains run at once; the result does not depend on it.
        verbose: 1 for lines of progress on the error stream, 0 for silence.

    Returns:
        An `Estimate`.

    Raises:
        ValueError: a count is not positive.
    """
    num_chains = checks.integer("num_chains", num_chains)
    seeds = sampling.row_seeds(seed, num_chains)
    annealing = _Annealing("forward", num_temperatures, num_sweeps, chunk, verbose)
    log_weights = annealing.run(rbm, seeds)
    return _estimate(_uniform_log_z(rbm), log_weights)


def reverse_log_z(
    rbm, left, *, num_temperatures=1_000, num_sweeps=1, seed=0, chunk=1_000, verbose=0
):
    """Estimate log Z from draws of the model back; its mean is at least log Z.

    Args:
        rbm: the `RBM`.
        left: `[num_chains, left]`, 0 and 1: left sides of draws of the model.
        num_temperatures, num_sweeps, seed, chunk, verbose: as of `forward_log_z`.

    Returns:
        An `Estimate`.

    Raises:
        ValueError: a count is not positive, or `left` is not binary or of another
            shape.
    """
    left = np.asarray(left, np.float32)
    if left.ndim != 2 or left.shape[1] != rbm.num_left or not len(left):
        raise checks.refusal(
            checks.array_rule("left", "numbers", [rbm.num_left]),
            f"shape={left.shape}",
            "They are the left sides of draws: `rbm.split(rbm.gibbs(...))[0]`.",
        )
    if not np.isin(left, (0, 1)).all():
        raise checks.refusal(checks.binary_rule("left"), "others")
    seeds = sampling.row_seeds(seed, len(left))
    annealing = _Annealing("reverse", num_temperatures, num_sweeps, chunk, verbose)
    log_weights = annealing.run(rbm, seeds, left)
    way_back = _estimate(0.0, log_weights)
    return dataclasses.replace(way_back, value=_uniform_log_z(rbm) - way_back.value)


def bracket_log_z(
    rbm,
    *,
    num_chains=1_000,
    num_temperatures=1_000,
    num_sweeps=1,
    num_updates=NUM_UPDATES,
    seed=0,
    chunk=1_000,
    verbose=0,
):
    """Estimate log Z both ways.

    Args:
        rbm: the `RBM`.
        num_updates: int. Gibbs updates, from fair bits, of the draws that the reverse
            way starts from. Too few of them, and the upper estimate is not one.
        num_chains, num_temperatures, num_sweeps, seed, chunk, verbose: as of
            `forward_log_z`.

    Returns:
        A `Bracket`.

    Raises:
        ValueError: a count is not positive.
    """
    num_chains = checks.integer("num_chains", num_chains)
    options = {
        "num_temperatures": num_temperatures,
        "num_sweeps": num_sweeps,
        "seed": seed,
        "chunk": chunk,
        "verbose": verbose,
    }
    forward = forward_log_z(rbm, num_chains=num_chains, **options)
    left = _equilibrated(rbm, num_chains, num_updates, seed, chunk)
    return Bracket(forward, reverse_log_z(rbm, left, **options))


def _equilibrated(rbm, num_chains, num_updates, seed, chunk):
    """Left sides of draws by Gibbs sampling, `[num_chains, left]`."""
    updates = tf.constant(checks.integer("num_updates", num_updates))
    seeds = sampling.row_seeds(seed, num_chains)
    parts = [
        _draws(rbm.parameters_now(), tf.constant(seeds[rows]), updates)[:num]
        for rows, num in sampling.padded_batches(num_chains, [min(chunk, num_chains)])
    ]
    return tf.concat(parts, axis=0)


def _uniform_log_z(rbm):
    return (rbm.num_left + rbm.num_right) * math.log(2)


def _estimate(base, log_weights):
    """`base + log mean w`; its error by the delta method."""
    largest = log_weights.max()
    weights = np.exp(log_weights - largest)
    num = len(weights)
    size = float(weights.sum() ** 2 / (weights**2).sum())
    # The variance of w over its squared mean is num / size - 1.
    error = math.sqrt(max(num / size - 1, 0) / (num - 1)) if num > 1 else math.nan
    return Estimate(float(base + largest + np.log(weights.mean())), error, size)


class _Annealing:
    """Chains from one end of the temperatures to the other."""

    def __init__(self, direction, num_temperatures, num_sweeps, chunk, verbose):
        num_temperatures = checks.integer("num_temperatures", num_temperatures)
        self._num_sweeps = checks.integer("num_sweeps", num_sweeps)
        self._total = num_temperatures * self._num_sweeps
        self._chunk = checks.integer("chunk", chunk)
        self._verbose = checks.choice("verbose", verbose, (0, 1))
        self._name = f"annealing_{direction}"
        steps = np.arange(num_temperatures + 1) / num_temperatures
        steps = steps if direction == "forward" else steps[::-1]
        self._inverse_temperatures = tf.constant(steps, tf.float32)

    def run(self, rbm, seeds, left=None):
        """Log weights of the chains, float64 `[num_chains]`.

        Args:
            rbm: the `RBM`.
            seeds: int64 `[num_chains]`.
            left: float32 `[num_chains, left]`, to start from; fair bits where `None`.
        """
        parameters = rbm.parameters_now()
        progress = None
        if self._verbose:
            total = len(seeds) * self._total
            progress = terminal.Progress(total, f"sweeps ({self._name})")
        done, log_weights = 0, []
        chunk = min(self._chunk, len(seeds))
        for rows, num in sampling.padded_batches(len(seeds), [chunk]):
            keys = tf.constant(seeds[rows])
            state = rbm.first_chains(keys) if left is None else left[rows]
            state = tf.convert_to_tensor(state)
            log_weight = tf.zeros([len(rows)], tf.float64)
            for index in range(0, self._total, _SWEEPS_PER_BLOCK):
                state, log_weight = _anneal(
                    parameters,
                    self._inverse_temperatures,
                    keys,
                    state,
                    log_weight,
                    first=tf.constant(index),
                    num_sweeps=tf.constant(self._num_sweeps),
                    name=self._name,
                )
                if progress:
                    sweeps = min(index + _SWEEPS_PER_BLOCK, self._total)
                    progress.update(done + num * sweeps)
            done += num * self._total
            log_weights.append(log_weight.numpy()[:num])
        return np.concatenate(log_weights)


# Traced once for the sizes and the number of temperatures, not once a call.
@tf.function(autograph=False)
def _anneal(
    parameters,
    inverse_temperatures,
    seeds,
    left,
    log_weight,
    *,
    first,
    num_sweeps,
    name,
):
    """A block of sweeps, from the one of index `first` on."""
    rbm = RBM(*parameters)
    total = num_sweeps * (tf.size(inverse_temperatures) - 1)
    stop = tf.minimum(first + _SWEEPS_PER_BLOCK, total)
    block = sampling.fold_in(seeds, first // _SWEEPS_PER_BLOCK)
    shape = [_SWEEPS_PER_BLOCK, rbm.num_left + rbm.num_right]
    uniforms = sampling.row_uniforms(block, shape, name)

    def sweep(index, left, log_weight):
        step = index // num_sweeps
        before, now = inverse_temperatures[step], inverse_temperatures[step + 1]
        log_weight = tf.cond(
            index % num_sweeps == 0,
            lambda: log_weight + _gain(rbm, left, before, now),
            lambda: log_weight,
        )
        left, _ = rbm.sweep(left, rbm.split(uniforms[:, index - first]), now)
        return index + 1, left, log_weight

    _, left, log_weight = tf.while_loop(
        lambda index, *_: index < stop,
        sweep,
        (first, left, log_weight),
        parallel_iterations=1,
    )
    return left, log_weight


@tf.function(autograph=False)
def _draws(parameters, seeds, num_updates):
    rbm = RBM(*parameters)
    return rbm.split(rbm.gibbs(seeds, num_updates=num_updates))[0]


def _gain(rbm, left, before, now):
    """`F_now(left) - F_before(left)`, differences first, to lose few digits."""
    logits = rbm.right_logits(left)
    gains = tf.nn.softplus(now * logits) - tf.nn.softplus(before * logits)
    bias = (now - before) * tf.linalg.matvec(left, rbm.left_bias)
    return tf.cast(bias + tf.reduce_sum(gains, axis=-1), tf.float64)
