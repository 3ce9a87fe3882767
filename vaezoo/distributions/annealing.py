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
    raise NotImplementedError


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
    raise NotImplementedError


def bracket_log_z(
    rbm,
    *,
    num_chains=1_000,
    num_temperatures=1_000,
    num_sweeps=1,
    num_updates=2_000,
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
    raise NotImplementedError
