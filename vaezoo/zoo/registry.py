"""The zoo's models by name: listed, described and built.

A run folder, which `vaezoo train` writes, can be given wherever a name can.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vaezoo import checks, quiet
from vaezoo.files import local_path
from vaezoo.zoo import runs
from vaezoo.zoo import weights as weights_lib
from vaezoo.zoo.entries import ENTRY_FILE, STATUSES, ZooEntry, entry_from_file

if TYPE_CHECKING:
    from vaezoo.models.vae import VAE

_PACKAGED = Path(__file__).parents[1] / "zoo_configs"
# An editable install leaves the files where the repository has them.
CONFIG_FOLDER = (
    _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "zoo_configs"
)


def list_models(
    pattern: str = "*",
    *,
    dataset: str | None = None,
    model: str | None = None,
    trained: bool | None = None,
) -> list[str]:
    """Names of the zoo's entries, in natural order.

    Args:
        pattern: a name with shell wildcards, as "*_mnist_*".
        dataset: name of a dataset; only entries of it.
        model: name of a model class, as "PixelVAE"; only entries of it.
        trained: bool. Only entries that have, or have not, weights that load
            without a network.

    Returns:
        A list of str.
    """
    names = (path.stem for path in CONFIG_FOLDER.glob("*.yaml"))
    names = sorted(fnmatch.filter(names, pattern), key=_natural_key)
    if dataset is None and model is None and trained is None:
        return names

    def is_wanted(entry):
        return (
            dataset in (None, entry.dataset)
            and model in (None, entry.model.class_name)
            and trained in (None, _is_trained(entry))
        )

    return [name for name in names if is_wanted(find_entry(name))]


def describe(name_or_folder: str | os.PathLike[str]) -> ZooEntry:
    """The entry of a model of the zoo or of a run folder.

    Args:
        name_or_folder: a name of `list_models`, or the folder that `vaezoo train`
            wrote.

    Returns:
        A `ZooEntry`. That of a run that has not ended has the history so far, and a
        last note that says so and how to go on.

    Raises:
        ValueError: if there is no such entry (near names are suggested), or if its
            file is malformed (file and key are named).
    """
    entry = find_entry(name_or_folder)
    run = runs.of_entry(entry)
    if run is None or run.unfinished is None:
        return entry
    if entry.weights is None:  # else its history is theirs
        entry = run.entry
    return entry.model_copy(update={"notes": [*entry.notes, run.unfinished]})


def find_entry(name_or_folder):
    """The entry of a model of the zoo or of a run folder, as its file has it.

    Args and errors: as of `describe`.
    """
    name = os.fspath(name_or_folder)
    known = list_models()
    if isinstance(name_or_folder, str) and name in known:
        return entry_from_file(CONFIG_FOLDER / f"{name}.yaml")
    folder = local_path(name, name="name_or_folder")
    if (folder / ENTRY_FILE).is_file():
        return entry_from_file(folder / ENTRY_FILE)
    if os.sep in name or folder.is_dir():
        raise ValueError(
            f"A run folder must hold {ENTRY_FILE}. Received: {name!r}, which does not. "
            "Give a folder that `vaezoo train` wrote, or a name of the zoo."
        )
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(
        f"A model's name must be one of the zoo's. Received: {name!r}. {hint}"
        "`vaezoo list`, or vaezoo.list_models(), gives all the names."
    )


def load(
    name_or_folder: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = "zoo",
    image_shape: Sequence[int] | None = None,
) -> VAE:
    """Build and compile a model of the zoo, ready to sample, score, train and export.

    With trained weights it is compiled to be fine-tuned; with `weights=None`, to be
    trained from scratch by the entry's recipe.

    Args:
        name_or_folder: a name of `list_models`, or the folder of a run.
        weights: "zoo" for the entry's own; `None` for none; or the path of a weight
            file, of vaezoo or a Keras `.weights.h5` or `.keras`, or of the folder of a
            run.
        image_shape: `(height, width, channels)` other than the entry's. Weights that
            still fit are kept; a warning lists those that are initialised anew.

    Returns:
        A compiled `vaezoo.models.vae.VAE`; its `zoo_entry` is the entry.

    Raises:
        ValueError: if there is no such entry, if the entry has no trained weights, or
            if a weight file is corrupt or does not fit.
        OSError: if a weight file is not there and cannot be downloaded.
    """
    entry = find_entry(name_or_folder)
    path = find_weights(name_or_folder if weights == "zoo" else weights)
    if weights == "zoo":
        warn_of_status(entry)

    quiet.import_tensorflow()
    from vaezoo.zoo import recipes

    model = build(entry, weights=path, image_shape=image_shape)
    recipe = entry.phases[-1] if path is None else entry.fine_tune
    model.compile(**recipes.compile_arguments(recipe))
    model.zoo_entry = entry
    return model


def warn_of_status(entry):
    """Warn of weights that are not what a user of the model expects."""
    if entry.status == "begun":
        warnings.warn(
            f"The weights of {entry.name!r} are only begun: {STATUSES['begun']}. "
            f"`vaezoo describe {entry.name}` says how far they came.",
            stacklevel=3,
        )


def find_weights(source):
    """The file of weights of a name, a run folder, or itself.

    Args:
        source: a name of `list_models`, the folder of a run, the path of a weight file,
            or `None`.

    Returns:
        A path, or `None`.

    Raises:
        ValueError: if the entry has no trained weights, or the file is corrupt.
        OSError: if it is not there and cannot be downloaded.
    """
    if source is None:
        return None
    path = local_path(source, name="weights")
    if path.is_file():
        return path
    if path.suffix == ".h5":  # and no such file
        raise FileNotFoundError(
            f"A weight file must exist. Received: {os.fspath(source)!r}. Check the "
            "path."
        )
    entry = find_entry(source)
    run = runs.of_entry(entry)
    if entry.weights is None and run is not None:
        raise ValueError(
            "A run must have ended to be loaded with its weights. Received: "
            f"{os.fspath(source)!r}. {run.unfinished}\nOr build it untrained: "
            f"vaezoo.load({os.fspath(source)!r}, weights=None)."
        )
    if entry.weights is None:
        raise ValueError(
            "An entry must have trained weights to be loaded with them. Received: "
            f"{entry.name!r}, which has none. Train it, `vaezoo train {entry.name} "
            "--out DIR`, and load DIR; or build it untrained, "
            f"vaezoo.load({os.fspath(source)!r}, weights=None)."
        )
    return weights_lib.fetch(entry.weights, folder=_folder(entry))


def build(entry, *, weights=None, image_shape=None):
    """Build the model of an entry; `load` compiles it too.

    Args:
        entry: a `vaezoo.zoo.entries.ZooEntry`.
        weights: the path of a weight file, or `None`.
        image_shape: as of `load`.

    Returns:
        A `vaezoo.models.vae.VAE`, not compiled.

    Raises:
        ValueError: as of `load`.
    """
    from vaezoo import models

    arguments = dict(entry.model.arguments)
    if image_shape is not None:
        arguments["image_shape"] = image_shape
    try:
        model = models.get_class(entry.model.class_name)(**arguments)
    except Exception as error:
        error.add_note(f"The model is that of the zoo entry {str(entry.path)!r}.")
        raise
    if weights is None:
        return model
    usual_shape = tuple(entry.model.arguments.get("image_shape", ()))
    is_reshaped = image_shape is not None and model.image_shape != usual_shape
    if is_reshaped:
        read_fitting_weights(model, weights)
    else:
        weights_lib.read_weights(model, weights)
    return model


def read_fitting_weights(model, path):
    """Set the weights that fit of a file of another model's, and name the others.

    Args:
        model: a model, whose weights that do not fit are left as they are.
        path: the file.

    Raises:
        ValueError: it is not a whole weight file, or nothing in it fits.
    """
    left = weights_lib.read_weights(model, path, partial=True)
    trained = {id(variable) for variable in model.trainable_variables}
    names = weights_lib.variables_by_name(model)
    if not any(id(v) in trained for name, v in names.items() if name not in left):
        raise ValueError(
            f"Some weights of a file must fit the model. Received: {str(path)!r}, with "
            f"none that fits {model.name!r}. Start from a model that shares layers "
            "with it."
        )
    if left:
        warnings.warn(
            f"{len(left)} of {len(names)} variables of {model.name!r}, of image_shape="
            f"{model.image_shape}, have none of their name and shape in "
            f"{Path(path).name}, and are initialised anew: {_shortened(left)}. Train "
            "the model before using it.",
            stacklevel=3,
        )


def read_decoder_weights(model, path, *, keep_conditioning=False):
    """Set the decoder's weights to a file's, but for those that see the latents.

    Args:
        model: a model with the mode "decoder", initialised. Its other weights stay.
        path: the file, of a model with the same decoder; the rest of it is not read.
        keep_conditioning: bool. Whether the weights by which the decoder sees the
            latents stay as they are; else they are 0, and the latents unseen.

    Raises:
        ValueError: the model has no such mode; the file is not a whole weight file, or
            lacks some of the decoder's weights, which are named.
    """
    if model.decoder_network is None:
        raise checks.refusal(
            'The part "decoder" is of a model with the mode "decoder".',
            f"{model.name!r}, with the modes {model.modes}",
            "Start from all weights.",
        )
    network = model.decoder_network
    of_decoder = {id(variable) for variable in network.weights}
    names = weights_lib.variables_by_name(model)
    others = [v for v in names.values() if id(v) not in of_decoder]
    kept = [variable.numpy() for variable in others]
    before = [variable.numpy() for variable in network.weights]
    left = weights_lib.read_weights(model, path, partial=True)
    for variable, array in zip(others, kept, strict=True):
        variable.assign(array)
    missing = [name for name in left if id(names[name]) in of_decoder]
    if missing:
        raise ValueError(
            "A file must hold all of the decoder's weights, in their shapes. Received: "
            f"{str(path)!r}, for {model.name!r}, without {_shortened(missing)}. Start "
            "from a model with this decoder."
        )
    network.forget_conditioning()
    if keep_conditioning:
        of_image = [variable.numpy() for variable in network.weights]
        for variable, array in zip(network.weights, before, strict=True):
            variable.assign(array)
        network.forget_conditioning()
        for variable, array, was in zip(network.weights, of_image, before, strict=True):
            variable.assign(array + (was - variable.numpy()))


def _shortened(names):
    """Names of variables; of many, those of the layers that they are in."""
    if len(names) > 20:
        names = dict.fromkeys(f"{name.split('/')[0]}/..." for name in names)
    return ", ".join(names)


def entry_of(model):
    """The entry that tells the truth of a model as it is now.

    Args:
        model: a model of `load`, or any other.

    Returns:
        A `ZooEntry`, or `None` for a model that is not of the zoo. Where the weights
        are not the entry's own (none were loaded, they were trained further, or
        the images have another size), it has no weights and no measurements.
    """
    entry = getattr(model, "zoo_entry", None)
    if entry is None or entry.weights is None:
        return entry
    image_shape = tuple(entry.model.arguments.get("image_shape", model.image_shape))
    if image_shape == model.image_shape and _has_weights_of(model, entry):
        return entry
    changes = {"weights": None, "measured": [], "status": "untrained", "history": []}
    return entry.model_copy(update=changes)


def _has_weights_of(model, entry):
    if not _is_trained(entry):
        return False
    try:
        path = weights_lib.fetch(entry.weights, folder=_folder(entry))
    except (OSError, ValueError):  # a run that was continued meanwhile, say
        return False
    return weights_lib.holds(path, model)


def _is_trained(entry):
    return entry.weights is not None and weights_lib.is_local(
        entry.weights, folder=_folder(entry)
    )


def _folder(entry):
    return None if entry.path is None else entry.path.parent


def _natural_key(name):
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdigit() else part for part in parts]
