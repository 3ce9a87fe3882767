"""Units of likelihoods."""

import math


def bits_per_dim(nats, num_dims):
    """Bits a dimension of a log-likelihood: `-nats / (num_dims * log 2)`.

    Args:
        nats: a log-likelihood of an image, a number or an array or tensor of any shape.
        num_dims: int, values of the image: height x width x channels.

    Returns:
        As `nats`; lower is better.
    """
    return -nats / (num_dims * math.log(2.0))
