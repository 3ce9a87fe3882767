import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tiny
import vaezoo
from runs import EPOCHS, STEPS, make_entry, rows, run_code
from vaezoo import datasets, files, models
from vaezoo.models import image_model
from vaezoo.training import checkpoints, phases, profiling
from vaezoo.training import run as training
from vaezoo.training.log import EpochLog
from vaezoo.training.progress import Progress
from vaezoo.training.start import Start, new_record
from vaezoo.zoo import cards, entries, recipes, registry, weights

KILLED_AT = 2 * STEPS + 3


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
    model.optimizer.build(model.trained_variables)
    return model


def values(model):
    return [v.numpy() for v in [*model.weights, *model.optimizer.variables]]


def callback_of(entry, folder, *, step=0, **options):
    """A checkpoint callback as `train` makes it, after so many steps."""
    progress = Progress([new_record(None)])
    progress.begin_phase(0, entry.phases[0], steps_before=0, num_images=1437)
    progress.step = step
    callback = checkpoints.CheckpointCallback(
        folder, entry=entry, progress=progress, **options
    )
    return callback, progress


def restore(model, folder):
    """Set a model to the newest checkpoint; its step."""
    newest = checkpoints.newest(folder)
    checkpoints.restore(model, newest)
    return newest.step


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


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
    restore(raw, out / "checkpoints")
    weights = [v.numpy() for v in model.trainable_variables]
    assert not np.array_equal(raw.trainable_variables[0], weights[0])
    averages = raw.averages.state[1:]
    assert_same([v.numpy() for v in averages], weights)


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
from runs import make_entry
from vaezoo.training import checkpoints, run as training

end = checkpoints.CheckpointCallback.on_train_batch_end

def end_or_die(self, batch, logs=None):
    if self._progress.position == {KILLED_AT}:
        os.kill(os.getpid(), signal.SIGKILL)
    end(self, batch, logs)

checkpoints.CheckpointCallback.on_train_batch_end = end_or_die
training.train(make_entry(), out={str(tmp_path)!r}, checkpoint_steps=2, verbose=0)
"""
    result = run_code(code)
    assert result.returncode == -signal.SIGKILL, result.stderr
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
    before, after = entry.history
    assert before == model.zoo_entry.history[0] and before.init is None
    assert after.init.sha256 == model.zoo_entry.weights.sha256
    assert [(p.steps, p.epochs) for p in after.phases] == [(3, 1.0)]


def test_init_from_another_architecture_keeps_what_fits(run, tmp_path):
    """By the training recipe, from data-dependent initialisation for what is new."""
    out, trained = run
    wider = {"arguments": {"latent_size": 3}}
    entry = make_entry(**wider, learning_rate=1e-9)
    with pytest.warns(UserWarning, match="of their name and shape") as caught:
        model = training.train(
            entry, out=tmp_path / "run", init=out, max_steps=1, verbose=0
        )
    (message,) = [
        str(w.message) for w in caught if "initialised anew" in str(w.message)
    ]
    assert model.zoo_entry.training.learning_rate == 1e-9
    before = weights.variables_by_name(trained)
    after = weights.variables_by_name(model)
    kept = {name for name in after if name not in message}
    assert 3 <= len(kept) < len(after)
    for name in kept:
        np.testing.assert_allclose(after[name], before[name], atol=1e-6)
    record = vaezoo.describe(tmp_path / "run").history[0]
    assert record.init.sha256 == trained.zoo_entry.weights.sha256


def test_init_for_another_image_shape_is_fine_tuning(run):
    """The same layers: by the recipe that goes on from trained weights."""
    entry = make_entry(arguments={"image_shape": [8, 12, 1]})
    start = Start.find(run[0], entry, None)
    assert not start.is_other
    assert not start.fits(entry, None) and start.fits(entry, [8, 8, 1])
    wider = make_entry(arguments={"latent_size": 3})
    assert Start.find(run[0], wider, None).is_other


def write_pictures(folder, num, *, size=(20, 24)):
    folder.mkdir(parents=True)
    levels = np.random.default_rng(num).integers(0, 256, (num, *size, 3), np.uint8)
    for index, image in enumerate(levels):
        data = tf.io.encode_png(image).numpy()
        (folder / f"{index}.png").write_bytes(data)
    return folder


def test_weights_that_fit_another_image_shape_are_fine_tuned(run, tmp_path):
    """And what starts anew is initialised on the images."""
    folder = write_pictures(tmp_path / "pictures" / "val", 6).parent
    write_pictures(folder / "train", 12)
    with pytest.warns(UserWarning, match="initialised anew") as caught:
        model = training.train(
            run[0],
            out=tmp_path / "run",
            init="zoo",
            dataset=f"image_folder:{folder}",
            image_shape=(20, 24, 1),
            max_steps=1,
            changes={"training.learning_rate": 1e-9},
            verbose=0,
        )
    assert model.image_shape == (20, 24, 1)
    (message,) = [str(w.message) for w in caught if "initialised" in str(w.message)]
    assert "image_shape=(20, 24, 1)" in message
    before = weights.variables_by_name(run[1])
    after = weights.variables_by_name(model)
    anew = {name for name in after if before[name].shape != after[name].shape}
    assert anew and all(name in message for name in anew)
    for name in after.keys() - anew:
        np.testing.assert_allclose(after[name], before[name], atol=1e-6)
    entry = vaezoo.describe(tmp_path / "run")
    assert entry.evaluation.split == "validation" and entry.paper is None
    assert entry.training.kl_warmup_steps == 0 and len(entry.history) == 2


def test_init_from_weights_of_which_none_fits(run, tmp_path):
    path = weights.write_weights(run[1], tmp_path / "w.h5")
    with pytest.raises(ValueError, match="none that fits"):
        registry.read_fitting_weights(tiny.shared("fame"), path)


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
    assert restore(model, copy) == checkpoints.num_steps(model) == EPOCHS * STEPS
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
    with pytest.warns(UserWarning, match="step-000000024.*passed over"):
        step = restore(model, copy)
    assert step == checkpoints.num_steps(model) == 23

    callback, _ = callback_of(make_entry(), copy, step=24)
    callback.set_model(model)
    callback.on_epoch_end(3)  # the damaged one is written again
    assert restore(model, copy) == 24


def test_an_interrupted_write_leaves_the_old_checkpoints(copy, model, monkeypatch):
    callback, progress = callback_of(make_entry(), copy, step=25, every_steps=1)
    restore(model, copy)
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
    restore(model, copy)

    progress.step = 26
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
def test_another_recipe_is_refused(copy, change, message):
    with pytest.raises(ValueError, match=message):
        checkpoints.check_same_run(checkpoints.newest(copy), make_entry(**change))


def test_another_architecture_is_refused(copy):
    entry = registry.describe("pixelvae_digits")
    with pytest.raises(ValueError, match="model.arguments.filters: 4 there, 16 here"):
        checkpoints.check_same_run(checkpoints.newest(copy), entry)


def test_a_run_without_decay_may_be_made_longer(tmp_path, model):
    constant = {"learning_rate_decay": {"schedule": "constant"}}
    entry, longer = make_entry(**constant), make_entry(**constant, epochs=9)
    callback, _ = callback_of(entry, tmp_path, step=7)
    callback.set_model(model)
    callback.on_epoch_end(0)
    checkpoints.check_same_run(checkpoints.newest(tmp_path), longer)


@pytest.fixture
def interruptible():
    """Ctrl-C as on a terminal: a shell's background jobs start with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_save_and_exit(tmp_path, model, number):
    callback, _ = callback_of(make_entry(), tmp_path, step=7)
    callback.set_model(model)
    callback.on_train_begin()
    with checkpoints.stop_signals_call(callback.stop):
        os.kill(os.getpid(), number)
        with pytest.raises(SystemExit) as stopped:
            callback.on_train_batch_end(0)
    assert stopped.value.code == 0
    assert checkpoints.list_checkpoints(tmp_path) == [tmp_path / "step-000000007"]


@pytest.mark.usefixtures("interruptible")
def test_a_second_ctrl_c_stops_at_once():
    calls = []
    with pytest.raises(KeyboardInterrupt):
        with checkpoints.stop_signals_call(lambda: calls.append(1)):
            os.kill(os.getpid(), signal.SIGINT)
            assert calls == [1]
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with checkpoints.stop_signals_call(lambda: calls.append(2)):
        os.kill(os.getpid(), signal.SIGINT)
    assert calls == [1, 2]


def test_ctrl_c_stays_ignored_where_it_was():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with checkpoints.stop_signals_call(pytest.fail):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_on_the_command_line(tmp_path):
    """It saves at the step and says how to go on; meanwhile no other may write."""
    folder, out = tmp_path / "entry", tmp_path / "out"
    folder.mkdir()
    entries.write_entry(make_entry(epochs=500), folder / "entry.yaml")
    arguments = ["train", str(folder), "--out", str(out)]
    command = [sys.executable, "-m", "vaezoo", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        while not (out / "log.csv").exists() and first.poll() is None:
            time.sleep(0.1)
        second = subprocess.run(
            [*command, "--resume"], env=environment, capture_output=True, text=True
        )
        first.send_signal(signal.SIGINT)
        _, error = first.communicate(timeout=60)
    finally:
        first.kill()
    assert second.returncode == 1 and f"held by process {first.pid} on" in second.stderr
    assert first.returncode == 0
    step = checkpoints.newest(out / "checkpoints").step
    stopped = f"Stopped at step {step}, which is saved in {out}. Continue it: vaezoo "
    assert error.decode().endswith(f"{stopped}{shlex.join(arguments)} --resume\n")


# A run that has not ended.


@pytest.fixture
def unfinished(tmp_path, model):
    """The folder of a run that was stopped after seven steps."""
    entry = make_entry()
    callback, progress = callback_of(entry, tmp_path / "checkpoints", step=7)
    command = "vaezoo train pixelvae_digits --out 'a run'"
    progress._record = progress._record.model_copy(update={"command": command})
    callback.set_model(model)
    callback.on_epoch_end(0)
    started = entry.model_copy(update={"history": [new_record(None)]})
    entries.write_entry(started, tmp_path / "entry.yaml")
    log = EpochLog(tmp_path / "log.csv", first_epoch=0)
    log.on_epoch_end(0, {"elbo": -31.25, "val_elbo": -32.5})
    return tmp_path


HOW_TO_GO_ON = (
    "The run has not ended (7 steps saved, 1.1781 of 4 epochs). "
    "Continue it: vaezoo train pixelvae_digits --out 'a run' --resume"
)


def test_an_unfinished_run_says_how_to_go_on(unfinished):
    with pytest.raises(ValueError) as refused:
        vaezoo.load(unfinished)
    assert HOW_TO_GO_ON in str(refused.value)
    entry = vaezoo.describe(unfinished)
    assert entry.notes[-1] == HOW_TO_GO_ON
    assert entry.history[-1].phases[-1].steps == 7
    assert registry.find_entry(unfinished).notes == make_entry().notes
    assert vaezoo.load(unfinished, weights=None).zoo_entry.notes == make_entry().notes


def test_an_unfinished_run_is_described_as_a_run(unfinished):
    card = cards.card(vaezoo.describe(unfinished))
    assert card.startswith(f"# {unfinished}\n\nA run of `pixelvae_digits`")
    assert HOW_TO_GO_ON in card
    assert "| elbo | -31.25 |\n| val_elbo | -32.5 |" in card
    assert 'vaezoo.load("pixelvae_digits")' not in card


def test_a_run_that_goes_on_says_who_trains_it(unfinished):
    with files.held(unfinished):
        note = vaezoo.describe(unfinished).notes[-1]
    assert f"trained by process {os.getpid()} on" in note and "--resume" not in note


def test_a_run_that_has_ended_is_described_as_a_run(run):
    out, model = run
    card = cards.card(vaezoo.describe(out))
    assert f"# {out}" in card
    assert "The run has ended (24 steps saved, 4 of 4 epochs)." in card
    assert model.zoo_entry.weights.sha256 in card


def test_a_finished_run_that_was_continued_keeps_its_weights(run, tmp_path, model):
    copy = shutil.copytree(run[0], tmp_path / "copy")
    entry = registry.find_entry(copy)
    callback, progress = callback_of(entry, copy / "checkpoints", step=30)
    callback.set_model(model)
    callback.on_epoch_end(0)
    described = vaezoo.describe(copy)
    assert "has not ended (30 steps saved" in described.notes[-1]
    assert described.history == entry.history
    assert vaezoo.load(copy).zoo_entry == entry


def test_no_checkpoint_of_a_state_that_is_not_finite(copy):
    entry = make_entry()
    model = build(entry)
    model.trainable_variables[0].assign(model.trainable_variables[0] * np.nan)
    callback, _ = callback_of(entry, copy, step=99)
    callback.set_model(model)
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
        model = models.get_class("PixelVAE")(image_shape=(28, 28, 1), latent_size=0)
        try:
            data = phases.Data("mnist_dynamic", model)
            held_out = data.validation(recipe)
        except datasets.DatasetNotFoundError as error:
            pytest.skip(str(error))
        assert data.steps_per_epoch(recipe) == -(-in_all // recipe.batch_size)
        assert (held_out is None) == (split != "train")


def test_compile_arguments():
    recipe = make_entry(
        free_bits_nats=0.5,
        beta_1=0.8,
        beta_2=0.99,
        epsilon=1e-4,
        seed=7,
        latent_kl_warmup_steps={"z": 3},
    ).training
    arguments = recipes.compile_arguments(recipe, steps_per_epoch=STEPS)
    optimizer = arguments.pop("optimizer")
    assert isinstance(optimizer, keras.optimizers.Adam)
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.8, 0.99, 1e-4)
    assert arguments == {
        "kl_weight": 1.0,
        "kl_warmup_steps": 8,
        "kl_warmup_start": 0.0,
        "latent_kl_warmup_steps": {"z": 3},
        "free_bits_nats": 0.5,
        "soft_free_bits_nats": 4.0,
        "soft_free_bits_weight": 1.0,
        "auxiliary_weight": 1.0,
        "historyless_share": 0.0,
        "ema_momentum": 0.8,
        "gradient_clip": {"by": "value", "limit": 1.0, "unit": "per_image"},
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


def test_a_second_process_is_refused(run):
    out, _ = run
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with files.held(out):
        for resume in (False, True):
            with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on"):
                training.train(make_entry(), out=out, resume=resume)
    for path, content in before.items():
        assert path.read_bytes() == content


@pytest.mark.parametrize("dataset", ["image_folder:/nowhere", "cifar10"])
def test_a_run_that_never_began_leaves_nothing(tmp_path, dataset):
    """A model of digits is built for neither."""
    out = tmp_path / "runs" / "run"
    with pytest.raises((OSError, ValueError)):
        training.train(make_entry(split="train+validation"), out=out, dataset=dataset)
    assert not out.parent.exists()


def test_a_run_that_fails_before_a_checkpoint_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, callbacks, **kwargs):
        assert (tmp_path / "entry.yaml").exists()
        raise FloatingPointError("the first step")

    monkeypatch.setattr(phases, "train_phases", fail)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FloatingPointError):
        training.train(make_entry(), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == [
        "mine.txt"
    ]


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
        ({"init_part": "decoder"}, "init_part='decoder'"),
        ({"init": "pixelvae_digits", "init_part": "top"}, "init_part='top'"),
        ({"init_decoder": "pixelvae_digits"}, "init=None, init_decoder='pixelvae_dig"),
        ({"init": "pixelvae_digits", "init_decoder": "none"}, "init_decoder=None"),
        ({"init": "pixelvae_digits", "init_decoder": "best"}, "init_decoder='best'"),
        (
            dict.fromkeys(("init", "init_decoder"), "pixelvae_digits")
            | {"init_part": "decoder"},
            "leave `init_part` out",
        ),
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
    assert not (tmp_path / "run").exists()


def test_a_precision_policy_is_of_the_model_alone():
    before = keras.config.dtype_policy()
    with image_model.precision("mixed_bfloat16"):
        model = build(make_entry())
    assert keras.config.dtype_policy() == before
    assert model.dtype_policy.name == "mixed_bfloat16"
    images = tf.zeros([2, 8, 8, 1], tf.uint8)
    assert model.elbo(images).dtype == tf.float32


@pytest.mark.slow
def test_another_dataset_gives_the_model_its_shape(tmp_path):
    write_pictures(tmp_path / "images", 6)
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
