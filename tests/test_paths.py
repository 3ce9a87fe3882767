"""Every path that the library takes: `~` is the home folder, a URL is refused."""

import re

import numpy as np
import pytest
from click.testing import CliRunner

import tiny
import vaezoo
from runs import make_entry
from vaezoo import cli, experiments, plots
from vaezoo.serving import saved_model
from vaezoo.training import run as training
from vaezoo.zoo import entries, install, weights

URL = "gs://bucket/folder/1"
PICTURE = np.zeros([2, 2, 1], np.uint8)


@pytest.fixture(scope="module")
def model():
    return tiny.build("pixelvae")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder, apart from the current one."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert not list((tmp_path / "here").iterdir())


TAKES_A_PATH = {
    "export": lambda model, path: vaezoo.export(model, path),
    "next_version": lambda model, path: saved_model.next_version(path),
    "train out": lambda model, path: training.train(make_entry(), out=path),
    "train init": lambda model, path: training.train(
        make_entry(), out="run", init=path
    ),
    "train name": lambda model, path: training.train(path, out="run"),
    "load": lambda model, path: vaezoo.load(path),
    "load weights": lambda model, path: vaezoo.load("pixelvae_digits", weights=path),
    "describe": lambda model, path: vaezoo.describe(path),
    "install": lambda model, path: install.install(path),
    "reproduce": lambda model, path: experiments.reproduce("fame/kl", out=path),
    "images": lambda model, path: vaezoo.load_dataset(
        f"image_folder:{path}", "train", batch_size=1
    ),
    "write_weights": lambda model, path: weights.write_weights(model, path),
    "read_weights": lambda model, path: weights.read_weights(model, path),
    "save_picture": lambda model, path: plots.save_picture(path, PICTURE),
}


@pytest.mark.parametrize(
    "arguments",
    [
        ("describe", URL),
        ("sample", "pixelvae_digits", "--output", f"{URL}.png"),
        ("reconstruct", "pixelvae_digits", f"--output={URL}.png"),
        ("evaluate", URL),
        ("train", "pixelvae_digits", "--out", URL),
        ("install", URL),
        ("export", "pixelvae_digits", URL),
        ("reproduce", "fame/kl", "--out", URL),
    ],
)
def test_a_url_is_refused_on_the_command_line(arguments, home):
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 1
    assert re.fullmatch("Error: .*which is a URL.*\n", result.output)


@pytest.mark.parametrize("name", TAKES_A_PATH)
def test_a_url_is_refused(name, model, home):
    with pytest.raises(ValueError, match="which is a URL. Mount the bucket"):
        TAKES_A_PATH[name](model, URL)


def test_a_url_is_refused_for_the_cache(monkeypatch):
    monkeypatch.setenv("VAEZOO_HOME", "gs://bucket/cache")
    with pytest.raises(ValueError, match="`VAEZOO_HOME` must be .* which is a URL"):
        weights.cache_folder()


def test_tilde_is_the_home_folder(model, home):
    plots.save_picture("~/a.png", PICTURE)
    path = weights.write_weights(model, "~/w.h5")
    assert path == home / "w.h5" and (home / "a.png").is_file()
    assert not weights.read_weights(model, "~/w.h5")
    assert weights.holds("~/w.h5", model)

    (home / "run").mkdir()
    entries.write_entry(make_entry(), "~/run/entry.yaml")
    assert vaezoo.describe("~/run").path == home / "run" / "entry.yaml"
    with pytest.raises(ValueError, match="must have trained weights"):
        vaezoo.load("~/run")
    (home / "run" / "weights.h5").touch()
    with pytest.raises(FileExistsError, match="which has a run"):
        training.train(make_entry(), out="~/run")

    assert saved_model.next_version("~/served") == 1
    for name in ("1", "12", "new"):
        (home / "served" / name).mkdir(parents=True)
    assert saved_model.next_version("~/served") == 13
    with pytest.raises(FileExistsError, match="is there already"):
        vaezoo.export(model, "~/served/12")
