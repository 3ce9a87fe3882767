"""Training a zoo entry: recipes, checkpoints that resume exactly, run folders."""

import contextlib
import csv
import ctypes
import re
import tempfile
from pathlib import Path

import keras
import tensorflow as tf

from vaezoo import checks, datasets, models, strategies
from vaezoo.files import atomic_path
from vaezoo.training import profiling
from vaezoo.training.checkpoints import (
    CheckpointCallback,
    RaiseOnNonFinite,
    list_checkpoints,
    sigterm_calls,
)
from vaezoo.zoo import entries, registry
from vaezoo.zoo import weights as weights_lib
from vaezoo.zoo.recipes import compile_arguments

WEIGHTS_FILE = "weights.h5"
_CHECKPOINTS = "checkpoints"


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
        name_or_entry: a name of the zoo, a run folder, or a `ZooEntry`.
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
    checks.integer("epochs", epochs, optional=True)
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
            model = registry.load(source, image_shape=shape)
        else:
            model_class = models.get_class(run.model.class_name)
            model = model_class(**run.model.arguments)
        data = _Data(dataset, model, recipe, position=lambda: checkpoint.position)
        model.compile(
            **compile_arguments(recipe, steps_per_epoch=data.steps_per_epoch),
            gradient_accumulation_steps=gradient_accumulation_steps,
        )
        model.optimizer.build(model.trainable_variables)

    with _lost_workers_named(strategy), sigterm_calls(checkpoint.stop):
        if resume:
            checkpoint.restore(model)
        model.zoo_entry = run
        callbacks = []
        if is_chief:
            entries.write_entry(run, out / entries.ENTRY_FILE)
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
    info = entries.WeightsInfo(
        file=path.name,
        bytes=path.stat().st_size,
        sha256=weights_lib.sha256(path),
    )
    entry = model.zoo_entry.model_copy(update={"weights": info, "status": "partial"})
    entries.write_entry(entry, out / entries.ENTRY_FILE)
    model.zoo_entry = registry.describe(out)


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
    if not isinstance(name_or_entry, entries.ZooEntry):
        return registry.describe(name_or_entry), name_or_entry
    path = name_or_entry.path
    is_run = path is not None and path.name == entries.ENTRY_FILE
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
        old = registry.describe(out)
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
    saved = bool(list_checkpoints(out / _CHECKPOINTS))
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


def _forget_epochs(path, first_epoch):
    """Removes from a CSV log the epochs that will be trained (again)."""
    if not path.exists():
        return
    with open(path, newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    rows = [r for r in rows if len(r) == len(header) and int(r[0]) < first_epoch]
    with atomic_path(path) as temporary:
        with open(temporary, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])


@contextlib.contextmanager
def _dtype_policy(name):
    """Builds models under a precision policy, and leaves the user's as it was."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
