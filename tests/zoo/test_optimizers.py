import keras
import numpy as np
import pytest
import tensorflow as tf

from vaezoo.zoo import recipes
from vaezoo.zoo.optimizers import KernelMuon

RATE = 0.01


def updates_of(optimizer, gradients):
    """What one step from 0 adds to variables of the gradients' shapes."""
    variables = [keras.Variable(tf.zeros_like(gradient)) for gradient in gradients]
    optimizer.build(variables)
    optimizer.apply(gradients, variables)
    return [variable.numpy() for variable in variables]


@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (1, 1, 6, 40), (12, 12)])
def test_a_kernels_update_is_orthogonal_and_of_adams_size(shape):
    """Newton-Schulz brings singular values to about 1: between 0.6 and 1.3."""
    gradient = tf.random.stateless_normal(shape, seed=(0, 1)) * 1e-3
    (update,) = updates_of(KernelMuon(RATE), [gradient])
    matrix = -update.reshape(-1, shape[-1]) / RATE
    values = np.linalg.svd(matrix, compute_uv=False)
    values /= 0.2 * np.sqrt(max(matrix.shape))
    assert 0.6 < values.min() and values.max() < 1.3
    assert np.sum(matrix * gradient.numpy().reshape(matrix.shape)) > 0  # downhill


def test_what_a_mask_hides_is_left_alone():
    gradient = tf.random.stateless_normal((3, 3, 4, 5), seed=(0, 2))
    mask = np.ones((3, 3, 1, 1), "float32")
    mask[2:], mask[1, 1:] = 0, 0
    (update,) = updates_of(KernelMuon(RATE), [gradient * mask])
    np.testing.assert_array_equal(update * (1 - mask), 0)
    assert np.all(update[:1] != 0)


def test_vectors_are_trained_by_adam():
    gradients = [tf.constant([0.1, -2.0, 0.0]), tf.constant(3.0)]
    ours = KernelMuon(RATE)
    for update, expected in zip(
        updates_of(ours, gradients),
        updates_of(keras.optimizers.Adam(RATE), gradients),
        strict=True,
    ):
        np.testing.assert_allclose(update, expected, rtol=1e-5)


def test_saved_it_goes_on_as_before():
    gradients = [
        tf.random.stateless_normal(shape, seed=(0, 3)) for shape in ((2, 2, 3, 4), (4,))
    ]
    variables = [keras.Variable(tf.ones_like(gradient)) for gradient in gradients]
    first = KernelMuon(RATE)
    first.build(variables)
    first.apply(gradients)
    copies = [keras.Variable(variable) for variable in variables]
    again = keras.optimizers.deserialize(keras.optimizers.serialize(first))
    assert type(again) is KernelMuon
    again.build(copies)
    for variable, other in zip(again.variables, first.variables, strict=True):
        variable.assign(other)
    first.apply(gradients)
    again.apply(gradients)
    for variable, copy in zip(variables, copies, strict=True):
        np.testing.assert_array_equal(variable, copy)


def test_a_recipes_muon():
    recipe = recipes.Recipe(
        optimizer="muon",
        learning_rate=RATE,
        beta_1=0.8,
        beta_2=0.99,
        epsilon=1e-4,
        batch_size=1,
        epochs=1,
    )
    optimizer = recipes.compile_arguments(recipe)["optimizer"]
    assert type(optimizer) is KernelMuon
    assert (optimizer.adam_beta_1, optimizer.adam_beta_2) == (0.8, 0.99)
    assert optimizer.epsilon == 1e-4
    assert optimizer.weight_decay is None and optimizer.adam_weight_decay is None
    np.testing.assert_allclose(optimizer.learning_rate, RATE)
