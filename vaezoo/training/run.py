"""Training a zoo entry: recipes, checkpoints that resume exactly, run folders."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import tensorflow as tf

from vaezoo import checks, datasets, files, strategies
from vaezoo.datasets import image_folder
from vaezoo.models import image_model
from vaezoo.training import checkpoints, phases, profiling
from vaezoo.training.checkpoints import CheckpointCallback, RaiseOnNonFinite
from vaezoo.training.log import EpochLog
from vaezoo.training.progress import Progress
from vaezoo.training.start import Start, new_record, with_decoder
from vaezoo.zoo import entries, registry, runs
from vaezoo.zoo import weights as weights_lib

if TYPE_CHECKING:
    from vaezoo.models.vae import VAE


def train(
    name_or_entry: str | os.PathLike[str] | entries.ZooEntry,
    *,
    out: str | os.PathLike[str],
    dataset: str | None = None,
    image_shape: Sequence[int] | None = None,
    epochs: int | None = None,
    max_steps: int | None = None,
    init: str | os.PathLike[str] = "none",
    init_part: Literal["all", "decoder"] = "all",
    init_decoder: str | os.PathLike[str] | None = None,
    changes: Mapping[str, Any] | None = None,
    seed: int | None = None,
    strategy: str | tf.distribute.Strategy | None = None,
    devices: int | None = None,
    precision: Literal["float32", "mixed_bfloat16"] | None = None,
    gradient_accumulation_steps: int = 1,
    resume: bool = False,
    more_epochs: int | None = None,
    checkpoint_steps: int | None = None,
    checkpoint_minutes: float | None = 10.0,
    profile: bool = False,
    verbose: int | Literal["auto"] = "auto",
) -> VAE:
    """Trains a model of the zoo by its recipe, into a folder that `vaezoo.load` takes.

    The folder holds `entry.yaml`, from the start; `weights.h5`, at the end (the moving
    average, where the recipe keeps one); `log.csv` and `tensorboard/`, a row an epoch;
    and `checkpoints/`. A run that was interrupted continues with the same arguments and
    `resume=True`: on the same machine it ends with the weights, bit for bit, of a run
    that was not interrupted. Ctrl-C and SIGTERM save a checkpoint at the end of the
    step, print the command that continues, and exit with status 0 (Ctrl-C in an
    interactive session: with `KeyboardInterrupt`); a second Ctrl-C stops at once. One
    process at a time trains into a folder, and a run that ends before anything was
    saved leaves nothing in it.

    Where the recipe is a list, its phases run in order, each with an optimizer and
    schedules of its own, from the weights that the one before has left. What was done
    is recorded in the entry's `history`.

    Args:
        name_or_entry: a name of the zoo, a run folder, or a `ZooEntry`.
        out: the run folder; made if it is not there.
        dataset: None for the entry's; else the name of another. The model takes its
            image shape, or, for `image_folder:PATH`, the images take the model's.
        image_shape: `(height, width, channels)` of the model; None for the dataset's or
            the entry's.
        epochs: None for the recipe's; not for a recipe of several phases.
        max_steps: int, after which the run ends if its epochs have not; a learning rate
            that falls until the end reaches it there. Otherwise as `epochs`.
        init: "none" to train from scratch by the `training` recipe; "zoo" to continue
            from the entry's trained weights by the `fine_tune` recipe, with a new
            optimizer, and neither KL warm-up nor data-dependent initialisation. The
            same from other weights: the folder of a run, a file, or a name of the zoo.
            Where the images have another shape, or the model another class or other
            arguments, the weights that fit are kept, and a warning names the others,
            which start anew, initialised on the first batch. From another class or
            other arguments than the images' shape, the run is by the `training` recipe.
        init_part: "all", or "decoder" to keep of those weights the decoder's alone, of
            a model with the mode "decoder". What infers the latents and what draws them
            start anew, and unseen by the decoder: for latents that have died.
        init_decoder: where the decoder's weights come from in place of `init`, named as
            there; what the decoder sees of the latents, it sees by those of `init`. It
            joins latents and a decoder that were trained apart. None for no other.
        changes: dict of what differs in the recipe that the run trains by, such as
            `{"training.learning_rate": 0.003}`; see `vaezoo.zoo.recipes.changed`.
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
        more_epochs: int, with `resume`: append a phase of so many epochs to a run that
            has ended, or continue it. It is a copy of the last phase, without warm-up.
        checkpoint_steps: save every so many steps; None for no such rule.
        checkpoint_minutes: save every so many minutes; None for no such rule.
            Checkpoints are saved at the ends of epochs besides.
        profile: whether to trace ten steps, the first of them the sixth, into
            `tensorboard/`, and print where their time went.
        verbose: as in Keras: "auto", 0, 1 or 2.

    Returns:
        The trained, compiled `VAE`; `history` is Keras's, of the last `fit`.

    Raises:
        ValueError: no such entry, dataset or strategy; no trained weights to start
            from; a phase that does not fit the model or the dataset; a key of `changes`
            that there is not; another architecture or recipe than that of the run to
            resume.
        FileExistsError: there is a run in `out`, and `resume` is false.
        BlockingIOError: another process trains into `out`.
        RuntimeError: a strategy that is made after TensorFlow's first operation.
        OSError: `out` cannot be written, or the dataset is not there; a
            `vaezoo.strategies.WorkerLostError` where a worker has stopped.
        FloatingPointError: the loss or a weight is not finite any more.
    """
    entry, source = _entry_and_source(name_or_entry)
    start = Start.find(init, entry, source, init_part)
    if init_decoder is not None:
        other = Start.find(init_decoder, entry, source, name="init_decoder")
        start = with_decoder(start, other)
    checks.integer("epochs", epochs, optional=True)
    checks.integer("max_steps", max_steps, optional=True)
    checks.integer("more_epochs", more_epochs, optional=True)
    checks.integer("gradient_accumulation_steps", gradient_accumulation_steps)
    if more_epochs and not resume:
        raise ValueError(
            "`more_epochs` is of a run that has ended. Received: more_epochs="
            f"{more_epochs}, resume=False. Give resume=True (--resume) too."
        )
    strategy = strategies.create(strategy, devices=devices)
    is_chief = strategies.is_chief(strategy)
    out = files.local_path(out, name="out")

    recipes = phases.of_run(
        entry.phases if start is None or start.is_other else [entry.fine_tune],
        epochs=epochs,
        max_steps=max_steps,
        changes=changes,
        seed=seed,
        precision=precision,
    )
    dataset = dataset or entry.dataset
    shape = image_shape and list(checks.image_shape(image_shape))
    shape = shape or _image_shape(entry, dataset)
    is_whole = start is not None and start.fits(entry, shape)

    with contextlib.ExitStack() as stack:
        if is_chief:
            stack.enter_context(_run_folder(out, resume=resume))
        stack.enter_context(_errors_in_words(strategy))

        keep_freed_memory()
        keras.utils.set_random_seed(recipes[0].seed)
        with strategy.scope(), image_model.precision(recipes[0].precision):
            model = registry.build(
                entry, weights=start.path if is_whole else None, image_shape=shape
            )

        data = phases.Data(dataset, model)
        if is_chief and verbose:
            _say_what_differs(entry, dataset, model, data)
        saved = None
        if resume and is_chief:
            saved = checkpoints.newest(out / runs.CHECKPOINT_FOLDER)
        saved = checkpoints.share(saved, strategy)
        recipes, is_more = phases.with_more(
            recipes, saved, more_epochs=more_epochs, changes=changes, data=data
        )
        phases.check(recipes, model, data)
        run = _run_entry(entry, recipes, data, shape, start)
        progress = Progress(run.history)
        if saved is not None:
            checkpoints.check_same_run(saved, run)
            progress.restore(saved.entry.history, saved.state)
            run = run.model_copy(update={"history": saved.entry.history})
        checkpoint = CheckpointCallback(
            out / runs.CHECKPOINT_FOLDER,
            entry=run,
            progress=progress,
            every_steps=checkpoint_steps,
            every_minutes=checkpoint_minutes,
        )

        def restore():
            newest = None
            if is_chief:
                newest = checkpoints.newest(out / runs.CHECKPOINT_FOLDER)
            newest = checkpoints.share(newest, strategy)
            checkpoints.restore(model, newest)

        model.zoo_entry = run
        if saved is None and not model.data_initialized:
            model.initialize(data.first_batch(recipes[0]))
        if saved is None and start is not None and start.part == "decoder":
            registry.read_decoder_weights(model, start.path)
        elif saved is None and start is not None and not is_whole:
            registry.read_fitting_weights(model, start.path)
        if saved is None and start is not None and start.decoder is not None:
            path = start.decoder.path
            registry.read_decoder_weights(model, path, keep_conditioning=True)
        callbacks = [RaiseOnNonFinite(), progress]
        if is_chief:
            if not (out / runs.WEIGHTS_FILE).exists():  # else it is of those weights
                entries.write_entry(run, out / entries.ENTRY_FILE)
            epoch = phases.num_epochs_done(recipes, data, progress)
            callbacks += _logs(out, first_epoch=epoch, profile=profile)
        try:
            with checkpoints.stop_signals_call(checkpoint.stop):
                phases.train_phases(
                    model,
                    recipes,
                    data,
                    progress,
                    restore=restore,
                    callbacks=[*callbacks, checkpoint],
                    verbose=verbose if is_chief else 0,
                    gradient_accumulation_steps=gradient_accumulation_steps,
                    record_of_more=new_record(Start.of_run(out)) if is_more else None,
                )
        except checkpoints.Stopped:
            if is_chief:
                _say_stopped(out, progress, verbose)
            if hasattr(sys, "ps1"):  # leave an interactive session to its user
                raise KeyboardInterrupt from None
            raise
        model.before_evaluation()  # so that the weights that are written can be scored
        if is_chief:
            _write_results(model, progress.history, out)
    return model


def _write_results(model, history, out):
    path = weights_lib.write_weights(model, out / runs.WEIGHTS_FILE)
    info = entries.WeightsInfo(
        file=path.name,
        bytes=path.stat().st_size,
        sha256=weights_lib.sha256(path),
    )
    update = {"weights": info, "status": "partial", "history": history}
    entry = model.zoo_entry.model_copy(update=update)
    entries.write_entry(entry, out / entries.ENTRY_FILE)
    model.zoo_entry = registry.find_entry(out)


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
def _errors_in_words(strategy):
    """Says what it means when reading an image or a collective operation fails."""
    try:
        yield
    except tf.errors.OpError as error:
        refusal = image_folder.refusal_in(error)
        if refusal is not None:
            raise ValueError(refusal) from None  # after pages of TensorFlow's
        if not strategies.is_multi_worker(strategy):
            raise
        message = re.sub(r"\{\{.*?\}\}\s*", "", error.message).splitlines()[0]
        raise strategies.WorkerLostError(
            "All workers must train together. Received: another worker does not "
            f"answer ({type(error).__name__}: {message}) Start all of them again, with "
            "the same arguments and resume=True (--resume): they go on from the last "
            "checkpoint."
        ) from error


def _logs(out, *, first_epoch, profile):
    """Callbacks that log the run, from `first_epoch` on."""
    events = out / "tensorboard"
    callbacks = [
        EpochLog(out / runs.LOG_FILE, first_epoch=first_epoch),
        keras.callbacks.TensorBoard(str(events), write_graph=False),
    ]
    return callbacks + [profiling.Profile(events)] * profile


def _entry_and_source(name_or_entry):
    """The entry, and what `zoo.load` finds it by."""
    if not isinstance(name_or_entry, entries.ZooEntry):
        return registry.find_entry(name_or_entry), name_or_entry
    path = name_or_entry.path
    is_run = path is not None and path.name == entries.ENTRY_FILE
    return name_or_entry, path.parent if is_run else name_or_entry.name


def _image_shape(entry, dataset):
    """The image shape to build the model with; None for the entry's own."""
    if dataset == entry.dataset or dataset.startswith("image_folder:"):
        return None
    return list(datasets.info(dataset).image_shape)


def _say_what_differs(entry, dataset, model, data):
    """Tell of another size of images than the entry's, and of another dataset's."""
    size = "x".join(map(str, model.image_shape))
    usual = entry.model.arguments.get("image_shape", model.image_shape)
    if dataset != entry.dataset or tuple(usual) != model.image_shape:
        print(
            f"{entry.name} for {size} images of {dataset}: {data.info.protocol}",
            file=sys.stderr,
        )


def _run_entry(entry, recipes, data, shape, start):
    """The entry of the run, before it has weights."""
    model, paper, evaluation = entry.model, entry.paper, entry.evaluation
    if data.info.name != entry.dataset:
        paper = None  # whose figures are of other images
    if not set(evaluation.split.split("+")) <= set(data.info.splits):
        evaluation = evaluation.model_copy(update={"split": [*data.info.splits][-1]})
    if shape is not None:
        arguments = model.arguments | {"image_shape": shape}
        model = model.model_copy(update={"arguments": arguments})
    return entry.model_copy(
        update={
            "model": model,
            "dataset": data.info.name,
            "evaluation": evaluation,
            "paper": paper,
            "training": recipes[0] if len(recipes) == 1 else recipes,
            "weights": None,
            "measured": [],
            "status": "untrained",
            "history": [*(start.history if start else []), new_record(start)],
        }
    )


@contextlib.contextmanager
def _run_folder(out, *, resume):
    """Make the run's folder and hold it, or say why it cannot be one.

    What a run writes before its first checkpoint goes with it.
    """

    def saved():
        return bool(runs.list_checkpoints(out / runs.CHECKPOINT_FOLDER))

    def finished():
        return (out / runs.WEIGHTS_FILE).exists()

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(
                files.made_and_held(out, is_kept=lambda: saved() or finished())
            )
        except BlockingIOError:
            raise
        except OSError as error:
            raise OSError(
                f"out must be a folder that can be written. Received: "
                f"out={str(out)!r} ({error}). Give another folder."
            ) from error
        if (saved() or finished()) and not resume:
            raise FileExistsError(
                f"A run must have a folder of its own. Received: out={str(out)!r}, "
                "which has a run. Give another folder, or resume=True (--resume) to "
                "continue it."
            )
        if finished() and not saved():
            raise FileExistsError(
                f"A run can be resumed from its checkpoints only. Received: out="
                f"{str(out)!r}, which has weights and no checkpoint. Give another "
                "folder."
            )
        yield


def _say_stopped(out, progress, verbose):
    """One line on the error stream: the step that was saved, and how to go on."""
    if verbose in (1, "auto") and sys.stdout.isatty():
        print(flush=True)  # after Keras's bar
    print(
        f"Stopped at step {progress.position}, which is saved in {out}. "
        f"{runs.how_to_continue(progress.history)}",
        file=sys.stderr,
    )
