"""Where a figure or a file comes from: the command, the code and the machine."""

import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path


def command():
    """The command line of this process, as a user would type it."""
    arguments = [
        re.sub(r".*/(?=zoo_configs/)", "", argument) for argument in sys.argv[1:]
    ]
    return shlex.join(["vaezoo", *arguments])


def commit():
    """The checkout's commit, or `None` where the package does not run from one."""
    here = Path(__file__)

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", str(here.parent), *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # not of a repository around it
        return git("rev-parse", "--short", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware():
    """Cores and GPUs of this machine."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    names = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
        for gpu in gpus
    ]
    return ", ".join([f"{os.cpu_count()} CPU cores ({platform.machine()})", *names])
