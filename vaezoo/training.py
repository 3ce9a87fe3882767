"""Training a zoo entry: recipes, checkpoints that resume exactly, run folders."""

import contextlib
import csv
import ctypes
import math
import os
import re
import shutil
import signal
import tempfile
import threading
import time
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from vaezoo import datasets, models, profiling, strategies, zoo
from vaezoo import weights as weights_lib

WEIGHTS_FILE = "weights.h5"
_CHECKPOINTS = "checkpoints"
_STATE_FILE = "state.npz"
_IDENTITY = {"name", "model", "dataset", "training"}  # what a run cannot change


def compile_arguments(recipe, *, steps_per_epoch=None):
    """Turns a recipe into the arguments of `VAE.compile`.

    Args:
        recipe: a `vaezoo.zoo.Recipe`.
        steps_per_epoch: int, over which the learning rate decays with the recipe's
            epochs; None keeps it at its first value.

    Returns:
        A dict.
    """
    decay = recipe.learning_rate_decay
    learning_rate = recipe.learning_rate
    if decay.schedule != "constant" and steps_per_epoch is not None:
        steps = recipe.epochs * steps_per_epoch
        final = decay.final_learning_rate
        if decay.schedule == "cosine":
            learning_rate = keras.optimizers.schedules.CosineDecay(
                recipe.learning_rate, steps, alpha=final / recipe.learning_rate
            )
        else:
            learning_rate = keras.optimizers.schedules.PolynomialDecay(
                recipe.learning_rate, steps, end_learning_rate=final, power=1.0
            )
    optimizers = {"adam": keras.optimizers.Adam, "adamax": keras.optimizers.Adamax}
    averaging = {}
    if recipe.ema_momentum is not None:
        averaging = {"use_ema": True, "ema_momentum": recipe.ema_momentum}
    clip = recipe.gradient_clip
    return {
        "optimizer": optimizers[recipe.optimizer](
            learning_rate, beta_2=recipe.beta_2, **averaging
        ),
        "kl_warmup_steps": recipe.kl_warmup_steps,
        "kl_warmup_start": recipe.kl_warmup_start,
        "free_bits_nats": recipe.free_bits_nats,
        "soft_free_bits_nats": recipe.soft_free_bits_nats,
        "gradient_clip": None if clip is None else clip.model_dump(),
        "seed": recipe.seed,
    }


def train(
    name_or_entry,
    *,
    out,
    dataset=None,
    epochs=None,
    init="none",
    seed=None,
    strategy=None,
    devices=None,
    precision=None,
    gradient_accumulation_steps=1,
    resume=False,
    checkpoint_steps=None,
    checkpoint_minutes=10.0,
    profile=False,
    verbose="auto",
):
    """Trains a model of the zoo by its recipe, into a folder that `vaezoo.load` takes.

    The folder holds `entry.yaml`, from the start; `weights.h5`, at the end (the moving
    average, where the recipe keeps one); `log.csv` and `tensorboard/`, a row an epoch;
    and `checkpoints/`. A run that was interrupted continues with the same arguments and
    `resume=True`: on the same machine it ends with the weights, bit for bit, of a run
    that was not interrupted. SIGTERM saves a checkpoint and exits with status 0.

    Args:
        name_or_entry: a name of the zoo, a run folder, or a `vaezoo.zoo.ZooEntry`.
        out: the run folder; made if it is not there.
        dataset: None for the entry's; else the name of another. The model takes its
            image shape, or, for `image_folder:PATH`, the images take the model's.
        epochs: None for the recipe's.
        init: "none" to train from scratch by the `training` recipe; "zoo" to continue
            from the entry's trained weights by the `fine_tune` recipe, with a new
            optimizer, and neither KL warm-up nor data-dependent initialisation.
        seed: int, of initial weights, data order, binarization and noise; None for the
            recipe's. The global seeds of Python, numpy and Keras are set to it.
        strategy: None, "none", "mirrored", "multi_worker" or a
            `tf.distribute.Strategy`; see `vaezoo.strategies.create`. The recipe's batch
            size is that of all replicas together. The first worker writes, and reads
            what is resumed; the others need no access to `out`.
        devices: int, for "mirrored"; see `vaezoo.strategies.create`.
        precision: "float32" or "mixed_bfloat16"; None for the recipe's.
        gradient_accumulation_steps: see `VAE.compile`.
        resume: whether to continue the run in `out`; it starts if there is none.
        checkpoint_steps: save every so many steps; None for no such rule.
        checkpoint_minutes: save every so many minutes; None for no such rule.
            Checkpoints are saved at the ends of epochs besides.
        profile: whether to trace ten steps, the first of them the sixth, into
            `tensorboard/`, and print where their time went.
        verbose: as in Keras: "auto", 0, 1 or 2.

    Returns:
        The trained, compiled `VAE`; `history` is Keras's.

    Raises:
        ValueError: no such entry, dataset or strategy; no trained weights for
            `init="zoo"`; a dataset that does not fit the model; another architecture or
            recipe than that of the run to resume.
        FileExistsError: there is a run in `out`, and `resume` is false.
        RuntimeError: a strategy that is made after TensorFlow's first operation.
        OSError: `out` cannot be written, or the dataset is not there; a
            `vaezoo.strategies.WorkerLostError` where a worker has stopped.
        FloatingPointError: the loss or a weight is not finite any more.
    """
    if init not in ("none", "zoo"):
        raise ValueError(f'init must be "none" or "zoo". Received: init={init!r}.')
    entry, source = _entry_and_source(name_or_entry)
    if init == "zoo" and entry.weights is None:
        raise ValueError(
            f'init="zoo" needs an entry with trained weights. Received: '
            f'{entry.name!r}, which has none. Train it from scratch: init="none".'
        )
    strategy = strategies.create(strategy, devices=devices)
    is_chief = strategies.is_chief(strategy)
    out = Path(out)
    if is_chief:
        _check_run_folder(out, resume=resume)

    recipe = entry.fine_tune if init == "zoo" else entry.training
    _at_least_one("epochs", epochs)
    changes = {"epochs": epochs, "seed": seed, "precision": precision}
    changes = {key: value for key, value in changes.items() if value is not None}
    recipe = type(recipe).model_validate(recipe.model_dump() | changes)
    dataset = dataset or entry.dataset
    shape = _image_shape(entry, dataset)
    run = _run_entry(entry, recipe, dataset, shape, init, out)
    checkpoint = CheckpointCallback(
        out / _CHECKPOINTS,
        entry=run,
        every_steps=checkpoint_steps,
        every_minutes=checkpoint_minutes,
    )

    keep_freed_memory()
    keras.utils.set_random_seed(recipe.seed)
    with strategy.scope(), _dtype_policy(recipe.precision):
        if init == "zoo":
            model = zoo.load(source, image_shape=shape)
        else:
            model_class = models.get_class(run.model.class_name)
            model = model_class(**run.model.arguments)
        data = _Data(dataset, model, recipe, position=lambda: checkpoint.position)
        model.compile(
            **compile_arguments(recipe, steps_per_epoch=data.steps_per_epoch),
            gradient_accumulation_steps=gradient_accumulation_steps,
        )
        model.optimizer.build(model.trainable_variables)

    with _lost_workers_named(strategy), _sigterm_calls(checkpoint.stop):
        if resume:
            checkpoint.restore(model)
        model.zoo_entry = run
        callbacks = []
        if is_chief:
            zoo.write_entry(run, out / zoo.ENTRY_FILE)
            epoch = checkpoint.position // data.steps_per_epoch
            callbacks = _logs(out, first_epoch=epoch, profile=profile)
        _fit(
            model,
            data,
            checkpoint,
            epochs=recipe.epochs,
            callbacks=callbacks,
            verbose=verbose if is_chief else 0,
        )
    if is_chief:
        _write_results(model, out)
    return model


def _write_results(model, out):
    path = weights_lib.write_weights(model, out / WEIGHTS_FILE)
    info = zoo.WeightsInfo(
        file=path.name,
        bytes=path.stat().st_size,
        sha256=weights_lib.sha256(path),
    )
    entry = model.zoo_entry.model_copy(update={"weights": info, "status": "partial"})
    zoo.write_entry(entry, out / zoo.ENTRY_FILE)
    model.zoo_entry = zoo.describe(out)


def keep_freed_memory():
    """Ask glibc not to give freed memory back to the system.

    A step on a CPU frees and allocates the same large tensors over and over; zeroing
    their pages anew takes a good part of the time. Elsewhere this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_max = -1, -4  # glibc's malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    # A larger threshold for mmap would not do: glibc caps it at 32 MiB.
    mallopt(mmap_max, 0)


class CheckpointCallback(keras.callbacks.Callback):
    """Saves what training needs to continue exactly: weights and optimizer state.

    A checkpoint is a folder `step-N`, N the number of optimizer steps done. It is
    written under another name and renamed, so it is whole or not there; the newest two
    are kept. With `use_ema`, the raw weights are saved, and their averages with the
    optimizer. Nothing is saved when training ends: Keras has then put the averages
    into the model. Of several workers the first saves.

    Args:
        folder: where checkpoints are; made if it is not there.
        entry: the `vaezoo.zoo.ZooEntry` that is trained; stored beside the state, and
            compared with when a state is restored.
        every_steps: save every so many steps; None for no such rule.
        every_minutes: save every so many minutes; None for no such rule.

    Attributes:
        position: number of steps done. Unlike `optimizer.iterations` it stands still
            during a step, in which Keras draws the next batch.
    """

    def __init__(self, folder, *, entry, every_steps=None, every_minutes=None):
        super().__init__()
        self._folder = Path(folder)
        self._entry = entry
        self._every_steps = _at_least_one("every_steps", every_steps)
        self._every_seconds = math.inf if every_minutes is None else every_minutes * 60
        self.position = 0
        self._saved_position = None
        self._saved_at = time.monotonic()
        self._stop = False

    def stop(self):
        """Saves at the end of the current step, and exits the process with status 0.

        So do all workers when one of them is told to.
        """
        self._stop = True

    def on_train_begin(self, logs=None):
        self.position = num_steps(self.model)
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.position += 1
        strategy = self.model.distribute_strategy
        self._stop = strategies.any_worker(strategy, self._stop)
        if (
            self._stop
            or (self._every_steps and self.position % self._every_steps == 0)
            or time.monotonic() - self._saved_at >= self._every_seconds
        ):
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        self._save()

    def restore(self, model):
        """Restores the newest whole checkpoint, if there is any, and `position`.

        Of several workers the first reads it and the others are told.

        Args:
            model: a `VAE` that is compiled, its optimizer built.

        Raises:
            ValueError: the checkpoint is of another model, dataset or recipe; the
                message names the differences.
        """
        variables = _state(model)
        strategy = model.distribute_strategy
        state = self._read(variables) if strategies.is_chief(strategy) else None
        if not strategies.any_worker(strategy, state is not None):
            return
        if state is None:
            state = {key: np.zeros(v.shape, v.dtype) for key, v in variables.items()}
        arrays = strategies.from_chief(strategy, list(state.values()))
        for variable, array in zip(variables.values(), arrays, strict=True):
            variable.assign(array)
        self.position = num_steps(model)

    def _read(self, variables):
        """The newest whole state, arrays by the keys of `variables`, or `None`."""
        for path in reversed(checkpoints(self._folder)):
            try:
                saved = zoo.entry_from_file(path / zoo.ENTRY_FILE)
                with np.load(path / _STATE_FILE, allow_pickle=False) as file:
                    state = {key: file[key] for key in file.files}
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                warnings.warn(
                    f"The checkpoint {str(path)!r} cannot be read and is passed over "
                    f"for an older one: {error}",
                    stacklevel=2,
                )
                continue
            _check_same_run(saved, self._entry, path)
            shapes = {key: array.shape for key, array in state.items()}
            if shapes != {key: tuple(v.shape) for key, v in variables.items()}:
                raise ValueError(
                    f"A checkpoint must hold the variables of the model and its "
                    f"optimizer. Received: {str(path)!r}, which has others. It may be "
                    f"of another version of vaezoo; train into a new folder."
                )
            return {key: state[key] for key in variables}
        return None

    def _save(self):
        if self.position != self._saved_position:
            if strategies.is_chief(self.model.distribute_strategy):
                self._write()
            self._saved_position = self.position
            self._saved_at = time.monotonic()
        if self._stop:
            raise SystemExit(0)

    def _write(self):
        state = {
            key: tf.convert_to_tensor(variable).numpy()
            for key, variable in _state(self.model).items()
        }
        if not all(np.all(np.isfinite(array)) for array in state.values()):
            raise FloatingPointError(
                f"Weights and optimizer state must be finite to be saved. Received: "
                f"others, after step {self.position}. {_AFTER_DIVERGENCE}"
            )
        name = f"step-{self.position:09d}"
        temporary = self._folder / f".{name}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.glob(".step-*"):
                shutil.rmtree(leftover)
            temporary.mkdir()
            with open(temporary / _STATE_FILE, "wb") as file:
                np.savez(file, **state)
                file.flush()
                os.fsync(file.fileno())
            zoo.write_entry(self._entry, temporary / zoo.ENTRY_FILE)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(
                f"A checkpoint must be written whole. Received: {error}, after step "
                f"{self.position}. The checkpoints saved before are whole: make room, "
                "and continue with resume=True (--resume)."
            ) from error
        final = self._folder / name
        if final.exists():  # it could not be read, and was passed over
            shutil.rmtree(final)
        os.rename(temporary, final)
        kept = [path for path in checkpoints(self._folder) if path.name <= name][-2:]
        for path in checkpoints(self._folder):
            if path not in kept:
                shutil.rmtree(path)


_AFTER_DIVERGENCE = (
    "The checkpoints saved before are whole. Train anew with a lower learning rate."
)


class RaiseOnNonFinite(keras.callbacks.Callback):
    """Ends training with an error as soon as the loss is not finite.

    Keras's `TerminateOnNaN` ends it as if it were done, and the run would then write
    its weights.
    """

    def on_train_batch_end(self, batch, logs=None):
        logs = logs or {}
        if math.isfinite(logs.get("loss", 0.0)):
            return
        names = [name for name, value in logs.items() if not math.isfinite(value)]
        terms = [n for n in names if n == "reconstruction" or n.startswith("kl/")]
        raise FloatingPointError(
            f"The training loss must be finite. Received: loss={logs['loss']} after "
            f"step {num_steps(self.model)}, where {' and '.join(terms or names)} is "
            f"not finite. {_AFTER_DIVERGENCE}"
        )


@contextlib.contextmanager
def _lost_workers_named(strategy):
    """Says what it means when a collective operation fails."""
    try:
        yield
    except tf.errors.OpError as error:
        if not strategies.is_multi_worker(strategy):
            raise
        message = re.sub(r"\{\{.*?\}\}\s*", "", error.message).splitlines()[0]
        raise strategies.WorkerLostError(
            "All workers must train together. Received: another worker does not "
            f"answer ({type(error).__name__}: {message}) Start all of them again, with "
            "the same arguments and resume=True (--resume): they go on from the last "
            "checkpoint."
        ) from error


def checkpoints(folder):
    """Lists the checkpoints in a folder, oldest first, as paths."""
    return sorted(Path(folder).glob("step-*"))


def num_steps(model):
    """Returns the number of steps that the model's optimizer has done, an int."""
    return int(tf.convert_to_tensor(model.optimizer.iterations).numpy())


class _Data:
    """The training stream and, where the dataset has one, the validation split."""

    def __init__(self, name, model, recipe, *, position):
        options = {}
        if name.startswith("image_folder:"):
            *size, channels = model.image_shape
            options = {"size": size, "channels": channels, "levels": model.levels}
        info = datasets.info(name, **options)
        if (info.image_shape, info.levels) != (model.image_shape, model.levels):
            raise ValueError(
                f"The dataset must have the model's image_shape={model.image_shape} "
                f"and levels={model.levels}. Received: {name!r} with image_shape="
                f"{info.image_shape}, levels={info.levels}."
            )
        batch = {"batch_size": recipe.batch_size, **options}
        self.stream, self.steps_per_epoch = datasets.training_stream(
            name,
            split=recipe.split,
            seed=recipe.seed,
            position=position,
            **batch,
        )
        self.validation = None
        if "validation" in info.splits and recipe.split == "train":
            self.validation = datasets.load_dataset(name, "validation", **batch)


def _fit(model, data, checkpoint, *, epochs, callbacks, verbose):
    def fit(first_epoch, epochs, steps_per_epoch):
        model.fit(
            data.stream,
            initial_epoch=first_epoch,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            validation_data=data.validation,
            verbose=verbose,
            callbacks=[RaiseOnNonFinite(), *callbacks, checkpoint],
        )

    epoch, done = divmod(checkpoint.position, data.steps_per_epoch)
    if done and epoch < epochs:  # the rest of an epoch is a `fit` of its own
        fit(epoch, epoch + 1, data.steps_per_epoch - done)
        checkpoint.restore(model)  # as `fit` has put the averages into the model
        epoch += 1
    fit(epoch, epochs, data.steps_per_epoch)


def _logs(out, *, first_epoch, profile):
    """Callbacks that log the run, from `first_epoch` on."""
    events = out / "tensorboard"
    _forget_epochs(out / "log.csv", first_epoch)
    callbacks = [
        keras.callbacks.CSVLogger(str(out / "log.csv"), append=True),
        keras.callbacks.TensorBoard(str(events), write_graph=False),
    ]
    return callbacks + [profiling.Profile(events)] * profile


def _entry_and_source(name_or_entry):
    """The entry, and what `zoo.load` finds it by."""
    if not isinstance(name_or_entry, zoo.ZooEntry):
        return zoo.describe(name_or_entry), name_or_entry
    path = name_or_entry.path
    is_run = path is not None and path.name == zoo.ENTRY_FILE
    return name_or_entry, path.parent if is_run else name_or_entry.name


def _image_shape(entry, dataset):
    """The image shape to build the model with; None for the entry's own."""
    if dataset == entry.dataset or dataset.startswith("image_folder:"):
        return None
    return list(datasets.info(dataset).image_shape)


def _run_entry(entry, recipe, dataset, shape, init, out):
    """The entry of the run, before it has weights (or, resumed, with the old ones)."""
    model = entry.model
    if shape is not None:
        arguments = model.arguments | {"image_shape": shape}
        model = model.model_copy(update={"arguments": arguments})
    notes = list(entry.notes)
    if init == "zoo":
        before = [m.epochs for m in entry.measured if m.epochs is not None]
        before = max(before, default=entry.training.epochs)
        notes.append(
            f"Trained for {before:g} + {recipe.epochs} epochs: the last "
            f"{recipe.epochs} on {dataset}, from the weights of {entry.name} "
            f"(SHA-256 {entry.weights.sha256[:8]}...)."
        )
    weights, status = None, "untrained"
    if (out / WEIGHTS_FILE).exists():
        old = zoo.describe(out)
        weights, status = old.weights, old.status
    return entry.model_copy(
        update={
            "model": model,
            "dataset": dataset,
            "training": recipe,
            "weights": weights,
            "measured": [],
            "status": status,
            "notes": notes,
        }
    )


def _check_run_folder(out, *, resume):
    """Make the run's folder, or say why it cannot be one."""
    saved = bool(checkpoints(out / _CHECKPOINTS))
    finished = (out / WEIGHTS_FILE).exists()
    if (saved or finished) and not resume:
        raise FileExistsError(
            f"A run must have a folder of its own. Received: out={str(out)!r}, which "
            f"has a run. Give another folder, or resume=True (--resume) to continue it."
        )
    if finished and not saved:
        raise FileExistsError(
            f"A run can be resumed from its checkpoints only. Received: out="
            f"{str(out)!r}, which has weights and no checkpoint. Give another folder."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OSError(
            f"out must be a folder that can be written. Received: out={str(out)!r} "
            f"({error}). Give another folder."
        ) from error


def _state(model):
    """The variables of a model and its training, by position."""
    groups = {
        "model": model.weights,
        "optimizer": model.optimizer.variables,
        "training": model.training_variables,
    }
    return {
        f"{group}-{i:05d}": variable
        for group, variables in groups.items()
        for i, variable in enumerate(variables)
    }


def _check_same_run(saved, entry, path):
    saved = _leaves(saved.model_dump(include=_IDENTITY))
    entry = _leaves(entry.model_dump(include=_IDENTITY))
    # A learning rate that does not decay does not depend on the number of epochs.
    if saved.get("training.learning_rate_decay.schedule") == "constant":
        saved.pop("training.epochs"), entry.pop("training.epochs")
    differences = [
        f"  {key}: {saved.get(key)!r} there, {entry.get(key)!r} here"
        for key in {**saved, **entry}
        if saved.get(key) != entry.get(key)
    ]
    if differences:
        raise ValueError(
            f"A run must be resumed with the model and the recipe that it was started "
            f"with. Received: {str(path)!r}, which has another\n"
            + "\n".join(differences)
            + "\nGive the same arguments, or train into a new folder."
        )


def _leaves(tree, prefix=""):
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            value = list(value) if isinstance(value, tuple) else value
            leaves[f"{prefix}{key}"] = value
    return leaves


def _forget_epochs(path, first_epoch):
    """Removes from a CSV log the epochs that will be trained (again)."""
    if not path.exists():
        return
    with open(path, newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    rows = [r for r in rows if len(r) == len(header) and int(r[0]) < first_epoch]
    with weights_lib.atomic_path(path) as temporary:
        with open(temporary, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _at_least_one(name, value):
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int) or value < 1
    ):
        raise ValueError(
            f"{name} must be a positive integer or None. Received: {name}={value!r}."
        )
    return value


@contextlib.contextmanager
def _dtype_policy(name):
    """Builds models under a precision policy, and leaves the user's as it was."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def _sigterm_calls(function):
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: function())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
