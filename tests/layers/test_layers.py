"""Layers without a paper of their own."""

import numpy as np
import pytest
import tensorflow as tf

import tiny
from vaezoo.layers import causal, weight_norm
from vaezoo.layers.dropout import Dropout
from vaezoo.layers.made import MADE

WEIGHT_NORMALIZED = {
    "dense": (lambda: weight_norm.Dense(5, init_scale=0.7), (6,)),
    "pointwise_dense": (lambda: weight_norm.Dense(5), (4, 4, 6)),
    "conv": (lambda: weight_norm.Conv2D(5, 3, init_scale=0.7), (6, 6, 3)),
    "strided": (lambda: weight_norm.Conv2D(5, 3, strides=2), (7, 7, 3)),
    "transpose": (lambda: weight_norm.Conv2DTranspose(5, 3), (4, 4, 3)),
    "causal_a": (lambda: causal.CausalConv2D(5, 3, mask_type="A"), (6, 6, 3)),
    "causal_b": (lambda: causal.CausalConv2D(6, 5, mask_type="B"), (6, 6, 3)),
    "causal_row": (lambda: causal.CausalConv2D(5, (1, 5), mask_type="A"), (6, 6, 3)),
    "vertical": (lambda: causal.VerticalConv2D(5, 5), (6, 6, 3)),
}


def normal(shape, seed=0):
    return tf.random.stateless_normal([16, *shape], seed=[seed, 1]) * 2.0 + 0.5


@pytest.mark.parametrize("name", WEIGHT_NORMALIZED)
def test_data_dependent_initialisation(name):
    """On its batch the output has mean 0 and standard deviation init_scale (T8)."""
    make, shape = WEIGHT_NORMALIZED[name]
    layer, inputs = make(), normal(shape)
    layer(inputs)
    with weight_norm.data_dependent_init():
        during = layer(inputs)
    after = layer(inputs).numpy()
    np.testing.assert_allclose(during, after, atol=1e-4)
    axes = tuple(range(after.ndim - 1))
    np.testing.assert_allclose(after.mean(axes), 0, atol=1e-3)
    np.testing.assert_allclose(after.std(axes), layer.init_scale, rtol=1e-3)


@pytest.mark.parametrize("name", WEIGHT_NORMALIZED)
def test_gain_is_the_norm_of_the_kernel(name):
    make, shape = WEIGHT_NORMALIZED[name]
    layer = make()
    layer(normal(shape))
    layer.gain.assign(np.linspace(0.5, 2, layer.filters))
    axis = 2 if name == "transpose" else -1
    kernel = np.moveaxis(layer.kernel().numpy(), axis, -1)
    norms = np.sqrt((kernel**2).reshape(-1, layer.filters).sum(0))
    np.testing.assert_allclose(norms, layer.gain, rtol=1e-5)


@pytest.mark.parametrize("name", ["causal_a", "causal_b", "causal_row", "vertical"])
def test_masked_taps_start_at_zero_and_are_never_read(name):
    make, shape = WEIGHT_NORMALIZED[name]
    layer, inputs = make(), normal(shape)
    outputs = layer(inputs)
    direction = layer.direction.numpy()
    masked = direction == 0
    assert masked.any() and not masked.all()
    layer.direction.assign(np.where(masked, 9.0, direction))
    np.testing.assert_array_equal(layer(inputs), outputs)


def test_constant_unit_keeps_a_finite_gain():
    layer = weight_norm.Dense(3)
    layer(tf.zeros([4, 2]))
    with weight_norm.data_dependent_init():
        layer(tf.zeros([4, 2]))
    np.testing.assert_array_equal(layer.gain, np.ones(3))


def test_fully_masked_unit_is_zero_not_nan():
    layer = weight_norm.Dense(2)
    layer(tf.ones([1, 3]))
    layer.direction.assign(np.zeros([3, 2]))
    with tf.GradientTape() as tape:
        outputs = layer(tf.ones([1, 3]))
    assert np.all(outputs.numpy() == 0)
    assert np.all(np.isfinite(tape.gradient(outputs, layer.direction.value)))


@pytest.mark.parametrize("size", [4, (3, 2)])
def test_even_masked_kernel_is_refused(size):
    with pytest.raises(ValueError, match="odd sizes.*Received: kernel_size"):
        causal.CausalConv2D(3, size, mask_type="A")


def test_unknown_mask_type_is_refused():
    with pytest.raises(ValueError, match="mask_type='C'"):
        causal.CausalConv2D(3, 3, mask_type="C")


def test_restored_weights_are_not_initialised_again(tmp_path):
    """`data_initialized` travels with the weights (T8)."""
    model = tiny.build("gated_pixelvae_noup")
    assert model.data_initialized
    path = tmp_path / "tiny.weights.h5"
    model.save_weights(path)
    other = tiny.build("gated_pixelvae_noup", initialized=False, seed=1)
    assert not other.data_initialized
    other.load_weights(path)
    assert other.data_initialized
    images = tiny.images_for(model, 4)
    np.testing.assert_array_equal(model.elbo(images), other.elbo(images))


def test_initialisation_runs_in_the_order_of_the_network():
    """Every layer of a model is normalised given its initialised predecessors."""
    model = tiny.build("gated_pixelvae_noup", initialized=False)
    images = tiny.images_for(model, 64)
    model.initialize(images)
    first, second = model.encoder.convolutions[:2]
    hidden = first(tf.cast(images, tf.float32))
    outputs = second.linear(hidden, second.kernel()) + second.bias
    np.testing.assert_allclose(tf.math.reduce_std(outputs, [0, 1, 2]), 1.0, rtol=1e-2)
    np.testing.assert_allclose(tf.reduce_mean(outputs, [0, 1, 2]), 0.0, atol=1e-2)


def test_dropout():
    """Mean kept within five standard errors; each row keyed by its own seed."""
    layer = Dropout(0.25)
    inputs = tf.ones([8, 30, 30, 2])
    seeds = tf.range(8, dtype=tf.int64)
    dropped = layer(inputs, seeds=seeds, training=True).numpy()
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    error = (0.25 / 0.75 / dropped.size) ** 0.5
    assert dropped.mean() == pytest.approx(1.0, abs=5 * error)
    alone = layer(inputs[3:4], seeds=seeds[3:4], training=True)
    np.testing.assert_array_equal(alone[0], dropped[3])
    np.testing.assert_array_equal(layer(inputs), inputs)
    with pytest.raises(ValueError, match="Received: rate=1"):
        Dropout(1)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (causal.CausalConv2D(64, 3, mask_type="B", num_groups=3), [1, 4, 4, 64]),
        (MADE(64, (256, 256)), [1, 64]),
    ],
    ids=["convolution", "MADE"],
)
def test_a_graph_holds_no_mask(layer, shape):
    """As a constant a mask takes as much of an export as the kernel, in each graph."""
    graph = tf.function(layer).get_concrete_function(tf.TensorSpec(shape)).graph
    size = sum(op.node_def.ByteSize() for op in graph.get_operations())
    weights = sum(variable.numpy().nbytes for variable in layer.weights)
    assert size < 0.2 * weights
