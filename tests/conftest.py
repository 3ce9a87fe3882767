"""What every test starts from: quiet TensorFlow, fixed seeds, a cache of its own."""

import ctypes
import gc
import os
import random
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def seeds():
    random.seed(0)
    np.random.seed(0)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def memory_given_back(request):
    """Slow tests build models of a gigabyte, which the C library would keep."""
    yield
    if request.node.get_closest_marker("slow"):
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)


@pytest.fixture(autouse=True)
def vaezoo_home(tmp_path_factory, monkeypatch):
    """The cache of weights, empty; a test never sees the user's."""
    folder = tmp_path_factory.mktemp("vaezoo_home")
    monkeypatch.setenv("VAEZOO_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A tiny trained model of digits in the form of a run folder."""
    import runs

    return runs.write_run(tmp_path_factory.mktemp("run"))
