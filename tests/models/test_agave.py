"""AGAVE and the IAF VAE: sizes, the two decoders, lambda, and the phases."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tiny
from runs import make_entry
from vaezoo import evaluation, sampling
from vaezoo.distributions import heads
from vaezoo.inference import Latent
from vaezoo.models import computations
from vaezoo.models.agave import AGAVE
from vaezoo.models.iaf_ladder import IAFLadder
from vaezoo.models.iafvae import IAFVAE
from vaezoo.training import checkpoints
from vaezoo.training import run as training

SMALL = tiny.CONFIGURATIONS["agave"][1]


def count(variables):
    return sum(np.prod(variable.shape, dtype=int) for variable in variables)


@pytest.mark.slow
def test_parameter_counts():
    """The paper's two halves: 41.56 M, and 63.6 M with the stream."""
    model = AGAVE()
    assert count(model.ladder.trainable_variables) == 41_557_929
    assert count(model.stream.trainable_variables) == 8_318_240
    assert count(model.network.trainable_variables) == 53_659_080 + 1_638_400
    assert count(model.trainable_variables) == 105_173_649


@pytest.fixture(scope="module")
def model():
    return tiny.shared("agave")


@pytest.fixture(scope="module")
def images(model):
    return tiny.images_for(model, 5)


def seeds_for(images):
    return tf.constant(sampling.row_seeds(0, len(images)))


# f(z), and what sees it.


def test_a_pixel_sees_all_of_f_and_nothing_of_pixels_after_it(model, images):
    """The stream is not masked; what it holds comes from f alone."""
    seeds = seeds_for(images)
    latents, context = computations.posterior(model, images, seeds)
    values = computations.draws(latents)

    def params(images, f):
        return model.likelihood(values, context=f, seeds=seeds).params(images)

    f = context
    before = params(images, f)
    last = np.zeros(f.shape, np.float32)
    last[:, -1, -1] = 0.1
    assert np.all(np.any(params(images, f + last)[:, 0, 0] != before[:, 0, 0], -1))
    changed = images.copy()
    changed[:, 4, 3] = (changed[:, 4, 3] + 1) % model.levels
    after = params(changed, f)
    same = np.all(np.isclose(after, before, atol=1e-6), axis=(0, 3))
    assert np.all(same[:4]) and np.all(same[4, :4]) and not np.all(same[4, 4:])


def test_f_is_a_function_of_the_draws(model, images):
    latents, context = computations.posterior(model, images, seeds_for(images))
    values = computations.draws(latents)
    assert list(values) == ["z2", "z1"]
    np.testing.assert_allclose(model.ladder.decode(values), context, atol=1e-6)
    means = model.auxiliary_means(values)
    assert means.dtype == tf.uint8 and means.shape == (5, 4, 4, 3)
    for name in values:  # every level of latents reaches it
        moved = values | {name: values[name] + 1.0}
        assert np.any(np.abs(model.ladder.decode(moved) - context) > 1e-4)


def test_f_is_decoded_once(model, images, monkeypatch):
    """On the way down, for both decoders: never again from the draws."""
    seeds = seeds_for(images)
    expected, _ = computations.elbo_terms(model, images, seeds)

    def decode(values):
        raise AssertionError("decoded again")

    monkeypatch.setattr(model.ladder, "decode", decode)
    terms, _ = computations.elbo_terms(model, images, seeds)
    for name in ("reconstruction", "auxiliary"):
        np.testing.assert_array_equal(terms[name], expected[name])


def test_f_saturates_and_comes_back():
    ladder = IAFLadder(
        (4, 4, 3), 8, num_levels=1, filters=4, latent_filters=2, output_channels=3
    )
    ladder.build()
    ladder.decoder.bias.assign([9.0, -9.0, 0.0])
    values = {"z1": tf.zeros([2, 2, 2, 2])}
    with tf.GradientTape() as tape:
        f = ladder.decode(values)
        loss = tf.reduce_sum(f)
    np.testing.assert_allclose(f[..., 0], 7 / 16)
    np.testing.assert_allclose(f[..., 1], -7 / 16)
    assert np.all(tape.gradient(loss, ladder.decoder.bias) != 0)


# The auxiliary image, and equation 10.


@pytest.mark.parametrize("levels", [256, 32, 8])
def test_logistics_are_those_of_equation_10(levels):
    """With edge bins they sum to one; without, to what the bins of [0, 256) hold."""
    ladder = IAFLadder(
        (4, 4, 1), 256, num_levels=1, filters=2, latent_filters=1, output_channels=1
    )
    ladder.build()
    mu, s, c = 5.0, 12.0, 256 // levels  # in colour levels
    ladder.log_scale.assign([np.log(s / 256)])
    params = ladder.logistics(tf.constant([[[[mu / 256 - 0.5]]]]), levels)
    y = tf.reshape(tf.range(levels, dtype=tf.float32), [levels, 1, 1, 1])

    def probabilities(edge_bins):
        head = heads.Logistic(1, levels, edge_bins=edge_bins)
        return np.exp(head.log_prob(params, y))[:, 0, 0].astype(float)

    def cdf(value):
        return 1 / (1 + np.exp(-(value - mu) / s))

    k = np.arange(levels)
    expected = cdf(c * k + c) - cdf(c * k)  # the last edge is 256
    np.testing.assert_allclose(probabilities(False), expected, rtol=2e-3, atol=1e-7)
    assert probabilities(False).sum() == pytest.approx(0.6027, abs=1e-3)
    assert probabilities(True).sum() == pytest.approx(1, abs=1e-4)


def test_a_sharp_f_that_is_the_image_leaves_nothing_to_say():
    images = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1) * 16
    ladder = IAFLadder(
        (4, 4, 1), 256, num_levels=1, filters=2, latent_filters=1, output_channels=1
    )
    ladder.build()
    ladder.log_scale.assign([np.log(0.05 / 256)])
    f = (images.astype(np.float32) + 0.5) / 256 - 0.5
    head = heads.Logistic(1, 256)
    nats = head.log_prob(ladder.logistics(tf.constant(f), 256), images.astype("f4"))
    np.testing.assert_allclose(nats, 0, atol=0.03)  # the head's smallest scale


@pytest.mark.parametrize(
    "auxiliary, auxiliary_levels, expected",
    [
        ("image", 32, (8, 8, 3, 31)),
        ("half", None, (4, 4, 3, 255)),
        ("quarter", None, (2, 2, 3, 255)),
        ("gray", None, (8, 8, 1, 15)),
    ],
)
def test_auxiliary_images(auxiliary, auxiliary_levels, expected):
    arguments = SMALL | {"levels": 256, "num_levels": 1}
    model = AGAVE(
        **arguments | {"auxiliary": auxiliary, "auxiliary_levels": auxiliary_levels}
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    images[0] = 255
    y = model.auxiliary_images(images).numpy()
    *shape, highest = expected
    assert y.shape == (3, *shape) and np.all(y[0] == highest)
    assert model.num_auxiliary_dims == np.prod(shape)
    np.testing.assert_array_equal(y, np.floor(y))
    pixels = images[1].astype(float)
    if auxiliary == "image":
        np.testing.assert_array_equal(y[1], images[1] // 8)
    elif auxiliary == "gray":
        luma = np.floor(pixels @ [0.299, 0.587, 0.114] + 0.5)
        np.testing.assert_array_equal(y[1, :, :, 0], luma // 16)
    else:
        side = shape[0]
        blocks = pixels.reshape(side, 8 // side, side, 8 // side, 3).mean((1, 3))
        np.testing.assert_array_equal(y[1], np.floor(blocks + 0.5))
    latents, context = computations.posterior(model, images, seeds_for(images))
    loss = model.auxiliary_loss(images, computations.draws(latents), context=context)
    assert loss.shape == (3,) and np.all(np.isfinite(loss))
    likelihood = model.likelihood(computations.draws(latents), seeds=seeds_for(images))
    assert likelihood.params(images).shape[:3] == images.shape[:3]


# What is scored.


def test_neither_lambda_nor_y_enters_the_bound(images, monkeypatch):
    model = tiny.build("agave")
    model.compile("adam")
    before = model.evaluate(images, verbose=0, return_dict=True)
    bound = model.log_likelihood(images, num_importance_samples=3)
    model.compile("adam", kl_weight=12.0, auxiliary_weight=0.5)
    other = model.evaluate(images, verbose=0, return_dict=True)
    assert other["auxiliary"] == pytest.approx(before["auxiliary"])
    noise = tf.constant(
        np.random.default_rng(1).integers(0, 4, (5, 4, 4, 3)), "float32"
    )
    monkeypatch.setattr(model, "auxiliary_images", lambda images: noise)
    model.compile("adam")
    noisy = model.evaluate(images, verbose=0, return_dict=True)
    assert noisy["auxiliary"] != pytest.approx(before["auxiliary"], rel=1e-2)
    for name in ("elbo", "kl", "reconstruction", "bits_per_dim"):
        assert before[name] == other[name] == noisy[name], name
    np.testing.assert_array_equal(
        bound, model.log_likelihood(images, num_importance_samples=3)
    )
    nats = before["auxiliary"] + before["kl"]
    bits = nats / np.log(2) / (4 * 4 * 3)
    assert before["auxiliary_bits_per_dim"] == pytest.approx(bits, rel=1e-5)
    assert before["loss"] == pytest.approx(before["auxiliary"] - before["elbo"])


def test_evaluation_has_the_auxiliary_image_too(model, images):
    results = evaluation.evaluate(model, images, verbose=0)
    seeds = sampling.row_seeds(0, 5)
    terms = model.elbo_terms(images, seed=seeds)
    bits = np.mean(terms["auxiliary"] + terms["kl"]) / np.log(2) / (4 * 4 * 3)
    value, error = results["auxiliary_bits_per_dim"]
    assert value == pytest.approx(bits, rel=1e-3) and error > 0
    assert f"{value:.4f}" in evaluation.table(model, results, None)


def test_a_kl_term_at_the_draw_is_of_the_two_densities(images):
    """By map, and summed as the log ratio; without a flow, unbiased of the analytic."""
    model = tiny.shared("agave")
    latents, _ = computations.posterior(model, images, seeds_for(images))
    for latent in latents.values():
        assert latent.group_kls().shape == (5, 2)
        np.testing.assert_allclose(
            latent.kl_divergence(), -latent.log_ratio(), rtol=1e-4, atol=1e-4
        )
    still = tiny.build("iafvae")
    for level in still.ladder.levels:  # m = s = 0
        for variable in level.flow.outputs.trainable_variables:
            variable.assign(tf.zeros_like(variable))
    repeated = tf.repeat(images[:1], 4000, axis=0)
    seeds = tf.constant(sampling.row_seeds(3, 4000))
    latents, _ = still.infer(still.features(repeated), seeds=seeds)
    top = next(iter(latents.values()))
    base, prior = top.posterior.distribution, top.prior
    exact = tf.reduce_sum(
        base.distribution.kl_divergence(prior.distribution), axis=[1, 2]
    )[0]
    drawn = top.group_kls().numpy()
    error = drawn.std(axis=0) / np.sqrt(len(drawn))
    np.testing.assert_array_less(np.abs(drawn.mean(axis=0) - exact), 5 * error)


def test_free_bits_are_of_each_map():
    """Two maps of one latent, of .1 and 5 nats: the first is free up to 1 nat."""
    from vaezoo.models.objective import Objective

    kls = tf.constant([[0.0, 4.0], [0.2, 6.0]])
    latent = Latent(None, None, None, kl=kls)
    np.testing.assert_allclose(latent.kl_divergence(), [4.0, 6.2])
    means = [tf.reduce_mean(kls, axis=0)]
    term = Objective(free_bits_nats=1.0).kl_term(
        {"z": latent.group_kls()}, tf.constant(0), mean_kls=means
    )
    assert float(tf.reduce_mean(term)) == pytest.approx(1 + 5)


# Phases.


def test_the_parts_are_trained_apart_and_joint_training_starts_where_they_end():
    model = tiny.build("agave")
    images = tiny.images_for(model, 16)
    assert model.modes == ("joint", "decoder", "auxiliary")

    def train(mode, **options):
        model.begin_phase(mode)
        model.compile(keras.optimizers.Adam(0.01), kl_weight=2.0, **options)
        before = {v.path: v.numpy() for v in model.trainable_variables}
        logs = model.fit(images, batch_size=8, epochs=2, verbose=0).history
        changed = {v.path for v in model.trainable_variables}
        changed = {p for p in changed if np.any(before[p] != value(p))}
        return logs, {path.split("/")[0] for path in changed}

    def value(path):
        (variable,) = [v for v in model.trainable_variables if v.path == path]
        return variable.numpy()

    def terms(mode):
        model.mode = mode
        return computations.elbo_terms(model, images, seeds_for(images))[0]

    logs, changed = train("auxiliary", free_bits_nats=0.1)
    assert changed == {"ladder"} and "auxiliary" not in logs
    bits = -logs["elbo"][-1] / np.log(2) / model.num_auxiliary_dims
    assert logs["bits_per_dim"][-1] == pytest.approx(bits, rel=1e-5)
    logs, changed = train("decoder")
    assert changed == {"network"} and "kl/z1" not in logs
    parts, decoder = terms("auxiliary"), terms("decoder")
    joint = terms("joint")
    np.testing.assert_allclose(joint["auxiliary"], parts["reconstruction"], rtol=1e-6)
    np.testing.assert_allclose(joint["kl"], parts["kl"], rtol=1e-6)
    np.testing.assert_allclose(
        joint["reconstruction"], decoder["reconstruction"], rtol=1e-6
    )
    # A first step learns to see f, the next one reaches the stream and the ladder.
    logs, changed = train("joint", auxiliary_weight=0.5)
    assert changed == {"ladder", "network", "stream"}
    loss = np.dot([1, 2, 0.5], [logs[k] for k in ("reconstruction", "kl", "auxiliary")])
    np.testing.assert_allclose(logs["loss"], loss, rtol=1e-5)


@pytest.mark.slow
def test_stopped_in_either_phase_and_resumed_a_run_ends_where_it_would(
    tmp_path, monkeypatch
):
    """Bit for bit: the weights, the moving averages and the optimizer's state."""
    arguments = {
        "image_shape": (8, 8, 1),
        "levels": 2,
        "filters": 3,
        "num_resnets": 1,
        "num_levels": 1,
        "ladder_filters": 3,
        "latent_filters": 1,
    }
    steps = {"max_steps": 3, "soft_free_bits_nats": 0.0, "free_bits_nats": 0.1}
    entry = make_entry(
        {"name": "vae", "mode": "auxiliary", **steps},
        {"name": "joint", **steps},
        model={"class": "AGAVE", "arguments": arguments},
    )

    def train(out, stop_at=()):
        end = checkpoints.CheckpointCallback.on_train_batch_end

        def end_or_stop(self, batch, logs=None):
            end(self, batch, logs)
            if self._progress.position == stop_at:
                raise RuntimeError("stopped")

        with monkeypatch.context() as patch:
            patch.setattr(
                checkpoints.CheckpointCallback, "on_train_batch_end", end_or_stop
            )
            return training.train(
                entry, out=out, checkpoint_steps=1, resume=True, verbose=0
            )

    undisturbed = train(tmp_path / "whole")
    for stop_at in (2, 5):
        with pytest.raises(RuntimeError, match="stopped"):
            train(tmp_path / "parts", stop_at)
    resumed = train(tmp_path / "parts")
    for model in (resumed, undisturbed):
        assert model.mode == "joint"
    for mine, theirs in zip(resumed.weights, undisturbed.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)
    variables = zip(
        resumed.optimizer.variables, undisturbed.optimizer.variables, strict=True
    )
    for mine, theirs in variables:
        np.testing.assert_array_equal(mine, theirs)


def test_initialisation_of_the_stream_is_by_data_and_injections_start_at_zero():
    model = tiny.build("agave", initialized=False)
    images = tiny.images_for(model, 16)
    model.initialize(images)
    injections = [v for v in model.trainable_variables if "injection" in v.path]
    assert len(injections) == 2 * sum(map(sum, model.network.block_counts))
    assert not any(np.any(v) for v in injections)
    latents, context = computations.posterior(model, images, seeds_for(images))
    f = tf.repeat(tf.repeat(context, 2, axis=1), 2, axis=2)
    first = model.stream.first(2.0 * f).numpy()
    np.testing.assert_allclose(first.std((0, 1, 2)), 1, atol=0.2)


# Bad input.


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_shape": (8, 6, 3)}, "divisible by 4. Received"),
        ({"auxiliary": "edges"}, "`auxiliary` must be.*'gray'.*'edges'"),
        ({"auxiliary_levels": 3}, "must divide the image's levels.*auxiliary_levels=3"),
        ({"auxiliary": "gray", "image_shape": (8, 8, 1)}, "three channels"),
        ({"num_levels": 0}, "`num_levels` must be a positive integer"),
        ({"latent_filters": 0}, "`latent_filters` must be a positive integer"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        AGAVE(**SMALL | changes)


def test_an_odd_image_of_the_iaf_vae():
    with pytest.raises(ValueError, match="must be even. Received"):
        IAFVAE(image_shape=(7, 8, 3))


def test_lambda(model):
    with pytest.raises(ValueError, match="`kl_weight` must be"):
        model.compile("adam", kl_weight=0.0)
    with pytest.warns(
        UserWarning, match="`kl_weight` below 1 the loss is no bound.*kl_weight=0.5"
    ):
        model.compile("adam", kl_weight=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.compile("adam", kl_weight=1.0)
