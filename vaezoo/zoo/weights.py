"""Weight files: writing, reading, and finding them in the package, a folder or a URL.

A weight file is HDF5 with one dataset a variable, under the variable's path, and the
attribute `format = "vaezoo-1"`. Files are written to a temporary name and renamed, so
a reader finds a whole file or none, and are accepted by their SHA-256 only.
"""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from vaezoo.files import atomic_path, local_path

FORMAT = "vaezoo-1"

PRETRAINED_FOLDER = Path(__file__).parents[1] / "pretrained"
_CHUNK = 1 << 20  # bytes
_KERAS_SUFFIXES = (".weights.h5", ".keras")
_TIMEOUT = 30  # seconds without a byte


def write_weights(model, path, *, dtype="float32"):
    """Write a model's weights, optimizer state left out, replacing `path` at once.

    Args:
        model: a built `keras.Model`.
        path: the file to write; its folder must exist.
        dtype: "float32" or "float16", how floating-point variables are stored; one
            that does not fit in a float16 (a statistic, it may be) as float32, and so
            the model's `exact_variables`.

    Returns:
        `path`, a `pathlib.Path`.

    Raises:
        ValueError: if `dtype` is another, or if the model is not built.
        OSError: if the file cannot be written.
    """
    import h5py

    path = local_path(path)
    if dtype not in ("float16", "float32"):
        raise ValueError(
            f"`dtype` must be 'float16' or 'float32'. Received: dtype={dtype!r}."
        )
    if not model.built:
        raise ValueError(
            "Only a built model has weights to write. Received: model="
            f"{model.name!r}, not built. Build it, or call it on one batch."
        )
    exact = set(map(id, getattr(model, "exact_variables", ())))
    arrays = {
        name: _stored(_value(variable), "float32" if id(variable) in exact else dtype)
        for name, variable in variables_by_name(model).items()
    }
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format"] = FORMAT
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
    return path


def read_weights(model, path, *, partial=False):
    """Set a model's weights from a file; all of them, or none if it raises.

    Args:
        model: a built `keras.Model`.
        path: a file of `write_weights`, or a Keras `.weights.h5` or `.keras`.
        partial: bool. Whether to keep the weights that fit and leave the others as
            they are; for files of `write_weights`.

    Returns:
        A list of the names of the variables that were left as they were.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a whole weight file, or if it does not fit the model
            (every missing, unexpected or mis-shaped variable is named).
    """
    path = Path(path)
    arrays = read_arrays(path)
    if arrays is None:
        return _read_keras(model, path, partial)

    variables = variables_by_name(model)
    misfits = [f"{name}: unexpected" for name in arrays if name not in variables]
    left = []
    for name, variable in variables.items():
        if name not in arrays:
            misfits.append(f"{name}: missing")
        elif arrays[name].shape != tuple(variable.shape):
            misfits.append(
                f"{name}: {list(arrays[name].shape)} for {list(variable.shape)}"
            )
        else:
            continue
        left.append(name)
    if misfits and not partial:
        raise ValueError(
            "A weight file must hold the model's variables, in their shapes. Received: "
            f"{str(path)!r}, for {model.name!r}, with\n  " + "\n  ".join(misfits) + "\n"
            "Build the model with the arguments that the file was written with."
        )
    for name, variable in variables.items():
        if name not in left:
            variable.assign(arrays[name])
    return left


def read_arrays(path):
    """The arrays of a file of `write_weights`, as it stores them.

    Args:
        path: the file.

    Returns:
        dict of a variable's name to its array; `None` for one of Keras's.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a whole weight file.
    """
    import h5py

    path = local_path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"A weight file must exist. Received: {str(path)!r}. Check the path."
        )
    if zipfile.is_zipfile(path):
        return None
    arrays = {}

    def read(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                return None
            file.visititems(read)
    except OSError as error:
        raise ValueError(
            "A weight file must be whole HDF5; this one is corrupt or truncated. "
            f"Received: {str(path)!r} ({error}). Get or write the file again."
        ) from error
    return arrays


def variables_by_name(model):
    """A model's variables by the names that files of weights give them.

    Args:
        model: a built `keras.Model`.

    Returns:
        dict of a variable's path, without the model's own name, to the variable.

    Raises:
        ValueError: if two have one path.
    """
    variables = {}
    for variable in model.weights:
        name = variable.path.removeprefix(f"{model.name}/")
        if name in variables:
            raise ValueError(
                "Each variable of a model must have a path of its own. Received: "
                f"{name!r} twice, in {model.name!r}. Name the layers."
            )
        variables[name] = variable
    return variables


def holds(path, model):
    """Whether a file of `write_weights` holds a model's weights, value for value.

    Args:
        path: the file.
        model: a built `keras.Model`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a whole weight file.
    """
    import numpy as np

    arrays, variables = read_arrays(path), variables_by_name(model)
    if arrays is None or arrays.keys() != variables.keys():
        return False
    return all(
        np.array_equal(arrays[name], _value(variable), equal_nan=True)
        for name, variable in variables.items()
    )


def fetch(info, *, folder=None):
    """Where a file of weights lies on this machine; downloaded if it must be.

    A file is looked for in `folder`, in the package, and, if it has URLs, in the cache
    (`VAEZOO_HOME`, or else `~/.cache/vaezoo`). A file that is there and whole is used
    without touching the network. Processes that want the same file wait for the one
    that downloads it.

    Args:
        info: a `vaezoo.zoo.entries.WeightsInfo`.
        folder: where the file lies beside a run's entry.

    Returns:
        A `pathlib.Path` of a file that has the SHA-256 of `info`.

    Raises:
        FileNotFoundError: if a file that has no URLs is in none of the folders.
        ValueError: if the file found there is not the one described.
        OSError: if the cache cannot be written, or if no URL gave the file
            (`ConnectionError`).
    """
    import filelock

    local = _local_path(info, folder)
    if local is not None:
        problem = _problem(local, info)
        if problem:
            raise ValueError(
                f"A weight file must be the one its entry describes. Received: "
                f"{str(local)!r}, {problem}. Install vaezoo, or write the run, again."
            )
        return local
    if not info.urls:
        raise FileNotFoundError(
            f"The weights {info.file!r} must lie in "
            f"{str(folder or PRETRAINED_FOLDER)!r}. Received: no such file. "
            "Install vaezoo, or write the run, again."
        )

    target = _cache_path(info)
    if not _problem(target, info):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{target}.lock"):
            if _problem(target, info):
                _download(info, target)
    except ConnectionError:
        raise
    except OSError as error:
        raise OSError(
            "The cache of weights must be a folder that can be written. Received: "
            f"{str(target.parent)!r} ({error}). Set VAEZOO_HOME to another folder."
        ) from error
    return target


def is_local(info, *, folder=None):
    """Whether `fetch` would find a file of the right size without the network."""
    path = _local_path(info, folder) or _cache_path(info)
    return path.is_file() and path.stat().st_size == info.bytes


def cache_folder():
    """The folder of downloaded weights: `VAEZOO_HOME`, or `~/.cache/vaezoo`."""
    folder = os.environ.get("VAEZOO_HOME") or "~/.cache/vaezoo"
    return local_path(folder, name="VAEZOO_HOME")


def sha256(path):
    """The SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _value(variable):
    import tensorflow as tf

    return tf.convert_to_tensor(variable).numpy()


def _stored(array, dtype):
    import numpy as np

    if not np.issubdtype(array.dtype, np.floating):
        return array
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    overflows = np.any(np.isfinite(array) & ~np.isfinite(stored))
    return array if overflows else stored


def _read_keras(model, path, partial):
    if partial or not path.name.endswith(_KERAS_SUFFIXES):
        raise ValueError(
            "A file that vaezoo did not write must be a Keras '*.weights.h5' or "
            f"'*.keras' and fit the whole model. Received: {str(path)!r}, "
            f"partial={partial}. Load it with "
            "`model.load_weights` and write it with `vaezoo.zoo.weights.write_weights`."
        )
    before = [_value(variable) for variable in model.weights]
    try:
        model.load_weights(path)
    except (KeyError, OSError, ValueError) as error:
        for variable, value in zip(model.weights, before, strict=True):
            variable.assign(value)
        raise ValueError(
            "A Keras weight file must hold the model's variables, in their shapes. "
            f"Received: {str(path)!r}, for {model.name!r}: {error}"
        ) from error
    return []


def _local_path(info, folder):
    if info.file is None:
        return None
    folders = (
        [PRETRAINED_FOLDER] if folder is None else [Path(folder), PRETRAINED_FOLDER]
    )
    return next((f / info.file for f in folders if (f / info.file).is_file()), None)


def _cache_path(info):
    return cache_folder() / "weights" / f"{info.sha256}.h5"


def _problem(path, info):
    """What is wrong with the file at `path`, or `None`."""
    if not path.is_file():
        return "which is not a file"
    size = path.stat().st_size
    if size != info.bytes:
        return f"of {size:,} bytes where {info.bytes:,} are expected"
    digest = sha256(path)
    if digest != info.sha256:
        return f"of SHA-256 {digest} where {info.sha256} is expected"
    return None


def _download(info, target):
    for leftover in target.parent.glob(f".{target.name}.*"):
        leftover.unlink()  # of a killed process; the lock is ours
    failures = []
    for url in info.urls:
        try:
            with atomic_path(target) as temporary:
                _save(url, temporary, limit=info.bytes)
                problem = _problem(Path(temporary), info)
                if problem:
                    raise ConnectionError(f"a file {problem}")
            return
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
    raise ConnectionError(
        "The weights must come from one of their URLs, unchanged. Received:\n  "
        + "\n  ".join(failures)
        + f"\nCheck the network, or put the file at {str(target)!r}."
    )


def _save(url, path, *, limit):
    """Save what a URL gives, and at most one byte more than `limit`."""
    with (
        urllib.request.urlopen(url, timeout=_TIMEOUT) as response,
        open(path, "wb") as file,
    ):
        left = limit + 1
        while left > 0 and (chunk := response.read(min(_CHUNK, left))):
            file.write(chunk)
            left -= len(chunk)
