"""Types of arguments of the public functions, as an editor shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tensorflow as tf

# What NumPy makes an array of, a tensor among it.
Array: TypeAlias = "npt.ArrayLike | tf.Tensor"
# Of all rows together, or one a row.
Seed: TypeAlias = "int | np.integer | npt.NDArray[np.int64]"
