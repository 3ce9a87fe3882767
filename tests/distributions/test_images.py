"""The distributions over images, by enumeration."""

import math
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tiny
from vaezoo.decoders.gated_pixelcnn import GatedPixelCNN
from vaezoo.decoders.pixelcnn import PixelCNN
from vaezoo.decoders.pixelcnnpp import PixelCNNPPNetwork
from vaezoo.distributions import heads
from vaezoo.distributions import images as image_distributions


def masked(cls, head, **options):
    """A masked network for the head of three colours."""
    return cls(
        num_colours=3,
        num_outputs=head.num_outputs,
        filters=6,
        num_layers=3,
        kernel_size=3,
        first_kernel_size=3,
        head_filters=(6,),
        **options,
    )


def pixelcnnpp(head, *, strided):
    return PixelCNNPPNetwork(
        num_outputs=head.num_outputs, filters=5, num_resnets=1, strided=strided
    )


# image shape, head, function of it to the network, gain of the network's layers
DECODERS = {
    "gated": ((2, 2, 3), heads.Bernoulli(3), partial(masked, GatedPixelCNN), 3.0),
    "plain": ((2, 2, 3), heads.Bernoulli(3), partial(masked, PixelCNN), 3.0),
    "fame": (
        (2, 2, 3),
        heads.Categorical(3, levels=2),
        partial(masked, PixelCNN, block_size=2, normalized=False),
        3.0,
    ),
    "pixelcnnpp": (
        (2, 2, 3),
        heads.LogisticMixture(3, levels=2, num_components=3),
        partial(pixelcnnpp, strided=False),
        1.5,
    ),
    "pixelcnnpp_strided": (
        (4, 4, 1),
        heads.LogisticMixture(1, levels=2, num_components=3),
        partial(pixelcnnpp, strided=True),
        2.0,
    ),
    "pixelcnnpp_strided_binary": (
        (4, 4, 1),
        heads.Bernoulli(1),
        partial(pixelcnnpp, strided=True),
        2.0,
    ),
}


def strided_slow(names):
    marks = [pytest.mark.slow]
    return [
        pytest.param(name, marks=marks if "strided" in name else []) for name in names
    ]


@pytest.fixture(scope="module", params=strided_slow(DECODERS))
def tiny_image(request):
    """An autoregressive distribution over the images of 2 levels of a tiny shape.

    There are 4,096 of them, or 65,536.
    """
    tf.keras.utils.set_random_seed(3)
    shape, head, network_for, gain = DECODERS[request.param]
    network = network_for(head)
    network(tf.zeros([1, *shape]))
    for layer in network._flatten_layers(include_self=False):
        if getattr(layer, "gain", None) is not None:
            # Far from uniform: every pixel matters.
            layer.gain.assign(gain * tf.ones_like(layer.gain))
    return lambda batch: image_distributions.AutoregressiveImage(
        network, head, image_shape=shape, batch_size=batch
    )


def every_image(shape):
    bits = np.arange(2 ** math.prod(shape))[:, None] >> np.arange(math.prod(shape))
    return (bits[:, ::-1] & 1).astype(np.uint8).reshape(-1, *shape)


def log_probs_of_all(tiny_image):
    images = every_image(tiny_image(1).event_shape)
    return tiny_image(len(images)).log_prob(images).numpy().astype(np.float64)


def test_probabilities_sum_to_one(tiny_image):
    probabilities = np.exp(log_probs_of_all(tiny_image))
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-5)
    # Not just the uniform distribution.
    assert probabilities.max() > 10 / len(probabilities)


def test_samples_follow_the_probabilities(tiny_image):
    """Chi-square of 40,000 seeded draws; fails by chance once in 1,000 seeds."""
    probabilities = np.exp(log_probs_of_all(tiny_image))
    num = 40_000
    distribution = tiny_image(num)
    shape = [num, *distribution.noise_shape]
    uniforms = tf.random.stateless_uniform(shape, seed=[1, 2])
    draws = tf.function(distribution.draw)(uniforms).numpy().reshape(num, -1)
    index = draws @ (1 << np.arange(draws.shape[1])[::-1])
    counts = np.bincount(index, minlength=len(probabilities))
    expected = num * probabilities / probabilities.sum()
    common = expected >= 5
    assert expected[common].sum() > num / 2
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("tiny_image", ["gated", "plain", "fame"], indirect=True)
def test_sample_shapes(tiny_image):
    distribution = tiny_image(2)
    draws = distribution.sample(3, seed=(1, 2))
    shape = distribution.event_shape
    assert draws.shape == (3, 2, *shape) and draws.dtype == tf.uint8
    assert distribution.batch_shape == [2]
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
