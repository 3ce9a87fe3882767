import csv
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import vaezoo
from vaezoo import datasets, models
from vaezoo.training import checkpoints, profiling
from vaezoo.training import run as training
from vaezoo.zoo import entries, recipes, registry, weights

EPOCHS = 4
STEPS = 6  # an epoch: 1,437 digits in batches of 256
KILLED_AT = 2 * STEPS + 3


def make_entry(**changes):
    """The digits entry with a tiny model, and a short recipe with everything in it."""
    entry = registry.describe("pixelvae_digits")
    tiny = {"latent_size": 2, "filters": 4, "num_layers": 2}
    recipe = entry.training.model_dump() | {
        "learning_rate": 0.003,
        "learning_rate_decay": {"schedule": "cosine", "final_learning_rate": 1e-4},
        "kl_warmup_steps": 8,
        "soft_free_bits_nats": 4.0,
        "ema_momentum": 0.8,
        "batch_size": 256,
        "epochs": EPOCHS,
    }
    model = {"class": "PixelVAE", "arguments": entry.model.arguments | tiny}
    recipes = {
        "training": recipe | changes,
        "fine_tune": {"optimizer": "adam", "learning_rate": 1e-4, "batch_size": 500}
        | {"epochs": 10},
    }
    content = entry.model_dump() | {"model": model} | recipes
    content |= {"weights": None, "measured": [], "status": "untrained"}
    return entries.ZooEntry.model_validate(content)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An undisturbed run, and the model that it returned."""
    out = tmp_path_factory.mktemp("runs") / "run"
    model = training.train(make_entry(), out=out, checkpoint_steps=1, verbose=0)
    return out, model


def build(entry):
    """The model of an entry as `train` builds it, before a step is done."""
    model = models.get_class(entry.model.class_name)(**entry.model.arguments)
    arguments = recipes.compile_arguments(entry.training, steps_per_epoch=STEPS)
    model.compile(**arguments)
    model.optimizer.build(model.trainable_variables)
    return model


def values(model):
    return [v.numpy() for v in [*model.weights, *model.optimizer.variables]]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def run_code(code):
    """Run Python in a process that can import this module."""
    folders = [pathlib.Path(__file__).parent, pathlib.Path(vaezoo.__file__).parents[1]]
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
        capture_output=True,
    )


def rows(out):
    with open(out / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


# A run.


def test_a_run_improves_the_bound(run):
    _, model = run
    bounds = model.history.history["elbo"]
    assert len(bounds) == EPOCHS
    assert np.all(np.isfinite(model.history.history["loss"]))
    assert bounds[-1] > bounds[0] + 1.0


def test_a_run_folder_is_loaded_by_its_path(run):
    out, model = run
    loaded = vaezoo.load(out)
    assert_same([v.numpy() for v in loaded.weights], [v.numpy() for v in model.weights])
    assert loaded.zoo_entry.model_dump() == model.zoo_entry.model_dump()
    assert loaded.zoo_entry.training == make_entry().training
    assert loaded.zoo_entry.weights.file == "weights.h5"
    images = next(iter(datasets.load_dataset("digits", "test", batch_size=8)))
    np.testing.assert_array_equal(loaded.elbo(images), model.elbo(images))


def test_the_weights_of_a_run_are_the_moving_average(run):
    out, model = run
    entry = make_entry()
    raw = build(entry)
    checkpoints.CheckpointCallback(out / "checkpoints", entry=entry).restore(raw)
    weights = [v.numpy() for v in model.trainable_variables]
    assert not np.array_equal(raw.trainable_variables[0], weights[0])
    raw.optimizer.finalize_variable_values(raw.trainable_variables)
    assert_same([v.numpy() for v in raw.trainable_variables], weights)


def test_a_run_leaves_logs_and_two_checkpoints(run):
    out, model = run
    assert [row["epoch"] for row in rows(out)] == ["0", "1", "2", "3"]
    np.testing.assert_allclose(
        [float(row["elbo"]) for row in rows(out)], model.history.history["elbo"]
    )
    assert list((out / "tensorboard").rglob("events*"))
    names = [path.name for path in checkpoints.list_checkpoints(out / "checkpoints")]
    assert names == ["step-000000023", "step-000000024"]
    assert not list(out.rglob(".step-*"))


@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed_ends_where_an_undisturbed_run_ends(
    run, tmp_path
):
    code = f"""
import os, signal
from test_training import make_entry
from vaezoo.zoo import entries, recipes, registry
from vaezoo.training import checkpoints, run as training

end = checkpoints.CheckpointCallback.on_train_batch_end

def end_or_die(self, batch, logs=None):
    if self.position + 1 == {KILLED_AT}:
        os.kill(os.getpid(), signal.SIGKILL)
    end(self, batch, logs)

checkpoints.CheckpointCallback.on_train_batch_end = end_or_die
training.train(make_entry(), out={str(tmp_path)!r}, checkpoint_steps=2, verbose=0)
"""
    result = run_code(code)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    assert not (tmp_path / "weights.h5").exists()
    newest = checkpoints.list_checkpoints(tmp_path / "checkpoints")[-1]
    assert newest.name == "step-000000014"  # in the middle of the third epoch
    assert len(rows(tmp_path)) == 2

    resumed = training.train(make_entry(), out=tmp_path, resume=True, verbose=0)
    out, undisturbed = run
    assert_same(values(resumed), values(undisturbed))
    assert [row["epoch"] for row in rows(tmp_path)] == ["0", "1", "2", "3"]
    for row, expected in zip(rows(tmp_path), rows(out), strict=True):
        assert row["epoch"] == "2" or row == expected  # the third is of its rest


def test_a_finished_run_resumed_is_left_as_it_is(run, tmp_path):
    out, model = run
    copy = shutil.copytree(out, tmp_path / "copy")
    again = training.train(make_entry(), out=copy, resume=True, verbose=0)
    assert_same(values(again), values(model))
    assert rows(copy) == rows(out)


def test_init_zoo_continues_from_trained_weights(run, tmp_path):
    out, model = run
    continued = training.train(
        out, out=tmp_path / "more", init="zoo", epochs=1, verbose=0
    )
    assert checkpoints.num_steps(continued) == 3  # a new optimizer, batches of 500
    (first,) = continued.history.history["elbo"]
    assert first > model.history.history["elbo"][0]
    entry = vaezoo.describe(tmp_path / "more")
    assert entry.training.kl_warmup_steps == 0 and entry.training.epochs == 1
    assert entry.training.learning_rate == entry.fine_tune.learning_rate == 1e-4
    assert "4 + 1 epochs" in entry.notes[-1]


def test_init_zoo_needs_trained_weights(tmp_path):
    with pytest.raises(ValueError, match="trained weights"):
        training.train(make_entry(), out=tmp_path / "run", init="zoo")


# Checkpoints.


@pytest.fixture(scope="module")
def model():
    """A model whose state the tests overwrite, since building one takes seconds."""
    return build(make_entry())


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run[0] / "checkpoints", tmp_path / "checkpoints")


def test_restore_gives_the_newest(copy, model):
    entry = make_entry()
    callback = checkpoints.CheckpointCallback(copy, entry=entry)
    callback.restore(model)
    assert callback.position == checkpoints.num_steps(model) == EPOCHS * STEPS
    assert model.data_initialized


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "entry"])
def test_a_damaged_checkpoint_falls_back_to_the_older(copy, model, damage):
    newest = copy / "step-000000024"
    state = newest / "state.npz"
    content = bytearray(state.read_bytes())
    if damage == "truncated":
        state.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 255
        state.write_bytes(content)
    elif damage == "missing":
        state.unlink()
    else:
        (newest / "entry.yaml").write_text("name: pixel")
    entry = make_entry()
    callback = checkpoints.CheckpointCallback(copy, entry=entry)
    with pytest.warns(UserWarning, match="step-000000024.*passed over"):
        callback.restore(model)
    assert callback.position == checkpoints.num_steps(model) == 23

    callback.set_model(model)
    callback.position = 24  # the damaged one is written again
    callback.on_epoch_end(3)
    callback.restore(model)


def test_an_interrupted_write_leaves_the_old_checkpoints(copy, model, monkeypatch):
    entry = make_entry()
    callback = checkpoints.CheckpointCallback(copy, entry=entry, every_steps=1)
    callback.restore(model)
    callback.set_model(model)
    before = {path: path.read_bytes() for path in copy.rglob("*.*")}

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", fail)
        with pytest.raises(OSError, match="No space"):
            callback.on_train_batch_end(0)
    after = {path: path.read_bytes() for path in before}
    assert after == before
    checkpoints.CheckpointCallback(copy, entry=entry).restore(model)

    callback.on_train_batch_end(0)  # and the next one is whole
    assert [p.name for p in sorted(copy.iterdir())] == [
        "step-000000024",
        "step-000000026",
    ]


def test_nothing_is_saved_when_training_ends():
    default = keras.callbacks.Callback.on_train_end
    assert checkpoints.CheckpointCallback.on_train_end is default


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.02}, "training.learning_rate: 0.003 there, 0.02 here"),
        ({"epochs": 9}, "training.epochs: 4 there, 9 here"),
        ({"seed": 1}, "training.seed: 0 there, 1 here"),
    ],
)
def test_another_recipe_is_refused(copy, model, change, message):
    entry = make_entry(**change)
    with pytest.raises(ValueError, match=message):
        checkpoints.CheckpointCallback(copy, entry=entry).restore(model)


def test_another_architecture_is_refused(copy, model):
    entry = registry.describe("pixelvae_digits")
    with pytest.raises(ValueError, match="model.arguments.filters: 4 there, 16 here"):
        checkpoints.CheckpointCallback(copy, entry=entry).restore(model)


def test_a_run_without_decay_may_be_made_longer(tmp_path):
    constant = {"learning_rate_decay": {"schedule": "constant"}}
    entry, longer = make_entry(**constant), make_entry(**constant, epochs=9)
    model = build(entry)
    callback = checkpoints.CheckpointCallback(tmp_path, entry=entry)
    callback.set_model(model)
    callback.position = 7
    callback.on_epoch_end(0)
    checkpoints.CheckpointCallback(tmp_path, entry=longer).restore(model)


def test_sigterm_saves_and_exits(tmp_path, model):
    model.optimizer.iterations.assign(6)
    callback = checkpoints.CheckpointCallback(tmp_path, entry=make_entry())
    callback.set_model(model)
    callback.on_train_begin()
    with checkpoints.sigterm_calls(callback.stop):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit) as stopped:
            callback.on_train_batch_end(0)
    assert stopped.value.code == 0
    assert checkpoints.list_checkpoints(tmp_path) == [tmp_path / "step-000000007"]


def test_no_checkpoint_of_a_state_that_is_not_finite(copy):
    entry = make_entry()
    model = build(entry)
    model.trainable_variables[0].assign(model.trainable_variables[0] * np.nan)
    callback = checkpoints.CheckpointCallback(copy, entry=entry)
    callback.set_model(model)
    callback.position = 99
    before = sorted(copy.iterdir())
    with pytest.raises(FloatingPointError, match="step 99"):
        callback.on_epoch_end(0)
    assert sorted(copy.iterdir()) == before


def test_a_loss_that_is_not_finite_ends_training(model):
    callback = checkpoints.RaiseOnNonFinite()
    callback.set_model(model)
    callback.on_train_batch_end(0, {"loss": 1.0})
    logs = {"loss": np.nan, "elbo": np.nan, "reconstruction": 3.0, "kl/z": np.nan}
    with pytest.raises(FloatingPointError, match="loss=nan after step .* kl/z is not"):
        callback.on_train_batch_end(1, logs)


def test_a_profile_says_where_the_time_goes(tmp_path, model, capfd):
    data = datasets.load_dataset("digits", "train", batch_size=256)
    profile = profiling.Profile(tmp_path, first=1, steps=3)
    model.fit(data, epochs=1, verbose=0, callbacks=[profile])
    text = capfd.readouterr().err
    step, waiting = map(float, re.findall(r"([\d.]+) ms", text)[:2])
    assert 0 <= waiting < step
    shares = {
        line.split("|")[1].strip(): int(line.split("|")[3].strip(" %"))
        for line in text.splitlines()
        if line.startswith("| ") and "%" in line
    }
    assert abs(sum(shares.values()) - 100) <= len(shares)  # each is rounded
    # Fused with what comes before or after it, where TensorFlow does that.
    assert sum(shares.get(f"{kind}Conv2D", 0) for kind in ("", "Fused", "PadWith")) > 0
    assert shares["Conv2DBackpropFilter"] > 0
    assert not [kind for kind in shares if kind.startswith(("_", "Process"))]
    assert list(tmp_path.rglob("*.xplane.pb"))


# Recipes.


def test_the_recipe_says_which_images_to_train_on(tmp_path):
    """`digits` has no validation split; with both splits nothing is held out."""
    with pytest.raises(ValueError, match="no such split.*'validation'"):
        entry = make_entry(split="train+validation")
        training.train(entry, out=tmp_path / "run", verbose=0)
    for split, in_all in (("train", 55_000), ("train+validation", 60_000)):
        recipe = make_entry(split=split).training
        try:
            model = build(registry.describe("vlae_mnist_dynamic"))
            data = training._Data("mnist_dynamic", model, recipe, position=lambda: 0)
        except datasets.DatasetNotFoundError as error:
            pytest.skip(str(error))
        assert data.steps_per_epoch == -(-in_all // recipe.batch_size)
        assert (data.validation is None) == (split != "train")


def test_compile_arguments():
    recipe = make_entry(free_bits_nats=0.5, beta_2=0.99, seed=7).training
    arguments = recipes.compile_arguments(recipe, steps_per_epoch=STEPS)
    optimizer = arguments.pop("optimizer")
    assert isinstance(optimizer, keras.optimizers.Adam)
    assert (optimizer.beta_2, optimizer.use_ema, optimizer.ema_momentum) == (
        0.99,
        True,
        0.8,
    )
    assert arguments == {
        "kl_warmup_steps": 8,
        "kl_warmup_start": 0.0,
        "free_bits_nats": 0.5,
        "soft_free_bits_nats": 4.0,
        "gradient_clip": {"by": "value", "limit": 1.0, "unit": "per_dim"},
        "seed": 7,
    }


@pytest.mark.parametrize(
    ("schedule", "half"), [("cosine", 0.0055), ("linear", 0.0055), ("constant", 0.01)]
)
def test_learning_rate_schedules(schedule, half):
    decay = {"schedule": schedule, "final_learning_rate": 0.001}
    changes = {"learning_rate": 0.01, "learning_rate_decay": decay}
    recipe = make_entry(**changes, optimizer="adamax").training
    arguments = recipes.compile_arguments(recipe, steps_per_epoch=STEPS)
    optimizer = arguments["optimizer"]
    assert isinstance(optimizer, keras.optimizers.Adamax)
    end = 0.01 if schedule == "constant" else 0.001
    for step, expected in ((0, 0.01), (EPOCHS * STEPS // 2, half), (99, end)):
        optimizer.iterations.assign(step)
        np.testing.assert_allclose(optimizer.learning_rate, expected, rtol=1e-5)
    still = recipes.compile_arguments(recipe)["optimizer"]
    np.testing.assert_allclose(still.learning_rate, 0.01)


# Errors, before anything is trained.


def test_a_run_is_not_overwritten(run):
    out, _ = run
    before = (out / "weights.h5").read_bytes()
    with pytest.raises(FileExistsError, match="resume=True"):
        training.train(make_entry(), out=out)
    assert (out / "weights.h5").read_bytes() == before


def test_a_run_without_checkpoints_is_not_resumed(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(FileExistsError, match="no checkpoint"):
        training.train(make_entry(), out=tmp_path, resume=True)


def test_an_unwritable_folder_is_an_error_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="out must be a folder that can be written"):
        training.train(make_entry(), out=tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init": "best"}, "init='best'"),
        ({"epochs": 0}, "epochs=0"),
        ({"strategy": "gpu"}, "strategy='gpu'"),
        ({"dataset": "digit"}, "Did you mean digits"),
        ({"checkpoint_steps": -1}, "every_steps=-1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0"),
        ({"precision": "float16"}, "mixed_bfloat16"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        training.train(make_entry(), out=tmp_path / "run", **arguments)
    assert not (tmp_path / "run" / "entry.yaml").exists()


def test_a_precision_policy_is_of_the_model_alone():
    before = keras.config.dtype_policy()
    with training._dtype_policy("mixed_bfloat16"):
        model = build(make_entry())
    assert keras.config.dtype_policy() == before
    assert model.dtype_policy.name == "mixed_bfloat16"
    images = tf.zeros([2, 8, 8, 1], tf.uint8)
    assert model.elbo(images).dtype == tf.float32


@pytest.mark.slow
def test_another_dataset_gives_the_model_its_shape(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), np.uint8)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images):
        data = tf.io.encode_png(image).numpy()
        (tmp_path / "images" / f"{i}.png").write_bytes(data)
    model = training.train(
        make_entry(batch_size=4),
        out=tmp_path / "run",
        dataset=f"image_folder:{tmp_path / 'images'}",
        epochs=1,
        verbose=0,
    )
    assert model.image_shape == (8, 8, 1)
    assert checkpoints.num_steps(model) == 2
    assert weights.is_local(model.zoo_entry.weights, folder=tmp_path / "run")
    assert registry.entry_of(model) == model.zoo_entry
    (tmp_path / "run" / "weights.h5").write_bytes(b"of a run that was continued")
    assert registry.entry_of(model).weights is None
