"""Which backend Keras has, known without importing it."""

import json
import os
import sys
from pathlib import Path


def require_tensorflow():
    """Refuse another backend of Keras than TensorFlow.

    Raises:
        ImportError: if Keras has, or would be imported with, another one.
    """
    backend = _backend()
    if backend != "tensorflow":
        raise ImportError(
            "vaezoo needs Keras's TensorFlow backend. Received: the backend "
            f"{backend!r}. Set KERAS_BACKEND=tensorflow before Keras is imported."
        )


def _backend():
    if "keras" in sys.modules:
        return sys.modules["keras"].config.backend()
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"]
    folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    try:
        settings = json.loads((folder / "keras.json").read_text(encoding="utf-8"))
        return settings.get("backend", "tensorflow")
    except (AttributeError, OSError, ValueError):  # Keras takes its own defaults
        return "tensorflow"
