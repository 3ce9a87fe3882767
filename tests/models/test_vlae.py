"""VLAE: what its paper says of this model and of no other."""

import math

import numpy as np
import pytest
import tensorflow as tf

import tiny
from vaezoo import evaluation, sampling
from vaezoo.models import computations
from vaezoo.models.vlae import VLAE

AF_VAE = {
    "decoder": "factorised",
    "latent_size": 32,
    "flow_steps": 8,
    "flow_hidden_sizes": (1920,),
}
IAF = {"prior": "gaussian", "posterior": "iaf"}


def num_parameters(model):
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, 361_540 + 366_124 + 1_976_832 + 3_338),
        ({"tied": False}, 361_540 + 366_124 + 1_976_832 + 8_522),
        ({"latent_size": 0}, 2_906),
        ({"prior": "gaussian"}, 361_540 + 366_124 + 3_338),
        (AF_VAE, 1_698_170),
        (AF_VAE | IAF | {"flow_transform": "gated"}, 9_132_922),
    ],
)
def test_parameter_counts(arguments, expected):
    """Counted by hand from the paper's words; it prints no counts."""
    assert num_parameters(VLAE(**arguments)) == expected


def test_tied_layers_share_their_direction_and_nothing_else():
    """Five type-B layers: one direction, five gains and biases, each its own (T8)."""
    model = tiny.shared("vlae")
    blocks = model.pixelcnn.blocks
    assert len({id(block.direction) for block in blocks}) == 1
    assert len({id(block.gain) for block in blocks}) == len(blocks) == 3
    # Each layer's gain is of its own initialisation, not of the last one's.
    gains = [tuple(block.gain.numpy()) for block in blocks]
    assert len(set(gains)) == len(blocks)
    untied = tiny.shared("vlae_iaf").pixelcnn.blocks
    assert len({id(block.direction) for block in untied}) == len(untied)


def test_tied_layers_are_initialised_on_data():
    """Every layer's output has mean 0 and standard deviation 1 on its batch (T8)."""
    model = tiny.build("vlae", initialized=False)
    images = tiny.images_for(model, 64)
    model.initialize(images)
    blocks = model.pixelcnn.blocks
    outputs = {}
    for block in blocks:
        call = block.call
        block.call = lambda x, b=block, call=call: outputs.setdefault(b.name, call(x))
    computations.elbo_terms(
        model, tf.constant(images), tf.constant(sampling.row_seeds(0, 64))
    )
    assert len(outputs) == len(blocks)
    for output in outputs.values():
        np.testing.assert_allclose(tf.reduce_mean(output, (0, 1, 2)), 0, atol=1e-3)
        np.testing.assert_allclose(tf.math.reduce_std(output, (0, 1, 2)), 1, atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "pixels"), [({}, 69), ({"num_layers": 3}, 21), ({"num_layers": 1}, 4)]
)
def test_receptive_field_is_the_window(arguments, pixels):
    """3x3-A and five 3x3-B: 6 rows up, 6 columns to either side, 69 pixels (T2)."""
    model = VLAE(flow_steps=1, flow_hidden_sizes=(64,), **arguments)
    seen = evaluation.receptive_field(model)
    reach = model.get_config()["num_layers"]
    rows, columns = np.nonzero(seen)
    assert seen.shape == (28, 28) and seen.sum() == pixels
    assert rows.min() == 27 - reach
    assert (columns.min(), columns.max()) == (14 - reach, 14 + max(reach, 1))


def test_receptive_field_of_independent_pixels_is_empty():
    assert evaluation.receptive_field(tiny.shared("vlae_factorised")).sum() == 0


@pytest.mark.parametrize("name", ["vlae", "vlae_iaf"])
def test_maps_of_the_code_reach_the_first_pixel_unless_masked(name):
    """With the paper's literal mask the first pixel does not see z's maps there."""
    model = tiny.shared(name)
    values, _ = model.generate(tf.range(8, dtype=tf.int64), temperature=tf.ones([8]))
    images = tf.constant(tiny.images_for(model, 8))
    with tf.GradientTape() as tape:
        tape.watch(values["z"])
        first = model.likelihood(values).params(images)[:, 0, 0]
    gradient = np.abs(tape.gradient(first, values["z"])).sum()
    masked = model.get_config()["mask_z_channels"]
    assert (gradient == 0) == masked


def test_kl_under_a_flow_prior():
    """`log q(z | x) - log N(f^-1(z))` (eqs. 12, 13), the flow undone step by step.

    Mean-only steps have a log-determinant of 0.
    """
    model = tiny.shared("vlae")
    images = tiny.images_for(model, 5)
    values = model.encode(images, seed=7)["z"].numpy()
    features = model.features(tf.constant(images))
    scale = np.exp(features["log_scale"])
    standard = (values - features["loc"]) / scale
    noise = values
    for index, network in enumerate(model.prior_flow):
        noise = noise[:, ::-1] if index else noise
        noise = noise - network(tf.constant(noise.copy()))[0].numpy()

    def log_density(x):  # of N(0, I), without its constant, which cancels
        return -0.5 * np.sum(x**2, axis=1)

    expected = log_density(standard) - np.sum(np.log(scale), axis=1)
    expected -= log_density(noise)
    terms = model.elbo_terms(images, seed=7)
    np.testing.assert_allclose(terms["kl/z"], expected, atol=1e-4)


def test_sampled_rows_depend_on_their_seed_alone():
    """Through the sequential flow of the prior too."""
    model = tiny.shared("vlae")
    seeds = np.array([5, 6, 7], np.int64)
    together = model.sample(3, seed=seeds).numpy()
    alone = [model.sample(1, seed=seeds[i : i + 1]).numpy()[0] for i in range(3)]
    np.testing.assert_array_equal(together, alone)


def test_decompressions_are_draws():
    """Binary images, another one for another seed, from the same code."""
    model = tiny.shared("vlae")
    images = tiny.images_for(model, 4)
    codes = model.encode(images, seed=0)
    first, second = (model.decode(codes, seed=seed).numpy() for seed in (0, 1))
    assert set(np.unique(first)) == {0, 1}
    assert np.any(first != second)


def test_mean_of_a_flow_posterior_is_where_the_flow_takes_the_mean():
    model = tiny.shared("vlae_iaf")
    images = tf.constant(tiny.images_for(model, 4))
    features = model.features(images)
    flow = model._flow(model.posterior_flow, context=features["context"])
    expected = flow.inverse(features["loc"])
    np.testing.assert_allclose(
        model.encode(images, mode="mean")["z"], expected, atol=1e-5
    )
