"""What all commands have in common: early refusals, help, JSON, terminals, shells."""

import json
import os
import shutil
import subprocess
import sys

import click
import numpy as np
import pytest
import tensorflow as tf
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from vaezoo import cli
from vaezoo.serving import programs
from vaezoo.zoo import entries, registry

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("sample fame_imagenet32", "must have trained weights"),
        ("complete fame_imagenet32", "must have trained weights"),
        ("evaluate fame_imagenet32", "must have trained weights"),
        ("export fame_imagenet32 x", "must have trained weights"),
        ("train fame_imagenet32 --out x --init zoo", "must have trained weights"),
        ("train pixelvae_digits --out x --dataset none", "no dataset of this name"),
        ("evaluate pixelvae_digits --dataset digit", "Did you mean digits"),
        ("evaluate pixelvae_digits --split validation", "no such split"),
        ("sample pixelvae_digits --output x.gif", "must end in .png, .jpg"),
        ("sample pixelvae_digits --server localhost:1", "needs the 'serving' extra"),
    ],
)
def test_what_is_known_without_tensorflow_is_refused_without_it(arguments, message):
    script = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *args: (\n"
        "    None if name == 'tensorflow_serving' else find(name, *args)\n"
        ")\n"
        "sys.modules['tensorflow'] = None\n"
        "from vaezoo import cli\n"
        "cli.main(sys.argv[1:])\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, *arguments.split()],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.returncode == 1 and message in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("encoding, sign", [("cp1252", "\xb1"), ("iso8859_5", "+-")])
def test_a_terminal_without_the_characters(encoding, sign):
    process = subprocess.run(
        [sys.executable, "-m", "vaezoo", "list", "pixelvae_digits"],
        capture_output=True,
        env=ENVIRONMENT | {"PYTHONIOENCODING": encoding},
    )
    assert process.returncode == 0, process.stderr
    assert f"<= 18.51 {sign} 0.32 nats" in process.stdout.decode(encoding)


def test_every_option_says_what_it_is():
    without = [
        f"{name} {option.opts[0]}"
        for name, command in cli.main.commands.items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert not without


def test_json_is_for_programs(run_folder):
    listed = json.loads(run("list", "digits", "--json").output)
    assert [entry["name"] for entry in listed] == ["pixelvae_digits"]
    assert listed[0]["measured"][0]["metric"] == "elbo"
    described = json.loads(run("describe", "pixelvae_digits", "--json").output)
    entry = entries.ZooEntry.model_validate(described).model_dump()
    assert entry == registry.describe("pixelvae_digits").model_dump()
    measured = json.loads(run("evaluate", run_folder, "--images", 1, "--json").stdout)
    assert (measured["images"], measured["dataset"]) == (1, "digits")
    assert measured["results"]["elbo"]["value"] < 0
    assert measured["results"]["elbo"]["standard_error"] is None


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_names_of_models(shell, monkeypatch):
    monkeypatch.setattr("click.shell_completion.BashComplete._check_version", print)
    result = run("completion", shell)
    assert result.exit_code == 0 and "_VAEZOO_COMPLETE" in result.output
    complete = ShellComplete(cli.main, {}, "vaezoo", "_VAEZOO_COMPLETE")
    found = complete.get_completions(["sample"], "vlae_m")
    assert [item.value for item in found] == ["vlae_mnist_dynamic", "vlae_mnist_static"]


def test_cache_is_shown_and_cleared(vaezoo_home):
    folder = vaezoo_home / "programs"
    (folder / "x").mkdir(parents=True)
    (folder / "x" / "sample-4.pb").write_bytes(bytes(3_000_000))
    assert run("cache").output == f"{folder}: 3.0 MB\n"
    assert "Removed 3.0 MB" in run("cache", "--clear").output
    assert run("cache").output == f"{folder}: 0.0 MB\n"


def test_weights_that_are_only_begun_say_so(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "begun")
    entry = registry.describe(folder).model_copy(update={"status": "begun"})
    entries.write_entry(entry, folder / entries.ENTRY_FILE)
    result = run("evaluate", folder, "--images", 1)
    warning = "Warning: The weights of 'pixelvae_digits' are only begun"
    assert result.stderr.count(warning) == 1
    with pytest.warns(UserWarning, match="only begun"):
        programs.Programs(folder)


def test_every_status_is_explained():
    (field,) = [entries.ZooEntry.model_fields["status"]]
    assert set(field.annotation.__args__) == set(entries.STATUSES)


@pytest.mark.slow
def test_training_says_what_it_makes_of_the_images(run_folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(2):
        pixels = np.full([20, 16, 3], 200 * index, np.uint8)
        path = str(images / f"{index}.png")
        tf.io.write_file(path, tf.io.encode_png(pixels))
    out, name = tmp_path / "out", f"image_folder:{images}"
    options = ("--dataset", name, "--image-shape", "10x8x1", "--max-steps", 1)
    result = run("train", run_folder, "--out", out, *options)
    assert result.exit_code == 0, result.output
    said = f"pixelvae_digits for 10x8x1 images of {name}: "
    (line,) = [x for x in result.stderr.splitlines() if x.startswith(said)]
    assert "cropped at the centre" in line and "1 where the level is 128" in line
    entry = registry.describe(out)
    assert entry.model.arguments["image_shape"] == [10, 8, 1]
    # Elsewhere than on a terminal there are no control characters.
    assert not {"\r", "\b", "\x1b"} & set(result.output)
    result = run("evaluate", out, "--dataset", "digits", "--split", "test")
    assert result.exit_code == 1 and "shape=(32, 8, 8, 1)" in result.output


def test_another_size_of_images(run_folder, tmp_path):
    result = run("evaluate", run_folder, "--image-shape", "9x8x1", "--images", 1)
    assert result.exit_code == 1 and "(9, 8, 1)" in result.output
    result = run("evaluate", run_folder, "--image-shape", "9x8")
    assert result.exit_code == 2 and "HEIGHTxWIDTHxCHANNELS" in result.output


@pytest.mark.slow
def test_what_xla_kept_may_be_damaged(run_folder, tmp_path):
    """Truncated, empty or gone, it is compiled anew, to the same picture."""
    home = tmp_path / "a home"
    pictures = set()

    def sample():
        output = tmp_path / "x.png"
        arguments = ("sample", run_folder, "--num", "2", "--output", output)
        process = subprocess.run(
            [sys.executable, "-m", "vaezoo", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=ENVIRONMENT | {"VAEZOO_HOME": str(home)},
        )
        assert process.returncode == 0, process.stderr
        pictures.add(output.read_bytes())

    sample()
    (kept,) = home.glob("programs/*/xla_compile_cache*")
    whole = kept.read_bytes()
    for data in (whole[:1000], b""):
        kept.write_bytes(data)
        sample()
        assert kept.stat().st_size > 0.9 * len(whole)
    kept.unlink()
    sample()
    assert kept.exists() and len(pictures) == 1
