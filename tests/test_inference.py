"""The bounds against a model whose evidence is known, and the KL utilities."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tiny
from vaezoo import inference, sampling, units
from vaezoo.models import computations

tfd = tfp.distributions
SIZE, NOISE = 2, 0.7


class LinearGaussian:
    """x ~ N(W z, NOISE^2 I), z ~ N(0, I), with a deliberately poor posterior."""

    def __init__(self, num):
        generator = np.random.default_rng(0)
        self.weights = generator.normal(size=(3, SIZE)).astype(np.float32)
        self.x = generator.normal(size=(num, 3)).astype(np.float32)

    def evidence(self):
        covariance = self.weights @ self.weights.T + NOISE**2 * np.eye(3)
        normal = tfd.MultivariateNormalTriL(np.zeros(3), np.linalg.cholesky(covariance))
        return normal.log_prob(self.x.astype(np.float64)).numpy()

    def latent(self, x, seeds):
        precision = self.weights.T @ self.weights / NOISE**2 + np.eye(SIZE)
        loc = x @ self.weights @ np.linalg.inv(precision) / NOISE**2
        scale = tf.fill(tf.shape(loc), 0.6)
        value = loc + scale * sampling.row_normals(seeds, [SIZE], "z")
        prior = inference.diagonal_normal(tf.zeros_like(loc), tf.ones_like(loc))
        return inference.Latent(value, inference.diagonal_normal(loc, scale), prior)

    def log_likelihood(self, x, value):
        mean = tf.matmul(value, self.weights, transpose_b=True)
        return inference.diagonal_normal(mean, tf.fill(mean.shape, NOISE)).log_prob(x)

    def bound(self, num_importance_samples, *, chunk, seed=0):
        x = tf.repeat(self.x, chunk, axis=0)

        @tf.function
        def bound(seeds):
            def log_weight(row_seeds):
                latent = self.latent(x, row_seeds)
                return self.log_likelihood(x, latent.value) + latent.log_ratio()

            return inference.importance_weighted_bound(
                log_weight, seeds, num_importance_samples, chunk=chunk
            )

        return bound(tf.constant(sampling.row_seeds(seed, len(self.x)))).numpy()

    def elbo(self, seeds):
        latent = self.latent(self.x, seeds)
        return self.log_likelihood(self.x, latent.value) - latent.kl_divergence()


def test_bound_converges_to_the_exact_evidence():
    """ELBO <= L_K <= log p on average, monotone in K, exact as K grows (T10)."""
    model = LinearGaussian(64)
    evidence = model.evidence()
    elbos = [
        model.elbo(tf.constant(sampling.row_seeds(seed, 64))).numpy().mean()
        for seed in range(20)
    ]
    one, five, many = (
        np.mean([model.bound(k, chunk=5, seed=seed).mean() for seed in range(8)])
        for k in (1, 5, 50)
    )
    # Means over 64 images and 8 or 20 seeds: standard errors of about 0.03 at K = 1.
    assert one == pytest.approx(np.mean(elbos), abs=0.15)
    assert one < five - 0.05 and five < many < evidence.mean() + 0.02
    exact = model.bound(2000, chunk=250)
    np.testing.assert_allclose(exact, evidence, atol=0.15)
    assert exact.mean() == pytest.approx(evidence.mean(), abs=0.02)


@pytest.mark.parametrize("chunk", [1, 3, 7, 12])
def test_streaming_equals_direct(chunk):
    """The value does not depend on the chunk, nor on a chunk's unused samples."""
    model = LinearGaussian(5)
    seeds = sampling.row_seeds(0, 5)
    direct = []
    for k in range(7):
        latent = model.latent(model.x, sampling.fold_in(seeds, k))
        weight = model.log_likelihood(model.x, latent.value) + latent.log_ratio()
        direct.append(weight.numpy().astype(np.float64))
    expected = np.logaddexp.reduce(direct, axis=0) - math.log(7)
    np.testing.assert_allclose(model.bound(7, chunk=chunk), expected, rtol=1e-5)


def test_kl_is_closed_form_where_known_and_at_the_draw_elsewhere():
    loc = tf.constant([[0.3, -1.0]])
    normal = inference.diagonal_normal(loc, tf.constant([[0.5, 2.0]]))
    prior = inference.diagonal_normal(tf.zeros([1, 2]), tf.ones([1, 2]))
    value = tf.constant([[0.1, 0.2]])
    closed = inference.Latent(value, normal, prior).kl_divergence()
    np.testing.assert_allclose(closed, tfd.kl_divergence(normal, prior))
    mixture = tfd.MixtureSameFamily(
        tfd.Categorical(logits=tf.zeros([1, 2])),
        inference.diagonal_normal(tf.zeros([1, 2, 2]), tf.ones([1, 2, 2])),
    )
    at_draw = inference.Latent(value, normal, mixture).kl_divergence()
    expected = normal.log_prob(value) - mixture.log_prob(value)
    np.testing.assert_allclose(at_draw, expected)
    given = inference.Latent(value, normal, prior, kl=tf.constant([9.0]))
    np.testing.assert_array_equal(given.kl_divergence(), [9.0])


def test_free_bits_take_the_maximum_of_the_batch_mean():
    """Groups of KL 0.1 and 5 with 1 nat free: 1 + 5; not a maximum per row (T9)."""
    small = tf.constant([0.0, 0.2])
    large = tf.constant([0.5, 9.5])  # a per-row maximum would give 5.25
    terms = [inference.free_bits(kl, tf.reduce_mean(kl), 1.0) for kl in (small, large)]
    assert float(tf.reduce_mean(terms[0])) == pytest.approx(1.0)
    assert float(tf.reduce_mean(terms[1])) == pytest.approx(5.0)
    with tf.GradientTape() as tape:
        tape.watch([small, large])
        total = sum(
            tf.reduce_mean(inference.free_bits(kl, tf.reduce_mean(kl), 1.0))
            for kl in (small, large)
        )
    gradients = tape.gradient(total, [small, large], unconnected_gradients="zero")
    np.testing.assert_array_equal(gradients[0], [0, 0])
    np.testing.assert_array_equal(gradients[1], [0.5, 0.5])


def test_soft_free_bits_steer_towards_their_target():
    """Up a tenth above the band, never over 1; down below the target; else at rest."""

    def after(weight, kl):
        return float(inference.soft_free_bits(tf.constant(weight), kl, 10.0))

    assert after(0.5, 10.6) == pytest.approx(0.55)
    assert after(0.5, 10.4) == pytest.approx(0.5)
    assert after(0.5, 9.9) == pytest.approx(0.5 / 1.1)
    assert after(0.95, 20.0) == pytest.approx(1.0)


def test_soft_free_bits_in_training():
    """The weight falls while the KL is below the target; the ELBO keeps weight 1."""
    model = tiny.build("vlae")
    images = tiny.images_for(model, 16)
    model.compile("sgd", soft_free_bits_nats=1000.0, soft_free_bits_weight=0.8)
    logs = model.fit(images, batch_size=8, epochs=2, verbose=0).history
    weight = model.get_compile_config()["soft_free_bits_weight"]
    assert weight == pytest.approx(0.8 / 1.1**4)
    # Mean of the two steps' weights in the first epoch.
    loss, terms = logs["loss"][0], (logs["reconstruction"][0], logs["kl"][0])
    assert terms[0] + 0.8 / 1.1 * terms[1] < loss < terms[0] + 0.8 * terms[1]
    assert logs["elbo"][0] == pytest.approx(-sum(terms), rel=1e-5)


def test_kl_warmup():
    weights = [float(inference.kl_weight(step, 10)) for step in (0, 5, 10, 20)]
    np.testing.assert_allclose(weights, [0, 0.5, 1, 1])
    assert float(inference.kl_weight(0, 0)) == 1
    weights = [float(inference.kl_weight(step, 10, 0.3)) for step in (0, 5, 20)]
    np.testing.assert_allclose(weights, [0.3, 0.65, 1])


def test_bits_per_dim():
    assert units.bits_per_dim(-8 * 12 * math.log(2), 12) == pytest.approx(8.0)


@pytest.mark.parametrize("name", tiny.others_slow(tiny.CONFIGURATIONS))
def test_model_bounds(name):
    """K = 1 is the draw of the ELBO; more samples tighten it; the chunk is silent."""
    model = tiny.shared(name)
    images = tiny.images_for(model, 12)
    terms = model.elbo_terms(images)
    one = model.log_likelihood(images).numpy()
    if not model.latent_shapes:
        np.testing.assert_allclose(one, terms["elbo"], rtol=1e-5)
        np.testing.assert_array_equal(
            one, model.log_likelihood(images, num_importance_samples=3)
        )
        return
    seeds = tf.constant(sampling.row_seeds(0, 12))
    latents, _ = computations.posterior(model, tf.constant(images), seeds)
    ratio = sum(latent.log_ratio() for latent in latents.values())
    np.testing.assert_allclose(
        one, ratio - terms["reconstruction"], rtol=1e-4, atol=1e-3
    )
    many = model.log_likelihood(images, num_importance_samples=40).numpy()
    draws = [model.log_likelihood(images, seed=seed) for seed in range(5)]
    assert many.mean() > np.mean(draws)  # of one draw alone chance decides
    score = tf.function(functools.partial(computations.log_likelihood, model))
    for rows in (7, 100):  # 7 samples of an image at once, all of two images
        again = score(
            tf.constant(images), seeds, num_importance_samples=40, rows_at_once=rows
        )
        np.testing.assert_allclose(again, many, rtol=1e-4)


def test_bounded_values_have_the_gradient_of_the_identity():
    values = tf.constant([-20.0, -0.3, 0.0, 7.1, 20.0])
    with tf.GradientTape() as tape:
        tape.watch(values)
        bounded = inference.bounded(values, 10.0)
    np.testing.assert_array_equal(bounded, np.float32([-10.0, -0.3, 0.0, 7.1, 10.0]))
    np.testing.assert_array_equal(tape.gradient(bounded, values), np.ones(5))
