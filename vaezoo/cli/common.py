"""What the commands share: errors in one message, options, TensorFlow made quiet."""

import contextlib
import errno
import os
import sys
import warnings
from pathlib import Path

import click

COUNT = click.IntRange(min=1)


@contextlib.contextmanager
def clear_errors():
    """Show errors of the library as one message, without a traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if getattr(error, "errno", None) == errno.EPIPE:
            raise  # the reader of a pipe has left, which click handles
        notes = getattr(error, "__notes__", [])
        raise click.ClickException("\n".join([str(error), *notes])) from error


def _show_warning(message, *_, **__):
    click.echo(f"Warning: {message}", err=True)


class Group(click.Group):
    """Commands whose errors and warnings are messages, without a traceback."""

    def invoke(self, ctx):
        with warnings.catch_warnings(), clear_errors():
            warnings.showwarning = _show_warning
            return super().invoke(ctx)


def import_tensorflow():
    """Import TensorFlow without its messages, unless the user has set their level."""
    if "tensorflow" in sys.modules or "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    # Some are written before TensorFlow reads the level.
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        import tensorflow  # noqa: F401
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def check_writable(output):
    """Refuse an output that cannot be written before anything slow happens."""
    path = Path(output)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The output's folder must be there. Received: {output!r}. Create it first."
        )
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise PermissionError(
            f"The output must be a file that can be written. Received: {output!r}. "
            "Give another file, or a folder that you may write to."
        )


def dataset_options(dataset, model):
    """What an image folder has to be read as, for the model."""
    if not dataset.startswith("image_folder:"):
        return {}
    *size, channels = model.image_shape
    return {"size": size, "channels": channels, "levels": model.levels}
