"""MADE and the autoregressive flows, by their properties (T6)."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tiny
from vaezoo.distributions import flows
from vaezoo.layers import weight_norm
from vaezoo.layers.made import MADE
from vaezoo.models.vlae import VLAE

tfd = tfp.distributions
SIZE = 6
HIDDEN = [(5,), (13,), (7, 11)]  # fewer and more than the degrees; one layer and two


def networks(transform, *, hidden=(7, 11), steps=3, context_size=0):
    """Seeded MADEs whose outputs are far from 0."""
    tf.keras.utils.set_random_seed(0)
    made = [
        MADE(
            SIZE,
            hidden,
            num_outputs=flows.NUM_OUTPUTS[transform],
            context_size=context_size,
        )
        for _ in range(steps)
    ]
    for network in made:
        with weight_norm.data_dependent_init():
            network(vectors(50), context=context(50, context_size))
        for head in network.heads:
            head.gain.assign(head.gain * (20 if transform == "damped" else 2))
    return made


def vectors(num, seed=1):
    return tf.random.stateless_normal([num, SIZE], seed=[seed, 0])


def context(num, size):
    return tf.random.stateless_normal([num, size], seed=[2, 0]) if size else None


def jacobian_of(function, inputs):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = function(inputs)
    return tape.batch_jacobian(outputs, inputs).numpy()


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("context_size", [0, 3])
def test_made_is_autoregressive_and_sees_all_before(hidden, context_size):
    """Output i depends on each input before it, and on no other."""
    (network,) = networks(
        "mean_only", hidden=hidden, steps=1, context_size=context_size
    )
    given = context(64, context_size)
    jacobian = jacobian_of(lambda x: network(x, context=given)[0], vectors(64))
    seen = np.abs(jacobian).sum(0) > 0
    np.testing.assert_array_equal(seen, np.tril(np.ones((SIZE, SIZE)), -1) > 0)


def test_made_context_reaches_every_output():
    """But the first input's, which no hidden unit reaches."""
    (network,) = networks("affine", steps=1, context_size=3)
    given = context(64, 3)
    for output in range(2):
        jacobian = jacobian_of(
            lambda c, i=output: network(vectors(64), context=c)[i], given
        )
        seen = (np.abs(jacobian) > 0).any(axis=(0, 2))
        assert list(seen) == [False] + [True] * (SIZE - 1)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_sequential_made_equals_one_pass(hidden):
    (network,) = networks("affine", hidden=hidden, steps=1, context_size=3)
    inputs, given = vectors(5), context(5, 3)
    made = network.sequential(given)
    state = made.first(5)
    columns = []
    for index in range(SIZE):
        columns.append(tf.stack(made.outputs(state, index)))
        state = made.push(state, index, inputs[:, index])
    sequential = tf.stack(columns, axis=-1)  # [outputs, batch, d]
    np.testing.assert_allclose(sequential, network(inputs, context=given), atol=1e-5)


@pytest.mark.parametrize("context_size", [0, 3])
@pytest.mark.parametrize("transform", flows.NUM_OUTPUTS)
def test_flow_inverts(transform, context_size):
    """Each direction undoes the other; fresh bijectors, so that nothing is cached."""
    made = networks(transform, context_size=context_size)
    given = context(9, context_size)

    def flow():
        return flows.autoregressive_flow(made, transform=transform, context=given)

    noise = vectors(9)
    z = flow().forward(noise)
    assert np.abs(z - noise).max() > 0.2
    np.testing.assert_allclose(flow().inverse(z), noise, atol=1e-4)
    np.testing.assert_allclose(flow().forward(flow().inverse(noise)), noise, atol=1e-4)


def tfps_flow(network, transform):
    """A step, and TFP's own MaskedAutoregressiveFlow of it: a pass a dimension."""
    step = flows.AutoregressiveStep(network, transform=transform)

    def bijector_fn(y):
        scale, shift = step._coefficients(network(y))
        inverse = tfp.bijectors.Shift(shift)
        if scale is not None:
            inverse = tfp.bijectors.Chain([inverse, tfp.bijectors.Scale(scale)])
        return tfp.bijectors.Invert(inverse)

    event_ndims = len(network.event_shape)
    return step, tfp.bijectors.MaskedAutoregressiveFlow(
        bijector_fn=bijector_fn, event_ndims=event_ndims
    )


def assert_log_determinant(flow, transform, z, expected, *, tolerance):
    """That of the inverse at `z` is the Jacobian's, and not 0 where it has a scale."""
    actual = flow.inverse_log_det_jacobian(z, event_ndims=len(z.shape) - 1)
    np.testing.assert_allclose(
        np.broadcast_to(actual, [len(z)]), expected, rtol=tolerance, atol=tolerance
    )
    if transform == "mean_only":
        assert np.all(actual == 0)
    else:
        assert np.abs(expected).min() > 0.1


@pytest.mark.parametrize("transform", flows.NUM_OUTPUTS)
def test_sequential_direction_equals_tfps(transform):
    """TFP draws the same."""
    step, reference = tfps_flow(*networks(transform, steps=1), transform)
    noise = vectors(9)
    np.testing.assert_allclose(
        step.forward(noise), reference.forward(noise), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("transform", flows.NUM_OUTPUTS)
def test_log_determinant_is_the_jacobians(transform):
    flow = flows.autoregressive_flow(networks(transform), transform=transform)
    z = vectors(4)
    _, expected = np.linalg.slogdet(jacobian_of(flow.inverse, z))
    assert_log_determinant(flow, transform, z, expected, tolerance=1e-4)


@pytest.mark.parametrize("transform", flows.NUM_OUTPUTS)
def test_one_step_is_triangular_and_several_are_not(transform):
    """The order is reversed between steps, so that all dimensions meet."""
    made = networks(transform)
    z = vectors(16)
    one = flows.autoregressive_flow(made[:1], transform=transform)
    seen = np.abs(jacobian_of(one.inverse, z)).sum(0) > 0
    np.testing.assert_array_equal(seen, np.tril(np.ones((SIZE, SIZE))) > 0)
    two = flows.autoregressive_flow(made[:2], transform=transform)
    assert np.all(np.abs(jacobian_of(two.inverse, z)).sum(0)[:-1] > 0)


def test_density_takes_one_pass_a_step(monkeypatch):
    """And an IAF posterior's draw and its density together take no more."""
    made = networks("gated")
    calls = []
    original = MADE.call

    def counted(self, *args, **kwargs):
        calls.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(MADE, "call", counted)
    normal = tfd.MultivariateNormalDiag(tf.zeros([4, SIZE]))
    flow = flows.autoregressive_flow(made, transform="gated")
    prior = flows.FlowDistribution(normal, flow)
    prior.log_prob(vectors(4))
    assert len(calls) == len(made)

    calls.clear()
    flow = flows.autoregressive_flow(made, transform="gated")
    posterior = flows.FlowDistribution(normal, tfp.bijectors.Invert(flow))
    value = posterior.bijector.forward(vectors(4))
    log_prob = posterior.log_prob(value)
    assert len(calls) == len(made)
    expected = normal.log_prob(vectors(4)) - tfp.bijectors.Invert(
        flows.autoregressive_flow(made, transform="gated")
    ).forward_log_det_jacobian(vectors(4), event_ndims=1)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4)


def test_density_integrates_to_one():
    """An affine flow over two dimensions, on a grid, to 1e-3."""
    tf.keras.utils.set_random_seed(1)
    made = [MADE(2, (8,), num_outputs=2) for _ in range(2)]
    flow = flows.autoregressive_flow(made, transform="affine")
    grid = np.linspace(-9, 9, 301, dtype=np.float32)
    points = np.array(list(itertools.product(grid, grid)), np.float32)
    with weight_norm.data_dependent_init():
        flow.inverse(tf.random.stateless_normal([64, 2], seed=[0, 0]))
    for network in made:
        for head in network.heads:
            head.gain.assign(head.gain * 3)
    prior = flows.FlowDistribution(
        tfd.MultivariateNormalDiag(tf.zeros([2])),
        flows.autoregressive_flow(made, transform="affine"),
    )
    mass = np.exp(prior.log_prob(points)).sum() * (grid[1] - grid[0]) ** 2
    np.testing.assert_allclose(mass, 1, atol=1e-3)


def test_prior_flow_equals_posterior_flow():
    """Equations 12 to 14: q(z) under p(z) = f(eps) is an IAF posterior of eps.

    From the same noise: the posterior f^-1(q), a standard normal prior and the
    decoder p(x | f(eps)) give the ELBO of the model with the flow as its prior.
    """
    model = tiny.shared("vlae")
    images = tiny.images_for(model, 5)
    seeds = tf.range(5, dtype=tf.int64)
    latents, _ = model.infer(model.features(images), seeds=seeds)
    z = latents["z"]

    flow = model._flow(model.prior_flow)
    posterior = flows.FlowDistribution(z.posterior, tfp.bijectors.Invert(flow))
    noise = flow.inverse(z.value)
    prior = tfd.MultivariateNormalDiag(tf.zeros([5, model.latent_size]))
    kl = posterior.log_prob(noise) - prior.log_prob(noise)
    np.testing.assert_allclose(kl, z.kl_divergence(), rtol=1e-4, atol=1e-4)

    decoded = model._flow(model.prior_flow).forward(noise)
    np.testing.assert_allclose(
        model.likelihood({"z": decoded}).log_prob(images),
        model.likelihood({"z": z.value}).log_prob(images),
        rtol=1e-4,
    )


@pytest.mark.parametrize("name", tiny.others_slow(["vlae", "vlae_iaf"]))
def test_flow_variables_are_the_models(name, tmp_path):
    """They are trained, and saved: a Keras 2 layer's inside would be neither."""
    model = tiny.build(name)
    variables = [
        variable
        for network in [*model.prior_flow, *model.posterior_flow]
        for variable in network.trainable_variables
    ]
    assert variables
    assert {id(v) for v in variables} <= {id(v) for v in model.trainable_variables}
    before = [v.numpy() for v in variables]
    model.compile("adam")
    model.fit(tiny.images_for(model, 16), epochs=2, verbose=0)
    moved = [np.any(v.numpy() != old) for v, old in zip(variables, before, strict=True)]
    assert np.mean(moved) > 0.8  # units that no input reaches have no gradient
    model.save_weights(tmp_path / "model.weights.h5")
    other = tiny.build(name, seed=1)
    other.load_weights(tmp_path / "model.weights.h5")
    images = tiny.images_for(model, 4)
    np.testing.assert_array_equal(model.elbo(images), other.elbo(images))


def test_prior_draws_follow_the_density():
    """Tempered noise scales the base: log p of draws falls as temperature rises."""
    model = tiny.shared("vlae")
    seeds = tf.range(500, dtype=tf.int64)
    values, _ = model.generate(seeds, temperature=tf.ones([500]))
    prior = model.prior(500)
    # E[log p(z)] of a mean-only flow is the negative entropy of its base.
    expected = -0.5 * model.latent_size * (1 + np.log(2 * np.pi))
    actual = prior.log_prob(values["z"]).numpy()
    np.testing.assert_allclose(
        actual.mean(), expected, atol=4 * actual.std() / np.sqrt(500)
    )
    cold, _ = model.generate(seeds, temperature=tf.fill([500], 0.1))
    assert prior.log_prob(cold["z"]).numpy().mean() > actual.mean() + 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MADE(1, (4,)), "at least 2 dimensions"),
        (lambda: MADE(4, ()), "at least one"),
        (lambda: MADE(4, (8,))(tf.zeros([2, 5])), r"must be \[batch, 4\]"),
        (
            lambda: MADE(4, (8,), context_size=3)(tf.zeros([2, 4])),
            r"`context` must be \[batch, 3\]",
        ),
        (
            lambda: flows.autoregressive_flow([MADE(4, (8,))], transform="spline"),
            "Received: transform='spline'",
        ),
        (lambda: VLAE(prior="flow"), "`prior` must be 'af' or 'gaussian'"),
        (lambda: VLAE(posterior="af"), "`posterior` must be"),
        (lambda: VLAE(decoder="mlp"), "`decoder` must be"),
        (lambda: VLAE(latent_size=0, decoder="factorised"), "needs a code"),
        (lambda: VLAE(latent_size=1), "at least 2 with a flow"),
        (lambda: VLAE(flow_steps=0), "Without a flow"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
