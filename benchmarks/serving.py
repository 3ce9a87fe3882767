"""A served model under load: latencies, 64 clients for two minutes, bad requests.

    python benchmarks/serving.py [--model pixelvae_mnist_static] [--seconds 120]

The model is exported in the graph and with XLA, and served by a process of its own:
`tensorflow_model_server` if it is on the PATH, or else the tests' double of it. Every
answer is compared with that of its seed alone; a figure is printed only after that.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import print_machine, print_table

_ROOT = Path(__file__).parents[1]
sys.path += [str(_ROOT / "tests"), str(_ROOT / "export")]

import load  # noqa: E402
import model_server  # noqa: E402

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MAX_GROWTH = 1.05  # of memory, from the first quarter of the load to its end


@contextlib.contextmanager
def served(folder, name):
    """A server of an exported model: yields its address and its process."""
    if model_server.is_installed():
        with model_server.model_server(folder, name) as (address, process):
            yield address, process
        return
    command = [sys.executable, _ROOT / "tests" / "serving_double.py", folder, name]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.wait()


def memory(process):
    """Resident memory of a process, MB."""
    pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
    return int(pages) * _PAGE / 1e6


class MemoryLog:
    """A process's memory, read each second while the block runs."""

    def __init__(self, process):
        self.values = []
        self._process = process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def _read(self):
        while not self._stop.wait(1):
            self.values.append(memory(self._process))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@contextlib.contextmanager
def stranger(address, name, wait):
    """While the block runs, a client that sends a temperature of 0 every `wait` s."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    stop = threading.Event()

    def ask():
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        request.model_spec.signature_name = "sample"
        request.inputs["seed"].CopyFrom(tf.make_tensor_proto([0], tf.int64))
        request.inputs["temperature"].CopyFrom(tf.make_tensor_proto([0.0]))
        with grpc.insecure_channel(address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while not stop.wait(wait):
                try:
                    stub.Predict(request, timeout=60)
                except grpc.RpcError:
                    continue
                raise AssertionError("a temperature of 0 was answered")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def put_load(address, args, *, may_fail=False, **options):
    """The kit's load; the script ends if an answer is wrong, or missing."""
    result = load.put_load(address, args.model, **options)
    if result.num_different or (result.errors and not may_fail):
        sys.exit(f"{result}\n{result.errors[:3]}")
    return result


def milliseconds(result):
    """The latency's cells of a row."""
    return [f"{1000 * result.percentile(percent):.0f}" for percent in (50, 99)]


def alone(address, process, args):
    """Rows: one client, for each number of rows of a request."""
    for num in args.rows:
        options = {"num_clients": 1, "num_rows": num, "seconds": args.seconds / 4}
        result = put_load(address, args, **options)
        yield [num, len(result.latencies), *milliseconds(result)]


def crowd(address, process, args):
    """A row: many clients, and the server's memory."""
    with MemoryLog(process) as log:
        options = {"num_clients": args.clients, "seconds": args.seconds}
        result = put_load(address, args, **options)
    early, late = log.values[len(log.values) // 4], log.values[-1]
    yield [
        f"{len(result.latencies):,}",
        f"{len(result.latencies) / result.seconds:.1f}",
        *milliseconds(result),
        f"{early:.0f} / {late:.0f}",
        "flat" if late <= _MAX_GROWTH * early else "grows",
    ]


def beside_a_stranger(address, process, args):
    """Rows: many clients and one whose every request breaks a rule."""
    for wait in (1.0, 0.1):
        with stranger(address, args.model, wait):
            options = {"num_clients": args.clients, "seconds": args.seconds / 4}
            result = put_load(address, args, may_fail=True, **options)
        answers = len(result.latencies)
        yield [
            wait,
            f"{answers / result.seconds:.1f}",
            f"{result.num_repeated / max(answers, 1):.2f}",
            len(result.errors),
            *milliseconds(result),
        ]


MEASURES = {"alone": alone, "crowd": crowd, "stranger": beside_a_stranger}
TABLES = {
    "alone": ("One client", ["rows", "answers", "p50 ms", "p99 ms"]),
    "crowd": (
        "{clients} clients of one row for {seconds:.0f} s",
        [
            "answers",
            "requests/s",
            "p50 ms",
            "p99 ms",
            "memory MB, at a quarter / at the end",
            "",
        ],
    ),
    "stranger": (
        "{clients} clients of one row, beside a stranger who sends a bad request, "
        "waits for its refusal and then so many seconds",
        ["waits s", "requests/s", "repeats a request", "errors", "p50 ms", "p99 ms"],
    ),
}
PARTS = tuple(MEASURES)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pixelvae_mnist_static")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=120, help="of the long load")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    args = parser.parse_args()

    from vaezoo.serving import saved_model
    from vaezoo.zoo import registry

    model = registry.load(args.model)
    rows = {part: [] for part in PARTS}
    with tempfile.TemporaryDirectory() as directory:
        for sampler, jit in (("graph", False), ("XLA", True)):
            folder = Path(directory) / sampler / "1"
            options = {"signatures": ["sample"], "jit": jit}
            saved_model.export(model, folder, max_batch_size=64, **options)
            start = time.perf_counter()
            with served(folder, args.model) as (address, process):
                ready = f"{time.perf_counter() - start:.1f}"
                for part in args.parts:
                    measured = MEASURES[part](address, process, args)
                    rows[part] += [[sampler, ready, *row] for row in measured]

    server = "tensorflow_model_server" if model_server.is_installed() else "test double"
    print(f"{args.model}, {server}, no wrong answer\n")
    print_machine(("tensorflow", "grpcio"))
    for part in args.parts:
        title, header = TABLES[part]
        print(f"{title.format(**vars(args))}\n")
        print_table(["sampler", "ready s", *header], rows[part])


if __name__ == "__main__":
    main()
