"""Exporting a model as a SavedModel that needs TensorFlow and nothing else."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tensorflow as tf

import vaezoo
from vaezoo import checks
from vaezoo.files import local_path
from vaezoo.models import computations
from vaezoo.serving import signatures as signatures_lib
from vaezoo.zoo import entries, provenance, registry

if TYPE_CHECKING:
    from vaezoo.models.vae import VAE

EXTRA_FOLDER = "assets.extra"  # where TF Serving looks for what is not TensorFlow's
MANIFEST_FILE = "manifest.json"
WARMUP_FILE = "tf_serving_warmup_requests"

# Sizes that a server which merges requests pads to; those of export/batching.config.
BATCH_SIZES = (1, 4, 16, 64)


def export(
    model: VAE,
    directory: str | os.PathLike[str],
    *,
    num_importance_samples: int = 16,
    max_batch_size: int = 1024,
    signatures: str | Sequence[str] | None = None,
    jit: bool = False,
    sampling_options: dict[str, int] | None = None,
) -> Path:
    """Write a model as one version folder of a SavedModel.

    Every input and output has the batch as its first axis, so TF Serving can batch:

    | signature | inputs | outputs |
    |---|---|---|
    | `sample`, `serving_default` | `seed`, `temperature` | `images` |
    | `log_likelihood` | `images`, `seed` | `log_likelihood`, `bits_per_dim` |
    | `encode` | `images`, `seed` | one a latent |
    | `decode` | one a latent, `seed` | `images` |
    | `reconstruct` | `images`, `seed` | `images` |
    | `complete` | `images`, `mask`, `seed` | `images` |

    `images` are uint8 `[batch, height, width, channels]`, `mask` uint8 `[batch,
    height, width, 1]` (1 = fill in), `seed` int64 `[batch]`, `temperature` float32
    `[batch]`, latents float32 `[batch, ...]`, and the two likelihoods float32
    `[batch]`: nats an image, and bits a dimension. Row `i` depends on the inputs'
    rows `i` alone; with seeds of `vaezoo.row_seeds(s, n)` the images are those of
    `model.sample(n, seed=s, jit=False)`. `encode` draws from the posterior, and
    `complete` makes 10 rounds. A model without latents has `sample`,
    `log_likelihood` (exact) and `complete`.

    A request that breaks a rule (another shape, values out of range, a temperature
    that is not positive and finite, too many rows) fails with a message that names
    the rule; 0 rows give 0 rows. The folder `assets.extra` holds `manifest.json`, the
    zoo entry if the model has one (`zoo.entry_of`), and TF Serving's warm-up requests
    if the `serving` extra is installed. The folder appears when it is complete, under
    its final name.

    Args:
        model: a `vaezoo.models.vae.VAE`.
        directory: the version folder to write, as "served/my_model/1": TF Serving
            wants a number. Folders above it are made.
        num_importance_samples: int. K of the bound that `log_likelihood` gives.
        max_batch_size: int. Largest number of rows of a request.
        signatures: list of names, or `None` for all.
        jit: bool. Compile the scans over pixels with XLA, once for each batch size
            that is asked for. On a CPU, TF Serving then needs
            `--xla_cpu_compilation_enabled`.
        sampling_options: dict of options of the model's `sample`, such as the RBM's
            `num_gibbs_updates`; the model's own for those that are not given.

    Returns:
        The folder, a `pathlib.Path`.

    Raises:
        ValueError: if a signature or an option is unknown, a number is not positive,
            `directory` is a URL, or the model cannot score yet.
        FileExistsError: if `directory` is there already; it is left as it is.
        OSError: if the folder cannot be written.
    """
    num_importance_samples = checks.integer(
        "num_importance_samples", num_importance_samples
    )
    max_batch_size = checks.integer("max_batch_size", max_batch_size)
    options = checks.sampling_options(sampling_options or {}, model.sampling_options)
    functions = signatures_lib.functions(
        model,
        num_importance_samples=num_importance_samples,
        jit=jit,
        sampling_options=options,
    )
    names = _selected(signatures, functions)
    if "log_likelihood" in names:
        model.check_scorable()
    with _version_folder(directory) as (folder, final):
        exported = tf.Module()
        exported.variables_ = [variable.value for variable in model.weights]
        concrete = {
            name: _traced(model, name, *functions[name], max_batch_size)
            for name in names
        }
        served = dict(concrete)
        if "sample" in served:
            served["serving_default"] = served["sample"]
        tf.saved_model.save(
            exported,
            str(folder),
            signatures=served,
        )
        extra = folder / EXTRA_FOLDER
        extra.mkdir()
        entry = registry.entry_of(model)
        if entry is not None:
            entries.write_entry(entry, extra / entries.ENTRY_FILE)
        manifest = {
            "vaezoo": vaezoo.__version__,
            "commit": provenance.commit(),
            "tensorflow": tf.__version__,
            "zoo_entry": None if entry is None else entry.name,
            # Of these very weights: empty for others than the entry's.
            "measured": (
                [] if entry is None else entry.model_dump(mode="json")["measured"]
            ),
            "model": {"class": type(model).__name__, "arguments": model.get_config()},
            "image_shape": model.image_shape,
            "levels": model.levels,
            "num_importance_samples": (
                num_importance_samples if model.latent_shapes else None
            ),
            "num_rounds": signatures_lib.NUM_ROUNDS if model.latent_shapes else None,
            "sampling_options": options,
            "max_batch_size": max_batch_size,
            "jit": jit,
            "signatures": {name: _described(f) for name, f in concrete.items()},
        }
        text = json.dumps(manifest, indent=2) + "\n"
        (extra / MANIFEST_FILE).write_text(text, encoding="utf-8")
        # Only XLA compiles each size anew.
        sizes = [size for size in BATCH_SIZES if size <= max_batch_size]
        _write_warmup_requests(
            model,
            extra / WARMUP_FILE,
            names,
            model_name=final.parent.name,
            sizes=sizes if jit else sizes[:1],
        )
    return final


def next_version(directory):
    """The number after the highest version folder in a directory, an int from 1 on.

    Args:
        directory: path of a model's folder, which need not be there.

    Raises:
        ValueError: it is a URL.
    """
    folder = local_path(directory, name="directory")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0) + 1


def _traced(model, name, specs, function, max_batch_size):
    """A signature as a concrete function whose inputs are checked first."""

    def checked(**inputs):
        # Wired by hand: sessions run only what the outputs depend on.
        with tf.control_dependencies(_shape_assertions(inputs)):
            inputs = tf.nest.map_structure(tf.identity, inputs)
        with tf.control_dependencies(_assertions(model, inputs, max_batch_size)):
            inputs = tf.nest.map_structure(tf.identity, inputs)
        num_rows = tf.shape(next(iter(inputs.values())))[0]
        filled = computations.one_row_for_none(*inputs.values())
        outputs = function(**dict(zip(inputs, filled, strict=True)))
        return tf.nest.map_structure(lambda value: value[:num_rows], outputs)

    checked.__name__ = name
    specs = {
        key: tf.TensorSpec(spec.shape, spec.dtype, name=key)
        for key, spec in specs.items()
    }
    return tf.function(checked, autograph=False).get_concrete_function(**specs)


def _rule(holds, message, received):
    return tf.debugging.Assert(holds, [message, "Received:", received], summarize=8)


def _shape_assertions(inputs):
    """Assert operations of the shapes: a session in C++ compares the dtype alone."""
    assertions = []
    for name, value in inputs.items():
        # Hides what the signature promises, from which the answer would be inferred.
        fed = tf.compat.v1.placeholder_with_default(value, shape=None)
        received, sizes = tf.shape(fed), value.shape[1:].as_list()
        # Padded, so that a shape of another rank can be compared too.
        padded = tf.pad(received, [[0, len(sizes)]])
        same_rank = tf.equal(tf.size(received), len(sizes) + 1)
        same_sizes = tf.reduce_all(tf.equal(padded[1 : len(sizes) + 1], sizes))
        rule = checks.array_rule(name, value.dtype.name, sizes)
        assertions.append(_rule(same_rank & same_sizes, rule, received))
    return assertions


def _assertions(model, inputs, max_batch_size):
    """Assert operations of the rules that dtype and shape do not express."""
    rows = [tf.shape(value)[0] for value in inputs.values()]
    assertions = [
        _rule(
            tf.reduce_all(tf.equal(rows, rows[0])),
            checks.rows_rule(inputs),
            tf.stack(rows),
        ),
        _rule(
            rows[0] <= max_batch_size,
            f"A request must have at most max_batch_size={max_batch_size} rows. Send "
            "several, or export with a larger max_batch_size.",
            rows[0],
        ),
    ]
    levels = {"images": model.levels, "mask": 2}
    for name, value in inputs.items():
        received = value
        if name == "temperature":
            holds = (value > 0) & tf.math.is_finite(value)
            rule = checks.temperature_rule()
        elif value.dtype.is_floating:
            holds, rule = tf.math.is_finite(value), checks.finite_rule(name)
            if name in model.binary_latents:
                holds = tf.equal(value, 0) | tf.equal(value, 1)
                rule = checks.binary_rule(name)
        elif levels.get(name, 256) < 256:
            holds, rule = value < levels[name], checks.levels_rule(name, levels[name])
            received = tf.reduce_max(value)
        else:  # every value is a seed, and a level of 256
            continue
        assertions.append(_rule(tf.reduce_all(holds), rule, received))
    return assertions


def _described(function):
    """Inputs and outputs of a signature, for the manifest."""

    def described(specs):
        return {
            name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
            for name, spec in specs.items()
        }

    return {
        "inputs": described(function.structured_input_signature[1]),
        "outputs": described(function.structured_outputs),
    }


def _write_warmup_requests(model, path, names, *, model_name, sizes):
    """Requests of each size to each signature, if the `serving` extra is there."""
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError:
        warnings.warn(
            "The export has no TF Serving warm-up requests: they need the 'serving' "
            "extra, `pip install 'vaezoo[serving]'`. It serves without them; the "
            "first request of each signature is slower.",
            stacklevel=3,
        )
        return
    functions = signatures_lib.functions(model)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name, size in itertools.product(names, sizes):
            specs, _ = functions[name]
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model_name
            request.model_spec.signature_name = name
            for key, spec in specs.items():
                fill = tf.ones if key == "temperature" else tf.zeros
                value = fill([size, *spec.shape[1:]], spec.dtype)
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())


@contextlib.contextmanager
def _version_folder(directory):
    """A temporary folder beside `directory`, renamed to it at the end, and its path.

    On an error or an interruption it is removed, and `directory` stays as it was.
    """
    final = Path(os.path.abspath(local_path(directory, name="directory")))
    if final.exists():
        raise FileExistsError(
            "An export must be written to a new version folder. Received: "
            f"{str(final)!r}, which is there already and stays as it is. Choose "
            "another number."
        )
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise OSError(
            "An export must be written into a folder that can be written. Received: "
            f"{str(final)!r} ({error}). Choose another folder."
        ) from error
    try:
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o777 & ~umask)
        yield temporary, final
        if final.exists():
            raise FileExistsError(
                f"The version folder {str(final)!r} was made by another process "
                "meanwhile; it stays as it is. Choose another number."
            )
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _selected(signatures, functions):
    """The names of the signatures to write, in the table's order."""
    if signatures is None:
        return list(functions)
    wanted = [signatures] if isinstance(signatures, str) else list(signatures)
    if not wanted or not set(wanted) <= set(functions):
        raise ValueError(
            f"`signatures` must be some of {list(functions)}. Received: "
            f"signatures={signatures!r}."
        )
    return [name for name in functions if name in wanted]
