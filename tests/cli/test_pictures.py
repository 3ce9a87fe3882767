"""The commands that draw: what is in their pictures."""

import math
import re

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from vaezoo import cli, datasets, plots
from vaezoo.serving import programs
from vaezoo.zoo import registry


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def shared_programs(home, monkeypatch, vaezoo_home):
    """The commands here share what they compile."""
    monkeypatch.setenv("VAEZOO_HOME", str(home))


@pytest.fixture(scope="module")
def model(run_folder):
    return registry.load(run_folder)


@pytest.fixture(scope="module")
def digits():
    return next(iter(datasets.load_dataset("digits", "test", batch_size=4))).numpy()


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def picture(result, path):
    assert result.exit_code == 0, result.output
    return tf.io.decode_image(path.read_bytes()).numpy()


def test_sample_writes_the_grid_of_the_models_images(run_folder, model, tmp_path):
    path = tmp_path / "grid.png"
    result = run("sample", run_folder, "--num", 4, "--seed", 3, "--output", path)
    images = model.sample(4, seed=3)
    expected = plots.image_grid(images, levels=2)
    np.testing.assert_array_equal(picture(result, path), expected)
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_reconstruct(run_folder, model, digits, tmp_path):
    path = tmp_path / "grid.png"
    options = ("--num", 2, "--draws", 2, "--seed", 5, "--output", path)
    result = run("reconstruct", run_folder, *options)
    images = digits[:2]
    rows = [images, *(model.reconstruct(images, seed=seed) for seed in (5, 6))]
    labels = ["images", "draw 1", "draw 2"]
    expected = plots.image_grid(
        np.concatenate(rows), columns=2, levels=2, labels=labels
    )
    np.testing.assert_array_equal(picture(result, path), expected)
    code = re.search(
        r"images: ([\d.]+) nats, ([\d.]+) bits .*\((.*) nats\)", result.output
    )
    nats, bits = float(code[1]), float(code[2])
    assert bits == pytest.approx(nats / math.log(2), abs=0.02)
    kl = [model.elbo_terms(images, seed=seed)["kl"] for seed in range(5, 21)]
    each = [float(value) for value in code[3].split(",")]
    np.testing.assert_allclose(each, np.mean(kl, axis=0), atol=0.06)


@pytest.mark.slow
def test_complete_shows_images_what_is_seen_and_completions(
    run_folder, model, digits, tmp_path
):
    path = tmp_path / "grid.png"
    options = ("--num", 4, "--draws", 1, "--missing", "left", "--output", path)
    result = run("complete", run_folder, *options)
    mask = np.zeros([4, 8, 8, 1], np.uint8)
    mask[:, :, :4] = 1
    rows = 255 * np.concatenate([digits, digits, model.complete(digits, mask)])
    rows[4:8, :, :4] = 128
    labels = ["images", "seen", "filled 1"]
    expected = plots.image_grid(rows, columns=4, labels=labels)
    np.testing.assert_array_equal(picture(result, path), expected)


def test_complete_takes_the_users_image_and_mask(run_folder, tmp_path, monkeypatch):
    image = np.zeros([16, 16, 3], np.uint8)  # twice the model's size, and in colour
    image[:8] = 255
    mask = np.zeros([8, 8, 1], np.uint8)
    mask[2:4] = 255
    for name, array in {"image": image, "mask": mask, "dark": 0 * mask}.items():
        tf.io.write_file(str(tmp_path / f"{name}.png"), tf.io.encode_png(array))
    received = {}

    def compute(self, name, *, batch_size, progress, **inputs):
        received.update(inputs)
        return {"images": inputs["images"]}

    monkeypatch.setattr(programs.Programs, "run", compute)
    files = ("--image", tmp_path / "image.png", "--mask", tmp_path / "mask.png")
    options = ("--draws", 2, "--output", tmp_path / "grid.png")
    result = run("complete", run_folder, *files, *options)
    assert result.exit_code == 0, result.output
    smaller = image[None, ::2, ::2, :1] // 255
    np.testing.assert_array_equal(received["images"], np.repeat(smaller, 2, axis=0))
    np.testing.assert_array_equal(received["mask"], np.stack([mask // 255] * 2))
    assert len(set(received["seed"])) == 2
    result = run("complete", run_folder, "--mask", tmp_path / "dark.png", *options)
    assert result.exit_code == 1 and "must be light" in result.output


@pytest.mark.slow
def test_interpolate_begins_and_ends_at_the_codes_of_the_images(
    run_folder, model, digits, tmp_path
):
    path = tmp_path / "grid.png"
    result = run("interpolate", run_folder, "--num", 2, "--steps", 3, "--output", path)
    grid = picture(result, path)
    expected = np.zeros([2, 5, 8, 8, 1], np.uint8)
    expected[:, 0], expected[:, -1] = digits[:4:2], digits[1:4:2]
    for column, ends in {1: digits[:4:2], 3: digits[1:4:2]}.items():
        expected[:, column] = model.decode(model.encode(ends))
    labels = ["pair 1", "pair 2"]
    pictured = plots.image_grid(
        expected.reshape(-1, 8, 8, 1), columns=5, levels=2, labels=labels
    )
    assert grid.shape == pictured.shape
    middle = slice(grid.shape[1] - 1 - 3 * 65, grid.shape[1] - 1 - 2 * 65)
    grid[:, middle] = pictured[:, middle]
    np.testing.assert_array_equal(grid, pictured)
    result = run("interpolate", run_folder, "--image", path, "--output", path)
    assert result.exit_code == 2 and "both ends" in result.output


def test_arcs_keep_the_length_of_a_code():
    first, last = np.eye(2, dtype=np.float32)
    (arc,) = cli.pictures.arcs([first], [last], np.linspace(0, 1, 5))
    np.testing.assert_allclose(np.linalg.norm(arc, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(arc[[0, -1]], [first, last], atol=1e-6)
    (arc,) = cli.pictures.arcs([first], [2 * first], np.linspace(0, 1, 3))
    np.testing.assert_allclose(arc[1], 1.5 * first)


def test_a_model_without_latents_has_no_codes(monkeypatch, run_folder, tmp_path):
    monkeypatch.setattr(programs.Programs, "latent_shapes", {})
    for command in ("reconstruct", "interpolate"):
        result = run(command, run_folder, "--output", tmp_path / "x.png")
        assert result.exit_code == 1 and "must have latents" in result.output


def test_a_jpeg_is_a_jpeg_and_other_names_are_refused(run_folder, tmp_path):
    path = tmp_path / "grid.JPG"
    shape = picture(run("sample", run_folder, "--num", 4, "--output", path), path).shape
    assert path.read_bytes()[:3] == b"\xff\xd8\xff" and shape == (131, 131, 1)
    (tmp_path / "folder.png").mkdir()
    result = run("sample", run_folder, "--output", tmp_path / "folder.png")
    assert result.exit_code == 1 and "can be written" in result.output
    result = run("sample", run_folder, "--output", tmp_path / "grid.gif")
    assert result.exit_code == 1 and "must end in .png, .jpg" in result.output
