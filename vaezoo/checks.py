"""The rules of what comes from outside, each written once.

Every check returns the value that it has checked, in the type that the code goes on
with, or raises a ValueError that states the rule, what was received and the next step.
The functions named `..._rule` are the sentences alone: the graphs of training steps and
of exports, which check values that Python never sees, say the same ones.

Nothing here needs TensorFlow; its eager tensors are arrays to NumPy.
"""

import math
import numbers
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

_INT64 = np.iinfo(np.int64)


# Numbers.


def integer(name, value, *, minimum=1, maximum=None, optional=False, advice="") -> Any:
    """Check a count, such as of images or epochs.

    Args:
        name: str, the argument's.
        value: an int or a NumPy integer; no bool.
        minimum: int, the least that it may be.
        maximum: int, the most that it may be, or `None`.
        optional: bool. Whether `None` is allowed too.
        advice: str, the next step, where there is more to say than the rule.

    Returns:
        An int, or `None`.

    Raises:
        ValueError: it is something else.
    """
    if value is None and optional:
        return None
    number = _as_int(value)
    too_large = number is not None and maximum is not None and number > maximum
    if number is None or number < minimum or too_large:
        if maximum is not None:
            rule = f"an integer in {minimum}..{maximum}"
        elif minimum == 1:
            rule = "a positive integer"
        else:
            rule = f"an integer of at least {minimum}"
        raise _refusal(
            f"`{name}` must be {rule}{' or None' * optional}.",
            f"{name}={value!r}",
            advice,
        )
    return number


def integers(name, value, *, of, advice=""):
    """Check positive integers that belong together, such as the sizes of an image.

    Args:
        name: str, the argument's.
        value: a sequence of ints or NumPy integers.
        of: tuple of str, what each of them is.
        advice: str, the next step, where there is more to say than the rule.

    Returns:
        A tuple of ints.

    Raises:
        ValueError: it is something else, or of another length.
    """
    try:
        found = tuple(map(_as_int, value))
    except TypeError:
        found = ()
    if len(found) != len(of) or any(number is None or number < 1 for number in found):
        raise _refusal(
            f"`{name}` must be ({', '.join(of)}), {len(of)} positive integers.",
            f"{name}={value!r}",
            advice,
        )
    return found


def image_shape(value):
    """Check the sizes of an image: a tuple of ints `(height, width, channels)`."""
    return integers("image_shape", value, of=("height", "width", "channels"))


def number(
    name,
    value,
    *,
    above=None,
    below=None,
    minimum=None,
    maximum=None,
    optional=False,
    advice="",
) -> Any:
    """Check a finite number, such as of nats or seconds.

    Args:
        name: str, the argument's.
        value: an int, a float or a number of NumPy's; no bool.
        above, below: floats, between which it must be, or `None`.
        minimum, maximum: floats, the least and the most that it may be, or `None`.
        optional: bool. Whether `None` is allowed too.
        advice: str, the next step, where there is more to say than the rule.

    Returns:
        The value as it is.

    Raises:
        ValueError: it is something else.
    """
    if value is None and optional:
        return None
    all_bounds = {
        "above": (operator.gt, above),
        "at least": (operator.ge, minimum),
        "below": (operator.lt, below),
        "at most": (operator.le, maximum),
    }
    bounds = {
        word: (holds, bound)
        for word, (holds, bound) in all_bounds.items()
        if bound is not None
    }
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not math.isfinite(value)
        or not all(holds(value, bound) for holds, bound in bounds.values())
    ):
        limits = " and ".join(f"{word} {bound}" for word, (_, bound) in bounds.items())
        rule = f"a finite number{', ' * bool(limits)}{limits}{' or None' * optional}"
        raise _refusal(f"`{name}` must be {rule}.", f"{name}={value!r}", advice)
    return value


def choice(name, value, allowed, *, advice=""):
    """Check that a value is one of a few.

    Args:
        name: str, the argument's.
        value: anything.
        allowed: the values that it may have.
        advice: str, the next step, where there is more to say than the rule.

    Returns:
        The allowed value that it equals.

    Raises:
        ValueError: it is none of them.
    """
    for other in allowed:
        if value == other and isinstance(value, bool) == isinstance(other, bool):
            return other
    *first, last = map(repr, allowed)
    raise _refusal(
        f"`{name}` must be {' or '.join(filter(None, [', '.join(first), last]))}.",
        f"{name}={value!r}",
        advice,
    )


# The arguments of a model's methods, and of a client's.


def array_rule(name, dtype, shape):
    """The rule of an array of rows `[n, *shape]`, `None` for a size that is free."""
    sizes = ["any" if size is None else str(size) for size in shape]
    return f"`{name}` must be {dtype} [{', '.join(['n', *sizes])}]."


def levels_rule(name, levels):
    """The rule of an array's values."""
    return f"`{name}` must have values in 0..{levels - 1}."


def rows_rule(names):
    """The rule of arrays that go together, row by row."""
    names = " and ".join(f"`{name}`" for name in names)
    return f"{names} must have the same number of rows."


def finite_rule(name):
    """The rule of floats."""
    return f"`{name}` must be finite."


def temperature_rule():
    """The rule of temperatures."""
    return (
        "`temperature` must be positive and finite, a number or one a row; 1 is the "
        "model."
    )


def images_spec(images, *, image_shape, name="images"):
    """Check the dtype and the shape of images: all that is known of them in a graph.

    Args:
        images: array or tensor, some of whose sizes may not be known; or what NumPy
            makes an array of.
        image_shape: `(height, width, channels)`, each an int, or `None` for any.
        name: str, the argument's.

    Returns:
        The images: the array or tensor.

    Raises:
        ValueError: they are not uint8 `[n, height, width, channels]`.
    """
    rule = array_rule(name, "uint8", image_shape)
    if not hasattr(images, "dtype"):
        images = _as_array(rule, images)
    if images.dtype.name != "uint8":
        raise _refusal(
            rule,
            f"dtype={images.dtype.name}",
            f"Scaling is the model's: pass integer levels, `{name}.astype('uint8')`.",
        )
    try:
        shape = tuple(images.shape)
    except ValueError:  # of a tensor whose rank is not known
        shape = ()
    if len(shape) != 4 or any(
        None not in (size, expected) and size != expected
        for size, expected in zip(shape[1:], image_shape, strict=True)
    ):
        raise _refusal(
            rule,
            f"shape={images.shape}",
            "Resize or reshape them, or load the model with `image_shape=`.",
        )
    return images


def images(value, *, image_shape, levels=256, name="images"):
    """Check images.

    Args:
        value: what NumPy makes an array of.
        image_shape: `(height, width, channels)`, each an int, or `None` for any.
        levels: int. Values a channel takes; 256 where that is not known.
        name: str, the argument's.

    Returns:
        A uint8 array `[n, height, width, channels]`, n of at least 1.

    Raises:
        ValueError: they are something else, or there is none.
    """
    rule = array_rule(name, "uint8", image_shape)
    array = images_spec(_as_array(rule, value), image_shape=image_shape, name=name)
    if len(array) == 0:
        raise _refusal(
            f"`{name}` must have at least one row.",
            f"shape={array.shape}",
            "Pass a batch of one or more.",
        )
    return in_levels(array, levels, name=name)


def in_levels(array, levels, *, name="images"):
    """Check the values of images: the array as it is, or a ValueError."""
    largest = np.max(array, initial=0) if levels < 256 else 0
    if largest >= levels:
        if name == "mask":
            advice = "1 marks a pixel to be filled in."
        elif levels == 2:
            advice = f"Binarize first, as `({name} > 127).astype('uint8')`."
        else:
            advice = f"Reduce them to {levels} levels first."
        raise _refusal(levels_rule(name, levels), f"values up to {largest}", advice)
    return array


def mask(value, *, image_shape):
    """Check a mask of pixels: uint8 `[n, height, width, 1]` of 0 and 1.

    Args and errors: as of `images`.
    """
    return images(value, image_shape=(*image_shape[:2], 1), levels=2, name="mask")


def same_rows(**arrays):
    """Check that arrays have as many rows as each other; returns how many.

    Raises:
        ValueError: they have not.
    """
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) != 1:
        received = ", ".join(f"{size} of {name}" for name, size in sizes.items())
        raise _refusal(rows_rule(sizes), received, "Row i of each goes with row i.")
    return next(iter(sizes.values()))


def seed(value):
    """Check a seed: an int that fits in int64.

    Raises:
        ValueError: it is something else.
    """
    number = _as_int(value)
    if number is None or not _INT64.min <= number <= _INT64.max:
        raise _refusal(
            "`seed` must be an integer that fits in int64.",
            f"seed={value!r}",
            "Pass an int, or draw one with numpy.",
        )
    return number


def seeds(value, num):
    """Check the seed of `num` rows.

    Args:
        value: an int that fits in int64, or int64 `[num]`, one a row.
        num: int.

    Returns:
        An int, or an int64 array `[num]`.

    Raises:
        ValueError: it is something else.
    """
    if np.ndim(value) == 0:
        return seed(value)
    rule = f"`seed` must be an int, or int64 [{num}], one a row."
    array = _as_array(rule, value)
    if array.shape != (num,) or array.dtype != np.int64:
        raise _refusal(
            rule,
            f"shape={array.shape}, dtype={array.dtype}",
            "`vaezoo.row_seeds(seed, n)` makes such an array.",
        )
    return array


def temperatures(temperature, num):
    """Check the temperatures of `num` rows.

    Args:
        temperature: float above 0, or `[num]`, one a row.
        num: int.

    Returns:
        A float32 array `[num]`.

    Raises:
        ValueError: one is not positive and finite, or the shape is another.
    """
    rule = temperature_rule()
    array = _as_array(rule, temperature)
    if not _is_numeric(array) or array.shape not in ((), (num,)):
        raise _refusal(
            rule,
            f"dtype={array.dtype}, shape={array.shape}",
            f"Pass a float, or floats [{num}].",
        )
    array = _as_float32(array)
    if not np.all((array > 0) & np.isfinite(array)):
        raise _refusal(rule, f"temperature={temperature!r}")
    return np.broadcast_to(array, [num])


def latents(values, *, latent_shapes):
    """Check the latents of a few images.

    Args:
        values: mapping of a latent's name to numbers `[n, ...]`.
        latent_shapes: dict of a latent's name to the shape of a row.

    Returns:
        dict of name to float32 `[n, ...]`, n of at least 1 and the same for all.

    Raises:
        ValueError: a latent is missing, unknown, of another shape or not finite.
    """
    wanted = " and ".join(
        f"{name} [{', '.join(map(str, ['n', *shape]))}]"
        for name, shape in latent_shapes.items()
    )
    rule = (
        f"`latents` must hold exactly {wanted or 'nothing'}, floats with one n of at "
        "least 1."
    )
    if not latent_shapes:
        raise _refusal(
            rule, f"{values!r}", "The model has no latents: use `sample` instead."
        )
    if not isinstance(values, Mapping):
        raise _refusal(rule, f"a {type(values).__name__}", _ENCODE)
    arrays = {name: _as_array(rule, value) for name, value in values.items()}
    if (
        arrays.keys() != latent_shapes.keys()
        or not all(map(_is_numeric, arrays.values()))
        or any(arrays[k].shape[1:] != shape for k, shape in latent_shapes.items())
        or not all(array.ndim for array in arrays.values())
        or len({len(array) for array in arrays.values()}) != 1
        or not all(map(len, arrays.values()))
    ):
        received = ", ".join(
            f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items()
        )
        raise _refusal(rule, received or "none", _ENCODE)
    arrays = {name: _as_float32(arrays[name]) for name in latent_shapes}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            value = array[~np.isfinite(array)][0]
            raise _refusal(finite_rule(name), f"{name} with {value}", _ENCODE)
    return arrays


_ENCODE = "`encode` returns such a dict."


def _refusal(rule, received, advice=""):
    return ValueError(f"{rule} Received: {received}. {advice}".rstrip())


def _as_int(value):
    """The int that a value is, or `None`: a bool and a float are none."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _as_array(rule, value):
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise _refusal(rule, f"a {type(value).__name__} ({error})") from error
    if array.dtype == object:
        raise _refusal(rule, f"a {type(value).__name__}, of which there is no array")
    return array


def _is_numeric(array):
    # NumPy has no kind for bfloat16.
    return array.dtype.kind in "iuf" or array.dtype.name == "bfloat16"


def _as_float32(array):
    with np.errstate(over="ignore"):  # infinity, which is refused
        return array.astype(np.float32)
