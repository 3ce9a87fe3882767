"""Sampling options and binary latents, where a model is exported or kept."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

import runs
from vaezoo import cli, plots, row_seeds
from vaezoo.models.pixelvaepp import PixelVAEPP
from vaezoo.serving import programs, saved_model
from vaezoo.zoo import entries, registry, weights

pytestmark = pytest.mark.filterwarnings("ignore:The export has no TF Serving warm-up")

ARGUMENTS = {
    "image_shape": [8, 8, 1],
    "levels": 2,
    "filters": 4,
    "num_resnets": 1,
    "strided": False,
    "z1_size": 4,
    "z2_size": 0,
    "z3_size": 0,
    "num_chains": 20,
    "num_sweeps": 2,
}
UPDATES = 3  # of Gibbs, for which the images differ from the default's


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = PixelVAEPP(**ARGUMENTS)
    weights.variables_by_name(model)["rbm_weights"].assign(4.0 * tf.eye(2))
    for variable in model.maps.trainable_variables:  # z decides what is drawn
        variable.assign(4.0 * variable)
    model.estimate_log_z(num_chains=10, num_temperatures=10, num_updates=10)
    return model


@pytest.fixture(scope="module")
def expected(model):
    """Images of the default number of updates, and of few."""
    images = [
        model.sample(16, seed=3, jit=False, **options).numpy()
        for options in ({}, {"num_gibbs_updates": UPDATES})
    ]
    assert np.any(images[0] != images[1])
    return images


def export(model, directory, **options):
    signatures = ["sample", "decode"]
    return saved_model.export(model, directory, signatures=signatures, **options)


def test_an_export_has_its_options_fixed(model, expected, tmp_path):
    options = {"num_gibbs_updates": UPDATES}
    folder = export(model, tmp_path / "1", sampling_options=options)
    manifest = json.loads((folder / "assets.extra" / "manifest.json").read_text())
    assert manifest["sampling_options"] == options
    loaded = tf.saved_model.load(str(folder))
    inputs = {"seed": tf.constant(row_seeds(3, 16)), "temperature": tf.ones([16])}
    images = loaded.signatures["sample"](**inputs)["images"]
    np.testing.assert_array_equal(images, expected[1])
    codes, seed = np.array([[0, 1, 1, 0]], np.float32), tf.zeros([1], tf.int64)
    decode = loaded.signatures["decode"]
    assert decode(z=tf.constant(codes), seed=seed)["images"].shape == (1, 8, 8, 1)
    for value in (0.5, -1.0, np.nan):
        codes[0, 2] = value
        with pytest.raises(tf.errors.InvalidArgumentError, match="exactly 0 or 1"):
            decode(z=tf.constant(codes), seed=seed)


@pytest.mark.parametrize("options", [{"num_gibbs_updates": 0}, {"num_steps": 3}])
def test_bad_options_of_an_export(model, tmp_path, options):
    with pytest.raises(ValueError, match=f"Received: {next(iter(options))}="):
        export(model, tmp_path / "1", sampling_options=options)
    assert not list(tmp_path.iterdir())


def test_an_export_that_scores_needs_log_z(model, tmp_path):
    known = weights.variables_by_name(model)["log_z_known"]
    known.assign(False)
    try:
        with pytest.raises(ValueError, match="estimate_log_z"):
            saved_model.export(model, tmp_path / "1")
    finally:
        known.assign(True)


@pytest.fixture(scope="module")
def run_folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    content = runs.make_entry(soft_free_bits_nats=0.0).model_dump()
    content |= {
        "name": "tiny",
        "model": {"class": "PixelVAEPP", "arguments": ARGUMENTS},
    }
    path = weights.write_weights(model, folder / "weights.h5")
    content["weights"] = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": weights.sha256(path),
    }
    entry = entries.ZooEntry.model_validate(content | {"status": "partial"})
    entries.write_entry(entry, folder / entries.ENTRY_FILE)
    return folder


def command(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_the_command_draws_with_options_and_keeps_their_programs_apart(
    run_folder, expected, tmp_path
):
    path, few = tmp_path / "grid.png", f"--option=num_gibbs_updates={UPDATES}"
    shared = ("sample", run_folder, "--seed", 3, "--output", path)
    model = registry.load(run_folder)
    for options, kwargs in (
        ((), {}),
        ((few,), {"num_gibbs_updates": UPDATES}),
        ((), {}),
    ):
        result = command(*shared, *options)
        assert result.exit_code == 0, result.output
        images = model.sample(16, seed=3, **kwargs)
        grid = plots.image_grid(images, levels=2)
        np.testing.assert_array_equal(
            tf.io.decode_image(path.read_bytes()).numpy(), grid
        )
    kept = {file.name for file in programs.programs_folder().glob("*/sample*.pb")}
    assert kept == {"sample-16.pb", f"sample-num_gibbs_updates={UPDATES}-16.pb"}


def test_bad_options_of_the_command(run_folder, tmp_path):
    shared = ("sample", run_folder, "--output", tmp_path / "grid.png")
    result = command(*shared, "--option", "num_gibbs_updates=0")
    assert result.exit_code == 1 and "must be a positive integer" in result.output
    result = command(*shared, "--option", "num_steps=5")
    assert result.exit_code == 1 and "Received: num_steps=5" in result.output
    for text in ("num_gibbs_updates", "num_gibbs_updates=many"):
        result = command(*shared, "--option", text)
        assert result.exit_code == 2 and "NAME=NUMBER" in result.output
    few = "--option=num_gibbs_updates=3"
    result = command(*shared, few, "--server", "localhost:1")
    assert result.exit_code == 2 and "fixed by the export" in result.output


def test_codes_between_binary_codes_are_binary():
    first, last = np.zeros([1, 10], np.float32), np.ones([1, 10], np.float32)
    (way,) = cli.pictures.flips(first, last, np.linspace(0, 1, 6))
    np.testing.assert_array_equal(way.sum(axis=1), [0, 2, 4, 6, 8, 10])
    assert way.shape == (6, 10) and np.all(np.diff(way, axis=0) >= 0)
    (way,) = cli.pictures.flips(first, first, np.linspace(0, 1, 3))
    assert not way.any()


@pytest.mark.slow
def test_the_command_interpolates_binary_codes(run_folder, tmp_path):
    path = tmp_path / "grid.png"
    options = ("--num", 1, "--steps", 3, "--output", path)
    result = command("interpolate", run_folder, *options)
    assert result.exit_code == 0, result.output
