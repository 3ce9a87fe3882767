import hashlib
import http.server
import subprocess
import sys
import threading
import warnings

import h5py
import keras
import numpy as np
import pytest

import tiny
from vaezoo.files import atomic_path
from vaezoo.zoo import weights
from vaezoo.zoo.entries import WeightsInfo


def small_model(units=3, name=None):
    model = keras.Sequential(
        [
            keras.Input([4]),
            keras.layers.Dense(units, name="hidden", bias_initializer="normal"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(2, name="out"),
        ],
        name=name,
    )
    for variable in model.weights:
        variable.assign(np.random.normal(size=variable.shape))
    return model


@pytest.mark.parametrize("name", tiny.CONFIGURATIONS)
def test_names_do_not_depend_on_what_was_built_before(name):
    """Keras numbers the layers that have no name, over the whole process."""
    first, second = (tiny.build(name, initialized=False) for _ in range(2))
    assert list(weights.variables_by_name(first)) == list(
        weights.variables_by_name(second)
    )


def values(model):
    return [variable.numpy() for variable in model.weights]


def describe_file(path, **places):
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return WeightsInfo(bytes=len(data), sha256=digest, **places)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 0), ("float16", 1e-3)])
def test_weights_come_back(tmp_path, dtype, tolerance):
    written, read = small_model(name="a"), small_model(name="b")
    path = weights.write_weights(written, tmp_path / "w.h5", dtype=dtype)
    assert weights.read_weights(read, path) == []
    for before, after in zip(values(written), values(read), strict=True):
        np.testing.assert_allclose(after, before, rtol=tolerance, atol=1e-6 * tolerance)
    assert all(variable.dtype == "float32" for variable in read.weights)


def test_the_file_is_flat_and_repeatable(tmp_path):
    model = small_model()
    first = weights.write_weights(model, tmp_path / "a.h5", dtype="float16")
    second = weights.write_weights(model, tmp_path / "b.h5", dtype="float16")
    assert first.read_bytes() == second.read_bytes()
    with h5py.File(first) as file:
        assert file.attrs["format"] == "vaezoo-1"
        assert file["hidden/kernel"].dtype == np.float16


def test_what_float16_cannot_hold_is_stored_as_float32(tmp_path):
    model = small_model()
    model.weights[0].assign(np.full([4, 3], 1e6 + 1))
    path = weights.write_weights(model, tmp_path / "w.h5", dtype="float16")
    with h5py.File(path) as file:
        assert file["hidden/kernel"].dtype == np.float32
        assert file["hidden/bias"].dtype == np.float16
    read = small_model()
    weights.read_weights(read, path)
    np.testing.assert_array_equal(read.weights[0], model.weights[0])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    model = small_model()
    path = weights.write_weights(model, tmp_path / "w.h5")
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        open(temporary, "w").write("half")
        raise ZeroDivisionError
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_only_whole_float_files_of_built_models(tmp_path):
    with pytest.raises(ValueError, match="dtype='int8'"):
        weights.write_weights(small_model(), tmp_path / "w.h5", dtype="int8")
    with pytest.raises(ValueError, match="not built"):
        unbuilt = keras.Sequential([keras.layers.Dense(2)])
        weights.write_weights(unbuilt, tmp_path / "w.h5")
    with pytest.raises(FileNotFoundError, match="Create the folder"):
        weights.write_weights(small_model(), tmp_path / "none" / "w.h5")


def test_a_misfit_is_refused_whole_and_named(tmp_path):
    path = weights.write_weights(small_model(units=5), tmp_path / "w.h5")
    with h5py.File(path, "a") as file:
        del file["out/bias"]
        file["stray"] = 1.0
    model = small_model()
    before = values(model)
    with pytest.raises(ValueError) as error:
        weights.read_weights(model, path)
    for misfit in ("hidden/kernel: [4, 5] for [4, 3]", "out/bias: missing", "stray"):
        assert misfit in str(error.value)
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(new, old)


def test_partial_keeps_what_fits(tmp_path):
    written = small_model(units=5)
    path = weights.write_weights(written, tmp_path / "w.h5")
    model = small_model()
    before = values(model)
    left = weights.read_weights(model, path, partial=True)
    assert {"hidden/kernel", "hidden/bias", "norm/gamma", "out/kernel"} <= set(left)
    assert "out/bias" not in left
    for variable, old, other in zip(
        model.weights, before, values(written), strict=True
    ):
        fits = variable.path.removeprefix(f"{model.name}/") not in left
        np.testing.assert_array_equal(variable.numpy(), other if fits else old)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = weights.write_weights(small_model(), tmp_path / "w.h5")
    data = path.read_bytes()
    path.write_bytes(
        {"truncated": data[: len(data) // 2], "empty": b"", "text": b"hello"}[damage]
    )
    with pytest.raises(ValueError, match="corrupt or truncated"):
        weights.read_weights(small_model(), path)


@pytest.mark.parametrize("file", ["w.weights.h5", "w.keras"])
def test_a_keras_file_is_read(file, tmp_path):
    written, read = small_model(), small_model()
    written.compile("adam", "mse")
    written.fit(np.ones([4, 4]), np.ones([4, 2]), verbose=0)
    path = tmp_path / file
    written.save(path) if file == "w.keras" else written.save_weights(path)
    assert weights.read_weights(read, path) == []
    for before, after in zip(values(written), values(read), strict=True):
        np.testing.assert_array_equal(after, before)


def test_a_keras_file_that_does_not_fit_changes_nothing(tmp_path):
    path = tmp_path / "w.weights.h5"
    small_model(units=5).save_weights(path)
    model = small_model()
    before = values(model)
    with pytest.raises(ValueError, match="Keras weight file"):
        weights.read_weights(model, path)
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(new, old)
    with pytest.raises(ValueError, match="partial=True"):
        weights.read_weights(model, path, partial=True)


def test_variables_that_share_a_path_are_refused(tmp_path):
    model = keras.Sequential([keras.Input([2])])
    layers = [keras.layers.Dense(2, name="same") for _ in range(2)]
    for layer in layers:
        layer.build([None, 2])
    model = keras.Model()
    model.first, model.second = layers
    model.built = True
    with pytest.raises(ValueError, match="'same/kernel' twice"):
        weights.write_weights(model, tmp_path / "w.h5")


# Where weights are found.


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, a dict of path to bytes, and counts requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.num_requests, self.cut_at = {}, 0, None
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.num_requests += 1
        if self.path not in self.server.files:
            return self.send_error(404)
        data = self.server.files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: self.server.cut_at])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as server:
        yield server
        server.shutdown()


@pytest.fixture
def remote(server, tmp_path):
    """A file behind a URL: its WeightsInfo."""
    path = tmp_path / "w.h5"
    path.write_bytes(np.random.bytes(3_000_000))
    server.files["/w.h5"] = path.read_bytes()
    return describe_file(path, urls=[server.url("/w.h5")])


def files_in(folder):
    return [path for path in folder.rglob("*") if path.suffix != ".lock"]


def test_a_file_beside_the_entry(tmp_path):
    path = weights.write_weights(small_model(), tmp_path / "w.h5")
    info = describe_file(path, file="w.h5")
    assert weights.is_local(info, folder=tmp_path)
    assert weights.fetch(info, folder=tmp_path) == path
    assert not weights.is_local(info)
    with pytest.raises(FileNotFoundError, match="'w.h5' must lie in"):
        weights.fetch(info)


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_corrupt_local_file_is_refused(tmp_path, damage):
    path = weights.write_weights(small_model(), tmp_path / "w.h5")
    info = describe_file(path, file="w.h5")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data if damage == "flipped" else data[:-1])
    expected = {"flipped": "SHA-256", "truncated": "bytes where"}[damage]
    with pytest.raises(ValueError, match=expected):
        weights.fetch(info, folder=tmp_path)


def test_a_complete_cache_never_touches_the_network(server, remote, vaezoo_home):
    assert not weights.is_local(remote)
    path = weights.fetch(remote)
    assert vaezoo_home in path.parents
    assert path.read_bytes() == server.files["/w.h5"]
    assert server.num_requests == 1
    assert weights.fetch(remote) == path
    assert weights.is_local(remote)
    assert server.num_requests == 1


def test_a_corrupt_cached_file_is_downloaded_again(server, remote):
    path = weights.fetch(remote)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert weights.fetch(remote).read_bytes() == server.files["/w.h5"]
    assert server.num_requests == 2


@pytest.mark.parametrize("fault", ["cut", "changed", "longer", "absent", "refused"])
def test_a_failed_download_leaves_nothing(server, remote, vaezoo_home, fault):
    data = server.files["/w.h5"]
    if fault == "cut":
        server.cut_at = 1_000_000
    elif fault == "changed":
        server.files["/w.h5"] = data[:-1] + bytes([data[-1] ^ 1])
    elif fault == "longer":
        server.files["/w.h5"] = data + b"more"
    elif fault == "absent":
        server.files.clear()
    else:
        remote = remote.model_copy(update={"urls": ["http://127.0.0.1:9/w.h5"]})
    with pytest.raises(ConnectionError, match="w.h5: .*\n.*put the file at"):
        weights.fetch(remote)
    assert files_in(vaezoo_home) == [vaezoo_home / "weights"]


def test_an_interrupt_leaves_nothing(remote, vaezoo_home, monkeypatch):
    def interrupted(path, info):
        if not path.exists():
            return "which is not a file"
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "_problem", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.fetch(remote)
    assert files_in(vaezoo_home) == [vaezoo_home / "weights"]


def test_what_a_killed_download_left_is_removed(remote, vaezoo_home):
    folder = vaezoo_home / "weights"
    folder.mkdir()
    (folder / f".{remote.sha256}.h5.abc").write_bytes(b"half")
    path = weights.fetch(remote)
    assert files_in(vaezoo_home) == [folder, path]


def test_the_second_url_serves_when_the_first_fails(server, remote):
    urls = [server.url("/none.h5"), *remote.urls]
    weights.fetch(remote.model_copy(update={"urls": urls}))
    assert server.num_requests == 2


def test_concurrent_processes_download_once(server, remote, vaezoo_home):
    script = (
        "import sys; from vaezoo.zoo import entries, weights;"
        "print(weights.fetch(entries.WeightsInfo.model_validate_json(sys.argv[1])))"
    )
    command = [sys.executable, "-c", script, remote.model_dump_json()]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    paths = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert len(paths) == 1 and paths != {""}
    assert server.num_requests == 1


def test_a_cache_that_cannot_be_written(remote, vaezoo_home, monkeypatch):
    file = vaezoo_home / "file"
    file.touch()
    monkeypatch.setenv("VAEZOO_HOME", str(file))
    with pytest.raises(OSError, match="Set VAEZOO_HOME"):
        weights.fetch(remote)


def test_kerass_weights_load_in_silence_before_training_begins(tmp_path):
    """The file has an optimizer's state, for which the new model has no room yet."""
    trained, fresh = (tiny.build("vae", initialized=False) for _ in range(2))
    for model in (trained, fresh):
        model.compile(optimizer="adam")
    trained.optimizer.build(trained.trainable_variables)
    path = tmp_path / "x.weights.h5"
    trained.save_weights(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.load_weights(path)
    np.testing.assert_array_equal(fresh.weights[0], trained.weights[0])
