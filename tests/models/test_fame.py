"""FAME: what its paper says of this model and of no other."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tiny
from vaezoo import sampling
from vaezoo.layers import ladder
from vaezoo.models import batch_norm
from vaezoo.models.fame import FAME

GRAY = {"image_shape": (28, 28, 1), "levels": 2, "spatial": False}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (GRAY, 5_750_217),
        (GRAY | {"concatenate": False}, 5_747_081),
        ({}, 8_311_040),
        ({"concatenate": False}, 8_301_632),
    ],
)
def test_parameter_counts(arguments, expected):
    """Counted by hand from the layers of table 1; the paper prints no counts."""
    model = FAME(**arguments)
    assert sum(math.prod(v.shape) for v in model.trainable_variables) == expected


def test_shapes_go_down_and_back():
    """28-14-7-4-2-1 and back, the crop from 8 to 7 included."""
    model = FAME(**GRAY)
    hidden = tf.zeros([1, 28, 28, 1])
    sizes = []
    for layers in model.bottom_up:
        for layer in layers:
            hidden = layer(hidden)
        sizes.append(hidden.shape[1])
    assert sizes == [14, 7, 4, 2, 1]
    assert model.latent_shapes == {
        "z5": (4,),
        "z4": (8,),
        "z3": (16,),
        "z2": (32,),
        "z1": (64,),
    }
    back = [
        model._below(level, tf.zeros([1, model.latent_sizes[level - 1]]))[0].shape[1]
        for level in range(5, 0, -1)
    ]
    assert back == [2, 4, 7, 14, 28]
    natural = FAME()
    assert natural.latent_shapes == {
        "z5": (64,),
        "z4": (2, 2, 16),
        "z3": (4, 4, 16),
        "z2": (8, 8, 16),
        "z1": (16, 16, 8),
    }


def test_merge_is_the_normalised_product_of_two_gaussians():
    """T7: scales of 1 and 1 merge to 1 / sqrt 2, not to the 1 / 2 that eq. 9 prints."""
    normal = tfp.distributions.Normal
    loc, scale = ladder.merge_precisions(([0.3], [1.0]), ([1.1], [1.0]))
    np.testing.assert_allclose(scale, [1 / math.sqrt(2)], rtol=1e-6)
    np.testing.assert_allclose(loc, [0.7], rtol=1e-6)
    x = np.linspace(-3, 3, 50, dtype=np.float32)
    loc, scale = ladder.merge_precisions(([0.3], [0.7]), ([1.1], [2.0]))
    product = normal(0.3, 0.7).log_prob(x) + normal(1.1, 2.0).log_prob(x)
    difference = (product - normal(loc, scale).log_prob(x)).numpy()
    np.testing.assert_allclose(difference, difference[0], atol=1e-4)


def test_merge_at_the_extremes():
    """A posterior that knows nothing leaves the prior, KL 0; sharp ones are finite."""
    loc, scale = ladder.merge_precisions(([5.0], [1e8]), ([1.0], [0.5]))
    np.testing.assert_allclose([loc[0], scale[0]], [1.0, 0.5], rtol=1e-6)
    parameters = ladder.GaussianParameters(
        lambda name: tf.keras.layers.Lambda(lambda x: x, name=name)
    )
    loc, scale = parameters(tf.fill([1, 1], -30.0))
    assert float(scale[0, 0]) == pytest.approx(1e-4, rel=1e-3)
    merged = ladder.merge_precisions((loc, scale), (loc + 1, scale))
    assert np.all(np.isfinite(merged))


@pytest.mark.parametrize("name", ["fame", "fame_gray"])
def test_posteriors_follow_the_draw_above(name):
    """mu_i moves with the sampled z_{i+1}, and stays for the same draw."""
    model = tiny.shared(name)
    images = tf.constant(tiny.images_for(model, 1))
    features = model.features(images)
    first, second, again = (
        model.infer(features, seeds=tf.constant([seed], tf.int64))[0]
        for seed in (1, 2, 1)
    )
    for level in ("z1", "z2", "z3", "z4"):
        mean = first[level].posterior.mean()
        assert np.any(mean != second[level].posterior.mean())
        np.testing.assert_array_equal(mean, again[level].posterior.mean())
    top = first["z5"].posterior.mean()
    np.testing.assert_array_equal(top, second["z5"].posterior.mean())


@pytest.mark.parametrize("name", ["fame", "fame_gray"])
def test_kl_of_two_gaussians(name):
    """T10: each level's KL in closed form, and as the mean of the log ratio at draws.

    In the bound the log ratio counts, at the draw. Means of 4,000 draws within five
    standard errors.
    """
    model = tiny.shared(name)
    images = tiny.images_for(model, 3)
    seeds = sampling.fold_in(sampling.row_seeds(2, 3), 0)  # of the ELBO's one draw
    latents, _ = model.infer(model.features(tf.constant(images)), seeds=seeds)
    terms = model.elbo_terms(images, seed=2)
    total = np.zeros(3)
    for level, latent in latents.items():
        q, p = latent.posterior, latent.prior
        loc_q, scale_q, loc_p, scale_p = (
            np.reshape(x, [3, -1]).astype(np.float64)
            for x in (q.mean(), q.stddev(), p.mean(), p.stddev())
        )
        ratio = (scale_q / scale_p) ** 2
        distance = ((loc_q - loc_p) / scale_p) ** 2
        closed = 0.5 * np.sum(ratio + distance - 1 - np.log(ratio), axis=1)
        np.testing.assert_allclose(terms[f"kl/{level}"], closed, rtol=1e-3, atol=1e-4)
        total += closed
        draws = q.sample(4000, seed=1)
        ratios = q.log_prob(draws) - p.log_prob(draws)
        error = np.std(ratios, axis=0) / math.sqrt(4000)
        assert np.all(np.abs(np.mean(ratios, axis=0) - closed) < 5 * error + 1e-5)
        at_draw = q.log_prob(latent.value) - p.log_prob(latent.value)
        np.testing.assert_allclose(-latent.log_ratio(), at_draw, rtol=1e-5)
    np.testing.assert_allclose(terms["kl"], total, rtol=1e-3)


@pytest.mark.parametrize("name", ["fame", "fame_noconcat"])
def test_no_concatenation_sees_no_image(name):
    """T15: what a pixel adds to `log p(x | z)` does not depend on another pixel.

    With the image concatenated it does.
    """
    model = tiny.shared(name)
    distribution = tiny.likelihood(model, 3)
    image = tiny.images_for(model, 3)

    def log_prob(first, second):
        changed = image.copy()
        changed[:, 0, 0, 0], changed[:, 1, 1, 2] = first, second
        return distribution.log_prob(changed).numpy()

    interaction = log_prob(0, 0) - log_prob(4, 0) - log_prob(0, 4) + log_prob(4, 4)
    if name == "fame_noconcat":
        np.testing.assert_allclose(interaction, 0, atol=1e-4)
    else:
        assert np.all(np.abs(interaction) > 1e-3)
    gain = log_prob(0, 0) - log_prob(4, 0)  # and the pixels do count
    assert np.all(np.abs(gain) > 1e-3)


def test_context_is_an_optimisation():
    """`likelihood` from z1 alone is the distribution with the context."""
    model = tiny.shared("fame")
    seeds = tf.range(3, dtype=tf.int64)
    values, context = model.generate(seeds, temperature=tf.ones([3]))
    images = tiny.images_for(model, 3)
    np.testing.assert_allclose(
        model.likelihood(values, context=context).log_prob(images),
        model.likelihood(values).log_prob(images),
        rtol=1e-5,
    )


def test_recalibration_sets_the_statistics_to_their_means():
    """Of a layer that sees the images alone; every batch counts the same."""
    model = tiny.build("fame")
    images = tiny.images_for(model, 24)
    layer = model.bottom_up[0][0]
    moments = []
    for batch in (images[:8], images[8:16], images[16:]):
        inputs = model.head.normalize(tf.cast(batch, tf.float32))
        moments.append(tf.nn.moments(layer.layer(inputs), [0, 1, 2]))
    model.recalibrate_batch_norm(tf.data.Dataset.from_tensor_slices(images).batch(8))
    mean, variance = np.mean(moments, axis=0)
    np.testing.assert_allclose(layer.normalization.moving_mean, mean, atol=1e-5)
    np.testing.assert_allclose(layer.normalization.moving_variance, variance, rtol=1e-4)
    assert layer.normalization.momentum == 0.99
    # The pass in training and the one with the statistics now nearly agree.
    assert np.all(np.isfinite(model.elbo(images)))


def test_bad_input():
    with pytest.raises(ValueError, match="at least one batch"):
        tiny.build("fame").recalibrate_batch_norm(tf.data.Dataset.range(0))
    with pytest.raises(ValueError, match="has statistics to recalibrate"):
        batch_norm.recalibrate_batch_norm(tiny.shared("vae"), [])
    with pytest.raises(ValueError, match="`latent_sizes` must be .*z5"):
        FAME(latent_sizes=(8, 16))
    with pytest.raises(ValueError, match=r"`levels` must be an integer in 2\.\.256"):
        FAME(levels=1)
    colour, gray = tiny.shared("fame"), tiny.shared("fame_gray")
    with pytest.raises(ValueError, match="must be uint8"):
        colour.elbo(np.zeros((2, 4, 4, 1), np.uint8))
    with pytest.raises(ValueError, match="must be uint8"):
        gray.elbo(np.zeros((2, 6, 6, 3), np.uint8))
    with pytest.raises(ValueError, match="levels already"):
        colour.elbo(np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="image_shape="):
        colour.elbo(np.zeros((2, 8, 8, 3), np.uint8))
