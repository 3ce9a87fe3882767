"""Where a figure or a file comes from: the command, the code and the machine."""

import datetime
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

from vaezoo import strategies


def command():
    """The command line of this process, as a user would type it.

    That of a worker is the one that started all workers of this machine.
    """
    launcher = os.environ.get(strategies.LAUNCHER)
    arguments = sys.argv[1:] if launcher is None else shlex.split(launcher)
    arguments = [re.sub(r".*/(?=zoo_configs/)", "", text) for text in arguments]
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


def measurements(model, results, *, num_importance_samples, split, images, seed):
    """Figures of `vaezoo.evaluate` as the records of an entry, made by this process.

    Args:
        model: the model measured.
        results: dict of name to (value, standard error), nats.
        num_importance_samples: int, K of `log_likelihood`; `None` for the ELBO only.
        split: str.
        images: int, the number measured.
        seed: int.

    Returns:
        list of dicts of the fields of `vaezoo.zoo.entries.Measurement`: the ELBO, its
        KL term and the bound, of the same images, and the model's `estimates`.
    """
    common = {
        "split": split,
        "images": images,
        "seed": seed,
        "command": command(),
        "commit": commit(),
        "date": datetime.date.today(),
        "hardware": hardware(),
    }
    bounded = num_importance_samples if model.latent_shapes else None
    metrics = {"log_likelihood": bounded}
    if model.latent_shapes:  # without, the likelihood is exact
        metrics = {"elbo": None, "kl": None} | metrics
    metrics |= dict.fromkeys(model.estimates())
    return [
        {
            "metric": metric,
            "value": round(value, 4),
            "standard_error": None if math.isnan(error) else round(error, 4),
            "num_importance_samples": k,
            **common,
        }
        for metric, k in metrics.items()
        if metric in results
        for value, error in [results[metric]]
    ]
