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


def check(result):
    """Exit if an answer is wrong or missing."""
    if result.errors or result.num_different:
        sys.exit(f"{result}\n{result.errors[:3]}")
    return result


def latencies(result):
    """The cells of a row."""
    return [f"{1000 * result.percentile(q):.1f}" for q in (50, 99)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pixelvae_mnist_static")
    parser.add_argument("--seconds", type=float, default=120, help="of the long load")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    args = parser.parse_args()

    from vaezoo import saved_model, zoo

    model = zoo.load(args.model)
    alone, crowd, bad = [], [], []
    kinds = {"graph": False, "XLA": True}
    with tempfile.TemporaryDirectory() as directory:
        for kind, jit in kinds.items():
            folder = Path(directory) / kind / "1"
            options = {"signatures": ["sample"], "jit": jit}
            saved_model.export(model, folder, max_batch_size=64, **options)
            start = time.perf_counter()
            with served(folder, args.model) as (address, process):
                ready = time.perf_counter() - start

                def put_load(seconds, where=(address, args.model), **options):
                    return load.put_load(*where, seconds=seconds, **options)

                for num in args.rows:
                    quarter = args.seconds / 4
                    result = check(put_load(quarter, num_clients=1, num_rows=num))
                    answers = len(result.latencies)
                    alone.append([kind, num, answers, *latencies(result)])
                with MemoryLog(process) as log:
                    result = check(put_load(args.seconds, num_clients=args.clients))
                answers = len(result.latencies)
                early, late = log.values[len(log.values) // 4], log.values[-1]
                flat = "flat" if late <= _MAX_GROWTH * early else "grows"
                crowd.append(
                    [
                        kind,
                        f"{ready:.1f}",
                        f"{answers:,}",
                        f"{answers / result.seconds:.1f}",
                        *latencies(result),
                        f"{early:.0f} / {late:.0f}",
                        flat,
                    ]
                )
                for wait in (1.0, 0.1):
                    with stranger(address, args.model, wait):
                        result = put_load(args.seconds / 4, num_clients=args.clients)
                    if result.num_different:
                        check(result)
                    answers = len(result.latencies)
                    bad.append(
                        [
                            kind,
                            wait,
                            f"{answers / result.seconds:.1f}",
                            f"{result.num_repeated / max(answers, 1):.2f}",
                            len(result.errors),
                            *latencies(result),
                        ]
                    )

    server = "tensorflow_model_server" if model_server.is_installed() else "test double"
    print(f"{args.model}, {server}: one client, latency in ms")
    print_machine(("tensorflow", "grpcio"))
    print_table(["sampler", "rows", "answers", "p50", "p99"], alone)
    print(f"{args.clients} clients of one row for {args.seconds:.0f} s: no errors, and")
    print("every answer is that of its seed alone")
    print_table(
        [
            "sampler",
            "ready s",
            "answers",
            "requests/s",
            "p50 ms",
            "p99 ms",
            "memory MB, at a quarter / at the end",
            "",
        ],
        crowd,
    )
    print("The same beside a stranger whose requests break a rule")
    print_table(
        [
            "sampler",
            "its wait s",
            "requests/s",
            "sent again, times a request",
            "errors",
            "p50 ms",
            "p99 ms",
        ],
        bad,
    )


if __name__ == "__main__":
    main()
