"""Making the weights of a run those of a zoo entry, for maintainers."""

import os

from vaezoo.zoo import registry
from vaezoo.zoo import weights as weights_lib
from vaezoo.zoo.entries import ENTRY_FILE, rewrite


def install(run, *, name=None, status=None):
    """Make a run's weights those of a zoo entry, stored as float16 in the package.

    With the weights come the run's history and, where it began from scratch, its
    recipe, so that the commands on the entry's card make the file again. The entry's
    measurements, which were of other weights, are dropped: the float16 weights are the
    ones to be scored. The same run gives the same file, byte for byte.

    Args:
        run: the folder of a run that has ended.
        name: a name of `list_models`; `None` for the entry that was trained.
        status: "begun", "partial" or "reproduced"; see `entries.STATUSES`. `None` for
            "partial", or "begun" where the entry is, so that training on does not by
            itself take away the warning of `vaezoo.load`.

    Returns:
        The path of the new file of weights, a `pathlib.Path`.

    Raises:
        ValueError: the folder is not that of a run that has ended, or it is of another
            model or dataset than the entry.
        OSError: the package's folder or the entry's file cannot be written.
    """
    trained = registry.find_entry(run)
    if trained.path.name != ENTRY_FILE or not trained.weights or not trained.history:
        raise ValueError(
            "Weights are installed from the folder of a run that has ended. Received: "
            f"{os.fspath(run)!r}, which is another or has no weights yet. Train to the "
            f"end: `vaezoo train {trained.name} --out DIR`, with --resume if it was "
            "interrupted."
        )
    entry = registry.find_entry(name or trained.name)
    for key in ("model", "dataset"):
        mine, theirs = getattr(trained, key), getattr(entry, key)
        if mine != theirs:
            raise ValueError(
                f"A run must be of the entry's {key} to be its weights. Received: "
                f"{key}={mine!r} in {os.fspath(run)!r}, {theirs!r} in {entry.name!r}. "
                "Give the entry that was trained as `name`."
            )
    weights = weights_lib.fetch(trained.weights, folder=trained.path.parent)
    model = registry.build(trained, weights=weights)

    folder = weights_lib.PRETRAINED_FOLDER
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{entry.name}.h5"
    try:
        weights_lib.write_weights(model, temporary, dtype="float16")
        # What is estimated of the weights is estimated of those that ship.
        weights_lib.read_weights(model, temporary)
        model.before_shipping()
        weights_lib.write_weights(model, temporary, dtype="float16")
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if status is None:
        status = "begun" if entry.status == "begun" else "partial"
    digest = weights_lib.sha256(temporary)
    path = folder / f"{entry.name}-{digest[:8]}.h5"
    info = {"file": path.name, "bytes": temporary.stat().st_size, "sha256": digest}
    changes = {"weights": info, "measured": [], "status": status}
    changes["history"] = [record.model_dump() for record in trained.history]
    if trained.history[-1].init is None and trained.phases != entry.phases:
        phases = [recipe.model_dump(exclude_defaults=True) for recipe in trained.phases]
        changes["training"] = phases if len(phases) > 1 else phases[0]
    os.replace(temporary, path)
    try:
        rewrite(entry.path, changes)
    except BaseException:
        if not entry.weights or entry.weights.file != path.name:
            path.unlink()
        raise
    for old in folder.glob(f"{entry.name}-????????.h5"):
        if old != path:
            old.unlink()
    return path
