"""Figures with standard errors."""

import math

import numpy as np
import pytest
import tensorflow as tf

import tiny
from vaezoo import evaluation


@pytest.fixture(scope="module")
def model():
    return tiny.shared("gated_pixelvae_noup")


def test_figures_are_means_over_the_images(model):
    images = tiny.images_for(model, 21)
    results = evaluation.evaluate(model, images, num_importance_samples=3, batch_size=8)
    terms = dict(model.elbo_terms(images))
    terms["log_likelihood"] = model.log_likelihood(images, num_importance_samples=3)
    for name, values in terms.items():
        values = np.asarray(values, np.float64)
        value, error = results[name]
        assert value == pytest.approx(values.mean(), rel=1e-5)
        assert error == pytest.approx(values.std(ddof=1) / 21**0.5, rel=1e-3)
    bound, _ = results["log_likelihood"]
    assert results["bits_per_dim"][0] == pytest.approx(-bound / 64 / math.log(2))


def test_active_units_are_those_whose_mean_varies(model):
    images = tiny.images_for(model, 40)
    means = model.encode(images, mode="mean")["z"].numpy()
    expected = (means.var(axis=0) > 0.01).sum()
    assert evaluation.evaluate(model, images)["active_units/z"][0] == expected


def test_datasets_arrays_and_limits_agree(model):
    images = tiny.images_for(model, 20)
    dataset = tf.data.Dataset.from_tensor_slices({"image": images}).batch(6)
    expected = evaluation.evaluate(model, images[:10])
    results = evaluation.evaluate(model, dataset, images=10)
    assert results.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(results[name], expected[name], rtol=1e-5)


def test_exact_likelihood_without_latents():
    model = tiny.shared("pixelcnn")
    results = evaluation.evaluate(model, tiny.images_for(model, 6))
    assert results["log_likelihood"] == pytest.approx(results["elbo"], rel=1e-5)
    assert "active_units/z" not in results


@pytest.mark.parametrize(
    ("verbose", "announces", "progresses"),
    [(0, False, False), (1, True, True), (2, True, False), ("auto", False, False)],
)
def test_time_and_estimate_are_shown(model, capsys, verbose, announces, progresses):
    images = tiny.images_for(model, 20)
    evaluation.evaluate(model, images, batch_size=8, verbose=verbose)
    shown = capsys.readouterr().err
    assert ("for 20 images, measured on 8" in shown) == announces
    progress = "20/20 images, elbo" in shown and "+-" in shown and "0 s left" in shown
    assert progress == progresses


@pytest.mark.parametrize("name", ["images", "batch_size", "num_importance_samples"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_bad_counts(model, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer"):
        evaluation.evaluate(model, tiny.images_for(model, 2), **{name: value})


def test_no_images(model):
    with pytest.raises(ValueError, match="at least one image"):
        evaluation.evaluate(model, np.zeros((0, 8, 8, 1), np.uint8))
