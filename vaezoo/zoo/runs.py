"""Run folders: what lies where in one, and how far its run is, without TensorFlow."""

import csv
import dataclasses
from pathlib import Path

from vaezoo import files
from vaezoo.zoo.entries import ENTRY_FILE, ZooEntry, entry_from_file

WEIGHTS_FILE = "weights.h5"
CHECKPOINT_FOLDER = "checkpoints"
LOG_FILE = "log.csv"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its folder shows it.

    Attributes:
        folder: path of the folder.
        entry: the run's `ZooEntry`, with the history of its newest checkpoint.
        steps: int, number of steps done and saved, in all phases.
        has_ended: whether its weights are those of all that was done.
        last_epoch: dict of what was logged of the last epoch, as text; empty for none.
        holder: who trains it now, in words, or `None`.
    """

    folder: Path
    entry: ZooEntry
    steps: int
    has_ended: bool
    last_epoch: dict[str, str]
    holder: str | None

    @property
    def unfinished(self):
        """That the run has not ended, and how to go on, in words; `None` if it has."""
        if self.holder is not None:
            return f"The run goes on ({self.how_far}), trained by {self.holder}."
        if self.has_ended:
            return None
        how = how_to_continue(self.entry.history)
        return f"The run has not ended ({self.how_far}). {how}"

    @property
    def how_far(self):
        """The steps that were saved, and their part of the recipe, in words."""
        text = f"{self.steps:,} step{'s' * (self.steps != 1)} saved"
        done = self.entry.history[-1].phases if self.entry.history else []
        recipes = {recipe.name: recipe for recipe in self.entry.phases}
        if not self.steps or not done or done[-1].name not in recipes:
            return text
        recipe = recipes[done[-1].name]
        text += f", {done[-1].epochs:g} of {recipe.epochs} epochs"
        if recipe.max_steps is not None:
            text += f" or {recipe.max_steps:,} steps"
        if len(recipes) > 1:
            text += f" of the phase {recipe.name!r}"
        return text


def of_entry(entry):
    """The run that an entry is of.

    Args:
        entry: a `ZooEntry`.

    Returns:
        A `Run`, or `None` for an entry that was not read from the folder of one: what
        was only written there by hand, or by an export, has no history or no weights.
    """
    if entry.path is None or entry.path.name != ENTRY_FILE:
        return None
    folder = entry.path.parent
    steps, saved = _newest(folder / CHECKPOINT_FOLDER)
    has_ended = entry.weights is not None
    has_file = (folder / WEIGHTS_FILE).is_file()
    if saved is None and not (entry.history and has_ended == has_file):
        return None
    if saved is not None and _steps_recorded(saved) > _steps_recorded(entry):
        has_ended = False  # or once, and was continued
        update = {"history": saved.history, "training": saved.training}
        entry = entry.model_copy(update=update)
    return Run(
        folder,
        entry,
        steps=steps,
        has_ended=has_ended,
        last_epoch=_last_row(folder / LOG_FILE),
        holder=files.holder(folder),
    )


def _steps_recorded(entry):
    return sum(phase.steps for record in entry.history for phase in record.phases)


def how_to_continue(history):
    """The command that continues a run, as a sentence.

    Args:
        history: list of the run's `TrainingRecord`.
    """
    command = history[-1].command if history else ""
    if command.startswith("vaezoo reproduce "):
        return f"Continue it: {command}"
    if not command.startswith("vaezoo train "):
        return "Continue it: call vaezoo.train with the same arguments and resume=True."
    if "--resume" not in command.split():
        command += " --resume"
    return f"Continue it: {command}"


def list_checkpoints(folder):
    """Lists the checkpoints in a folder, oldest first, as paths."""
    return sorted(Path(folder).glob("step-*"))


def _newest(folder):
    """Steps and entry of the newest checkpoint whose entry can be read."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return int(path.name.removeprefix("step-")), entry_from_file(
                path / ENTRY_FILE
            )
        except (OSError, ValueError):
            continue
    return 0, None


def _last_row(path):
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error, UnicodeDecodeError):
        return {}
    return {k: v for k, v in rows[-1].items() if k and v} if rows else {}
