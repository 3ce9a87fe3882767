"""PixelVAE++: what the paper says of it alone."""

import numpy as np
import pytest
import tensorflow as tf

import tiny
from vaezoo.models import computations
from vaezoo.models.pixelvaepp import PixelVAEPP

_BINARY = {
    "image_shape": (28, 28, 1),
    "levels": 2,
    "num_resnets": 3,
    "z1_size": 400,
    "z2_size": 0,
    "z3_size": 0,
    "num_chains": 1,
}


@pytest.mark.parametrize(
    ("arguments", "num_latents", "sides", "expected"),
    [
        ({**_BINARY, "filters": 64}, 400, (200, 200), 6_546_820),
        (
            {**_BINARY, "filters": 32, "strided": False},
            400,
            (200, 200),
            2_468_036,
        ),
        pytest.param(
            {"num_chains": 1}, 1792, (640, 1152), 39_769_151, marks=pytest.mark.slow
        ),
    ],
)
def test_latents_and_parameter_counts(arguments, num_latents, sides, expected):
    """Section 4 and appendix D: 1,792 latents on CIFAR-10, 40 M parameters."""
    model = PixelVAEPP(**arguments)
    assert model.latent_shapes == {"z": (num_latents,)}
    assert (model.rbm.num_left, model.rbm.num_right) == sides
    assert sum(v.shape.num_elements() for v in model.trainable_variables) == expected


def test_the_pass_over_the_image_is_shared():
    """What inference computed of the image is what the likelihood computes anew."""
    model = tiny.shared("pixelvaepp")
    images = tiny.images_for(model, 3)
    seeds = tf.constant([1, 2, 3], tf.int64)
    latents, context = model.infer(model.features(images), seeds=seeds)
    values = {"z": latents["z"].value}
    np.testing.assert_array_equal(np.unique(values["z"]), [0, 1])
    shared = model.likelihood(values, context=context, seeds=seeds)
    alone = model.likelihood(values, seeds=seeds)
    np.testing.assert_allclose(
        shared.log_prob(images), alone.log_prob(images), rtol=1e-6
    )


def test_what_is_drawn_is_not_drawn_with_the_pass_over_another_image():
    """An encoder's pass is of the image encoded; the scan draws another."""
    model = tiny.shared("pixelvaepp")
    images = tf.constant(tiny.images_for(model, 2))
    seeds = tf.constant([5, 6], tf.int64)
    _, context = model.infer(model.features(images), seeds=seeds)
    assert "image" in context
    assert "image" not in computations.posterior(model, images, seeds)[1]
    latents = model.encode(images, seed=[5, 6])
    np.testing.assert_array_equal(
        model.reconstruct(images, seed=[5, 6]), model.decode(latents, seed=[5, 6])
    )


def test_the_bound_is_of_binary_units():
    """Its log weights are those of the RBM and of independent units."""
    model = tiny.shared("pixelvaepp")
    images = tf.constant(tiny.images_for(model, 4))
    seeds = tf.range(4, dtype=tf.int64)
    latents, _ = model.infer(model.features(images), seeds=seeds)
    latent, rbm = latents["z"], model.rbm
    z, logits = latent.value, latent.posterior.distribution.logits
    np.testing.assert_array_equal(np.unique(z), [0, 1])
    log_q = tf.reduce_sum(z * logits - tf.nn.softplus(logits), axis=1)
    expected = -rbm.energy(z) - rbm.log_z - log_q
    np.testing.assert_allclose(latent.log_ratio(), expected, rtol=1e-5, atol=1e-5)
    exact = float(rbm.exact_log_z())
    assert abs(float(rbm.log_z) - exact) < 0.5  # of a short annealing
    # The KL's mean over draws of z1 and z2 is the mean of log q - log p.
    many = tf.repeat(images[:1], 2000, axis=0)
    latents, _ = model.infer(model.features(many), seeds=tf.range(2000, dtype=tf.int64))
    differences = latents["z"].kl_divergence() + latents["z"].log_ratio()
    error = np.std(differences) / 2000**0.5
    assert abs(np.mean(differences)) < 5 * error


def test_training_is_of_relaxed_units():
    model = tiny.shared("pixelvaepp")
    images = tf.constant(tiny.images_for(model, 3))
    seeds = tf.range(3, dtype=tf.int64)
    features = model.features(images, training=True)
    latents, _ = model.infer(features, seeds=seeds, training=True)
    z = latents["z"].value
    assert np.all((z >= 0) & (z <= 1)) and np.any((z > 0) & (z < 1))
    np.testing.assert_array_equal(
        latents["z"].kl_divergence(training=True), latents["z"].training_kl
    )
    assert np.all(latents["z"].kl_divergence() != latents["z"].training_kl)
    with pytest.raises(ValueError, match="`z` must be exactly 0 or 1"):
        model.decode({"z": z})
    for name in ("free_bits_nats", "soft_free_bits_nats"):
        with pytest.raises(ValueError, match="Free bits need the KL term's value"):
            model.compile("adam", **{name: 1.0})


def test_log_z_is_unknown_after_training_until_it_is_estimated():
    model = tiny.build("pixelvaepp")
    images = tiny.images_for(model, 8)
    chains = model.training_variables[0].numpy()
    model.compile("adam")
    model.fit(images, epochs=1, batch_size=4, verbose=0)
    assert np.any(model.training_variables[0].numpy() != chains)
    assert not any(v.shape == chains.shape for v in model.weights)
    for score in (model.elbo, model.log_likelihood):
        with pytest.raises(ValueError, match=r"Call model.estimate_log_z\(\)"):
            score(images)
    model.sample(1, seed=0, jit=False)  # needs no log Z
    bracket = model.estimate_log_z(num_chains=200, num_temperatures=100)
    assert np.isfinite(model.elbo(images)).all()
    exact = float(model.rbm.exact_log_z())
    assert abs(bracket.forward.value - exact) < 0.3
    assert abs(bracket.reverse.value - exact) < 0.3


def test_bad_arguments():
    with pytest.raises(ValueError, match="`z1_size` must be an integer of at least 2"):
        PixelVAEPP(**{**_BINARY, "z1_size": 0})
    with pytest.raises(ValueError, match="`prior` must be"):
        PixelVAEPP(**{**_BINARY, "prior": "none"})
    with pytest.raises(ValueError, match="one channel"):
        PixelVAEPP(image_shape=(8, 8, 3), levels=2)
    with pytest.raises(ValueError, match="divisible by 4"):
        PixelVAEPP(**{**_BINARY, "image_shape": (30, 30, 1)})
    with pytest.raises(ValueError, match="Only an RBM has a log Z"):
        tiny.shared("pixelvaepp_gaussian").estimate_log_z()
