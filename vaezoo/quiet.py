"""TensorFlow without the lines that it writes when it starts."""

import contextlib
import os
import sys
import tempfile


def import_tensorflow():
    """Import TensorFlow and find its devices, in silence.

    Some lines are written before TensorFlow reads `TF_CPP_MIN_LOG_LEVEL`, so the error
    stream is held back meanwhile; an import that fails shows what was written. Later
    messages follow that variable. Unless it is set there are none: what TensorFlow
    calls an error there is a processor without AVX-512, or a machine without a GPU, and
    what fails is an exception besides.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with held_back():
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextlib.contextmanager
def held_back():
    """Keep what is written to the process's error stream; show it on an exception."""
    sys.stderr.flush()
    try:
        stderr = os.dup(2)
    except OSError:  # a process without an error stream
        yield
        return
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(stderr, 2)
            kept.seek(0)
            os.write(2, kept.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
