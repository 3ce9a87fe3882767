"""The client, against a test double of TensorFlow Serving, and itself if it is here."""

import concurrent.futures
import importlib.util
import itertools
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow_serving", reason="needs the 'serving' extra")


import grpc
import tensorflow as tf
from click.testing import CliRunner
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

import model_server
import tiny
from serving_double import serving
from vaezoo import cli, plots, row_seeds, strategies
from vaezoo.serving import saved_model
from vaezoo.serving.client import Client

K = 3
LIMIT = 6


@pytest.fixture(scope="module")
def model():
    return tiny.shared("gated_pixelvae_noup")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return saved_model.export(
        model,
        tmp_path_factory.mktemp("served") / "tiny" / "1",
        num_importance_samples=K,
        max_batch_size=LIMIT,
    )


BATCHING = f"""
max_batch_size {{ value: {LIMIT} }}
allowed_batch_sizes: 1
allowed_batch_sizes: 4
allowed_batch_sizes: {LIMIT}
batch_timeout_micros {{ value: 2000 }}
num_batch_threads {{ value: 2 }}
"""


@pytest.fixture(scope="module", params=["double", model_server.PROGRAM])
def server(request, folder, tmp_path_factory):
    """Address of a server, and the service if it is the double."""
    if request.param == "double":
        with serving(folder, "tiny", batch_sizes=(1, 4, LIMIT)) as (address, service):
            yield address, service
        return
    if not model_server.is_installed():
        pytest.skip(f"needs {model_server.PROGRAM} on the PATH")
    batching = tmp_path_factory.mktemp("config") / "batching.config"
    batching.write_text(BATCHING)
    with model_server.model_server(folder, "tiny", batching=batching) as (address, _):
        yield address, None


@pytest.fixture
def client(server):
    with Client(server[0], "tiny", timeout=30) as client:
        yield client


def test_methods_are_the_models(model, client):
    images = tiny.images_for(model, 4)
    mask = np.zeros((4, 8, 8, 1), np.uint8)
    mask[:, 4:] = 1
    seeds = row_seeds(5, 4)
    temperature = [0.5, 1.0, 1.5, 2.0]
    pairs = [
        (
            client.sample(4, seed=1, temperature=temperature),
            model.sample(4, seed=1, temperature=temperature, jit=False),
        ),
        (client.reconstruct(images), model.reconstruct(images, jit=False)),
        (client.complete(images, mask), model.complete(images, mask, jit=False)),
        (
            client.decode(client.encode(images, seed=seeds)),
            model.decode(model.encode(images, seed=seeds), jit=False),
        ),
    ]
    for mine, theirs in pairs:
        assert mine.dtype == np.uint8
        np.testing.assert_array_equal(mine, theirs)
    nats = model.log_likelihood(images, num_importance_samples=K, seed=2)
    np.testing.assert_allclose(client.log_likelihood(images, seed=2), nats, rtol=2e-6)
    assert client.image_shape == model.image_shape


def test_large_calls_are_sent_in_parts(model, client):
    """The server's limit is learnt from its refusal; no row is lost or changed."""
    assert client.max_batch_size > LIMIT
    images = client.sample(4 * LIMIT + 1, seed=3)
    assert client.max_batch_size == LIMIT
    np.testing.assert_array_equal(
        images, model.sample(4 * LIMIT + 1, seed=3, jit=False)
    )


def test_the_limit_of_the_export_is_learnt_too(folder):
    """Where the server's queue takes more rows than the graph."""
    with serving(folder, "tiny", batch_sizes=(LIMIT, 64)) as (address, _):
        client = Client(address, "tiny")
        assert len(client.sample(2 * LIMIT + 1, seed=3)) == 2 * LIMIT + 1
        assert client.max_batch_size == LIMIT


def test_merged_requests_are_answered_as_alone(client, server):
    """Many clients at once: fewer runs than requests, and everybody's own answer."""
    alone = {seed: client.sample(1, seed=seed) for seed in range(24)}
    before = server[1] and server[1].num_batches
    barrier = threading.Barrier(24)

    def ask(seed):
        barrier.wait()
        return seed, client.sample(1, seed=seed)

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        for seed, images in pool.map(ask, range(24)):
            np.testing.assert_array_equal(images, alone[seed])
    assert server[1] is None or server[1].num_batches - before < 24


IMAGES = np.zeros((2, 8, 8, 1), np.uint8)
BAD = {
    "dtype": (lambda c: c.log_likelihood(IMAGES * 1.0), r"uint8 \[n, 8, 8, 1\]"),
    "rank": (lambda c: c.encode(IMAGES[0]), r"shape=\(8, 8, 1\)"),
    "size": (lambda c: c.reconstruct(IMAGES[:, 1:]), r"shape=\(2, 7, 8, 1\)"),
    "no rows": (lambda c: c.encode(IMAGES[:0]), "at least one row"),
    "rows": (lambda c: c.complete(IMAGES, IMAGES[:1]), "for 2 images"),
    "seed": (lambda c: c.encode(IMAGES, seed=np.zeros(2)), r"int64 \[2\]"),
    "latent": (lambda c: c.decode({"y": np.zeros((2, 3))}), r"exactly z \[n, 3\]"),
    "num": (lambda c: c.sample(0), "num=0"),
    "temperature": (lambda c: c.sample(2, temperature=np.nan), "temperature=nan"),
    "range": (lambda c: c.encode(IMAGES + 2), r"values in 0..1\. Rec.* up to 2"),
    "latent range": (lambda c: c.decode({"z": np.full((1, 3), np.inf)}), "be finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_call_is_explained_and_the_next_is_served(client, name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(client)
    assert client.sample(1, seed=0).shape == (1, 8, 8, 1)


MASK = np.zeros((2, 8, 8, 1), np.uint8)
ALIKE = {
    "num": lambda x: x.sample(0),
    "temperature": lambda x: x.sample(2, temperature=-1.0),
    "temperatures": lambda x: x.sample(2, temperature=[1.0, np.inf]),
    "seed": lambda x: x.sample(2, seed=0.5),
    "seeds": lambda x: x.encode(IMAGES, seed=np.arange(3)),
    "dtype": lambda x: x.log_likelihood(IMAGES * 1.0),
    "rank": lambda x: x.encode(IMAGES[0]),
    "no images": lambda x: x.reconstruct(IMAGES[:0]),
    "levels": lambda x: x.log_likelihood(IMAGES + 7),
    "mask": lambda x: x.complete(IMAGES, MASK + 2),
    "masks": lambda x: x.complete(IMAGES, MASK[:, 1:]),
    "rows": lambda x: x.complete(IMAGES, MASK[:1]),
    "latents": lambda x: x.decode({"z": np.zeros((2, 4))}),
    "a latent": lambda x: x.decode({"z": np.full((2, 3), np.nan)}),
}


@pytest.mark.parametrize("case", ALIKE)
def test_a_bad_call_is_explained_as_by_the_model(model, client, case):
    """Word for word, also where only the server knows the rule."""
    with pytest.raises(ValueError) as by_the_model:
        ALIKE[case](model)
    with pytest.raises(ValueError) as by_the_client:
        ALIKE[case](client)
    assert str(by_the_client.value) == str(by_the_model.value)


@pytest.fixture
def ask(server):
    """A stranger's request: nothing is checked before it is sent."""
    with grpc.insecure_channel(server[0]) as channel:
        yield ask_through(channel)


def ask_through(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def predict(signature, **inputs):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "tiny"
        request.model_spec.signature_name = signature
        for key, value in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
        answer = stub.Predict(request, timeout=30)
        return {k: tf.make_ndarray(v) for k, v in answer.outputs.items()}

    return predict


SEEDS = np.arange(2)
STRANGE = {
    "dtype": ("encode", {"images": IMAGES * 1.0, "seed": SEEDS}, ""),
    "rank": ("encode", {"images": IMAGES[..., 0], "seed": SEEDS}, "[n, 8, 8, 1]"),
    "size": ("encode", {"images": IMAGES[:, 1:], "seed": SEEDS}, "[n, 8, 8, 1]"),
    "a scalar": ("encode", {"images": IMAGES, "seed": np.int64(1)}, ""),
    "a column": ("encode", {"images": IMAGES, "seed": SEEDS[:, None]}, "int64 [n]"),
    "a missing input": ("encode", {"images": IMAGES}, ""),
    "a signature": ("samples", {"seed": SEEDS}, "samples"),
    "range": ("encode", {"images": IMAGES + 2, "seed": SEEDS}, "values in 0..1"),
    **{
        f"temperature {value}": (
            "sample",
            {"seed": SEEDS, "temperature": np.array([1, value], np.float32)},
            "`temperature` must be positive and finite",
        )
        for value in (np.nan, 0.0, -1.0, np.inf)
    },
    "rows": (
        "sample",
        {"seed": np.arange(LIMIT + 1), "temperature": np.ones(LIMIT + 1, np.float32)},
        "",
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_strangers_request_is_refused_and_the_next_is_served(ask, name):
    signature, inputs, message = STRANGE[name]
    with pytest.raises(grpc.RpcError) as refusal:
        ask(signature, **inputs)
    assert message in refusal.value.details()
    assert ask("encode", images=IMAGES, seed=SEEDS)["z"].shape == (2, 3)


def test_no_rows_give_no_rows(ask):
    answer = ask("encode", images=IMAGES[:0], seed=SEEDS[:0])
    assert answer["z"].shape == (0, 3)


@pytest.mark.parametrize("bad", [IMAGES + 2, IMAGES[:, 1:]], ids=["range", "size"])
def test_a_good_request_is_served_whatever_it_is_merged_with(folder, bad):
    """A refused batch is refused whole; who keeps the rules asks again."""
    options = {"batch_sizes": (1, 4), "wait_seconds": 1.0}
    with serving(folder, "tiny", **options) as (address, service):
        client = Client(address, "tiny")
        alone = client.encode(IMAGES)["z"]
        with (
            concurrent.futures.ThreadPoolExecutor(2) as pool,
            grpc.insecure_channel(address) as channel,
        ):
            before = service.num_batches
            good = pool.submit(client.encode, IMAGES)
            refused = pool.submit(
                ask_through(channel), "encode", images=bad, seed=SEEDS
            )
            np.testing.assert_array_equal(good.result()["z"], alone)
            with pytest.raises(grpc.RpcError):
                refused.result()
        # Both at once, and the good one again.
        assert service.num_batches - before == 2


def test_others_who_break_the_rules_for_ever(folder, monkeypatch):
    """The error says whose fault it is not, and which rule."""
    with serving(folder, "tiny") as (address, service):
        client = Client(address, "tiny", timeout=0.5)
        client.signatures  # noqa: B018, asked before the service is broken
        rule = "`images` must have values in 0..1."
        error = tf.errors.InvalidArgumentError(
            None, None, f"assertion failed: [{rule}] [Received:] [2]"
        )

        def run(inputs):
            raise error

        monkeypatch.setitem(service._callables, "encode", run)
        with pytest.raises(ConnectionError, match="this one does, but.*values in 0..1"):
            client.encode(IMAGES)


def load_script():
    """The kit's load generator, which is a script and not of the package."""
    path = Path(__file__).parents[2] / "export" / "load.py"
    spec = importlib.util.spec_from_file_location("load", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["load"] = module
    spec.loader.exec_module(module)
    return module


def test_answers_under_load_are_those_of_the_seeds_alone(server):
    """The short form of benchmarks/serving.py: 64 clients at once."""
    load = load_script().put_load(server[0], "tiny", seconds=30, max_requests=512)
    assert len(load.latencies) == 512
    assert not load.errors and load.num_different == 0
    assert "512 answers" in str(load)


def test_the_load_generator_sees_a_wrong_answer_and_an_error(folder, monkeypatch):
    with serving(folder, "tiny", wait_seconds=0) as (address, service):
        run = service._callable(service._signatures["sample"])
        calls = itertools.count()

        def sometimes_wrong(inputs):
            call = next(calls)
            if call == 16 + 1:
                raise tf.errors.InvalidArgumentError(None, None, "no reason")
            outputs = run(inputs)
            return {k: v ^ 1 for k, v in outputs.items()} if call == 16 + 3 else outputs

        monkeypatch.setitem(service._callables, "sample", sometimes_wrong)
        options = {"num_clients": 1, "max_requests": 8}
        load = load_script().put_load(address, "tiny", **options)
    assert (len(load.latencies), load.num_different) == (7, 1)
    assert len(load.errors) == 1 and "no reason" in load.errors[0]


def test_the_command_line_asks_the_server(model, folder, tmp_path):
    """The picture of `vaezoo sample NAME --server` is that of the model."""
    output = tmp_path / "samples.png"
    with serving(folder, "pixelvae_digits", batch_sizes=(1, 5)) as (address, _):
        arguments = ["sample", "pixelvae_digits", "--num", "5", "--seed", "3"]
        arguments += ["--server", address, "--output", str(output)]
        result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 0, result.output
    images = model.sample(5, seed=3, jit=False)
    plots.save_picture(tmp_path / "expected.png", plots.image_grid(images, levels=2))
    assert output.read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_unknown_names(server):
    with pytest.raises(ValueError, match="must serve the model"):
        Client(server[0], "giant").sample(1)
    with pytest.raises(ValueError, match="timeout=0"):
        Client(server[0], "tiny", timeout=0)


def test_a_server_that_is_not_there_or_late(folder, model):
    (port,) = strategies._free_ports(1)
    with pytest.raises(ConnectionError, match="UNAVAILABLE.*for 0.5 seconds"):
        Client(f"127.0.0.1:{port}", "tiny", timeout=0.5).sample(1)

    client = Client(f"127.0.0.1:{port}", "tiny", timeout=60)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.sample, 2, seed=0)
        time.sleep(0.5)
        with serving(folder, "tiny", port=port):
            images = future.result()
    np.testing.assert_array_equal(images, model.sample(2, seed=0, jit=False))


def test_a_server_that_is_too_slow(folder):
    with serving(folder, "tiny", wait_seconds=60) as (address, _):
        client = Client(address, "tiny", timeout=0.5)
        with pytest.raises(TimeoutError, match="timeout=0.5 seconds"):
            client.sample(1)


def test_a_model_without_latents_has_no_codes(tmp_path):
    model = tiny.shared("pixelcnn_colour")
    folder = saved_model.export(model, tmp_path / "1")
    with serving(folder, "pixelcnn") as (address, _):
        client = Client(address, "pixelcnn")
        np.testing.assert_array_equal(
            client.sample(2, seed=1), model.sample(2, seed=1, jit=False)
        )
        with pytest.raises(ValueError, match="'encode'.*which has .*'sample'"):
            client.encode(np.zeros((1, 4, 4, 3), np.uint8))


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow_serving", None)
    monkeypatch.setitem(__import__("sys").modules, "tensorflow_serving.apis", None)
    with pytest.raises(ImportError, match=r"vaezoo\[serving\]"):
        Client("127.0.0.1:1", "tiny")
    arguments = ["sample", "pixelvae_digits", "--server", "127.0.0.1:1"]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 1 and "vaezoo[serving]" in result.output
    assert isinstance(result.exception, SystemExit)  # a message, no traceback
