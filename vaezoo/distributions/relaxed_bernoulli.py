"""Binary latents and their relaxation to the unit interval.

From logits l and a uniform rho,

    z    = 1 where l + logit(rho) > 0, else 0        a draw of Bernoulli(sigmoid(l))
    zeta = sigmoid((l + logit(rho)) / tau)           its relaxation, z for tau to 0

In training the formulas of z are evaluated at zeta (Khoshaman and Amin, 2018,
"GumBolt"). What comes of it is a surrogate with a low-variance gradient: no density of
zeta, no bound. `tfp.distributions.RelaxedBernoulli` scores zeta by its own density, and
draws its noise itself, so it is another thing.
"""

import tensorflow as tf

from vaezoo import checks

_HALF_STEP = 2.0**-24  # of float32 uniforms: moves them from [0, 1) into (0, 1)


def discrete(logits, uniforms):
    """Draws z: the limit of `relaxed` for temperature to 0 on the same noise.

    Args:
        logits: float `[batch, ...]`.
        uniforms: float32 in [0, 1), of the same shape.

    Returns:
        float32 0 and 1, of the same shape; no gradient.
    """
    uniforms = uniforms + _HALF_STEP
    above = uniforms > tf.sigmoid(-tf.cast(logits, tf.float32))
    return tf.stop_gradient(tf.cast(above, tf.float32))


def relaxed(logits, uniforms, temperature):
    """Relaxed draws zeta, differentiable in the logits.

    Args:
        logits: float `[batch, ...]`.
        uniforms: float32 in [0, 1), of the same shape.
        temperature: float, or float32 scalar, above 0: tau.

    Returns:
        float32 in [0, 1], of the same shape.

    Raises:
        ValueError: the temperature is a number, and not positive.
    """
    if not tf.is_tensor(temperature):
        checks.number("temperature", temperature, above=0)
    uniforms = uniforms + _HALF_STEP
    noise = tf.math.log(uniforms) - tf.math.log1p(-uniforms)
    return tf.sigmoid((tf.cast(logits, tf.float32) + noise) / temperature)


def path_log_prob(logits, values):
    """`sum of z l - softplus(l)`, whose gradient flows through the values alone.

    PixelVAE++, appendix B: the score, the gradient through the logits at fixed values,
    has mean zero for draws and is left out.

    Args:
        logits: float `[batch, size]`.
        values: float32 `[batch, size]`, binary or relaxed.

    Returns:
        float32 `[batch]`, nats.
    """
    logits = tf.stop_gradient(tf.cast(logits, tf.float32))
    return tf.reduce_sum(values * logits - tf.nn.softplus(logits), axis=-1)


def relaxed_kl(logits, values, rbm, chains):
    """The surrogate of `KL(q || RBM)` to train on: `log q + E + log Z`, relaxed.

    Gradients: of the logits through `values` alone, of the RBM through E at `values`
    and through log Z at the chains. The value is off by a constant of the weights (see
    `RBM.log_z_surrogate`), and is no KL divergence.

    Args:
        logits: float `[batch, left + right]`, of q.
        values: float32 `[batch, left + right]`, relaxed draws from them.
        rbm: the `RBM`.
        chains: `[num_chains, left]`, its persistent chains.

    Returns:
        float32 `[batch]`.
    """
    log_q = path_log_prob(logits, values)
    return log_q + rbm.energy(values) + rbm.log_z_surrogate(chains)
