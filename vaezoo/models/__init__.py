"""The models, one file a paper."""

import importlib

from vaezoo import keras_backend

keras_backend.require_tensorflow()

_MODULES = {
    "AGAVE": "agave",
    "ConvVLAE": "vlae_cifar",
    "FAME": "fame",
    "HierarchicalPixelVAE": "hierarchical_pixelvae",
    "IAFVAE": "iafvae",
    "PixelCNNPP": "pixelcnnpp",
    "PixelVAE": "pixelvae",
    "PixelVAEPP": "pixelvaepp",
    "VLAE": "vlae",
}


def get_class(name):
    """The model class called `name`, imported on first use.

    Raises:
        ValueError: if there is no such class.
    """
    if name not in _MODULES:
        raise ValueError(
            f"A model's class must be one of {sorted(_MODULES)}. Received: {name!r}."
        )
    return getattr(importlib.import_module(f"vaezoo.models.{_MODULES[name]}"), name)
