"""FAME's decoder alone, and what of it joint training starts from."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tiny
from vaezoo.models import computations


@pytest.fixture(scope="module")
def model():
    """FAME after a phase of its decoder alone."""
    model = tiny.build("fame", initialized=False)
    images = tiny.images_for(model, 32)
    model.initialize(images)
    model.begin_phase("decoder")
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(images, batch_size=8, epochs=2, verbose=0)
    return model


def terms(model, images, mode):
    model.mode = mode
    seeds = tf.range(len(images), dtype=tf.int64)
    return computations.elbo_terms(model, images, seeds)[0]


def test_the_decoder_alone_is_trained():
    model = tiny.build("fame")
    images = tiny.images_for(model, 32)
    model.begin_phase("decoder")
    model.compile(keras.optimizers.Adam(0.01))
    before = {v.path: v.numpy() for v in model.trainable_variables}
    history = model.fit(images, batch_size=8, epochs=4, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert history["kl"] == [0.0] * 4
    for variable in model.trainable_variables:
        changed = np.any(before[variable.path] != variable.numpy())
        assert changed == variable.path.startswith("pixelcnn/"), variable.path


def test_joint_training_starts_at_the_decoders_likelihood(model):
    images = tiny.images_for(model, 8, seed=1)
    alone = terms(model, images, "decoder")
    joint = terms(model, images, "joint")
    np.testing.assert_allclose(
        joint["reconstruction"], alone["reconstruction"], rtol=1e-6
    )
    assert np.all(joint["kl"] > 0) and not np.any(alone["kl"])


def test_joint_training_learns_to_see_the_latents(model):
    """The weights of the maps, which are 0, have a gradient."""
    images = tiny.images_for(model, 8)
    model.mode = "joint"
    kernel = model.pixelcnn.first.direction
    maps = slice(model.pixelcnn.first.num_inputs, None)
    assert not np.any(kernel[:, :, maps])
    seeds = tf.range(8, dtype=tf.int64)
    with tf.GradientTape() as tape:
        found, _ = computations.elbo_terms(model, images, seeds, training=True)
    gradient = tape.gradient(found["elbo"], kernel)
    assert np.any(gradient[:, :, maps] != 0)


def test_the_decoder_alone_takes_crops(model):
    """A crop has the dimensions of a crop, and its pixels the same parameters."""
    images = tiny.images_for(model, 16, seed=2)
    model.mode = "decoder"
    assert model.takes_any_size
    model.compile(keras.optimizers.Adam(1e-3))
    logs = model.evaluate(images[:, :2, :2], verbose=0, return_dict=True)
    bits = logs["loss"] / np.log(2) / (2 * 2 * 3)
    assert logs["bits_per_dim"] == pytest.approx(bits, rel=1e-5)
    seeds = tf.range(16, dtype=tf.int64)
    likelihood = model.likelihood({}, seeds=seeds)
    rows = likelihood.params(images)[:, :2]
    np.testing.assert_allclose(likelihood.params(images[:, :2]), rows, atol=1e-5)
    model.mode = "joint"
    assert not model.takes_any_size
    with pytest.raises(ValueError, match="`images` must be uint8"):
        model.elbo(images[:, :2, :2])


def test_the_decoder_alone_is_scanned_as_it_is_called(model):
    seeds = tf.range(3, dtype=tf.int64)
    likelihood = model.likelihood({}, seeds=seeds)
    uniforms = tf.random.stateless_uniform([3, *likelihood.noise_shape], seed=[0, 1])
    images = likelihood.draw(uniforms)
    np.testing.assert_array_equal(images, likelihood.draw_naively(uniforms))


def test_a_fresh_model_starts_at_the_frequencies_of_the_levels():
    model = tiny.build("fame", initialized=False)
    assert not model.data_initialized
    images = tiny.images_for(model, 32)
    model.compile("adam")
    with pytest.raises(RuntimeError, match="initialised on data before its first"):
        model.train_step(images)
    model.optimizer.learning_rate = 0.0
    model.fit(images, verbose=0)
    np.testing.assert_allclose(
        model.pixelcnn.outputs.bias, model.head.level_logits(images), rtol=1e-6
    )
    one_pass = tiny.build("fame_noconcat")
    assert np.any(one_pass.decoder.outputs.bias != 0)
    assert tiny.build("fame_gray", initialized=False).data_initialized


def test_modes_that_a_model_does_not_have():
    for name in ("fame_noconcat", "vlae"):
        model = tiny.shared(name)
        assert model.modes == ("joint",)
        with pytest.raises(ValueError, match="mode='decoder'"):
            model.begin_phase("decoder")
