"""Checkpoints from which training continues exactly."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from vaezoo import checks, strategies
from vaezoo.zoo import entries
from vaezoo.zoo.runs import list_checkpoints

_STATE_FILE = "state.npz"
_IDENTITY = {"name", "model", "dataset"}  # what a run cannot change


class Stopped(SystemExit):
    """Training was told to stop, and what it did is saved."""


class CheckpointCallback(keras.callbacks.Callback):
    """Saves what training needs to continue exactly: weights and optimizer state.

    A checkpoint is a folder `step-N`, N the number of steps done in all phases. It is
    written under another name and renamed, so it is whole or not there; the newest two
    are kept. It holds `training_state` of the model, the place in the run, and the
    entry of the run with its history. Of several workers the first saves.

    Args:
        folder: where checkpoints are; made if it is not there.
        entry: the `ZooEntry` that is trained.
        progress: the `vaezoo.training.progress.Progress` of the run, which stands
            before this among the callbacks.
        every_steps: save every so many steps; None for no such rule.
        every_minutes: save every so many minutes; None for no such rule.
    """

    def __init__(
        self, folder, *, entry, progress, every_steps=None, every_minutes=None
    ):
        super().__init__()
        self._folder = Path(folder)
        self._entry = entry
        self._progress = progress
        self._every_steps = checks.integer("every_steps", every_steps, optional=True)
        checks.number("every_minutes", every_minutes, minimum=0, optional=True)
        self._every_seconds = math.inf if every_minutes is None else every_minutes * 60
        self._saved_at = time.monotonic()
        self._stop = False

    def stop(self):
        """Saves at the end of the current step, and raises `Stopped` with status 0.

        So do all workers when one of them is told to.
        """
        self._stop = True

    def on_train_begin(self, logs=None):
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        strategy = self.model.distribute_strategy
        self._stop = strategies.any_worker(strategy, self._stop)
        if batch + 1 == (self.params or {}).get("steps"):
            return  # the epoch is saved when it has been validated
        if (
            self._stop
            or (self._every_steps and self._progress.position % self._every_steps == 0)
            or time.monotonic() - self._saved_at >= self._every_seconds
        ):
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        self._save()

    def _save(self):
        if strategies.is_chief(self.model.distribute_strategy):
            self._write()
        self._saved_at = time.monotonic()
        if self._stop:
            raise Stopped(0)

    def _write(self):
        state = self.model.training_state() | self._progress.state()
        position = self._progress.position
        if not all(np.all(np.isfinite(array)) for array in state.values()):
            raise FloatingPointError(
                f"Weights and optimizer state must be finite to be saved. Received: "
                f"others, after step {position}. {_AFTER_DIVERGENCE}"
            )
        name = f"step-{position:09d}"
        temporary = self._folder / f".{name}"
        entry = self._entry.model_copy(update={"history": self._progress.history})
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.glob(".step-*"):
                shutil.rmtree(leftover)
            temporary.mkdir()
            with open(temporary / _STATE_FILE, "wb") as file:
                np.savez(file, **state)
                file.flush()
                os.fsync(file.fileno())
            entries.write_entry(entry, temporary / entries.ENTRY_FILE)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(
                f"A checkpoint must be written whole. Received: {error}, after step "
                f"{position}. The checkpoints saved before are whole: make room, "
                "and continue with resume=True (--resume)."
            ) from error
        final = self._folder / name
        if final.exists():  # it could not be read, and was passed over
            shutil.rmtree(final)
        os.rename(temporary, final)
        kept = [path for path in list_checkpoints(self._folder) if path.name <= name][
            -2:
        ]
        for path in list_checkpoints(self._folder):
            if path not in kept:
                shutil.rmtree(path)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read: the run's entry, and arrays by name."""

    path: Path
    entry: entries.ZooEntry
    state: dict[str, np.ndarray]

    @property
    def phase(self):
        """Index of the phase that it is of."""
        return int(self.state["progress"][0])

    @property
    def step(self):
        """Number of steps done in that phase."""
        return int(self.state["progress"][1])


def newest(folder):
    """The newest whole checkpoint in a folder, a `Checkpoint`, or `None`."""
    for path in reversed(list_checkpoints(folder)):
        try:
            entry = entries.entry_from_file(path / entries.ENTRY_FILE)
            with np.load(path / _STATE_FILE, allow_pickle=False) as file:
                state = {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            warnings.warn(
                f"The checkpoint {str(path)!r} cannot be read and is passed over "
                f"for an older one: {error}",
                stacklevel=2,
            )
            continue
        if "progress" not in state:
            raise ValueError(
                "A checkpoint must be of this version of vaezoo. Received: "
                f"{str(path)!r}, which does not say how far the run was. Train into a "
                "new folder."
            )
        return Checkpoint(path, entry, state)
    return None


def share(checkpoint, strategy):
    """The chief's checkpoint, on every worker; all of them have to call this.

    Args:
        checkpoint: the chief's `Checkpoint` or `None`; the others' `None`.
        strategy: a `tf.distribute.Strategy`.

    Returns:
        A `Checkpoint`, or `None`.
    """
    if not strategies.is_multi_worker(strategy):
        return checkpoint
    text = "null"
    if checkpoint is not None:
        arrays = {k: (v.shape, v.dtype.str) for k, v in checkpoint.state.items()}
        entry = checkpoint.entry.model_dump(mode="json")
        text = json.dumps([str(checkpoint.path), entry, arrays])
    code = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    (size,) = strategies.from_chief(strategy, [np.int32(code.size)])
    (code,) = strategies.from_chief(strategy, [np.resize(code, int(size))])
    told = json.loads(code.astype(np.uint8).tobytes())
    if told is None:
        return None
    path, entry, arrays = told
    if checkpoint is None:
        state = {k: np.zeros(shape, dtype) for k, (shape, dtype) in arrays.items()}
    else:
        state = checkpoint.state
    values = strategies.from_chief(strategy, [state[key] for key in arrays])
    entry = entries.ZooEntry.model_validate(entry)
    return Checkpoint(Path(path), entry, dict(zip(arrays, values, strict=True)))


def restore(model, checkpoint):
    """Sets a model and its training to the state of a checkpoint.

    Args:
        model: a compiled `VAE`, its optimizer built, in the mode of the checkpoint.
        checkpoint: a `Checkpoint`.

    Raises:
        ValueError: it is of another model or optimizer.
    """
    expected = model.training_state()
    state = {key: checkpoint.state[key] for key in expected if key in checkpoint.state}
    shapes = {key: array.shape for key, array in state.items()}
    if shapes != {key: array.shape for key, array in expected.items()}:
        raise ValueError(
            f"A checkpoint must hold the variables of the model and its "
            f"optimizer. Received: {str(checkpoint.path)!r}, which has others. It may "
            f"be of another version of vaezoo; train into a new folder."
        )
    model.set_training_state(state)


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


def num_steps(model):
    """Returns the number of steps that the model's optimizer has done, an int."""
    return int(tf.convert_to_tensor(model.optimizer.iterations).numpy())


def check_same_run(checkpoint, entry):
    """Refuses to continue a checkpoint with another model, dataset or recipe.

    Compares the recipes of the phases that have begun. How long the last of them is
    matters only where the learning rate falls until its end.

    Raises:
        ValueError: with the differences.
    """
    saved, here = _identity(checkpoint.entry), _identity(entry)
    for index in range(checkpoint.phase + 1):
        recipes = [e.phases[index : index + 1] for e in (checkpoint.entry, entry)]
        is_open = index == checkpoint.phase and not any(
            recipe.depends_on_its_length for phases in recipes for recipe in phases
        )
        several = len(checkpoint.entry.phases) > 1 or len(entry.phases) > 1
        prefix = f"training.{index}." if several else "training."
        for leaves, phases in zip((saved, here), recipes, strict=True):
            for recipe in phases:
                keys = {"epochs", "max_steps"} if is_open else set()
                leaves |= _leaves(recipe.model_dump(exclude=keys), prefix)
    differences = [
        f"  {key}: {saved.get(key)!r} there, {here.get(key)!r} here"
        for key in {**saved, **here}
        if saved.get(key) != here.get(key)
    ]
    if differences:
        raise ValueError(
            f"A run must be resumed with the model and the recipe that it was started "
            f"with. Received: {str(checkpoint.path)!r}, which has another\n"
            + "\n".join(differences)
            + "\nGive the same arguments, or train into a new folder."
        )


def _identity(entry):
    return _leaves(entry.model_dump(include=_IDENTITY))


def _leaves(tree, prefix=""):
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            value = list(value) if isinstance(value, tuple) else value
            leaves[f"{prefix}{key}"] = value
    return leaves


@contextlib.contextmanager
def stop_signals_call(function):
    """Has SIGTERM and Ctrl-C call a function, where this is the main thread.

    A second Ctrl-C is a KeyboardInterrupt, as ever. Where Ctrl-C is ignored, as by a
    shell's background jobs, it stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, _):
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if sys.stderr.isatty():
                os.write(2, _STOPPING)
        function()

    before = {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_STOPPING = (
    b"\nStopping at the end of this step; Ctrl-C again stops at once, unsaved.\n"
)
