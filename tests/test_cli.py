"""The command line."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

import vaezoo
from vaezoo import cli, plots
from vaezoo.zoo import entries, registry, weights


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_version():
    assert vaezoo.__version__ in run("--version").output


def test_process_says_its_own_words_only(run_folder, tmp_path):
    """The first time, and the second, which takes what the first has kept."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL")
    announced = {"1.png": r"Compiling, about \d+ s \.\.\.\n", "2.png": ""}
    for output, compiling in announced.items():
        arguments = ["sample", str(run_folder), "--num", "3", "--output", output]
        process = subprocess.run(
            [sys.executable, "-m", "vaezoo", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        assert process.returncode == 0, process.stderr
        assert process.stdout == f"Wrote {output}\n"
        said = re.escape(f"Drawing 3 images from {run_folder} ...\n") + compiling
        assert re.fullmatch(said, process.stderr)
        environment["TF_CPP_MIN_LOG_LEVEL"] = "2"
    first, second = (tmp_path / name for name in ("1.png", "2.png"))
    assert first.read_bytes() == second.read_bytes()
    images = registry.load(run_folder).sample(3, seed=0)
    picture = tf.io.decode_png(second.read_bytes()).numpy()
    np.testing.assert_array_equal(picture, plots.image_grid(images, levels=2))


def test_list_and_describe():
    result = run("list", "pixelvae_*")
    assert result.exit_code == 0
    assert "pixelvae_mnist_static" in result.output
    assert "gated_pixelcnn" not in result.output
    assert "No model matches" in run("list", "nothing*").output
    parts = run("list", "cnn_mnist").output.split()
    assert "gated_pixelcnn_mnist_static" in parts and "pixelvae_digits" not in parts
    card = run("describe", "pixelvae_mnist_static")
    assert card.exit_code == 0 and "1611.05013" in card.output


def test_reproduce_names_the_near_experiments(tmp_path):
    result = run("reproduce", "vlae/windows", "--out", tmp_path / "out")
    assert result.exit_code == 1 and "Did you mean vlae/window" in result.output
    assert not (tmp_path / "out").exists()


def test_evaluate(run_folder, tmp_path):
    record = tmp_path / "entry.yaml"
    record.write_text((run_folder / "entry.yaml").read_text())
    arguments = ("--images", 20, "-k", 4, "--write", record)
    result = run("evaluate", run_folder, *arguments)
    assert result.exit_code == 0, result.output
    assert "log_likelihood (L_4)" in result.output
    assert "About " in result.output and "for 20 images" in result.output
    measured = {m.metric: m for m in entries.entry_from_file(record).measured}
    assert measured["log_likelihood"].num_importance_samples == 4
    assert measured["elbo"].images == 20


def test_figures_of_other_weights_are_refused_before_they_are_measured(
    run_folder, tmp_path
):
    record = tmp_path / "entry.yaml"
    text = (run_folder / "entry.yaml").read_text()
    digest = registry.describe(run_folder).weights.sha256
    record.write_text(text.replace(digest, "f" * 64))
    result = run("evaluate", run_folder, "--images", 1, "--write", record)
    assert result.exit_code == 1 and "other weights" in result.output
    assert "About " not in result.output


def test_one_image_has_no_standard_error(run_folder, tmp_path):
    record = tmp_path / "entry.yaml"
    record.write_text((run_folder / "entry.yaml").read_text())
    result = run("evaluate", run_folder, "--images", 1, "--write", record)
    assert result.exit_code == 0, result.output
    assert entries.entry_from_file(record).measured[0].standard_error is None


def test_export_numbers_the_versions(run_folder, tmp_path):
    for version in ("1", "2"):
        result = run(
            "export", run_folder, tmp_path / "m", "--signatures", "log_likelihood"
        )
        assert result.exit_code == 0, result.output
        assert (tmp_path / "m" / version / "saved_model.pb").exists()
        assert re.search(r"Wrote .* \([1-9]\d*\.\d MB\)", result.output)


TRAIN = ("train", "pixelvae_digits", "--out", "run")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("sample", "pixelvae_mnist_statik"), "Did you mean 'pixelvae_mnist_static'"),
        (("sample", "fame_imagenet32"), "weights=None"),
        (("sample", "pixelvae_digits", "--num", "0"), "x>=1"),
        (("sample", "pixelvae_digits", "--output", "no/x.png"), "folder"),
        (("train", "pixelvae_digits", "--out", "/proc/run"), "can be written"),
        (("evaluate", "pixelvae_digits", "-k", "-1"), "x>=1"),
        ((*TRAIN, "--strategy", "multi_worker"), "no TF_CONFIG in the environment"),
        ((*TRAIN, "--local-workers", "2"), "goes with --strategy multi_worker"),
        ((*TRAIN, "--devices", "2"), '`devices` goes with strategy="mirrored"'),
        ((*TRAIN, "--precision", "float16"), "mixed_bfloat16"),
        ((*TRAIN, "--set", "training.lr=1"), "training.lr: Extra inputs"),
        ((*TRAIN, "--set", "training.epochs"), "--set takes KEY=VALUE"),
        ((*TRAIN, "--more-epochs", "2"), "Give resume=True (--resume) too"),
    ],
)
def test_errors_are_one_message_without_a_traceback(arguments, message):
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("temperature", ["0", "-1", "nan"])
def test_bad_temperature(run_folder, temperature):
    result = run("sample", run_folder, "--temperature", temperature)
    assert result.exit_code == 1 and "`temperature` must be" in result.output


def test_image_grid():
    images = np.zeros((3, 8, 8, 1), np.uint8)
    images[1] = 1
    grid = plots.image_grid(images, levels=2)
    assert grid.shape == (2 * 65 + 1, 2 * 65 + 1, 1) and grid.dtype == np.uint8
    assert np.all(grid[1:65, 66:130] == 255) and np.all(grid[1:65, 1:65] == 0)
    with pytest.raises(ValueError, match="Received: shape"):
        plots.image_grid(images[0])


@pytest.mark.slow
def test_the_commands_of_a_card_make_its_weights_again(tmp_path, monkeypatch):
    """Trained, installed and measured by three commands; twice, to the same file."""
    folder = tmp_path / "zoo_configs"
    shutil.copytree(registry.CONFIG_FOLDER, folder)
    monkeypatch.setattr(registry, "CONFIG_FOLDER", folder)
    monkeypatch.setattr(weights, "PRETRAINED_FOLDER", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    record, digests = folder / "pixelvae_digits.yaml", []
    for out in ("first", "second"):
        for command in (
            f"train pixelvae_digits --out {out} --max-steps 8",
            f"install {out}",
            f"evaluate pixelvae_digits --images 8 --write {record}",
        ):
            result = run(*command.split())
            assert result.exit_code == 0, result.output
        entry = registry.describe("pixelvae_digits")
        assert entry.training.max_steps == entry.history[0].phases[0].steps == 8
        assert [m.images for m in entry.measured] == [8, 8]
        digests.append(entry.weights.sha256)
    assert digests[0] == digests[1]
