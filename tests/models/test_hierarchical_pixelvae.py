"""The hierarchical PixelVAE: what its paper says of this model and of no other."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tiny
from vaezoo.distributions import heads
from vaezoo.distributions import images as image_distributions
from vaezoo.evaluation import receptive_field
from vaezoo.models import computations
from vaezoo.models.hierarchical_pixelvae import HierarchicalPixelVAE
from vaezoo.zoo import weights

SMALL_64 = {
    "widths": (64, 64, 128, 256, 512),
    "pixel_filters": 128,
    "prior_filters": 256,
}
BIG_32 = {
    "image_shape": (32, 32, 3),
    "widths": (128, 256, 512, 512),
    "depths": (2, 2, 3, 3),
    "z1_channels": 128,
    "pixel_filters": 256,
    "num_blocks": 2,
    "embedding_size": 0,
}
SMALL_32 = {
    "image_shape": (32, 32, 3),
    "widths": (64, 128, 256, 512),
    "depths": (2, 2, 3, 3),
    "pixel_filters": 128,
    "num_blocks": 2,
}
ONE_LEVEL_64 = {"z1_channels": 0, "depths": (1, 2, 2, 2, 2)}
MNIST_256 = {
    "image_shape": (28, 28, 1),
    "widths": (16, 32, 32),
    "depths": (1, 2, 2),
    "z1_channels": 0,
    "z2_size": 128,
    "pixel_filters": 32,
    "num_blocks": 4,
    "embedding_size": 0,
    "pooled": True,
}


def tiny_model(*, initialized=True, **changes):
    """A tiny model with changed arguments, initialised on random images."""
    keras.utils.set_random_seed(0)
    cls, arguments = tiny.CONFIGURATIONS["pixelvae2"]
    model = cls(**arguments | changes)
    if initialized:
        model.initialize(tiny.images_for(model, 32))
    return model


@pytest.fixture(scope="module")
def embedded():
    """A tiny model whose levels have vectors, and whose first block adds the maps."""
    return tiny_model(embedding_size=3, pixel_filters=8)


def num_parameters(model):
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


# Sizes.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "millions", "z1"),
    [
        (SMALL_32, 83.27, (8, 8, 64)),
        (BIG_32, 156.89, (8, 8, 128)),
        (SMALL_64, 67.95, (16, 16, 64)),
        ({}, 212.14, (16, 16, 64)),
        (ONE_LEVEL_64, 134.32, None),
    ],
)
def test_parameter_counts(arguments, millions, z1):
    """Those of the authors' code, counted from its layers; see the specification."""
    model = HierarchicalPixelVAE(**arguments)
    assert num_parameters(model) / 1e6 == pytest.approx(millions, abs=0.006)
    assert model.latent_shapes == {"z2": (512,)} | ({"z1": z1} if z1 else {})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 15_383),
        ({"pixel_level_pixelcnn": False}, 12_104),
        ({"higher_level_pixelcnn": False}, 10_935),
        ({"pixel_level_pixelcnn": False, "higher_level_pixelcnn": False}, 7_656),
        ({"embedding_size": 3, "pixel_filters": 8}, 16_663),
        (MNIST_256 | {"levels": 256}, 591_184),
    ],
)
def test_parameter_counts_of_the_switches(changes, expected):
    """Counted from the layers, by hand."""
    assert num_parameters(tiny_model(initialized=False, **changes)) == expected


def test_z1_may_be_smaller():
    """The paper's text has it at 8x8 of 64x64, three halvings."""
    model = tiny_model(initialized=False, z1_halvings=2)
    assert model.latent_shapes == {"z2": (3,), "z1": (2, 2, 2)}


# No leak, by finite perturbations: levels have vectors.


def changed_one_by_one(images, levels):
    """Copies of an image `[h, w, c]`, with one (pixel, channel) changed in each."""
    size = images.size
    copies = np.repeat(images.reshape(1, -1), size, axis=0)
    places = np.arange(size)
    copies[places, places] = (copies[places, places] + 1) % levels
    return copies.reshape(size, *images.shape)


def test_no_leak_and_the_order_of_colours(embedded):
    """Of every (pixel, channel): no parameter of it or of those before it changes.

    Within a pixel, G sees R, and B sees both (T1, T3).
    """
    model = embedded
    height, width, channels = model.image_shape
    size = height * width * channels
    image = tiny.images_for(model, 1)[0]
    copies = changed_one_by_one(image, model.levels)
    values, _ = model.generate(tf.zeros([1], tf.int64), temperature=tf.ones([1]))
    maps = {key: np.repeat(value, size + 1, axis=0) for key, value in values.items()}
    params = model.likelihood(maps).params(np.concatenate([image[None], copies]))
    # Level after level, the colours of each: [copies, pixels * channels, levels].
    params = params.numpy().reshape(size + 1, height * width, model.levels, channels)
    params = params.swapaxes(2, 3).reshape(size + 1, size, model.levels)
    moved = np.abs(params[1:] - params[0]).max(-1)  # [from, to]
    assert np.all(moved[np.tril_indices(size)] < 1e-6)
    pixels = channels * np.arange(height * width)
    for before in range(channels):
        for after in range(before + 1, channels):
            assert np.all(moved[pixels + before, pixels + after] > 1e-6)


def test_the_gradient_sees_what_is_seen(embedded):
    """Through vectors of levels too: the field of 5x5-A and four 3x3-B."""
    scaled = receptive_field(tiny.shared("pixelvae2"))
    np.testing.assert_array_equal(receptive_field(embedded), scaled)
    # Of its own pixel G sees R; to the right, rows above.
    assert scaled[-1, :5].all() and not scaled[-1, 5:].any() and scaled[-2, 5]


def prior_and_maps(model, num=1, seed=0):
    """`p(z1 | z2)` for one draw of z2, repeated, and z1 of an image."""
    images = tiny.images_for(model, 1)
    seeds = tf.constant([seed], tf.int64)
    latents, _ = computations.posterior(model, tf.constant(images), seeds)
    z2, z1 = (np.repeat(latents[key].value, num, axis=0) for key in ("z2", "z1"))
    return model.z1_prior(tf.constant(z2)), z1


def test_the_prior_of_z1_sees_no_channel_of_its_own_place():
    """Perturbed at a place, its parameters there and before are what they were."""
    model = tiny.shared("pixelvae2")
    places = 16
    prior, z1 = prior_and_maps(model, places + 1)
    z1 = z1.reshape(places + 1, places, 2)
    z1[1 + np.arange(places), np.arange(places)] += 1.0
    normal = prior.normal(z1.reshape(-1, 4, 4, 2)).distribution
    parameters = np.concatenate([normal.loc, normal.scale], axis=-1)
    parameters = parameters.reshape(places + 1, places, 4)
    moved = np.abs(parameters[1:] - parameters[0]).max(-1)
    assert np.all(moved[np.tril_indices(places)] < 1e-6)
    following = np.arange(places - 1)
    assert np.all(moved[following, following + 1][np.arange(15) % 4 != 3] > 1e-6)


def test_no_batch_normalization_over_z1():
    """Statistics over places would show one those after it (T4)."""
    layers = tiny.shared("pixelvae2").prior_pixelcnn._flatten_layers()
    assert not any("BatchNorm" in type(layer).__name__ for layer in layers)


# The scan over maps.


@pytest.mark.parametrize("prior_filters", [8, 10])  # of which 10 adds the maps
def test_the_scan_of_z1_equals_the_naive_one(prior_filters):
    """From the same noise the same maps; and undone, they are that noise."""
    model = tiny.shared("pixelvae2")
    if prior_filters == 10:
        model = tiny_model(prior_filters=10)
    prior, _ = prior_and_maps(model, 3)
    noise = tf.random.stateless_normal([3, *prior.noise_shape], seed=[0, 1])
    temperature = tf.constant([1.0, 0.5, 2.0])

    @tf.function
    def draws(noise):
        options = {"temperature": temperature}
        return (
            prior.draw(noise, **options),
            prior.draw(noise, in_graph=True, **options),
            prior.draw_naively(noise, **options),
        )

    scanned, in_graph, naive = draws(noise)
    np.testing.assert_allclose(scanned, naive, atol=1e-5)
    np.testing.assert_allclose(in_graph, naive, atol=1e-5)
    normal = prior.normal(naive).distribution
    undone = (naive - normal.loc) / normal.scale
    expected = noise * temperature[:, None, None, None]
    np.testing.assert_allclose(undone, expected, atol=1e-4)


def test_samples_of_z1_are_of_the_prior():
    """`sample` of the distribution: float maps of normal noise."""
    prior, _ = prior_and_maps(tiny.shared("pixelvae2"), 2)
    maps = tf.function(lambda: prior.sample(3, seed=(0, 1)))()
    assert maps.shape == (3, 2, 4, 4, 2) and maps.dtype == tf.float32
    normal = prior.normal(maps[0]).distribution
    standard = (maps[0] - normal.loc) / normal.scale
    # 64 normal numbers: the mean of their squares is 1, within four deviations of it.
    assert np.mean(standard**2) == pytest.approx(1, abs=4 * (2 / 64) ** 0.5)


def test_a_levels_vector_is_scanned_as_it_is_scored(embedded):
    """With vectors, and a first block that adds the maps as they are."""
    distribution = tiny.likelihood(embedded, 2)
    uniforms = np.random.default_rng(1).uniform(size=(2, *distribution.noise_shape))
    uniforms = tf.constant(uniforms, tf.float32)
    cached = tf.function(distribution.draw)(uniforms)
    naive = tf.function(distribution.draw_naively)(uniforms)
    np.testing.assert_array_equal(cached, naive)


# The bound.


def test_kl_of_z1_is_of_the_draw():
    """In closed form at each place, given the draw of those before, not the mean."""
    model = tiny.shared("pixelvae2")
    images = tf.constant(tiny.images_for(model, 2))
    features = model.features(images)
    found = []
    for seed in (1, 2):
        seeds = {"z2": tf.constant([5, 6], tf.int64)}  # held
        seeds["z1"] = tf.constant([seed, seed + 2], tf.int64)
        latents, _ = model.infer(features, seeds=seeds)
        z1 = latents["z1"]
        found.append(z1.kl_divergence().numpy())
        scored = z1.prior.normal(z1.value).log_prob(z1.value)
        np.testing.assert_allclose(z1.prior.log_prob(z1.value), scored, rtol=1e-5)
        kls = [
            tfp.distributions.kl_divergence(z1.posterior, z1.prior.normal(value))
            for value in (z1.value, z1.posterior.mean())
        ]
        np.testing.assert_allclose(found[-1], kls[0], rtol=1e-5)
        assert np.all(np.abs(found[-1] - kls[1]) > 1e-5)
    assert np.all(np.abs(found[0] - found[1]) > 1e-5)


def set_gaussian(layer, loc, raw_scale):
    """Make a layer's outputs constant: locations, then raw scales."""
    half = layer.bias.shape[0] // 2
    layer.gain.assign(tf.zeros_like(layer.gain))
    layer.bias.assign(np.repeat([loc, raw_scale], half).astype(np.float32))


def test_kl_is_in_nats_an_image():
    """Of Gaussians that are known: the sum over places, channels, dimensions (T14)."""
    model = tiny_model()
    set_gaussian(model.z1_parameters, 0.7, -1.0)  # scale .25
    set_gaussian(model.z2_parameters, -0.4, 0.0)  # scale .5
    set_gaussian(model.prior_pixelcnn.outputs, 2.0, 1.0)  # loc 1, scale .75
    terms = model.elbo_terms(tiny.images_for(model, 2))

    def kl(loc, scale, prior_loc, prior_scale):
        ratio = (scale / prior_scale) ** 2
        square = ((loc - prior_loc) / prior_scale) ** 2
        return 0.5 * (ratio + square - 1 - math.log(ratio))

    z1, z2 = 4 * 4 * 2 * kl(0.7, 0.25, 1.0, 0.75), 3 * kl(-0.4, 0.5, 0.0, 1.0)
    np.testing.assert_allclose(terms["kl/z1"], [z1, z1], rtol=1e-5)
    np.testing.assert_allclose(terms["kl/z2"], [z2, z2], rtol=1e-5)
    model.compile()
    logs = model.evaluate(tiny.images_for(model, 2), verbose=0, return_dict=True)
    nats = logs["reconstruction"] + z1 + z2
    bits = nats / math.log(2) / (8 * 8 * 3)
    assert logs["bits_per_dim"] == pytest.approx(bits, rel=1e-5)


def test_unit_scale():
    """.5 at 0, and in (0, 1] however large the number: not a log scale."""
    raw = tf.constant([0.0, -1.0, 1.0, -1e30, 1e30])
    with tf.GradientTape() as tape:
        tape.watch(raw)
        scale = heads.unit_scale(raw)
    np.testing.assert_allclose(scale, [0.5, 0.25, 0.75, 5e-31, 1.0])
    assert np.all(np.isfinite(tape.gradient(scale, raw)))
    assert np.all(scale > 0)


def test_the_prior_mean_is_within_two():
    head = heads.Normal(1)
    loc, _ = head.loc_and_scale(tf.constant([[2.0, 0.0], [-1e9, 0.0]]))
    np.testing.assert_allclose(loc, [[1.0], [-2.0]], rtol=1e-6)


def test_latents_are_clipped_before_they_are_decoded():
    """At 50 on either side."""
    model = tiny.shared("pixelvae2")
    images = tiny.images_for(model, 1)
    far = {"z2": np.full([1, 3], 1e6, "f"), "z1": np.full([1, 4, 4, 2], -1e6, "f")}
    at = {"z2": np.full([1, 3], 50.0, "f"), "z1": np.full([1, 4, 4, 2], -50.0, "f")}
    scores = [model.likelihood(values).log_prob(images) for values in (far, at)]
    np.testing.assert_array_equal(*scores)
    z1 = np.zeros([1, 4, 4, 2], np.float32)
    scores = [model.z1_prior(values["z2"]).log_prob(z1) for values in (far, at)]
    np.testing.assert_array_equal(*scores)


def test_the_floor_under_the_priors_scale_is_of_early_training_only():
    """It falls from 1 to 0; in evaluation the bound is that without it."""
    model = tiny_model(prior_scale_floor_steps=4)
    without = tiny_model()
    images = tiny.images_for(model, 8)
    expected = without.elbo_terms(images)
    seeds = tf.range(8, dtype=tf.int64)

    def smallest_scale():
        latents, _ = model.infer(model.features(images), seeds=seeds, training=True)
        z1 = latents["z1"]
        return float(tf.reduce_min(z1.prior.normal(z1.value).distribution.scale))

    model.compile(keras.optimizers.SGD(0.0))
    start = model.get_weights()
    for floor in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        assert float(model.prior_scale_floor) == floor
        assert smallest_scale() >= floor
        model.fit(images, batch_size=8, verbose=0)
    assert smallest_scale() < 0.75
    for at_start in (True, False):
        if at_start:
            model.set_weights(start)
        else:  # statistics are those of the other model
            model._prior_scale_floor.assign(0.0)
        for name, value in model.elbo_terms(images).items():
            np.testing.assert_array_equal(value, expected[name])
    # A phase of the decoder alone leaves it for the joint one.
    model.set_weights(start)
    model.begin_phase("decoder")
    model.compile(keras.optimizers.SGD(0.0))
    model.fit(images, batch_size=8, verbose=0)
    assert float(model.prior_scale_floor) == 1.0


# The switches.


def test_without_a_pixelcnn_over_the_pixels_they_are_independent():
    model = tiny_model(pixel_level_pixelcnn=False)
    assert model.modes == ("joint",)
    distribution = tiny.likelihood(model, 2)
    assert isinstance(distribution, image_distributions.IndependentImage)
    images = tiny.images_for(model, 2)
    np.testing.assert_array_equal(
        distribution.params(images), distribution.params(images[::-1])
    )


def test_without_a_pixelcnn_over_z1_its_prior_is_diagonal():
    """Drawn in one go, and its KL term is of two diagonal Gaussians."""
    model = tiny_model(higher_level_pixelcnn=False)
    prior, _ = prior_and_maps(model)
    assert isinstance(prior, tfp.distributions.Independent)
    seeds = tf.constant([3], tf.int64)
    cold, warm = (
        model.generate(seeds, temperature=tf.constant([value]))[0]["z1"]
        for value in (1e-9, 1e-6)
    )
    np.testing.assert_allclose(cold, warm, atol=1e-4)  # both at the mean
    terms = model.elbo_terms(tiny.images_for(model, 2))
    assert np.all(terms["kl/z1"] > 0)


def test_joint_training_starts_where_the_decoder_ended(embedded):
    """Where a weight stands between the maps and the image; else there is no mode."""
    model = tiny_model()
    images = tf.constant(tiny.images_for(model, 4))
    model.begin_phase("decoder")
    seeds = tf.range(4, dtype=tf.int64)
    alone = computations.elbo_terms(model, images, seeds)[0]
    model.begin_phase("joint")
    joint = computations.elbo_terms(model, images, seeds)[0]
    np.testing.assert_allclose(
        joint["reconstruction"], alone["reconstruction"], rtol=1e-5
    )
    assert not np.any(alone["kl"]) and np.all(joint["kl"] > 0)
    assert embedded.modes == ("joint",)


def test_the_levels_vectors_are_one_table(embedded, tmp_path):
    """Of the encoder and the PixelCNN, counted and saved once."""
    tables = [v for v in embedded.trainable_variables if v.name == "table"]
    assert len(tables) == 1 and tables[0].shape == (5, 3)
    path = weights.write_weights(embedded, tmp_path / "w.h5", dtype="float32")
    keras.utils.set_random_seed(1)
    other = HierarchicalPixelVAE.from_config(embedded.get_config())
    assert weights.read_weights(other, path) == []
    images = tiny.images_for(embedded, 2)
    expected = embedded.elbo_terms(images)
    for name, value in other.elbo_terms(images).items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (30, 30, 3)}, "divisible by 4. Received"),
        ({"widths": (4, 5)}, "of the same sizes of the image. Received: 2 widths, 3"),
        ({"widths": (4,), "depths": (1,)}, "`widths` must be"),
        ({"widths": 4}, "`widths` must be"),
        ({"depths": (1, 0, 1)}, "`depths` must be"),
        ({"z1_halvings": 3}, "`z1_halvings` must be at most"),
        ({"z1_channels": -1}, "`z1_channels` must be"),
        ({"z2_size": 0}, "`z2_size` must be"),
        ({"pooled": 1}, "`pooled` must be True or False"),
        ({"prior_scale_floor_steps": -1}, "`prior_scale_floor_steps` must be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(initialized=False, **arguments)
