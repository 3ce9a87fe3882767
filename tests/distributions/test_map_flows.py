"""Autoregressive flows of maps, step by step, by their properties (T6)."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from test_flows import assert_log_determinant, tfps_flow

from vaezoo.decoders.conv_made import ConvMADE
from vaezoo.distributions import flows
from vaezoo.layers import weight_norm

tfd = tfp.distributions
SHAPE = (4, 5, 3)
SIZE = 4 * 5 * 3
WIDTH = 7  # not a multiple of the channels


def networks(transform, *, steps=2, context=False):
    """Seeded networks whose outputs are far from 0."""
    tf.keras.utils.set_random_seed(0)
    made = [
        ConvMADE(SHAPE, (WIDTH, 8), num_outputs=flows.NUM_OUTPUTS[transform])
        for _ in range(steps)
    ]
    for network in made:
        with weight_norm.data_dependent_init():
            network(maps(50), context=context_for(50) if context else None)
        gain = 20 if transform == "damped" else 3
        network.outputs.gain.assign(network.outputs.gain * gain)
    return made


def maps(num, *, seed=1):
    return tf.random.stateless_normal([num, *SHAPE], seed=[seed, 0])


def context_for(num):
    return tf.random.stateless_normal([num, *SHAPE[:2], WIDTH], seed=[2, 0])


def jacobian_of(function, inputs):
    """`[batch, to, from]`, both in raster order."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        outputs = function(inputs)
    # Eagerly, output after output: vectorised, most of the time is tracing.
    jacobian = tape.batch_jacobian(outputs, inputs, experimental_use_pfor=False)
    jacobian = jacobian.numpy()
    return jacobian.reshape(len(inputs), outputs[0].shape.num_elements(), -1)


def within_reach(rows=3):
    """Bool `[SIZE, SIZE]`: is a dimension before another, as far as 3 kernels reach?

    A kernel row above brings one column to either side: the blind spot.
    """
    row, column, channel = np.unravel_index(np.arange(SIZE), SHAPE)
    up = row[:, None] - row
    right = column - column[:, None]
    far = (up >= 1) & (up <= rows) & (right >= -rows) & (right <= up)
    # Rows above are reached by some kernels, the columns to the right by those alone.
    left = (up == 0) & (right < 0) & (right >= -rows)
    own = (up == 0) & (right == 0) & (channel < channel[:, None])
    return far | left | own


@pytest.mark.parametrize("output", [0, 1])
def test_an_output_sees_what_is_before_it(output):
    """All channels of the places before, and at its own place those before its own."""
    (network,) = networks("affine", steps=1)
    seen = jacobian_of(lambda x: network(x)[output], maps(32))
    seen = np.abs(seen).sum(0) > 0
    assert not np.any(np.triu(seen))
    np.testing.assert_array_equal(seen, within_reach())


def test_context_reaches_every_output_of_its_place():
    (network,) = networks("affine", steps=1, context=True)
    for output in range(2):
        with tf.GradientTape() as tape:
            given = context_for(8)
            tape.watch(given)
            outputs = network(maps(8), context=given)[output]
        jacobian = np.abs(tape.batch_jacobian(outputs, given)).sum(0)
        for row in range(4):
            for column in range(5):
                assert np.all(jacobian[row, column, :, row, column].sum(-1) > 0)


@pytest.mark.parametrize(
    ("transform", "context"),
    [("mean_only", True), ("affine", False), ("damped", True), ("gated", False)],
)
def test_flow_inverts(transform, context):
    """Each direction undoes the other; fresh bijectors, so that nothing is cached."""
    made = networks(transform, context=context)
    given = context_for(6) if context else None

    def flow():
        return flows.autoregressive_flow(made, transform=transform, context=given)

    events = maps(6)
    noise = tf.concat([events[:3], flow().inverse(events)[3:]], 0)
    drawn = tf.function(lambda x: flow().forward(x))(noise)
    assert np.abs(drawn - noise).max() > 0.2
    np.testing.assert_allclose(drawn[3:], events[3:], atol=2e-4)
    np.testing.assert_allclose(flow().inverse(drawn)[:3], noise[:3], atol=2e-4)


@pytest.mark.parametrize("transform", ["mean_only", "affine"])
def test_sequential_direction_equals_tfps(transform):
    """TFP draws the same."""
    step, reference = tfps_flow(*networks(transform, steps=1), transform)
    noise = maps(3)
    np.testing.assert_allclose(
        step.forward(noise), reference.forward(noise), rtol=1e-4, atol=2e-4
    )


@pytest.mark.parametrize("transform", flows.NUM_OUTPUTS)
def test_log_determinant_is_the_jacobians(transform):
    flow = flows.autoregressive_flow(networks(transform), transform=transform)
    z = maps(3)
    _, expected = np.linalg.slogdet(jacobian_of(flow.inverse, z))
    assert_log_determinant(flow, transform, z, expected, tolerance=1e-3)


@pytest.mark.parametrize("transform", ["mean_only", "gated"])
def test_steps_of_one_order_are_triangular_and_a_reversal_is_not(transform):
    made = networks(transform, steps=3)
    z = maps(8)

    def seen(num):
        flow = flows.autoregressive_flow(
            made[:num], transform=transform, reverse_every=2
        )
        return np.abs(jacobian_of(flow.inverse, z)).sum(0) > 0

    one = seen(1)
    assert not np.any(np.triu(one, 1)) and np.all(np.diag(one))
    np.testing.assert_array_equal(np.tril(one, -1), within_reach())
    assert not np.any(np.triu(seen(2), 1))  # the second has the order of the first
    assert np.any(np.triu(seen(3), 1))


def test_a_reversed_step_reads_its_context_where_its_event_is():
    made = networks("affine", context=True)
    given = context_for(4)
    flow = flows.autoregressive_flow(made, transform="affine", context=given)
    # The second step from the event, read alone: reversed maps, reversed context.
    z = maps(4)
    first = flows.AutoregressiveStep(made[0], transform="affine", context=given)
    second = flows.AutoregressiveStep(
        made[1], transform="affine", context=given[:, ::-1, ::-1]
    )
    expected = second.inverse(first.inverse(z)[:, ::-1, ::-1, ::-1])
    np.testing.assert_allclose(flow.inverse(z), expected, atol=1e-5)


def test_draws_follow_the_density():
    """The log-density of what a distribution draws, by the change of variables."""
    made = networks("affine")
    normal = tfd.Independent(tfd.Normal(tf.zeros([4, *SHAPE]), 1.0), 3)

    def prior():
        flow = flows.autoregressive_flow(made, transform="affine")
        return flows.FlowDistribution(normal, flow)

    noise = maps(4)
    z = prior().bijector.forward(noise)
    _, log_det = np.linalg.slogdet(jacobian_of(prior().bijector.inverse, z))
    np.testing.assert_allclose(
        prior().log_prob(z), normal.log_prob(noise) + log_det, rtol=1e-3
    )


def test_a_damped_step_is_that_of_the_iaf_code():
    """`z = (z - 0.1 m) / exp(0.1 s)`, `log q(z) += 0.1 s` (Kingma et al., 2016)."""
    tf.keras.utils.set_random_seed(0)
    network = ConvMADE(SHAPE, (WIDTH,), num_outputs=2, output_scale=1.0)
    with weight_norm.data_dependent_init():
        network(maps(50), context=context_for(50))
    step = flows.AutoregressiveStep(network, transform="damped", context=context_for(4))
    before = tfd.Independent(tfd.Normal(tf.zeros([4, *SHAPE]), 1.0), 3)
    posterior = flows.FlowDistribution(before, tfp.bijectors.Invert(step))
    y = maps(4)
    z = posterior.bijector.forward(y)
    m, s = network(y, context=context_for(4))
    np.testing.assert_allclose(z, (y - 0.1 * m) / np.exp(0.1 * s), rtol=1e-4, atol=1e-5)
    expected = before.log_prob(y) + tf.reduce_sum(0.1 * s, [1, 2, 3])
    np.testing.assert_allclose(posterior.log_prob(z), expected, rtol=1e-5)


def test_parameters_of_vlaes_steps():
    """Six of two hidden layers of 128 maps over 8x8x16: 1.11 M."""
    network = ConvMADE((8, 8, 16), (128, 128))
    network.build((None, 8, 8, 16))
    count = 6 * network.count_params()
    assert count == 6 * (9 * (16 * 128 + 128 * 128 + 128 * 16) + 2 * (128 + 128 + 16))
    assert round(count / 1e6, 2) == 1.11


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvMADE((4, 4), (8,)), "For vectors, use a MADE"),
        (lambda: ConvMADE((4, 4, 2), ()), "at least one hidden layer"),
        (
            lambda: ConvMADE((4, 4, 2), (8,))(tf.zeros([1, 4, 4, 3])),
            r"`inputs` must be \[batch, 4, 4, 2\]",
        ),
        (
            lambda: ConvMADE((4, 4, 2), (8,))(
                tf.zeros([1, 4, 4, 2]), context=tf.zeros([1, 4, 4, 2])
            ),
            r"`context` must be \[batch, 4, 4, 8\]",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
