"""The client, against a test double of TensorFlow Serving."""

import concurrent.futures
import threading
import time

import numpy as np
import pytest

pytest.importorskip("tensorflow_serving", reason="needs the 'serving' extra")


from click.testing import CliRunner

import tiny
from serving_double import serving
from vaezoo import cli, plots, row_seeds, saved_model, strategies
from vaezoo.client import Client

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


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder, "tiny", batch_sizes=(1, 4, LIMIT)) as (address, service):
        yield address, service


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


def test_large_calls_are_sent_in_parts(model, client, server):
    """The server's limit is learnt from its refusal; no row is lost or changed."""
    assert client.max_batch_size > LIMIT
    images = client.sample(4 * LIMIT + 1, seed=3)
    assert client.max_batch_size == LIMIT
    np.testing.assert_array_equal(
        images, model.sample(4 * LIMIT + 1, seed=3, jit=False)
    )


def test_merged_requests_are_answered_as_alone(client, server):
    """Many clients at once: fewer runs than requests, and everybody's own answer."""
    alone = {seed: client.sample(1, seed=seed) for seed in range(24)}
    before = server[1].num_runs
    barrier = threading.Barrier(24)

    def ask(seed):
        barrier.wait()
        return seed, client.sample(1, seed=seed)

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        for seed, images in pool.map(ask, range(24)):
            np.testing.assert_array_equal(images, alone[seed])
    assert server[1].num_runs - before < 24


IMAGES = np.zeros((2, 8, 8, 1), np.uint8)
BAD = {
    "dtype": (lambda c: c.log_likelihood(IMAGES * 1.0), r"uint8 \[n, 8, 8, 1\]"),
    "rank": (lambda c: c.encode(IMAGES[0]), r"shape=\(8, 8, 1\)"),
    "size": (lambda c: c.reconstruct(IMAGES[:, 1:]), r"shape=\(2, 7, 8, 1\)"),
    "no rows": (lambda c: c.encode(IMAGES[:0]), "at least one"),
    "rows": (lambda c: c.complete(IMAGES, IMAGES[:1]), "same number of rows"),
    "seed": (lambda c: c.encode(IMAGES, seed=np.zeros(2)), r"int64 \[n\]"),
    "latent": (lambda c: c.decode({"y": np.zeros((2, 3))}), r"\['z'\]"),
    "num": (lambda c: c.sample(0), "num=0"),
    "temperature": (lambda c: c.sample(2, temperature=np.nan), "temperature=nan"),
    "range": (lambda c: c.encode(IMAGES + 2), r"values in 0..1. Received: \[2\]."),
    "latent range": (lambda c: c.decode({"z": np.full((1, 3), np.inf)}), "finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_call_is_explained_and_the_next_is_served(client, name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(client)
    assert client.sample(1, seed=0).shape == (1, 8, 8, 1)


def test_one_bad_request_fails_those_it_is_merged_with(folder):
    """What docs/serving.md says of it: a refused batch is refused whole."""
    options = {"batch_sizes": (1, 4), "wait_seconds": 1.0}
    with serving(folder, "tiny", **options) as (address, _):
        client = Client(address, "tiny")
        client.image_shape  # noqa: B018, asks for the signatures
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            good = pool.submit(client.encode, IMAGES)
            bad = pool.submit(client.encode, IMAGES + 2)
            for future in (good, bad):
                with pytest.raises(ValueError, match="values in 0..1"):
                    future.result()
        assert client.encode(IMAGES)["z"].shape == (2, 3)


def test_the_command_line_asks_the_server(model, folder, tmp_path):
    """The picture of `vaezoo sample NAME --server` is that of the model."""
    output = tmp_path / "samples.png"
    with serving(folder, "pixelvae_digits", batch_sizes=(1, 5)) as (address, _):
        arguments = ["sample", "pixelvae_digits", "--num", "5", "--seed", "3"]
        arguments += ["--server", address, "--output", str(output)]
        result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 0, result.output
    images = model.sample(5, seed=3, jit=False)
    plots.save_png(tmp_path / "expected.png", plots.image_grid(images, levels=2))
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
