"""vaezoo: a zoo of variational autoencoders with autoregressive decoders.

    model = vaezoo.load("pixelvae_mnist_static")
    images = model.sample(16, seed=0)

Importing vaezoo is light: each name imports what it needs on first use.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vaezoo.datasets import load_dataset
    from vaezoo.evaluation import evaluate, receptive_field
    from vaezoo.sampling import row_seeds
    from vaezoo.serving.client import Client
    from vaezoo.serving.saved_model import export
    from vaezoo.training.run import train
    from vaezoo.zoo.registry import describe, list_models, load

__version__ = "0.1.0"

__all__ = [
    "Client",
    "describe",
    "evaluate",
    "export",
    "list_models",
    "load",
    "load_dataset",
    "receptive_field",
    "row_seeds",
    "train",
]

_MODULES = {
    "Client": "serving.client",
    "describe": "zoo.registry",
    "evaluate": "evaluation",
    "export": "serving.saved_model",
    "list_models": "zoo.registry",
    "load": "zoo.registry",
    "load_dataset": "datasets",
    "receptive_field": "evaluation",
    "row_seeds": "sampling",
    "train": "training.run",
}
# Those whose modules begin by importing it; the others do so when it is needed.
_IMPORT_TENSORFLOW = ("evaluate", "export", "receptive_field", "train")


if not TYPE_CHECKING:  # an editor is to see that a name is not there

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module 'vaezoo' has no attribute {name!r}")
        if name in _IMPORT_TENSORFLOW:
            from vaezoo import quiet

            quiet.import_tensorflow()
        value = getattr(importlib.import_module(f"vaezoo.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__():
    return sorted({*globals(), *__all__})
