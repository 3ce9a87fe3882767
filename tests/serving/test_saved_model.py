"""Exports: equal to Python, checked in the graph, and loadable by TensorFlow alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import exports
import tiny
from exports import FRESH, MANIFEST, in_python, inputs_for, run_alone
from vaezoo import row_seeds
from vaezoo.serving import saved_model
from vaezoo.zoo import entries, provenance, registry

pytestmark = pytest.mark.filterwarnings("ignore:The export has no TF Serving warm-up")

K = 3
MAX_BATCH_SIZE = 8
NAMES = ["sample", "log_likelihood", "encode", "decode", "reconstruct", "complete"]


@pytest.fixture(scope="module")
def model():
    return tiny.shared("gated_pixelvae_noup")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return export(model, tmp_path_factory.mktemp("served") / "tiny" / "1")


@pytest.fixture(scope="module")
def signatures(folder):
    loaded = tf.saved_model.load(str(folder))
    served = dict(loaded.signatures)
    served["keep alive"] = loaded
    return served


def export(model, directory, **options):
    options = {"num_importance_samples": K, "max_batch_size": MAX_BATCH_SIZE} | options
    return saved_model.export(model, directory, **options)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for key in actual:
        value, other = np.asarray(actual[key]), np.asarray(expected[key])
        assert value.dtype == other.dtype and value.shape == other.shape
        if value.dtype == np.uint8:
            np.testing.assert_array_equal(value, other)
        else:  # sums over batches of other sizes: a few units in the last place
            np.testing.assert_allclose(value, other, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("num", [1, 6])
@pytest.mark.parametrize("name", NAMES)
def test_signature_equals_python(model, signatures, name, num):
    inputs = inputs_for(model, name, num)
    outputs = signatures[name](**tf.nest.map_structure(tf.constant, inputs))
    assert_same(outputs, in_python(model, name, inputs, K))


def test_default_signature_samples_what_python_samples(model, signatures):
    outputs = signatures["serving_default"](
        seed=tf.constant(row_seeds(3, 5)), temperature=tf.ones(5)
    )
    np.testing.assert_array_equal(outputs["images"], model.sample(5, seed=3, jit=False))


@pytest.mark.parametrize("name", NAMES)
def test_row_depends_on_its_own_inputs_alone(model, signatures, name):
    inputs = inputs_for(model, name, 4)
    together = signatures[name](**tf.nest.map_structure(tf.constant, inputs))
    other = {key: np.array(value) for key, value in inputs.items()}
    other["seed"][[0, 1, 3]] += 1
    other = {key: tf.constant(value[[3, 2, 1]]) for key, value in other.items()}
    moved = signatures[name](**other)
    assert_same(
        {key: value[1] for key, value in moved.items()},
        {key: value[2] for key, value in together.items()},
    )
    assert any(
        np.any(np.asarray(moved[key][0]) != np.asarray(together[key][3]))
        for key in moved
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_give_no_rows(model, signatures, name):
    inputs = {key: value[:0] for key, value in inputs_for(model, name, 1).items()}
    outputs = signatures[name](**tf.nest.map_structure(tf.constant, inputs))
    some = signatures[name].structured_outputs
    for key, value in outputs.items():
        assert value.shape == (0, *some[key].shape[1:])


@pytest.mark.parametrize(
    ("name", "change", "rule"),
    [
        ("sample", {"temperature": 0.0}, "`temperature` must be positive and finite"),
        ("sample", {"temperature": np.nan}, "`temperature` must be positive"),
        ("sample", {"temperature": np.inf}, "`temperature` must be positive"),
        ("log_likelihood", {"images": 2}, r"`images` must have values in 0\.\.1"),
        ("encode", {"images": 255}, r"`images` must have values in 0\.\.1"),
        ("reconstruct", {"images": 2}, r"`images` must have values in 0\.\.1"),
        ("complete", {"images": 2}, r"`images` must have values in 0\.\.1"),
        ("complete", {"mask": 2}, r"`mask` must have values in 0\.\.1"),
        ("decode", {"z": np.nan}, "`z` must be finite"),
    ],
)
def test_rule_is_named_and_the_next_request_works(
    model, signatures, name, change, rule
):
    good = inputs_for(model, name, 2)
    bad = {key: np.array(value) for key, value in good.items()}
    for key, value in change.items():
        bad[key].flat[-1] = value
    with pytest.raises(tf.errors.InvalidArgumentError, match=rule):
        signatures[name](**tf.nest.map_structure(tf.constant, bad))
    signatures[name](**tf.nest.map_structure(tf.constant, good))


@pytest.mark.parametrize("name", NAMES)
def test_batch_is_limited(model, signatures, name):
    inputs = inputs_for(model, name, MAX_BATCH_SIZE + 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="max_batch_size=8"):
        signatures[name](**tf.nest.map_structure(tf.constant, inputs))


def test_inputs_have_one_batch_size(model, signatures):
    inputs = inputs_for(model, "encode", 3)
    inputs["seed"] = inputs["seed"][:2]
    with pytest.raises(tf.errors.InvalidArgumentError, match="same number of rows"):
        signatures["encode"](**tf.nest.map_structure(tf.constant, inputs))


def test_no_scalars(signatures):
    for name in NAMES:
        function = signatures[name]
        specs = [*function.structured_input_signature[1].values()]
        specs += function.structured_outputs.values()
        assert all(spec.shape.rank >= 1 and spec.shape[0] is None for spec in specs)


# Operations that run Python, or reach files or the network.
FOREIGN = re.compile("Py|File|Reader|Dataset|Rpc|Send|Recv|Print|Summary")


def assert_holds_no_path_and_no_training_state(model, folder):
    content = (folder / "saved_model.pb").read_bytes()
    for text in (Path(saved_model.__file__).parents[2], os.getcwd(), sys.prefix):
        assert str(text).encode() not in content
    assert b".py" not in content and b"PyFunc" not in content
    (graph,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    functions = graph.graph_def.library.function
    nodes = [*graph.graph_def.node, *(node for f in functions for node in f.node_def)]
    foreign = {node.op for node in nodes if FOREIGN.search(node.op)}
    assert foreign == {"ShardedFilename"}  # with which variables are restored
    variables = tf.train.list_variables(str(folder / "variables" / "variables"))
    saved = [shape for name, shape in variables if "OBJECT_GRAPH" not in name]
    assert sorted(saved) == sorted(list(v.shape) for v in model.weights)


def test_file_holds_no_path_and_no_training_state(model, folder):
    assert_holds_no_path_and_no_training_state(model, folder)


def test_manifest(model, folder):
    content = (folder / MANIFEST).read_text()
    manifest = json.loads(content)
    assert manifest["num_importance_samples"] == K
    assert manifest["max_batch_size"] == MAX_BATCH_SIZE
    assert manifest["image_shape"] == [8, 8, 1] and manifest["levels"] == 2
    assert manifest["commit"] == provenance.commit() and manifest["measured"] == []
    assert list(manifest["signatures"]) == NAMES
    decode = manifest["signatures"]["decode"]
    assert decode["inputs"]["z"] == {"dtype": "float32", "shape": [None, 3]}
    assert decode["outputs"]["images"] == {"dtype": "uint8", "shape": [None, 8, 8, 1]}
    arguments = manifest["model"]["arguments"]
    assert type(model)(**arguments).count_params() == model.count_params()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.slow if name in ("vlae", "fame") else pytest.mark.soak,
        )
        for name in tiny.CONFIGURATIONS
    ],
)
def test_every_model_is_served_by_tensorflow_alone_as_in_python(tmp_path, name):
    model = tiny.shared(name)
    folder = export(model, tmp_path / "served" / "7")
    assert_holds_no_path_and_no_training_state(model, folder)
    exports.check(model, folder, sizes=(1, 5))


SESSION = """
import sys
import numpy as np
import tensorflow.compat.v1 as tf

folder, data = sys.argv[1:]
data = np.load(data)
with tf.Session(graph=tf.Graph()) as session:
    graph = tf.saved_model.load(session, ["serve"], folder)
    for name, signature in graph.signature_def.items():
        if not signature.inputs or name == "serving_default":
            continue
        feed = {
            tensor.name: data[f"{name}/inputs/{key}"]
            for key, tensor in signature.inputs.items()
        }
        fetch = {key: tensor.name for key, tensor in signature.outputs.items()}
        for key, value in session.run(fetch, feed).items():
            np.testing.assert_array_equal(value, data[f"{name}/outputs/{key}"])
    sample = graph.signature_def["sample"]
    try:
        session.run(
            sample.outputs["images"].name,
            {
                sample.inputs["seed"].name: [1, 2],
                sample.inputs["temperature"].name: [1.0, -1.0],
            },
        )
    except tf.errors.InvalidArgumentError as error:
        assert "`temperature` must be positive and finite" in str(error)
    else:
        raise AssertionError("the rule was not checked")
"""


@pytest.fixture(scope="module")
def answers(model, signatures, tmp_path_factory):
    """Inputs of every signature, and what this process gives for them."""
    arrays = {}
    for name in NAMES:
        inputs = inputs_for(model, name, 3)
        outputs = signatures[name](**tf.nest.map_structure(tf.constant, inputs))
        arrays |= {f"{name}/inputs/{key}": value for key, value in inputs.items()}
        arrays |= {f"{name}/outputs/{key}": value for key, value in outputs.items()}
    path = tmp_path_factory.mktemp("answers") / "answers.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([FRESH, 0], id="fresh"),
        pytest.param([SESSION], id="session", marks=pytest.mark.slow),
    ],
)
def test_loads_with_tensorflow_alone(folder, answers, tmp_path, script):
    """Bit for bit as in this process; the session's loader is TF Serving's."""
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "7")
    script, *tolerance = script
    run_alone(script, copy, answers, *tolerance)


@pytest.fixture(scope="module")
def c_program(tmp_path_factory):
    """A program in C, linked with the libraries in TensorFlow's wheel."""
    if shutil.which("gcc") is None:
        pytest.skip("needs a C compiler, gcc")
    program = tmp_path_factory.mktemp("c") / "run_saved_model"
    library = tf.sysconfig.get_lib()
    command = ["gcc", "-O1", "-o", program, Path(__file__).parent / "run_saved_model.c"]
    command += [f"-I{tf.sysconfig.get_include()}", f"-L{library}"]
    command += ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    subprocess.run([*command, f"-Wl,-rpath,{library}"], check=True)
    return program


def run_in_c(program, folder, name, inputs, outputs_folder):
    """Run a signature by the program: its process, and the files of its outputs."""
    content = (folder / "saved_model.pb").read_bytes()
    (graph,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    signature = graph.signature_def[name]
    arguments, files = [], {}
    for key, value in inputs.items():
        value.tofile(outputs_folder / key)
        dtype = tf.as_dtype(value.dtype).as_datatype_enum
        sizes = "x".join(map(str, value.shape))
        tensor = signature.inputs[key].name
        arguments += ["in", tensor, str(dtype), sizes, outputs_folder / key]
    for key, info in signature.outputs.items():
        files[key] = outputs_folder / f"output_{key}"
        arguments += ["out", info.name, files[key]]
    command = [program, folder, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300), files


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample", "log_likelihood"])
def test_a_program_in_c_gives_the_same(folder, answers, c_program, tmp_path, name):
    data = np.load(answers)

    def known(kind):
        start = f"{name}/{kind}/"
        return {k.removeprefix(start): data[k] for k in data if k.startswith(start)}

    process, files = run_in_c(c_program, folder, name, known("inputs"), tmp_path)
    assert process.returncode == 0, process.stderr
    for key, value in known("outputs").items():
        written = np.fromfile(files[key], value.dtype).reshape(value.shape)
        np.testing.assert_array_equal(written, value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 8, 8, 1), np.float32)}, "to be uint8 but float"),
        ({"images": np.zeros((2, 7, 8, 1), np.uint8)}, "must be uint8 [n, 8, 8, 1]"),
        ({"images": np.zeros((2, 8, 8), np.uint8)}, "must be uint8 [n, 8, 8, 1]"),
        ({"images": np.zeros((1, 2, 8, 8, 1), np.uint8)}, "must be uint8 [n, 8, 8, 1]"),
        ({"seed": np.zeros((2, 1), np.int64)}, "`seed` must be int64 [n]"),
    ],
)
def test_a_session_in_c_refuses_a_type_and_a_shape(
    model, folder, c_program, tmp_path, change, message
):
    """A server's session compares no shapes, so the graph does."""
    inputs = inputs_for(model, "encode", 2) | change
    process, _ = run_in_c(c_program, folder, "encode", inputs, tmp_path)
    assert process.returncode == 1 and message in process.stderr


@pytest.mark.slow
def test_saved_model_cli(folder, answers, tmp_path):
    tool = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli"]
    options = ["--dir", folder, "--tag_set", "serve"]
    shown = subprocess.run(
        [*tool, "show", *options], check=True, capture_output=True, text=True
    )
    for name in NAMES:
        assert f'SignatureDef key: "{name}"' in shown.stdout
    data = np.load(answers)
    inputs = []
    for key in ("seed", "temperature"):
        np.save(tmp_path / f"{key}.npy", data[f"sample/inputs/{key}"])
        inputs.append(f"{key}={tmp_path / key}.npy")
    options += ["--signature_def", "sample", "--outdir", tmp_path]
    subprocess.run([*tool, "run", *options, "--inputs", ";".join(inputs)], check=True)
    images = np.load(tmp_path / "images.npy")
    np.testing.assert_array_equal(images, data["sample/outputs/images"])


def test_subset_and_model_without_latents(tmp_path):
    model = tiny.shared("gated_pixelcnn")
    path = export(model, tmp_path / "2", signatures=["log_likelihood", "sample"])
    loaded = tf.saved_model.load(str(path))
    assert set(loaded.signatures) == {"sample", "log_likelihood", "serving_default"}
    inputs = inputs_for(model, "log_likelihood", 3)
    outputs = loaded.signatures["log_likelihood"](
        **tf.nest.map_structure(tf.constant, inputs)
    )
    assert_same(outputs, in_python(model, "log_likelihood", inputs, K))
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["num_importance_samples"] is None


@pytest.mark.parametrize("name", ["vae", "gated_pixelvae_colour", "pixelcnn", "vlae"])
@pytest.mark.slow
def test_jit_equals_python_and_takes_no_rows(tmp_path, name):
    model = tiny.shared(name)
    path = export(model, tmp_path / "1", jit=True, signatures=["sample", "complete"])
    loaded = tf.saved_model.load(str(path))
    for num in (0, 3):
        images = loaded.signatures["sample"](
            seed=tf.constant(row_seeds(4, num)), temperature=tf.ones(num)
        )["images"]
        assert images.shape == (num, *model.image_shape)
    np.testing.assert_array_equal(images, model.sample(3, seed=4, jit=True))
    inputs = {k: v[:0] for k, v in inputs_for(model, "complete", 1).items()}
    empty = loaded.signatures["complete"](**tf.nest.map_structure(tf.constant, inputs))
    assert empty["images"].shape == (0, *model.image_shape)


def test_zoo_entry_and_warmup_requests_travel_along(tmp_path):
    model = registry.load("pixelvae_digits", weights=None)
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError:
        with pytest.warns(UserWarning, match="'serving' extra"):
            path = saved_model.export(model, tmp_path / "m" / "1", signatures="encode")
        assert not (path / "assets.extra" / saved_model.WARMUP_FILE).exists()
    else:
        path = saved_model.export(model, tmp_path / "m" / "1", signatures="encode")
        file = path / "assets.extra" / saved_model.WARMUP_FILE
        records = list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
        request = prediction_log_pb2.PredictionLog.FromString(records[0])
        request = request.predict_log.request
        assert len(records) == 1 and request.model_spec.signature_name == "encode"
        assert request.model_spec.name == "m"
        inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        tf.saved_model.load(str(path)).signatures["encode"](**inputs)
    copy = entries.entry_from_file(path / "assets.extra" / entries.ENTRY_FILE)
    untrained = {"weights": None, "measured": [], "status": "untrained", "history": []}
    expected = registry.describe("pixelvae_digits").model_copy(update=untrained)
    assert copy.model_dump() == expected.model_dump()


def test_warmup_requests_have_the_sizes_of_the_kit(model, tmp_path):
    """XLA compiles each size anew: all that the server merges requests to."""
    config = Path(__file__).parents[2] / "export" / "batching.config"
    sizes = re.findall(r"^allowed_batch_sizes: (\d+)", config.read_text(), re.MULTILINE)
    assert tuple(map(int, sizes)) == saved_model.BATCH_SIZES
    largest = re.search(r"^max_batch_size { value: (\d+) }", config.read_text(), re.M)
    assert int(largest[1]) == saved_model.BATCH_SIZES[-1]

    prediction_log_pb2 = pytest.importorskip(
        "tensorflow_serving.apis.prediction_log_pb2", reason="needs the 'serving' extra"
    )
    path = export(model, tmp_path / "1", signatures=["sample"], jit=True)
    file = path / saved_model.EXTRA_FOLDER / saved_model.WARMUP_FILE
    replayed = []
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        replayed.append(len(tf.make_ndarray(log.predict_log.request.inputs["seed"])))
    assert replayed == [n for n in saved_model.BATCH_SIZES if n <= MAX_BATCH_SIZE]


def test_figures_travel_with_the_weights_they_are_of(tmp_path):
    """Those of the zoo's weights are not given to a model that was trained further."""
    model = registry.load("pixelvae_digits")
    expected = registry.describe("pixelvae_digits").model_dump(mode="json")["measured"]
    assert expected
    for version in (1, 2):
        path = export(model, tmp_path / str(version), signatures=["log_likelihood"])
        manifest = json.loads((path / MANIFEST).read_text())
        entry = entries.entry_from_file(
            path / saved_model.EXTRA_FOLDER / entries.ENTRY_FILE
        )
        assert manifest["zoo_entry"] == "pixelvae_digits"
        assert manifest["measured"] == expected
        assert entry.model_dump(mode="json")["measured"] == expected
        assert (entry.weights is None) == (not expected)
        model.trainable_variables[0].assign_add(
            tf.ones_like(model.trainable_variables[0])
        )
        expected = []


def test_existing_version_stays(model, folder):
    before = (folder / "saved_model.pb").stat()
    with pytest.raises(FileExistsError, match="another number"):
        export(model, folder)
    assert (folder / "saved_model.pb").stat() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_interrupted_export_leaves_nothing(model, tmp_path, monkeypatch, error):
    def interrupted(module, path, **options):
        Path(path, "saved_model.pb").write_bytes(b"half")
        raise error

    monkeypatch.setattr(tf.saved_model, "save", interrupted)
    with pytest.raises(BaseException) as raised:
        export(model, tmp_path / "m" / "1", signatures=["encode"])
    assert raised.value is error or raised.type is error
    assert list((tmp_path / "m").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"signatures": ["sample", "samples"]}, "must be some of .*reconstruct"),
        ({"signatures": []}, "must be some of"),
        ({"num_importance_samples": 0}, "must be a positive integer"),
        ({"max_batch_size": 2.5}, "must be a positive integer"),
    ],
)
def test_bad_options(model, tmp_path, options, rule):
    with pytest.raises(ValueError, match=rule):
        export(model, tmp_path / "1", **options)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_refused_at_once(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="can be written.*Choose another folder"):
        export(model, tmp_path / "file" / "1")
