"""The rules of what comes from outside, each written once.

Every check returns the value that it has checked, in the type that the code goes on
with, or raises a ValueError that states the rule, what was received and the next step.
The functions named `..._rule` are the sentences alone: the graphs of training steps and
of exports, which check values that Python never sees, say the same ones.

Nothing here needs TensorFlow; its eager tensors are arrays to NumPy.
"""

from vaezoo.checks.arrays import (
    array_rule,
    binary_rule,
    finite_rule,
    images,
    images_spec,
    in_levels,
    latents,
    levels_rule,
    mask,
    mask_rule,
    rows_rule,
    same_rows,
    seeds,
    shape_advice,
    temperature_rule,
    temperatures,
)
from vaezoo.checks.scalars import (
    choice,
    image_shape,
    integer,
    integers,
    names,
    number,
    refusal,
    sampling_options,
    seed,
)

__all__ = [
    "array_rule",
    "binary_rule",
    "choice",
    "finite_rule",
    "image_shape",
    "images",
    "images_spec",
    "in_levels",
    "integer",
    "integers",
    "latents",
    "levels_rule",
    "mask",
    "mask_rule",
    "names",
    "number",
    "refusal",
    "rows_rule",
    "same_rows",
    "sampling_options",
    "seed",
    "seeds",
    "shape_advice",
    "temperature_rule",
    "temperatures",
]
