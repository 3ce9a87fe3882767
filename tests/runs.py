"""A tiny entry to train, what its runs leave, and a process to run them in."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import vaezoo
from vaezoo.zoo import entries, registry, weights

EPOCHS = 4
STEPS = 6  # an epoch: 1,437 digits in batches of 256

_RECIPE = {
    "learning_rate": 0.003,
    "learning_rate_decay": {"schedule": "cosine", "final_learning_rate": 1e-4},
    "kl_warmup_steps": 8,
    "soft_free_bits_nats": 4.0,
    "ema_momentum": 0.8,
    "batch_size": 256,
    "epochs": EPOCHS,
}


def make_entry(*phases, arguments=None, model=None, **changes):
    """The digits entry with a tiny model, and a short recipe with everything in it.

    Args:
        *phases: dicts of what differs in the recipes of several phases.
        arguments: dict of what differs in the model's.
        model: dict of another class and all of its arguments.
        **changes: what differs in all of them.
    """
    entry = registry.describe("pixelvae_digits")
    tiny = {"latent_size": 2, "filters": 4, "num_layers": 2} | (arguments or {})
    recipe = entry.training.model_dump() | _RECIPE | changes
    model = model or {"class": "PixelVAE", "arguments": entry.model.arguments | tiny}
    recipes = {
        "training": [recipe | phase for phase in phases] if phases else recipe,
        "fine_tune": {"optimizer": "adam", "learning_rate": 1e-4, "batch_size": 500}
        | {"epochs": 10},
    }
    content = entry.model_dump() | {"model": model} | recipes
    content |= {"weights": None, "measured": [], "status": "untrained", "history": []}
    return entries.ZooEntry.model_validate(content)


def write_run(folder):
    """Write what a run of the tiny entry leaves, without training; returns `folder`."""
    entry = make_entry()
    entries.write_entry(entry, folder / entries.ENTRY_FILE)
    model = registry.load(folder, weights=None)
    path = weights.write_weights(model, folder / "weights.h5")
    info = entries.WeightsInfo(
        file=path.name, bytes=path.stat().st_size, sha256=weights.sha256(path)
    )
    entry = entry.model_copy(update={"weights": info, "status": "partial"})
    entries.write_entry(entry, folder / entries.ENTRY_FILE)
    return folder


def rows(out):
    """The log of a run, a dict an epoch."""
    with open(out / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def run_code(code, *arguments, timeout=600, **environment):
    """Run Python in a process that can import the tests; a `CompletedProcess`."""
    folders = Path(__file__).parent, Path(vaezoo.__file__).parents[1]
    path = os.pathsep.join(map(str, folders))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,  # kills it
    )
