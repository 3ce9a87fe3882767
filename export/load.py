"""Puts load on a server: many clients at once, each with one request after the other.

    python load.py localhost:8500 pixelvae_mnist_static --clients 64 --seconds 120

Every answer must be that of the same seed asked for alone, before the load. Prints
requests and images a second, the latency's percentiles, requests that were sent again,
answers that differ and errors; exits with 1 if there are any of these two.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import logging
import sys
import time

import numpy as np

from vaezoo.serving.client import Client

NUM_SEEDS = 16  # different requests


@dataclasses.dataclass(frozen=True)
class Load:
    """What came of a load.

    Attributes:
        latencies: list of float, seconds, one an answer.
        num_rows: int, images of a request.
        seconds: float, what the load took.
        num_repeated: int, how often the clients sent a request again.
        num_different: int, answers unlike those of the same seeds alone.
        errors: list of str.
    """

    latencies: list[float]
    num_rows: int
    seconds: float
    num_repeated: int
    num_different: int
    errors: list[str]

    def percentile(self, percent):
        """Latency in seconds that so many percent of the answers stay below."""
        return np.percentile(self.latencies, percent) if self.latencies else np.nan

    def __str__(self):
        rate = len(self.latencies) / self.seconds
        return (
            f"{len(self.latencies):,} answers in {self.seconds:.1f} s: {rate:.1f} "
            f"requests/s, {rate * self.num_rows:.1f} images/s\n"
            f"latency: p50 {self.percentile(50):.3f} s, p90 {self.percentile(90):.3f} "
            f"s, p99 {self.percentile(99):.3f} s\n"
            f"sent again: {self.num_repeated:,}, different: {self.num_different:,}, "
            f"errors: {len(self.errors):,}"
        )


class _Repeats(logging.Handler):
    count = 0

    def emit(self, record):
        self.count += 1


@contextlib.contextmanager
def _count_repeats():
    """Count the requests that the clients of this process send again."""
    repeats, logger = _Repeats(), logging.getLogger("vaezoo.serving.client")
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(repeats)
    try:
        yield repeats
    finally:
        logger.removeHandler(repeats)
        logger.setLevel(level)
        logger.propagate = propagates


def put_load(
    address,
    model_name,
    *,
    num_clients=64,
    seconds=120.0,
    num_rows=1,
    max_requests=None,
    timeout=60.0,
    report=lambda message: None,
):
    """Ask for samples from many clients at once, and check every answer.

    Args:
        address: str, `HOST:PORT` of the server's gRPC port.
        model_name: str, the name that the server gives the model.
        num_clients: int. Each has a connection of its own, and sends its next request
            when it has the answer to the last.
        seconds: float. No request is begun later than this.
        num_rows: int, images of a request.
        max_requests: int. No more requests than this, of all clients together.
        timeout: float, seconds for each request, its repetitions included.
        report: called with a line of text about every ten seconds.

    Returns:
        A `Load`.

    Raises:
        ConnectionError, TimeoutError, ValueError: of the requests before the load.
    """
    seeds = range(NUM_SEEDS)
    with Client(address, model_name, timeout=timeout) as client:
        alone = [client.sample(num_rows, seed=seed) for seed in seeds]

    latencies, errors, different = [], [], []
    numbers = itertools.count() if max_requests is None else iter(range(max_requests))

    def ask(client, stop):
        while time.perf_counter() < stop:
            number = next(numbers, None)
            if number is None:
                return
            seed = seeds[number % NUM_SEEDS]
            start = time.perf_counter()
            try:
                images = client.sample(num_rows, seed=seed)
            except Exception as error:
                errors.append(str(error))
                continue
            latencies.append(time.perf_counter() - start)
            if not np.array_equal(images, alone[seed]):
                different.append(seed)

    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(Client(address, model_name, timeout=timeout))
            for _ in range(num_clients)
        ]
        for client in clients:
            client.signatures  # noqa: B018, asked of the server before the clock runs
        repeats = stack.enter_context(_count_repeats())
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(num_clients))
        start = time.perf_counter()
        asking = [pool.submit(ask, client, start + seconds) for client in clients]
        while concurrent.futures.wait(asking, timeout=10).not_done:
            report(
                f"{time.perf_counter() - start:5.0f} s: {len(latencies):,} answers, "
                f"{len(errors):,} errors"
            )
        for future in asking:
            future.result()
        taken = time.perf_counter() - start
    return Load(latencies, num_rows, taken, repeats.count, len(different), errors)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("model_name")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rows", type=int, default=1, help="images of a request")
    args = parser.parse_args()
    load = put_load(
        args.address,
        args.model_name,
        num_clients=args.clients,
        seconds=args.seconds,
        num_rows=args.rows,
        report=lambda message: print(message, file=sys.stderr, flush=True),
    )
    print(load)
    for message, count in collections.Counter(load.errors).most_common(5):
        print(f"{count} x {message}", file=sys.stderr)
    sys.exit(1 if load.errors or load.num_different else 0)


if __name__ == "__main__":
    main()
