import numpy as np
import pytest
import tensorflow as tf

import tiny
from vaezoo import evaluation
from vaezoo.models.vlae_cifar import ConvVLAE

SMALL = {
    "latent_channels": 2,
    "widths": (4, 4),
    "flow_steps": 1,
    "flow_hidden_filters": (4,),
    "filters": 8,
    "num_components": 2,
}


def count(*layers):
    return sum(layer.count_params() for layer in layers)


def test_parameters_are_the_papers():
    """Encoder and decoder of 1.04 M each, six steps of a flow of 1.11 M."""
    model = ConvVLAE()
    assert model.latent_shapes == {"z": (8, 8, 16)}
    millions = [
        round(count(*layers) / 1e6, 2)
        for layers in ([model.encoder], [model.decoder], model.prior_flow)
    ]
    assert millions == [1.04, 1.04, 1.11]


@pytest.mark.parametrize("grayscale", [False, True])
@pytest.mark.parametrize(
    ("window", "left", "right", "above"),
    [("4x2", 2, 1, 2), ("5x3", 2, 2, 3), ("7x4", 3, 3, 4)],
)
def test_each_window_is_what_it_says(window, left, right, above, grayscale):
    """The rectangle above, the pixels to the left, and nothing else (T2)."""
    model = ConvVLAE(
        image_shape=(12, 12, 3), window=window, grayscale=grayscale, **SMALL
    )
    expected = np.zeros((12, 12), bool)
    expected[11 - above : 11, 6 - left : 6 + right + 1] = True
    expected[11, 6 - left : 6] = True
    np.testing.assert_array_equal(evaluation.receptive_field(model), expected)


def gradient_of_a_pixel(model, place):
    """How a pixel's parameters change with each channel, `[num, h, w, channels]`."""
    values, _ = model.generate(tf.range(4, dtype=tf.int64), temperature=tf.ones([4]))
    likelihood = model.likelihood(values)
    images = tf.constant(tiny.images_for(model, 4), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        probe = tf.reduce_sum(likelihood.params(images)[:, place[0], place[1]] ** 2)
    return tape.gradient(probe, images).numpy()


def test_a_grayscale_window_shows_no_colour():
    """Gradients by R, G and B are in the ratio of their luminance."""
    gradient = gradient_of_a_pixel(tiny.shared("conv_vlae_gray"), (5, 4))
    assert np.any(gradient)
    expected = gradient[..., :1] / 0.299 * [0.299, 0.587, 0.114]
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    coloured = gradient_of_a_pixel(tiny.shared("conv_vlae"), (5, 4))
    assert not np.allclose(
        coloured, coloured[..., :1] / 0.299 * [0.299, 0.587, 0.114], atol=1e-3
    )


def test_every_pixel_sees_the_code():
    """The first one too: the maps of z are not masked, and enter every block."""
    model = tiny.shared("conv_vlae")
    values, _ = model.generate(tf.range(4, dtype=tf.int64), temperature=tf.ones([4]))
    images = tf.constant(tiny.images_for(model, 4))
    with tf.GradientTape() as tape:
        tape.watch(values["z"])
        first = model.likelihood(values).params(images)[:, 0, 0]
    assert np.abs(tape.gradient(first, values["z"])).sum() > 0


def test_kl_under_a_flow_of_maps():
    """`log q(z | x) - log N(f^-1(z))`, the flow undone step by step (T6).

    Two steps share an order, and then it is reversed.
    """
    model = tiny.shared("conv_vlae")
    images = tiny.images_for(model, 3)
    values = model.encode(images, seed=7)["z"].numpy()
    features = model.features(tf.constant(images))
    scale = np.exp(features["log_scale"])
    standard = (values - features["loc"]) / scale
    noise = values
    for index, network in enumerate(model.prior_flow):
        noise = noise[:, ::-1, ::-1, ::-1] if index == 2 else noise
        noise = noise - network(tf.constant(noise.copy()))[0].numpy()

    def log_density(x):  # of N(0, I), without its constant, which cancels
        return -0.5 * np.sum(x**2, axis=(1, 2, 3))

    expected = log_density(standard) - np.sum(np.log(scale), axis=(1, 2, 3))
    expected -= log_density(noise)
    terms = model.elbo_terms(images, seed=7)
    np.testing.assert_allclose(terms["kl/z"], expected, atol=1e-3)


def test_draws_of_the_code_are_the_flows_of_their_noise():
    """Undone, the prior's draws are N(0, T^2): mean 0 and, pooled, its deviation."""
    model = tiny.shared("conv_vlae")
    seeds = tf.range(400, dtype=tf.int64)
    values, _ = model.generate(seeds, temperature=tf.fill([400], 0.5))
    noise = model.flow().inverse(values["z"]).numpy()
    assert np.abs(noise.mean()) < 4 * 0.5 / np.sqrt(noise.size)
    np.testing.assert_allclose(noise.std(), 0.5, rtol=4 / np.sqrt(2 * noise.size))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (30, 32, 3)}, "divisible by 4"),
        ({"image_shape": (32, 32, 1), "grayscale": True}, "three channels"),
        ({"window": "9x9"}, "`window` must be '4x2', '5x3' or '7x4'"),
        ({"encoder": "vgg"}, "`encoder` must be 'resnet' or 'densenet'"),
        ({"widths": (48,)}, "`widths` must be"),
        ({"flow_steps": 0}, "`flow_steps` must be"),
        ({"num_blocks": 1}, "`num_blocks` must be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvVLAE(**arguments)
