"""Files and folders: where they are, written whole or not at all, held by one."""

import contextlib
import datetime
import json
import os
import re
import shutil
import socket
import tempfile
from pathlib import Path

_LOCK_FILE = ".lock"
_HOLDER_FILE = ".holder.json"  # apart, as opening a lock's file may empty it

# Also what `Path` makes of one, with a single slash; no letter of a Windows drive.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(path, *, name="path"):
    """A path of this machine's file system, its `~` expanded.

    Args:
        path: str or path-like.
        name: str, the argument's.

    Returns:
        A `pathlib.Path`.

    Raises:
        ValueError: it is a URL, of which `open` would make a folder named `gs:`; or
            the `~` of a user that there is not.
    """
    text = os.fsdecode(path)
    if _URL.match(text):
        raise ValueError(
            f"`{name}` must be a path of this machine's file system. Received: {name}="
            f"{text!r}, which is a URL. Mount the bucket as a folder, or work in a "
            "local folder and copy it from there or to it."
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"The ~ of `{name}` must stand for a folder. Received: {name}={text!r} "
            f"({error}) Write the path in full."
        ) from error


@contextlib.contextmanager
def atomic_path(path):
    """A temporary path to write; renamed to `path` at the end, removed on an error.

    Args:
        path: the file that appears, whole, when the block ends without an error.
    """
    path = local_path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"A file must be written into an existing folder. Received: {str(path)!r}. "
            "Create the folder first."
        )
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        yield name
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@contextlib.contextmanager
def held(folder):
    """Hold a folder while the block runs, so that no other process writes into it.

    The system frees it when the process ends, however that happens.

    Args:
        folder: path of a folder that is there.

    Raises:
        BlockingIOError: another process, or another thread, holds it; the message says
            which, where and since when.
        OSError: the folder cannot be written.
    """
    import filelock

    folder = Path(folder)
    lock = filelock.FileLock(folder / _LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BlockingIOError(
            "A folder is written to by one process at a time. Received: "
            f"{str(folder)!r}, held by {holder(folder) or 'another process'}. Wait "
            "until that has ended, or give another folder."
        ) from error
    try:
        now = datetime.datetime.now(datetime.UTC)
        who = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": f"{now:%Y-%m-%d %H:%M:%S} UTC",
        }
        with atomic_path(folder / _HOLDER_FILE) as temporary:
            Path(temporary).write_text(json.dumps(who), encoding="utf-8")
        yield
    finally:
        (folder / _HOLDER_FILE).unlink(missing_ok=True)
        lock.release()


def holder(folder):
    """Who holds a folder, in words: "process 7 on 'host' since ...", or `None`.

    It is what the holder wrote, if the system still keeps the folder for it.
    """
    import filelock

    try:
        text = (Path(folder) / _HOLDER_FILE).read_text(encoding="utf-8")
        who = json.loads(text)
        pid, host, since = int(who["pid"]), str(who["host"]), str(who["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        with filelock.FileLock(Path(folder) / _LOCK_FILE, timeout=0):
            return None
    except OSError:  # held, or not ours to ask
        return f"process {pid} on {host!r} since {since}"


@contextlib.contextmanager
def made_and_held(folder, *, is_kept):
    """Make a folder and hold it; on an error, leave what was there and nothing else.

    Args:
        folder: path of a folder, which may be there already.
        is_kept: function without arguments, asked on an error: whether what the block
            has written is to stay.

    Raises:
        BlockingIOError: as of `held`.
        OSError: the folder cannot be made, or not be written.
    """
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder):
            before = set(folder.iterdir())
            try:
                yield
            except BaseException:
                if not is_kept():
                    _remove(set(folder.iterdir()) - before)
                raise
            finally:
                ours = {folder / _LOCK_FILE, folder / _HOLDER_FILE}
                if set(folder.iterdir()) <= ours:
                    # While it is held: later it may be another's.
                    (folder / _LOCK_FILE).unlink()
    except BaseException:
        with contextlib.suppress(OSError):  # one that is not empty stays
            for path in missing:
                path.rmdir()
        raise


def _remove(paths):
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
