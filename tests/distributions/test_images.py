"""The distributions over images, by enumeration."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tiny
from vaezoo.decoders.gated_pixelcnn import GatedPixelCNN
from vaezoo.decoders.pixelcnn import PixelCNN
from vaezoo.distributions import heads
from vaezoo.distributions import images as image_distributions

SHAPE = (2, 2, 3)


# network, head, arguments of the network
DECODERS = {
    "gated": (GatedPixelCNN, heads.Bernoulli(3), {}),
    "plain": (PixelCNN, heads.Bernoulli(3), {}),
    "fame": (
        PixelCNN,
        heads.Categorical(3, levels=2),
        {"block_size": 2, "normalized": False},
    ),
}


@pytest.fixture(scope="module", params=DECODERS)
def tiny_image(request):
    """An autoregressive distribution over the 4,096 binary 2x2x3 images."""
    tf.keras.utils.set_random_seed(3)
    cls, head, options = DECODERS[request.param]
    network = cls(
        num_colours=3,
        num_outputs=head.num_outputs,
        filters=6,
        num_layers=3,
        kernel_size=3,
        first_kernel_size=3,
        head_filters=(6,),
        **options,
    )
    network(tf.zeros([1, *SHAPE]))
    for layer in network._flatten_layers(include_self=False):
        if getattr(layer, "gain", None) is not None:
            # Far from uniform: every pixel matters.
            layer.gain.assign(3.0 * tf.ones_like(layer.gain))
    return lambda batch: image_distributions.AutoregressiveImage(
        network, head, image_shape=SHAPE, batch_size=batch
    )


def every_image():
    bits = np.array(list(itertools.product([0, 1], repeat=math.prod(SHAPE))), np.uint8)
    return bits.reshape(-1, *SHAPE)


def test_probabilities_sum_to_one(tiny_image):
    log_probs = tiny_image(4096).log_prob(every_image()).numpy().astype(np.float64)
    assert np.exp(log_probs).sum() == pytest.approx(1.0, abs=1e-5)
    assert np.exp(log_probs).max() > 10 / 4096  # not just the uniform distribution


def test_samples_follow_the_probabilities(tiny_image):
    """Chi-square of 40,000 seeded draws; fails by chance once in 1,000 seeds."""
    log_probs = tiny_image(4096).log_prob(every_image()).numpy().astype(np.float64)
    probabilities = np.exp(log_probs)
    num = 40_000
    uniforms = tf.random.stateless_uniform([num, 2, 2, 3], seed=[1, 2])
    draws = tf.function(tiny_image(num).draw)(uniforms).numpy()
    index = draws.reshape(num, -1) @ (1 << np.arange(12)[::-1])
    counts = np.bincount(index, minlength=4096)
    expected = num * probabilities / probabilities.sum()
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_sample_shapes(tiny_image):
    distribution = tiny_image(2)
    draws = distribution.sample(3, seed=(1, 2))
    assert draws.shape == (3, 2, *SHAPE) and draws.dtype == tf.uint8
    assert distribution.event_shape == SHAPE and distribution.batch_shape == [2]
    np.testing.assert_array_equal(draws, distribution.sample(3, seed=(1, 2)))
    assert np.any(draws[0] != draws[1])


def test_bernoulli_head_is_stable_and_differentiable():
    """Extreme logits give finite nats and finite gradients."""
    logits = tf.constant([[-200.0], [200.0], [0.0]])
    head = heads.Bernoulli(1)
    for value in (0.0, 1.0):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            nats = head.log_prob(logits, tf.fill([3, 1], value))
        gradient = tape.gradient(nats, logits)
        assert np.all(np.isfinite(nats)) and np.all(np.isfinite(gradient))
    assert float(nats[2]) == pytest.approx(-math.log(2))


def test_categorical_head_scores_what_it_draws():
    """Inverse CDF: the share of a grid of uniforms that gives a level is its mass."""
    head = heads.Categorical(3, levels=5)
    params = tf.random.stateless_normal([1, 15], seed=[0, 0]) * 2
    logits = params.numpy().reshape(5, 3)  # output k: level k // 3 of channel k mod 3
    mass = np.exp(logits) / np.exp(logits).sum(0)
    num = 10_000
    grid = (tf.range(num, dtype=tf.float32) + 0.5)[:, None] / num
    for channel in range(3):
        drawn = head.draw(
            tf.repeat(params, num, 0),
            tf.repeat(grid, 3, 1),
            values=tf.zeros([num, 3]),
            step=channel,
            temperature=tf.ones([num, 1]),
        ).numpy()
        shares = np.bincount(drawn[:, channel].astype(int), minlength=5) / num
        np.testing.assert_allclose(shares, mass[:, channel], atol=2e-4)
        assert np.all(np.delete(drawn, channel, axis=1) == 0)
    values = tf.constant([[0.0, 3.0, 4.0]])
    expected = np.log(mass[[0, 3, 4], [0, 1, 2]]).sum()
    np.testing.assert_allclose(head.log_prob(params, values), [expected], rtol=1e-5)


@pytest.mark.parametrize("logit", [-300.0, 0.0, 300.0])
def test_categorical_head_at_the_ends(logit):
    """A uniform of 0 or just below 1 draws a level of the range, whatever the mass."""
    head = heads.Categorical(1, levels=256)
    params = tf.concat([tf.fill([1, 1], logit), tf.zeros([1, 255])], axis=1)
    for uniform in (0.0, float(np.nextafter(np.float32(1), np.float32(0)))):
        drawn = head.draw(
            params,
            tf.constant([[uniform]]),
            values=tf.zeros([1, 1]),
            step=0,
            temperature=tf.ones([1, 1]),
        )
        nats = head.log_prob(params, drawn)
        assert 0 <= float(drawn[0, 0]) <= 255 and np.isfinite(nats[0])
        assert float(nats[0]) > -20  # never a level of no mass


def test_uniform_categorical_is_eight_bits_a_dimension():
    head = heads.Categorical(3)
    nats = head.log_prob(tf.zeros([1, 768]), tf.constant([[0.0, 128.0, 255.0]]))
    assert float(nats[0]) / (3 * math.log(2)) == pytest.approx(-8.0)


def test_temperature_sharpens():
    """Logits / T: cold draws are the likely ones, hot draws are fair coins."""
    head = heads.Bernoulli(1)
    uniforms = tf.random.stateless_uniform([20_000, 1], seed=[0, 0])
    for temperature in (0.25, 1.0, 4.0):
        draws = head.draw(
            tf.fill([20_000, 1], 1.0),
            uniforms,
            values=tf.zeros([20_000, 1]),
            step=0,
            temperature=tf.fill([20_000, 1], temperature),
        )
        probability = 1 / (1 + math.exp(-1.0 / temperature))
        # Five standard deviations of a mean of 20,000 coins.
        assert np.mean(draws) == pytest.approx(probability, abs=5 * 0.5 / 20_000**0.5)


def test_independent_image_scores_what_it_draws():
    model = tiny.shared("vae")
    distribution = tiny.likelihood(model, 1)
    probabilities = tf.sigmoid(distribution.params(None))[0]
    num = 4000
    uniforms = tf.random.stateless_uniform([num, 8, 8, 1], seed=[5, 5])
    repeated = image_distributions.IndependentImage(
        tf.repeat(distribution.params(None), num, axis=0),
        heads.Bernoulli(1),
        image_shape=model.image_shape,
    )
    draws = repeated.draw(uniforms).numpy()
    # 64 pixels, each within five standard deviations.
    assert np.abs(draws.mean(0) - probabilities).max() < 5 * 0.5 / num**0.5
    expected = stats.bernoulli.logpmf(draws, probabilities.numpy()).sum((1, 2, 3))
    np.testing.assert_allclose(repeated.log_prob(draws), expected, rtol=1e-4)
