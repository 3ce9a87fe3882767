"""Programs that are kept: what makes them anew, and what they survive."""

import os
import sys

import numpy as np
import pytest
import tensorflow as tf

from vaezoo import sampling
from vaezoo.serving import programs
from vaezoo.zoo import registry, weights


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


def test_what_fails_while_it_is_kept_is_compiled_anew_once(run_folder, monkeypatch):
    opened, attempts = programs.Programs(run_folder), []

    def fail(program, arrays):
        attempts.append(program)
        raise tf.errors.InternalError(None, None, "no space left")

    monkeypatch.setattr(programs, "_loaded", fail)
    with pytest.raises(tf.errors.InternalError):
        opened.run("encode", **INPUTS)
    with monkeypatch.context() as patch:
        patch.setenv("TF_XLA_FLAGS", "--tf_xla_max_cluster_size=9")
        patch.delitem(sys.modules, "tensorflow")
        opened.keep_compiled()
        flags = os.environ["TF_XLA_FLAGS"]
    assert "max_cluster_size=9 --tf_xla_persistent_cache_directory='" in flags
    with pytest.raises(OSError, match="no space left.*vaezoo cache --clear"):
        opened.run("encode", **INPUTS)
    assert len(attempts) == 3


def test_weights_that_do_not_fit_are_refused(run_folder, expected, monkeypatch):
    check(run_folder, expected)
    arrays = weights.read_arrays(run_folder / "weights.h5")
    arrays.pop(next(iter(arrays)))
    monkeypatch.setattr(weights, "read_arrays", lambda path: arrays)
    with pytest.raises(ValueError, match="must hold the model's variables"):
        programs.Programs(run_folder).run("encode", **INPUTS)
