"""Training a zoo entry into a run folder."""

from vaezoo import keras_backend

keras_backend.require_tensorflow()
