"""Likelihood heads: how they start, what they score, what they draw."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from vaezoo.distributions import heads


def test_a_smooth_kernel_is_smooth_over_the_levels_of_each_colour():
    """A step of one level changes a logit by a fraction of its spread."""
    head = heads.Categorical(3)
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
    head = heads.Categorical(2, levels=4)
    images = np.zeros((2, 3, 3, 2), np.uint8)
    images[..., 1] = 3
    logits = head.level_logits(images).numpy().reshape(4, 2)
    expected = np.log(np.array([[19, 1], [1, 1], [1, 1], [1, 19]]) / 22)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


EXTREMES = {
    "usual": (0.0, 1.0),
    "sharp": (0.0, -20.0),
    "wide": (0.0, 6.0),
    "far below": (-9.0, -7.0),
    "far above": (9.0, -7.0),
    "flat": (0.0, 100.0),
    "flatter": (-3e38, 3e38),
    "nowhere below": (-3e38, -3e38),
    "nowhere above": (3e38, 1.0),
}


def logistic_params(head, loc, log_scale, num=1):
    """Parameters of a head of logistics, all of whose channels are alike but a bit."""
    generator = np.random.default_rng(0)
    if isinstance(head, heads.Logistic):
        params = [loc] * head.num_channels + [log_scale] * head.num_channels
        return tf.constant([params] * num, tf.float32)
    count = head.num_components
    jitter = generator.normal(size=(num, head.num_outputs // count, count))
    channels = head.num_channels
    jitter[:, 1 : 1 + channels] = loc + 0.2 * jitter[:, 1 : 1 + channels]
    jitter[:, 1 + channels : 1 + 2 * channels] = log_scale
    if abs(loc) > 1e30:  # the other parameters too
        jitter[:, 0] = [-3e38, 3e38, 0.0, 3e38]
        jitter[:, 1 + 2 * channels :] *= 3e37
    return tf.constant(jitter.reshape(num, -1), tf.float32)


def logistic_heads(channels, levels):
    return {
        "mixture": heads.LogisticMixture(channels, levels, num_components=4),
        "single": heads.Logistic(channels, levels),
    }


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("levels", [2, 5, 256])
@pytest.mark.parametrize("kind", ["mixture", "single"])
def test_logistics_sum_to_one(kind, levels, extreme):
    """Each channel over its levels, given the channels before it; within 1e-5."""
    head = logistic_heads(3, levels)[kind]
    params = logistic_params(head, *EXTREMES[extreme], num=levels)
    others = np.random.default_rng(1).integers(0, levels, 3)
    for channel in range(3):
        values = np.tile(others, (levels, 1))
        values[:, channel] = np.arange(levels)
        params = tf.repeat(params[:1], levels, 0)
        nats = head.channel_log_probs(params, tf.constant(values, tf.float32))
        total = np.exp(nats.numpy().astype(np.float64)[:, channel]).sum()
        assert total == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("kind", ["mixture", "single"])
def test_logistics_have_finite_gradients(kind, extreme):
    """At both ends of the levels and in the middle, however sharp, flat or far."""
    head = logistic_heads(3, 256)[kind]
    params = logistic_params(head, *EXTREMES[extreme], num=3)
    values = tf.constant([[0.0] * 3, [255.0] * 3, [100.0] * 3])
    with tf.GradientTape() as tape:
        tape.watch(params)
        nats = head.log_prob(params, values)
    gradient = tape.gradient(nats, params)
    assert np.all(np.isfinite(nats)) and np.all(np.isfinite(gradient))


def test_mixture_is_tfps():
    """Of one channel, inside the levels: TFP's quantised logistics, to 1e-4 nats.

    Their bin of a level is below it, so the location moves by half a level.
    """
    tfd = tfp.distributions
    head = heads.LogisticMixture(1, 256, num_components=4)
    params = logistic_params(head, 0.1, -3.0)
    logits, loc, log_scale = tf.split(params, 3, axis=-1)
    half = 127.5
    levels = tfd.QuantizedDistribution(
        tfd.Logistic((loc + 1.0) * half - 0.5, tf.exp(log_scale) * half)
    )
    theirs = tfd.MixtureSameFamily(tfd.Categorical(logits=logits), levels)
    values = tf.range(90.0, 190.0)
    ours = head.log_prob(tf.repeat(params, 100, 0), values[:, None])
    np.testing.assert_allclose(ours, theirs.log_prob(values[:, None])[:, 0], atol=1e-4)


def test_a_level_has_the_mass_of_its_bin():
    """By numeric integration of the logistic's density, within 1e-5 of the mass."""
    head = heads.Logistic(1, 5)
    params = tf.constant([[0.3, -0.5]])
    grid = -30 + 1e-4 * (np.arange(600_000) + 0.5)
    density = stats.logistic.pdf(grid, 0.3, math.exp(-0.5))
    nearest = np.clip(np.round((grid + 1) * 2), 0, 4)
    for level in range(5):
        mass = density[nearest == level].sum() * 1e-4
        nats = head.log_prob(params, tf.constant([[float(level)]]))
        assert math.exp(float(nats[0])) == pytest.approx(mass, abs=1e-5)


def test_without_edge_bins_mass_is_left_out():
    """The IAF authors' likelihood: 0.603 of the mass at a location of 5, scale 12."""
    head = heads.Logistic(1, 256, edge_bins=False)
    scaled = 2.0 / 255
    params = tf.constant([[5 * scaled - 1, math.log(12 * scaled)]])
    values = tf.range(256.0)[:, None]
    nats = head.log_prob(tf.repeat(params, 256, 0), values)
    assert np.exp(nats.numpy()).sum() == pytest.approx(0.603, abs=0.02)
    whole = heads.Logistic(1, 256).log_prob(tf.repeat(params, 256, 0), values)
    np.testing.assert_array_equal(nats[1:-1], whole[1:-1])


@pytest.mark.parametrize("kind", ["mixture", "single"])
def test_logistics_score_what_they_draw(kind):
    """Chi-square of 100,000 seeded draws of two channels of 4 levels, all 16 cells.

    Fails by chance once in 1,000 seeds.
    """
    head = logistic_heads(2, 4)[kind]
    params = logistic_params(head, -0.2, -1.0)
    num = 100_000
    uniforms = tf.random.stateless_uniform([num, head.num_uniforms], seed=[1, 2])
    drawn = head.draw(
        tf.repeat(params, num, 0),
        uniforms,
        values=tf.zeros([num, 2]),
        step=0,
        temperature=tf.ones([num, 1]),
    ).numpy()
    cells = np.array(list(itertools.product(range(4), repeat=2)), np.float32)
    nats = head.log_prob(tf.repeat(params, 16, 0), tf.constant(cells))
    masses = np.exp(nats.numpy().astype(np.float64))
    counts = np.bincount((drawn @ [4, 1]).astype(int), minlength=16)
    assert stats.chisquare(counts, num * masses / masses.sum()).pvalue > 1e-3


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("kind", ["mixture", "single"])
def test_logistics_at_the_ends_of_the_noise(kind, extreme):
    """A uniform of 0, 1/2 or just below 1 draws a level of the range, with some mass.

    The temperature does not make it another.
    """
    head = logistic_heads(3, 256)[kind]
    params = logistic_params(head, *EXTREMES[extreme])
    uniforms = (0.0, 0.5, float(np.nextafter(np.float32(1), np.float32(0))))
    for uniform, temperature in itertools.product(uniforms, (0.1, 1.0, 10.0)):
        drawn = head.draw(
            params,
            tf.fill([1, head.num_uniforms], uniform),
            values=tf.zeros([1, 3]),
            step=0,
            temperature=tf.fill([1, 1], temperature),
        )
        assert np.all((drawn >= 0) & (drawn <= 255))
        assert np.isfinite(head.log_prob(params, drawn))
