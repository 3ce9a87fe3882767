"""Paths, and folders that one process holds."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import vaezoo
from vaezoo import files

HOLD = """
import sys, time
from vaezoo import files
with files.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process, which holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(vaezoo.__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    "url", ["gs://bucket/run", "s3://bucket", Path("gs://bucket/run"), "file:///tmp/x"]
)
def test_a_url_is_no_path(url):
    with pytest.raises(ValueError, match="`out` must be a path .* which is a URL"):
        files.local_path(url, name="out")


def test_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert files.local_path("~/runs") == Path("/home/me/runs")
    assert files.local_path(Path("~")) == Path("/home/me")
    for path in ("/~", "a:b/c", "C:/runs", "image_folder:/x"):
        assert files.local_path(path) == Path(path)
    with pytest.raises(ValueError, match="The ~ of `path` must stand for a folder"):
        files.local_path("~no_such_user/runs")


def test_a_second_process_is_told_who_holds_a_folder(tmp_path, other):
    message = f"held by process {other.pid} on .* since 20..-..-.. ..:..:.. UTC"
    with pytest.raises(BlockingIOError, match=message), files.held(tmp_path):
        pass
    assert re.match(f"process {other.pid} on", files.holder(tmp_path))


def test_any_death_frees_a_folder(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert files.holder(tmp_path) is None
    with files.held(tmp_path):
        assert re.match(f"process {os.getpid()} on", files.holder(tmp_path))
    assert files.holder(tmp_path) is None


def test_a_folder_is_held_once_in_a_process_too(tmp_path):
    with files.held(tmp_path):
        with pytest.raises(BlockingIOError), files.held(tmp_path):
            pass
        assert files.holder(tmp_path)
    with files.held(tmp_path):
        pass


def test_processes_that_the_holder_started_do_not_hold(tmp_path):
    with files.held(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with files.held(tmp_path):  # or a BlockingIOError
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(KeyError):
        with files.made_and_held(tmp_path, is_kept=lambda: False):
            (tmp_path / "new" / "folder").mkdir(parents=True)
            (tmp_path / "new.txt").write_text("new")
            raise KeyError
    assert [p.name for p in tmp_path.iterdir() if p.name[0] != "."] == ["mine.txt"]


@pytest.mark.parametrize("is_kept", [False, True])
def test_an_error_leaves_no_folder_that_was_not_there(tmp_path, is_kept):
    folder = tmp_path / "a" / "b"
    with pytest.raises(KeyError):
        with files.made_and_held(folder, is_kept=lambda: is_kept):
            (folder / "new.txt").write_text("new")
            raise KeyError
    assert folder.exists() == (tmp_path / "a").exists() == is_kept


def test_who_is_refused_removes_nothing(tmp_path, other):
    with pytest.raises(BlockingIOError):
        with files.made_and_held(tmp_path, is_kept=lambda: False):
            pass
    other.kill()
    other.wait()
    assert (tmp_path / ".lock").exists()
