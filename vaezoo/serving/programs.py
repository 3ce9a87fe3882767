"""What a model computes, as programs that are kept between processes.

Most of the time to a first image goes into what was the same the last time: building
the model, tracing it, and compiling it. A program is the graph of one function of
`vaezoo.serving.signatures` for one size of batch; its weights are arguments. It lies in
the cache's folder, beside what XLA compiled it to. A process that finds both needs
TensorFlow's runtime, and neither Keras nor the model.
"""

import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import sys
import time
from pathlib import Path

import vaezoo
from vaezoo import checks, sampling
from vaezoo.files import atomic_path
from vaezoo.zoo import registry
from vaezoo.zoo import weights as weights_lib

_DESCRIPTION_FILE = "model.json"
_XLA_PREFIX = "xla_compile_cache"
_SECONDS_UNUSED = 30 * 24 * 3600.0  # after which a model's programs are removed
_COMPILING_TO_TRACING = 4.0  # how much longer it takes, about
_PACKAGES = ("tensorflow", "keras", "tensorflow-probability")


class Programs:
    """The programs of a model with trained weights.

    Making one imports neither TensorFlow nor Keras. Where the cache's folder cannot be
    written, everything works and nothing is kept.

    Args:
        name_or_folder: as of `vaezoo.load`.
        announce: function of a str, called before it takes seconds to go on.

    Raises:
        ValueError, OSError: as `vaezoo.load`.
    """

    def __init__(self, name_or_folder, *, announce=lambda text: None):
        self.entry = registry.describe(name_or_folder)
        self._weights = registry.find_weights(name_or_folder)
        registry.warn_of_status(self.entry)
        self._announce = announce
        self._folder = _writable(folder_of(self.entry))
        self._sessions = {}
        self._compiled_to = None

    @property
    def image_shape(self):
        """`(height, width, channels)`."""
        return tuple(self._description["image_shape"])

    @property
    def levels(self):
        """Values that a channel takes."""
        return self._description["levels"]

    @property
    def latent_shapes(self):
        """Dict of a latent's name to its shape."""
        return {k: tuple(v) for k, v in self._description["latent_shapes"].items()}

    @property
    def binary_latents(self):
        """Names of the latents whose values are 0 or 1."""
        return tuple(self._description["binary_latents"])

    @property
    def sampling_options(self):
        """Dict of the name of an option of `sample` to its default."""
        return self._description["sampling_options"]

    def keep_compiled(self):
        """Let XLA keep what it compiles on a CPU, and find it again.

        It is a setting of the process, and TensorFlow reads it as it starts: it is left
        as it is where TensorFlow has started.
        """
        if "tensorflow" in sys.modules:
            return
        flags = os.environ.get("TF_XLA_FLAGS", "")
        if self._folder is None or "persistent_cache" in flags:
            return
        if "'" in str(self._folder):  # the flags have no way to say it
            return
        self._compiled_to = self._folder
        os.environ["TF_XLA_FLAGS"] = (
            f"{flags} --tf_xla_persistent_cache_directory='{self._folder}' "
            f"--tf_xla_persistent_cache_prefix={_XLA_PREFIX} "
            "--tf_xla_persistent_cache_device_types=CPU"
        ).strip()

    def run(
        self,
        name,
        *,
        batch_size=64,
        progress=lambda done: None,
        options=None,
        **inputs,
    ):
        """Compute one of the functions of `vaezoo.serving.signatures`, or `elbo_terms`.

        Args:
            name: its name.
            batch_size: int. Rows computed at once, at most.
            progress: function of an int, the rows done, called after each batch.
            options: dict of some of `sampling_options`, of "sample"; the model's own
                for those that are not given. Each set of them is a program.
            **inputs: arrays `[n, ...]` that keep the rules of `vaezoo.checks`.

        Returns:
            dict of name to array `[n, ...]`.

        Raises:
            ValueError: the model has no such option, or one is not positive.
        """
        import numpy as np

        options = checks.sampling_options(options or {}, self.sampling_options)
        changed = {k: v for k, v in options.items() if v != self.sampling_options[k]}
        num_rows = len(next(iter(inputs.values())))
        sizes = [size for size in sampling.BATCH_SIZES if size < batch_size]
        parts, done = [], 0
        for index, num in sampling.padded_batches(num_rows, [*sizes, batch_size]):
            batch = {k: v[index] for k, v in inputs.items()}
            part = self._compute(name, changed, batch)
            parts.append({key: value[:num] for key, value in part.items()})
            done += num
            progress(done)
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _compute(self, name, options, inputs):
        import tensorflow as tf

        try:
            return self._session(name, options, inputs)(inputs)
        except tf.errors.OpError:
            if self._compiled_to is None:
                raise
        # What was kept may be damaged: compile anew, once.
        for file in self._compiled_to.glob(f"{_XLA_PREFIX}*"):
            file.unlink(missing_ok=True)
        self._sessions.clear()
        try:
            return self._session(name, options, inputs)(inputs)
        except tf.errors.OpError as error:
            raise OSError(
                "What was compiled must be kept in a folder that can be written and "
                f"has room. Received: {str(self._compiled_to)!r} ({error.message}). If "
                "this is the reason, clear it, `vaezoo cache --clear`, or set "
                "VAEZOO_HOME to another folder."
            ) from error

    def _session(self, name, options, inputs):
        """The program of a function for a batch's size, ready to run."""
        size = len(next(iter(inputs.values())))
        file = _program_file(name, options, size)
        if file not in self._sessions:
            program = self._kept(name, file) or self._traced(name, options, size)
            needed = program.signature_def[name].inputs
            if not set(map(_weight_name, needed)) - {None} <= self._arrays.keys():
                assert self._model  # says what does not fit
            self._sessions[file] = _loaded(program, self._arrays)
        return self._sessions[file]

    @functools.cached_property
    def _arrays(self):
        arrays = weights_lib.read_arrays(self._weights)
        if arrays is None:  # of Keras's own format
            variables = weights_lib.variables_by_name(self._model)
            arrays = {k: v.numpy() for k, v in variables.items()}
        return arrays

    @functools.cached_property
    def _model(self):
        return registry.build(self.entry, weights=self._weights)

    @functools.cached_property
    def _description(self):
        path = self._folder and self._folder / _DESCRIPTION_FILE
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (AttributeError, OSError, ValueError):  # no folder, no file, no JSON
            pass
        model = self._model
        description = {
            "image_shape": model.image_shape,
            "levels": model.levels,
            "latent_shapes": model.latent_shapes,
            "binary_latents": model.binary_latents,
            "sampling_options": model.sampling_options,
        }
        self._keep(_DESCRIPTION_FILE, json.dumps(description).encode())
        return description

    def _kept(self, name, file):
        """A program that was kept, or `None`."""
        import tensorflow as tf

        if self._folder is None:
            return None
        try:
            data = (self._folder / file).read_bytes()
            program = tf.compat.v1.MetaGraphDef.FromString(data)
        except Exception:  # not there, or damaged: protobuf has errors of its own
            return None
        os.utime(self._folder)
        return program if name in program.signature_def else None

    def _traced(self, name, options, size):
        model, _ = self._model, self._description  # which is kept with the program
        start = time.process_time()
        program = _trace(model, name, options, size)
        if "images" in program.signature_def[name].outputs:  # a scan, for XLA
            seconds = (time.process_time() - start) * _COMPILING_TO_TRACING
            self._announce(f"Compiling, about {math.ceil(seconds)} s ...")
        self._keep(_program_file(name, options, size), program.SerializeToString())
        return program

    def _keep(self, file, data):
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(self._folder / file) as temporary:
                Path(temporary).write_bytes(data)
            _remove_unused()
        except OSError:  # a full disk: it works without
            self._folder = None


def programs_folder():
    """Where the programs lie, a folder for each model."""
    return weights_lib.cache_folder() / "programs"


def clear():
    """Remove all programs; returns how many bytes that freed."""
    folder = programs_folder()
    size = num_bytes(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return size


def num_bytes(folder):
    """The size of a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _program_file(name, options, size):
    """The name of a program's file; `options` are those that are not the model's."""
    changed = [f"{key}={value}" for key, value in sorted(options.items())]
    return "-".join([name, *changed, str(size)]) + ".pb"


def _trace(model, name, options, size):
    """The program of a function, a `MetaGraphDef` whose signature names its tensors."""
    import keras
    import tensorflow as tf

    from vaezoo.models import computations
    from vaezoo.serving import signatures

    functions = signatures.functions(model, jit=True, sampling_options=options)

    def elbo_terms(images, seed):
        return computations.elbo_terms(model, images, seed)[0]

    images_and_seed = functions["log_likelihood"][0]
    functions["elbo_terms"] = images_and_seed, elbo_terms
    specs, function = functions[name]
    variables = weights_lib.variables_by_name(model)

    def program(arguments):
        weights = [(v, arguments[f"weights/{k}"]) for k, v in variables.items()]
        with keras.StatelessScope(state_mapping=weights):
            return function(**{k: arguments[f"inputs/{k}"] for k in specs})

    arguments = {
        f"inputs/{key}": tf.TensorSpec([size, *spec.shape[1:]], spec.dtype)
        for key, spec in specs.items()
    } | {
        f"weights/{key}": tf.TensorSpec(variable.shape, variable.dtype)
        for key, variable in variables.items()
    }
    traced = tf.function(program, autograph=False).get_concrete_function(arguments)
    if traced.captured_inputs:
        raise ValueError(
            "A program must depend on its arguments alone. Received: "
            f"{name!r} of {model.name!r}, which uses {traced.captured_inputs}. Make "
            "these weights of the model."
        )
    result = tf.compat.v1.MetaGraphDef(graph_def=traced.graph.as_graph_def())
    signature = result.signature_def[name]
    for key, tensor in zip(sorted(arguments), traced.inputs, strict=True):
        signature.inputs[key].name = tensor.name
    for key, tensor in zip(
        sorted(traced.structured_outputs), traced.outputs, strict=True
    ):
        signature.outputs[key].name = tensor.name
    return result


def _weight_name(key):
    """The weight that an input of a program is, or `None`."""
    return key.removeprefix("weights/") if key.startswith("weights/") else None


def _loaded(program, arrays):
    """A program as a function of a dict of inputs to a dict of outputs."""
    import tensorflow as tf

    ((_, signature),) = program.signature_def.items()
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(program.graph_def, name="")
    config = tf.compat.v1.ConfigProto()
    # The graph is small beside its scan, which is XLA's: optimising it takes longer.
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.gpu_options.allow_growth = True
    session = tf.compat.v1.Session(graph=graph, config=config)
    outputs = {key: info.name for key, info in signature.outputs.items()}
    names = {key: info.name for key, info in signature.inputs.items()}

    def cast(array, name):
        return array.astype(graph.get_tensor_by_name(name).dtype.as_numpy_dtype)

    weights = {
        name: cast(arrays[weight], name)
        for key, name in names.items()
        if (weight := _weight_name(key))
    }

    def run(inputs):
        fed = {names[f"inputs/{key}"]: value for key, value in inputs.items()}
        return session.run(outputs, weights | fed)

    return run


def folder_of(entry):
    """The folder of an entry's programs on this machine, by this version."""
    key = json.dumps(
        [
            entry.model.model_dump(mode="json"),
            vaezoo.__version__,
            _source_digest(),
            [importlib.metadata.version(package) for package in _PACKAGES],
            sys.version,
            _processor(),
            os.environ.get("XLA_FLAGS"),
        ]
    )
    digest = hashlib.sha256(key.encode()).hexdigest()
    return programs_folder() / f"{entry.name}-{digest[:16]}"


@functools.cache
def _source_digest():
    """Of the library's source: in a checkout it changes without the version."""
    digest = hashlib.sha256()
    for path in sorted(Path(vaezoo.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _processor():
    """What compiled code depends on; a home may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [platform.machine(), platform.processor()]
    kinds = ("model name", "flags", "Features", "CPU part")
    return [platform.machine(), *sorted({x for x in lines if x.startswith(kinds)})]


def _writable(folder):
    """The folder, or `None` where it can be neither written nor made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _remove_unused():
    oldest = time.time() - _SECONDS_UNUSED
    for folder in programs_folder().iterdir():
        if folder.stat().st_mtime < oldest:
            shutil.rmtree(folder, ignore_errors=True)
