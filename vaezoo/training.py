"""Training a zoo entry: recipes, checkpoints that resume exactly, run folders."""

import contextlib
import csv
import ctypes
import math
import os
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

from vaezoo import datasets, models, zoo
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
    resume=False,
    checkpoint_steps=None,
    checkpoint_minutes=10.0,
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
        strategy: None, "mirrored" (the GPUs of this machine), "multi_worker" (the
            machines of TF_CONFIG) or a `tf.distribute.Strategy`. The recipe's batch
            size is that of all replicas together. Workers but the first write into
            folders of their own in `out`.
        resume: whether to continue the run in `out`; it starts if there is none.
        checkpoint_steps: save every so many steps; None for no such rule.
        checkpoint_minutes: save every so many minutes; None for no such rule.
            Checkpoints are saved at the ends of epochs besides.
        verbose: as in Keras: "auto", 0, 1 or 2.

    Returns:
        The trained, compiled `VAE`; `history` is Keras's.

    Raises:
        ValueError: no such entry, dataset or strategy; no trained weights for
            `init="zoo"`; a dataset that does not fit the model; another architecture or
            recipe than that of the run to resume.
        FileExistsError: there is a run in `out`, and `resume` is false.
        OSError: `out` cannot be written, or the dataset is not there.
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
    strategy = _strategy(strategy)
    out = _run_folder(out, strategy, resume=resume)

    recipe = entry.fine_tune if init == "zoo" else entry.training
    changes = {"epochs": _at_least_one("epochs", epochs), "seed": seed}
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

    _keep_freed_memory()
    keras.utils.set_random_seed(recipe.seed)
    with strategy.scope(), _dtype_policy(recipe.precision):
        if init == "zoo":
            model = zoo.load(source, image_shape=shape)
        else:
            model_class = models.get_class(run.model.class_name)
            model = model_class(**run.model.arguments)
        data = _Data(dataset, model, recipe, position=lambda: checkpoint.position)
        model.compile(**compile_arguments(recipe, steps_per_epoch=data.steps_per_epoch))
        model.optimizer.build(model.trainable_variables)

    if resume:
        checkpoint.restore(model)
    zoo.write_entry(run, out / zoo.ENTRY_FILE)
    model.zoo_entry = run

    with _sigterm_calls(checkpoint.stop):
        _fit(model, data, checkpoint, out, epochs=recipe.epochs, verbose=verbose)

    path = weights_lib.write_weights(model, out / WEIGHTS_FILE)
    model.zoo_entry = run.model_copy(
        update={
            "weights": zoo.WeightsInfo(
                file=path.name,
                bytes=path.stat().st_size,
                sha256=weights_lib.sha256(path),
            ),
            "status": "partial",
        }
    )
    zoo.write_entry(model.zoo_entry, out / zoo.ENTRY_FILE)
    return model


def _keep_freed_memory():
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
    into the model.

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
        """Saves at the end of the current step, and exits the process with status 0."""
        self._stop = True

    def on_train_begin(self, logs=None):
        self.position = num_steps(self.model)
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.position += 1
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

        Args:
            model: a `VAE` that is compiled, its optimizer built.

        Raises:
            ValueError: the checkpoint is of another model, dataset or recipe; the
                message names the differences.
        """
        variables = _state(model)
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
            for key, variable in variables.items():
                variable.assign(state[key])
            self.position = num_steps(model)
            return

    def _save(self):
        if self.position != self._saved_position:
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
        self._folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._folder.glob(".step-*"):
            shutil.rmtree(leftover)
        name = f"step-{self.position:09d}"
        temporary = self._folder / f".{name}"
        temporary.mkdir()
        with open(temporary / _STATE_FILE, "wb") as file:
            np.savez(file, **state)
            file.flush()
            os.fsync(file.fileno())
        zoo.write_entry(self._entry, temporary / zoo.ENTRY_FILE)
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
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The training loss must be finite. Received: loss={loss} after step "
                f"{num_steps(self.model)}. {_AFTER_DIVERGENCE}"
            )


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
        self.stream = datasets.training_stream(
            name,
            split=recipe.split,
            seed=recipe.seed,
            position=position,
            **batch,
        )
        self.steps_per_epoch = int(self.stream.cardinality())
        self.validation = None
        if "validation" in info.splits and recipe.split == "train":
            self.validation = datasets.load_dataset(name, "validation", **batch)


def _fit(model, data, checkpoint, out, *, epochs, verbose):
    def fit(first_epoch, epochs, steps_per_epoch=None):
        log, events = str(out / "log.csv"), str(out / "tensorboard")
        model.fit(
            data.stream,
            shuffle=False,  # the stream is
            initial_epoch=first_epoch,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            validation_data=data.validation,
            verbose=verbose,
            callbacks=[
                RaiseOnNonFinite(),
                keras.callbacks.CSVLogger(log, append=True),
                keras.callbacks.TensorBoard(events, write_graph=False),
                checkpoint,
            ],
        )

    epoch, done = divmod(checkpoint.position, data.steps_per_epoch)
    _forget_epochs(out / "log.csv", epoch)
    if done and epoch < epochs:
        # The rest of an epoch is a `fit` of its own: Keras would begin one step more
        # to see that the pass has ended, and that may raise `optimizer.iterations`.
        fit(epoch, epoch + 1, data.steps_per_epoch - done)
        checkpoint.restore(model)  # as `fit` has put the averages into the model
        epoch += 1
    fit(epoch, epochs)


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


def _run_folder(out, strategy, *, resume):
    """The folder of the run, made and seen to be writable."""
    out = Path(out)
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        worker = strategy.cluster_resolver.task_id or 0
        out = out / f"worker-{worker}" if worker else out
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
    return out


def _strategy(strategy):
    if strategy is None:
        return tf.distribute.get_strategy()
    if isinstance(strategy, tf.distribute.Strategy):
        return strategy
    if strategy == "mirrored":
        return tf.distribute.MirroredStrategy()
    if strategy == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    raise ValueError(
        'strategy must be None, "mirrored", "multi_worker" or a '
        "tf.distribute.Strategy. "
        f"Received: strategy={strategy!r}."
    )


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
