"""Checkpoints from which training continues exactly."""

import contextlib
import math
import os
import shutil
import signal
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

_STATE_FILE = "state.npz"
_IDENTITY = {"name", "model", "dataset", "training"}  # what a run cannot change


class CheckpointCallback(keras.callbacks.Callback):
    """Saves what training needs to continue exactly: weights and optimizer state.

    A checkpoint is a folder `step-N`, N the number of optimizer steps done. It is
    written under another name and renamed, so it is whole or not there; the newest two
    are kept. With `use_ema`, the raw weights are saved, and their averages with the
    optimizer. Nothing is saved when training ends: Keras has then put the averages
    into the model. Of several workers the first saves.

    Args:
        folder: where checkpoints are; made if it is not there.
        entry: the `ZooEntry` that is trained; stored beside the state, and
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
        self._every_steps = checks.integer("every_steps", every_steps, optional=True)
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
        for path in reversed(list_checkpoints(self._folder)):
            try:
                saved = entries.entry_from_file(path / entries.ENTRY_FILE)
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
            entries.write_entry(self._entry, temporary / entries.ENTRY_FILE)
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
        kept = [path for path in list_checkpoints(self._folder) if path.name <= name][
            -2:
        ]
        for path in list_checkpoints(self._folder):
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


def list_checkpoints(folder):
    """Lists the checkpoints in a folder, oldest first, as paths."""
    return sorted(Path(folder).glob("step-*"))


def num_steps(model):
    """Returns the number of steps that the model's optimizer has done, an int."""
    return int(tf.convert_to_tensor(model.optimizer.iterations).numpy())


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


@contextlib.contextmanager
def sigterm_calls(function):
    """Has SIGTERM call a function, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: function())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
