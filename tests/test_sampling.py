"""Seeds and noise."""

import numpy as np
import pytest
import tensorflow as tf

import tiny
from vaezoo import sampling

# The reference outputs of SplitMix64 from state 1234567.
SPLITMIX64 = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_row_seeds_against_the_reference():
    seeds = sampling.row_seeds(1234567, 5)
    assert seeds.dtype == np.int64
    np.testing.assert_array_equal(
        seeds.view(np.uint64), np.array(SPLITMIX64, np.uint64)
    )


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 - 1, -(2**63)])
def test_fold_in_agrees_with_row_seeds(seed):
    folded = sampling.fold_in(tf.constant(seed, tf.int64), tf.range(9, dtype=tf.int64))
    np.testing.assert_array_equal(folded, sampling.row_seeds(seed, 9))
    assert len(set(folded.numpy())) == 9


def test_row_seeds_of_an_array_are_the_array():
    seeds = np.array([3, -1], np.int64)
    np.testing.assert_array_equal(sampling.row_seeds(seeds, 2), seeds)


@pytest.mark.parametrize("draw", [sampling.row_uniforms, sampling.row_normals])
def test_noise_depends_on_its_own_seed_alone(draw):
    seeds = tf.constant([5, 6, 7], tf.int64)
    noise = tf.function(draw)(seeds, (4, 2), "pixels")
    assert noise.shape == (3, 4, 2)
    for row in range(3):
        alone = draw(seeds[row : row + 1], (4, 2), "pixels")
        np.testing.assert_array_equal(alone[0], noise[row])
    assert np.any(noise != draw(seeds, (4, 2), "z"))
    assert draw(seeds[:0], (4, 2), "pixels").shape == (0, 4, 2)


def test_noise_of_several_names_is_that_of_each():
    seeds = tf.constant([5, 6, 7], tf.int64)
    of_both = sampling.row_normals_of(seeds, (4, 2), ["z2", "z1"])
    for noise, name in zip(of_both, ["z2", "z1"], strict=True):
        np.testing.assert_array_equal(noise, sampling.row_normals(seeds, (4, 2), name))
    held = {"z1": seeds, "z2": seeds + 1}
    moved, same = sampling.row_normals_of(held, (4, 2), ["z2", "z1"])
    np.testing.assert_array_equal(same, of_both[1])
    assert not np.any(moved == of_both[0])


def test_noise_has_its_distribution():
    """Mean and variance of 100,000 numbers within five standard errors."""
    seeds = tf.constant(sampling.row_seeds(0, 100))
    uniforms = sampling.row_uniforms(seeds, (1000,), "pixels").numpy()
    normals = sampling.row_normals(seeds, (1000,), "z").numpy()
    assert uniforms.min() >= 0 and uniforms.max() < 1
    assert uniforms.mean() == pytest.approx(0.5, abs=5 * (1 / 12 / 1e5) ** 0.5)
    assert normals.mean() == pytest.approx(0.0, abs=5 * 1e5**-0.5)
    assert normals.var() == pytest.approx(1.0, abs=5 * (2 / 1e5) ** 0.5)


@pytest.mark.parametrize("name", ["gated_pixelvae_noup", "pixelcnn", "vae"])
def test_rows_are_independent_of_the_batch(name):
    """A batch of 5 and five batches of 1 agree, and so do any two sizes."""
    model = tiny.shared(name)
    together = model.sample(5, seed=11).numpy()
    np.testing.assert_array_equal(model.sample(3, seed=11), together[:3])
    seeds = sampling.row_seeds(11, 5)
    for row in range(5):
        alone = model.sample(1, seed=seeds[row : row + 1])
        np.testing.assert_array_equal(alone[0], together[row])
    assert np.any(together[0] != together[1])
    assert np.any(model.sample(5, seed=12).numpy() != together)


def test_unseeded_samples_differ():
    model = tiny.shared("gated_pixelvae_noup")
    assert np.any(model.sample(4).numpy() != model.sample(4).numpy())


def test_temperature_reaches_latents_and_pixels():
    """Cold images agree with each other far more; rows have their own temperature."""
    model = tiny.shared("gated_pixelvae_noup")
    cold = model.sample(16, seed=0, temperature=0.01).numpy()
    warm = model.sample(16, seed=0).numpy()
    assert cold.var(0).mean() < 0.5 * warm.var(0).mean()
    mixed = model.sample(16, seed=0, temperature=[0.01] * 8 + [1.0] * 8).numpy()
    np.testing.assert_array_equal(mixed[:8], cold[:8])
    np.testing.assert_array_equal(mixed[8:], model.sample(16, seed=0)[8:])


@pytest.mark.parametrize("num", [0, -1, 1.5, True, "3"])
def test_bad_counts(num):
    with pytest.raises(ValueError, match="`num` must be a positive integer"):
        tiny.shared("pixelcnn").sample(num)


@pytest.mark.parametrize(
    "temperature", [0, -1.0, float("nan"), float("inf"), [1, 1, 1]]
)
def test_bad_temperatures(temperature):
    with pytest.raises(ValueError, match="`temperature` must be positive and finite"):
        tiny.shared("pixelcnn").sample(2, temperature=temperature)


def test_bad_seed_arrays():
    model = tiny.shared("pixelcnn")
    with pytest.raises(ValueError, match=r"int64 \[2\], one a row"):
        model.sample(2, seed=np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"int64 \[2\], one a row"):
        model.sample(2, seed=np.zeros(2, np.int32))
