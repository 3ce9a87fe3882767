"""TensorFlow Serving's own server, where `tensorflow_model_server` is on the PATH."""

import contextlib
import shutil
import subprocess
from pathlib import Path

import grpc

from vaezoo import strategies

PROGRAM = "tensorflow_model_server"
_START_SECONDS = 120
_BATCHING = Path(__file__).parents[1] / "export" / "batching.config"


def is_installed():
    """Whether the server can be started."""
    return shutil.which(PROGRAM) is not None


@contextlib.contextmanager
def model_server(folder, name, *, batching=_BATCHING):
    """The server with one model, on a port of 127.0.0.1: yields address and process.

    Args:
        folder: a version folder, whose folder is the model's.
        name: what the server calls the model.
        batching: a file of batching parameters, those of the kit by default.
    """
    (port,) = strategies._free_ports(1)
    process = subprocess.Popen(
        [
            PROGRAM,
            f"--port={port}",
            f"--model_name={name}",
            f"--model_base_path={Path(folder).resolve().parent}",
            "--enable_batching",
            f"--batching_parameters_file={batching}",
            "--xla_cpu_compilation_enabled",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"127.0.0.1:{port}"
    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=_START_SECONDS)
        yield address, process
    finally:
        process.kill()
        process.wait()
