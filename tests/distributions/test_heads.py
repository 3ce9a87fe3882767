"""How the output layer of a categorical head starts."""

import math

import numpy as np

from vaezoo.distributions.heads import Categorical


def test_a_smooth_kernel_is_smooth_over_the_levels_of_each_colour():
    """A step of one level changes a logit by a fraction of its spread."""
    head = Categorical(3)
    kernel = head.smooth_kernel((1, 1, 64, head.num_outputs)).numpy()
    logits = kernel.reshape(64, 256, 3)  # output k is level k // 3 of colour k mod 3
    steps = np.abs(np.diff(logits, axis=1)).mean()
    assert steps < 0.15 * logits.std()
    shuffled = np.random.default_rng(0).permutation(logits.transpose(1, 0, 2))
    assert np.abs(np.diff(shuffled, axis=0)).mean() > 0.8 * logits.std()
    # N(0, 0.18^2) amplitudes of cos(m ...) / m: the variance is 0.18^2 / 2 sum 1/m^2.
    expected = 0.18 * math.sqrt(sum(m**-2 for m in range(1, 64)) / 2)
    np.testing.assert_allclose(logits.std(), expected, rtol=0.05)
    np.testing.assert_allclose(logits.mean(axis=1), 0.0, atol=1e-4)
    # Colours are drawn apart.
    assert abs(np.corrcoef(logits[..., 0].ravel(), logits[..., 1].ravel())[0, 1]) < 0.2


def test_logits_of_the_levels_are_their_log_frequencies():
    head = Categorical(2, levels=4)
    images = np.zeros((2, 3, 3, 2), np.uint8)
    images[..., 1] = 3
    logits = head.level_logits(images).numpy().reshape(4, 2)
    expected = np.log(np.array([[19, 1], [1, 1], [1, 1], [1, 19]]) / 22)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
