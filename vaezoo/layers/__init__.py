from vaezoo import keras_backend

keras_backend.require_tensorflow()
