"""Keras's methods on images: what they are given is checked, as everywhere else."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import keras

from vaezoo import checks
from vaezoo.models import batches

PRECISIONS = ("float32", "mixed_bfloat16")


@contextlib.contextmanager
def precision(policy):
    """Models built within have a precision policy; the user's is left as it was.

    Args:
        policy: the name of a Keras dtype policy.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


class ImageModel(keras.Model):
    """A `keras.Model` of uint8 images `[batch, height, width, channels]`.

    Data are images | (images, ...) | {"image": images}: arrays of all of them, or
    batches from a `tf.data.Dataset`, a loader or a generator. Arrays are checked whole,
    before anything else happens; batches as they come, in the graph where need be.
    Subclasses have `accepted_shape`, a tuple `(height, width, channels)` with `None`
    for any size, and `levels`, an int.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        policy = keras.config.dtype_policy().name
        if self.dtype_policy.name != policy or policy not in PRECISIONS:
            raise checks.refusal(
                f"A model is built under the global precision policy, one of "
                f"{' and '.join(PRECISIONS)}.",
                f"dtype={self.dtype_policy.name!r} under {policy!r}",
                "Call keras.config.set_dtype_policy, and build the model without "
                "`dtype`. float16 does not hold a loss summed over an image.",
            )

    @classmethod
    def from_config(cls, config):
        """A model of a `get_config`, in the precision that it was built in."""
        config = dict(config)
        with precision(config.pop("dtype", "float32")):
            return cls(**config)

    @property
    def _image_rules(self):
        return {"image_shape": self.accepted_shape, "levels": self.levels}

    def images_of(self, data):
        """The images of a batch, checked.

        Raises:
            ValueError: if they break a rule for images, or there are none.
        """
        return batches.checked(batches.images_in(data), **self._image_rules)

    def check_data(
        self, method, x, *, sample_weight=None, class_weight=None, **arguments
    ):
        """Check the data that a method of Keras's is given, as far as it is here.

        Args:
            method: str, its name.
            x: the data.
            sample_weight, class_weight: refused unless `None`.
            **arguments: others of the method's.

        Raises:
            ValueError: if there are no images, if they break a rule, or have weights.
        """
        if x is None:
            raise ValueError(
                f"`{method}` takes images. Received: none. Pass uint8 images "
                "[n, height, width, channels], or batches of them."
            )
        for data in (x, arguments.get("validation_data")):
            batches.check_arrays(data, **self._image_rules)
        weights = class_weight if sample_weight is None else sample_weight
        batches.images_in((x, None, weights))

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Keras's `evaluate`: the means of the ELBO's terms, with the KL weight 1."""
        self.check_data("evaluate", x, **kwargs)
        with batches.refusals():
            return super().evaluate(x, *args, **kwargs)

    def predict(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Keras's `predict`: the ELBO's terms of every image."""
        self.check_data("predict", x, **kwargs)
        with batches.refusals():
            return super().predict(x, *args, **kwargs)

    def train_on_batch(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Keras's `train_on_batch`."""
        self.check_data("train_on_batch", x, **kwargs)
        return super().train_on_batch(x, *args, **kwargs)

    def test_on_batch(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Keras's `test_on_batch`."""
        self.check_data("test_on_batch", x, **kwargs)
        return super().test_on_batch(x, *args, **kwargs)

    def predict_on_batch(self, x: Any = None) -> Any:
        """Keras's `predict_on_batch`."""
        self.check_data("predict_on_batch", x)
        return super().predict_on_batch(x)

    def save(self, filepath: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Keras's `save`, to a `.keras` file.

        Raises:
            ValueError: if the file has another suffix.
        """
        if Path(filepath).suffix != ".keras":
            raise checks.refusal(
                "A whole model is saved to a file that ends in .keras.",
                repr(os.fspath(filepath)),
                "Weights alone go to a file that ends in .weights.h5, by "
                "`save_weights`; a SavedModel is written by `vaezoo.export`.",
            )
        super().save(filepath, *args, **kwargs)

    def export(self, filepath: str | os.PathLike[str], *args: Any, **kwargs: Any):
        """Refused: `vaezoo.export` writes the signatures of a model of images.

        Raises:
            ValueError: always.
        """
        raise checks.refusal(
            "A model is exported by `vaezoo.export`, with its signatures of sampling "
            "and scoring.",
            f"model.export({os.fspath(filepath)!r})",
            f"vaezoo.export(model, {os.fspath(filepath)!r}) writes a SavedModel.",
        )
