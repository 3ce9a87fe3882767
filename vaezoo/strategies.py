"""`tf.distribute` strategies: made from a name, started here, and kept in step.

Under a strategy every replica, in whatever process, has the same weights and its own
rows of a batch. The first worker, the chief, is the only one that writes.
"""

import ctypes
import functools
import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np

from vaezoo import checks

NAMES = ("none", "mirrored", "multi_worker")
LAUNCHER = "VAEZOO_LAUNCHER"  # tells workers the arguments of what started them
_SECONDS_TO_STOP = 60.0  # for workers that lost one of them to find out and to end


class WorkerLostError(ConnectionError):
    """A worker of the cluster does not answer, and training cannot go on."""


def create(strategy, *, devices=None):
    """The strategy of a name, which has to be made before TensorFlow's first operation.

    Args:
        strategy: `None` or "none", the strategy in whose scope this is called, or no
            strategy; "mirrored", the GPUs of this machine; "multi_worker", the
            machines of the environment variable `TF_CONFIG`; or a
            `tf.distribute.Strategy`, which is returned.
        devices: int, for "mirrored". Number of GPUs, from the first; where there is
            no GPU, number of logical CPUs, into which the CPU is divided. `None` for
            every GPU, or one CPU.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ValueError: no such strategy or no such devices, or a `TF_CONFIG` that does
            not describe a cluster and this worker's place in it.
        RuntimeError: TensorFlow has begun, and its devices or its cluster cannot be
            set any more.
    """
    import tensorflow as tf

    devices = checks.integer("devices", devices, optional=True)
    if devices is not None and strategy != "mirrored":
        raise ValueError(
            '`devices` goes with strategy="mirrored". Received: '
            f"strategy={strategy!r}, devices={devices!r}. The replicas of "
            '"multi_worker" are the workers of TF_CONFIG.'
        )
    if strategy is None or strategy == "none":
        return tf.distribute.get_strategy()
    if isinstance(strategy, tf.distribute.Strategy):
        return strategy
    if strategy == "mirrored":
        return _mirrored(devices)
    if strategy == "multi_worker":
        return _multi_worker()
    raise ValueError(
        f"strategy must be None, one of {', '.join(NAMES)}, or a "
        f"tf.distribute.Strategy. Received: strategy={strategy!r}."
    )


@functools.cache  # two in a process would share the keys of collective operations
def _mirrored(devices):
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if devices and devices > len(gpus):
            raise ValueError(
                f"There must be as many GPUs as devices. Received: devices={devices}, "
                f"and this machine has {len(gpus)}."
            )
        names = [f"GPU:{i}" for i in range(devices or len(gpus))]
        return tf.distribute.MirroredStrategy(names)
    devices = devices or 1
    cpu = tf.config.list_physical_devices("CPU")[0]
    # Not `list_logical_devices`, which sets them.
    if devices > len(tf.config.get_logical_device_configuration(cpu) or [cpu]):
        parts = [tf.config.LogicalDeviceConfiguration()] * devices
        try:
            tf.config.set_logical_device_configuration(cpu, parts)
        except RuntimeError as error:
            raise RuntimeError(_TOO_LATE.format(what="devices", error=error)) from error
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)])


_TOO_LATE = (
    "The {what} of a strategy must be set before TensorFlow's first operation. "
    "Received: a process in which TensorFlow has begun ({error}). Make the strategy "
    "at the start of the program, with vaezoo.strategies.create, and pass it on."
)


def _multi_worker():
    import tensorflow as tf

    check_cluster(os.environ.get("TF_CONFIG"))
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise RuntimeError(_TOO_LATE.format(what="cluster", error=error)) from error


def check_cluster(text):
    """Refuse a `TF_CONFIG` that does not describe a cluster and a place in it.

    Args:
        text: str, its JSON; or `None`.

    Raises:
        ValueError: with what is wrong.
    """

    def refuse(received):
        return ValueError(
            "TF_CONFIG must hold a JSON object such as "
            '{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}, with another index on each '
            f"worker. Received: {received}."
        )

    if not text:
        raise refuse("no TF_CONFIG in the environment")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise refuse(f"{text!r}, which is not JSON ({error})") from error
    config = config if isinstance(config, dict) else {}
    cluster, task = config.get("cluster"), config.get("task")
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise refuse(f"{text!r}, without an object `cluster` or an object `task`")
    if not cluster or not cluster.keys() <= {"chief", "worker"}:
        raise refuse(f"a cluster of {sorted(cluster)}; it may have workers and a chief")
    addresses = []
    for kind, hosts in cluster.items():
        if not isinstance(hosts, list) or not hosts:
            raise refuse(f"{kind}={hosts!r}, which is not a list of addresses")
        addresses += hosts
    for address in addresses:
        host, _, port = str(address).rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise refuse(f"the address {address!r}, which is not HOST:PORT")
    if len(set(addresses)) < len(addresses):
        raise refuse(f"an address twice in {addresses}")
    index = task.get("index")
    if task.get("type") not in cluster or isinstance(index, bool):
        raise refuse(f"task={task!r}, whose type is none of the cluster's")
    if not isinstance(index, int) or not 0 <= index < len(cluster[task["type"]]):
        raise refuse(
            f"task={task!r}, whose index must be an integer in "
            f"0..{len(cluster[task['type']]) - 1}"
        )


def is_multi_worker(strategy):
    """Whether the replicas of a strategy are in several processes."""
    import tensorflow as tf

    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief(strategy):
    """Whether this process is the one that writes checkpoints, logs and weights."""
    if not is_multi_worker(strategy):
        return True
    resolver = strategy.cluster_resolver
    if "chief" in resolver.cluster_spec().jobs:
        return resolver.task_type == "chief"
    return not resolver.task_id


def from_chief(strategy, arrays):
    """The chief's arrays, on every worker; all of them have to call this.

    Args:
        strategy: a `tf.distribute.Strategy`.
        arrays: list of numpy arrays, of the same shapes and types on every worker.

    Returns:
        list of numpy arrays.
    """
    if not is_multi_worker(strategy):
        return arrays
    if not is_chief(strategy):
        arrays = [np.zeros_like(array) for array in arrays]
    # Collective operations have neither booleans nor bytes.
    sums = _sums(
        strategy, [a.astype("int32") if a.dtype.itemsize == 1 else a for a in arrays]
    )
    return [x.astype(a.dtype) for x, a in zip(sums, arrays, strict=True)]


def any_worker(strategy, flag):
    """Whether the flag is set on any worker; all of them have to call this."""
    if not is_multi_worker(strategy):
        return flag
    return bool(_sums(strategy, [np.int32(flag)])[0])


def _sums(strategy, arrays):
    """Sums over the workers, each array one by one: a list would be packed."""
    sums = _sum_function(strategy)(arrays)
    return [strategy.experimental_local_results(x)[0].numpy() for x in sums]


@functools.cache
def _sum_function(strategy):
    import tensorflow as tf

    here = len(strategy.extended.worker_devices)

    def on_replica(tensors):
        context = tf.distribute.get_replica_context()
        is_first = context.replica_id_in_sync_group % here == 0
        values = [x if is_first else tf.zeros_like(x) for x in tensors]
        return [context.all_reduce(tf.distribute.ReduceOp.SUM, x) for x in values]

    return tf.function(
        lambda tensors: strategy.run(on_replica, args=(tensors,)), reduce_retracing=True
    )


def launch(command, num_workers):
    """Run a command in several processes of this machine, the workers of a cluster.

    Each finds its place in `TF_CONFIG`, with a free port of 127.0.0.1. The first
    writes to this process's output; lines of the others have their number before them.
    SIGTERM and Ctrl-C are passed on as SIGTERM; a second Ctrl-C ends all at once. When
    a worker fails, the others have a minute to end. None is left behind; on Linux not
    even where this process is killed.

    Args:
        command: list of str.
        num_workers: int, at least 1.

    Raises:
        WorkerLostError: a worker ended with another status than 0; the message says
            which, and how.
        ValueError: the number is not a positive integer.
        OSError: the command cannot be started.
    """
    num_workers = checks.integer("num_workers", num_workers)
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(num_workers)]
    threads = max(1, (os.cpu_count() or 1) // num_workers)
    workers, stopped = [], threading.Event()

    def stop(number, _):
        if number == signal.SIGINT and stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        for worker in workers:
            worker.send_signal(signal.SIGTERM)

    before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        for index in range(num_workers):
            task = {"type": "worker", "index": index}
            config = {"cluster": {"worker": addresses}, "task": task}
            environment = {"TF_NUM_INTRAOP_THREADS": str(threads)} | os.environ
            environment |= {"TF_CONFIG": json.dumps(config)}
            environment |= {LAUNCHER: shlex.join(sys.argv[1:])}
            workers.append(_start(command, index, environment))
            if stopped.is_set():  # while it was started
                workers[-1].send_signal(signal.SIGTERM)
        for index, worker in enumerate(workers):
            if worker.stdout:
                arguments = (index, worker.stdout)
                threading.Thread(target=_show, args=arguments, daemon=True).start()
        _wait(workers)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_ports(num):
    sockets = [socket.socket() for _ in range(num)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _start(command, index, environment):
    return subprocess.Popen(
        command,
        env=environment,
        stdout=None if index == 0 else subprocess.PIPE,
        stderr=None if index == 0 else subprocess.STDOUT,
        start_new_session=True,  # else a terminal's Ctrl-C goes to the workers too
        preexec_fn=_die_with_the_parent,
    )


def _die_with_the_parent():
    """On Linux, SIGKILL for this process when the launcher is gone, however it went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _show(index, lines):
    for line in lines:
        text = line.decode(errors="replace")
        print(f"[worker {index}] {text}", end="", file=sys.stderr, flush=True)


def _wait(workers):
    """Until all have ended, or one has failed and the others have had their time."""
    failed, deadline = None, math.inf
    while True:
        running = [worker for worker in workers if worker.poll() is None]
        bad = [i for i, worker in enumerate(workers) if worker.returncode]
        if bad and failed is None:
            failed, deadline = bad[0], time.monotonic() + _SECONDS_TO_STOP
        if not running or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    if failed is None:
        return
    status = workers[failed].returncode
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    raise WorkerLostError(
        f"Every worker must end with status 0. Received: worker {failed} of "
        f"{len(workers)} ended with {how}. What it has to say is above. Start all of "
        "them again with the same arguments and --resume."
    )
