"""Programs that are kept: what makes them anew, and what they survive."""

import os

import numpy as np
import pytest

from vaezoo import sampling
from vaezoo.serving import programs
from vaezoo.zoo import registry


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def shared_home(home, monkeypatch, vaezoo_home):
    monkeypatch.setenv("VAEZOO_HOME", str(home))


INPUTS = {"images": np.ones([4, 8, 8, 1], np.uint8), "seed": sampling.row_seeds(0, 4)}


@pytest.fixture(scope="module")
def expected(run_folder):
    return registry.load(run_folder).encode(INPUTS["images"])["z"].numpy()


def check(run_folder, expected):
    """A model's programs in a process that has just begun; returns them."""
    new = programs.Programs(run_folder)
    codes = new.run("encode", **INPUTS)["z"]
    np.testing.assert_allclose(codes, expected, atol=1e-6)
    return new


def test_a_second_process_needs_no_model(run_folder, expected, monkeypatch):
    check(run_folder, expected)
    monkeypatch.setattr(registry, "build", None)
    again = check(run_folder, expected)
    assert again.levels == 2 and again.image_shape == (8, 8, 1)
    assert again.latent_shapes == {"z": (2,)}


def test_rows_are_cut_into_batches_that_are_told(run_folder):
    images = np.random.default_rng(0).integers(0, 2, [7, 8, 8, 1], np.uint8)
    inputs = {"images": images, "seed": sampling.row_seeds(3, 7)}
    told = []
    opened = programs.Programs(run_folder)
    parts = opened.run("encode", batch_size=4, progress=told.append, **inputs)
    whole = opened.run("encode", batch_size=7, **inputs)
    assert told == [4, 7]
    np.testing.assert_allclose(parts["z"], whole["z"], atol=1e-6)


def test_a_damaged_program_is_made_anew(run_folder, expected):
    check(run_folder, expected)
    (path,) = programs.programs_folder().glob("*/encode-4.pb")
    whole = path.read_bytes()
    for data in (b"", whole[: len(whole) // 2], b"nonsense"):
        path.write_bytes(data)
        check(run_folder, expected)
        assert abs(len(path.read_bytes()) - len(whole)) < 1000


def test_without_a_folder_nothing_is_kept(run_folder, expected, monkeypatch):
    monkeypatch.setenv("VAEZOO_HOME", "/proc/nowhere")
    check(run_folder, expected)


def test_other_code_and_other_processors_have_programs_of_their_own(
    run_folder, monkeypatch
):
    entry = registry.describe(run_folder)
    folders = {programs.folder_of(entry)}
    for name in ("_source_digest", "_processor"):
        with monkeypatch.context() as patch:
            patch.setattr(programs, name, lambda: "another")
            folders.add(programs.folder_of(entry))
    arguments = entry.model.arguments | {"filters": 5}
    model = entry.model.model_copy(update={"arguments": arguments})
    folders.add(programs.folder_of(entry.model_copy(update={"model": model})))
    assert len(folders) == 4


def test_what_is_not_used_goes_and_all_can_be_cleared(
    run_folder, monkeypatch, vaezoo_home
):
    monkeypatch.setenv("VAEZOO_HOME", str(vaezoo_home))
    folder = programs.programs_folder()
    for name in ("old", "new"):
        (folder / name).mkdir(parents=True)
    os.utime(folder / "old", (0, 0))
    assert programs.Programs(run_folder).levels == 2
    assert not (folder / "old").exists() and (folder / "new").exists()
    assert programs.clear() > 0 and not folder.exists()
    assert programs.clear() == 0
