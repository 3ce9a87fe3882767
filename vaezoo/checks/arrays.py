"""The rules of arrays: images, masks, seeds, temperatures, latents."""

from collections.abc import Mapping

import numpy as np

from vaezoo.checks.scalars import refusal, seed


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


def binary_rule(name):
    """The rule of draws of binary units."""
    return f"`{name}` must be exactly 0 or 1."


def temperature_rule():
    """The rule of temperatures."""
    return (
        "`temperature` must be positive and finite, a number or one a row; 1 is the "
        "model."
    )


def images_spec(images, *, image_shape, levels=256, name="images"):
    """Check the dtype and the shape of images: all that is known of them in a graph.

    Args:
        images: array or tensor, some of whose sizes may not be known; or what NumPy
            makes an array of.
        image_shape: `(height, width, channels)`, each an int, or `None` for any.
        levels: int. Values a channel takes.
        name: str, the argument's.

    Returns:
        The images: the array or tensor.

    Raises:
        ValueError: they are not uint8 `[n, height, width, channels]`.
    """
    rule = array_rule(name, "uint8", image_shape)
    if not hasattr(images, "dtype"):
        images = _as_array(rule, images)
    if _dtype_name(images) != "uint8":
        raise refusal(
            rule,
            f"dtype={_dtype_name(images)}{_range(images)}",
            _levels_advice(name, images, levels),
        )
    try:
        shape = tuple(images.shape)
    except ValueError:  # of a tensor whose rank is not known
        return images
    if len(shape) != 4 or any(
        None not in (size, expected) and size != expected
        for size, expected in zip(shape[1:], image_shape, strict=True)
    ):
        raise refusal(rule, f"shape={images.shape}", shape_advice())
    return images


def shape_advice():
    """The next step for images of another shape."""
    return "Resize or reshape them, or load the model with `image_shape=`."


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
    array = _as_array(rule, value)
    images_spec(array, image_shape=image_shape, levels=levels, name=name)
    if len(array) == 0:
        raise refusal(
            f"`{name}` must have at least one row.",
            f"shape={array.shape}",
            "Pass a batch of one or more.",
        )
    return in_levels(array, levels, name=name)


def in_levels(array, levels, *, name="images"):
    """Check the values of uint8 images: the array as it is, or a ValueError."""
    largest = np.max(array, initial=0) if levels < 256 else 0
    if largest >= levels:
        raise refusal(
            levels_rule(name, levels),
            f"values up to {largest}",
            _levels_advice(name, array, levels),
        )
    return array


def _levels_advice(name, images, levels):
    """How to make levels of the values received; unknown ones are of a graph."""
    array = _known_values(images)
    if array is None:
        return f"Pass whole levels in 0..{levels - 1}, by `.astype('uint8')`."
    low, high = np.min(array), np.max(array)
    if 0 <= low and high < levels and np.array_equal(array, np.floor(array)):
        return f"They are levels already: `{name}.astype('uint8')`."
    if levels == 2 and np.isfinite([low, high]).all():
        middle = float(high) / 2 if low >= 0 else (float(low) + float(high)) / 2
        return f"Binarize them, as `({name} > {middle:.4g}).astype('uint8')`."
    top = levels - 1
    if low >= 0 and high <= 1:
        return f"Scale them, as `({name} * {top}).round().astype('uint8')`."
    if -1 <= low < 0 and high <= 1:
        half = f"{top / 2:g}"
        return f"Scale them, as `(({name} + 1) * {half}).round().astype('uint8')`."
    if 0 <= low and high <= 255 and levels < 256:
        step = int(high) // levels + 1
        return f"Reduce them, as `({name} // {step}).astype('uint8')`."
    return f"Scale them to whole levels in 0..{top}, and `.astype('uint8')`."


def _range(images):
    array = _known_values(images)
    return (
        "" if array is None else f", values {np.min(array):.4g} to {np.max(array):.4g}"
    )


def _known_values(images):
    """Numbers as an array; `None` where there are none, or of a graph."""
    try:
        array = np.asarray(images)
    except (TypeError, ValueError, NotImplementedError):
        return None
    if not array.size or not (_is_numeric(array) or array.dtype == bool):
        return None
    return array.astype(np.float32 if array.dtype != np.float64 else np.float64)


def mask_rule(image_shape):
    """The rule of a mask of pixels."""
    height, width = image_shape[:2]
    return (
        f"`mask` must be uint8 or bool [n, {height}, {width}, 1], or one mask "
        f"[{height}, {width}, 1] for all images; 1 marks a pixel to be filled in."
    )


def mask(value, *, image_shape, num):
    """Check a mask of pixels, 1 where a pixel is to be filled in.

    Args:
        value: uint8 or bool `[num, height, width, 1]`, or `[height, width, 1]`, one
            for all images; of 0 and 1.
        image_shape: `(height, width, channels)` of the images.
        num: int, how many images there are.

    Returns:
        A uint8 array `[num, height, width, 1]`.

    Raises:
        ValueError: it is something else.
    """
    rule = mask_rule(image_shape)
    array = _as_array(rule, value)
    if array.dtype not in (bool, np.uint8):
        advice = "Use `mask.astype(bool)`, if 1 and 0 are what it holds."
        raise refusal(rule, f"dtype={array.dtype}", advice)
    shape = (*image_shape[:2], 1)
    if array.shape not in (shape, (num, *shape)):
        received = f"shape={array.shape} for {num} image{'s' * (num > 1)}"
        advice = "Give it a last axis of 1, as `mask[..., None]`."
        if array.shape[1:] == shape:
            advice = "Row i goes with image i; `mask[0]` is one for all."
        raise refusal(rule, received, advice)
    if np.max(array, initial=0) > 1:
        advice = "Use `mask > 0`, if every other value marks a pixel."
        raise refusal(rule, f"values up to {np.max(array)}", advice)
    return np.broadcast_to(array.astype(np.uint8), (num, *shape))


def same_rows(**arrays):
    """Check that arrays have as many rows as each other; returns how many.

    Raises:
        ValueError: they have not.
    """
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) != 1:
        received = ", ".join(f"{size} of {name}" for name, size in sizes.items())
        raise refusal(rows_rule(sizes), received, "Row i of each goes with row i.")
    return next(iter(sizes.values()))


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
        raise refusal(
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
        raise refusal(
            rule,
            f"dtype={array.dtype}, shape={array.shape}",
            f"Pass a float, or floats [{num}].",
        )
    array = _as_float32(array)
    if not np.all((array > 0) & np.isfinite(array)):
        raise refusal(rule, f"temperature={temperature!r}")
    return np.broadcast_to(array, [num])


def latents(values, *, latent_shapes, binary=()):
    """Check the latents of a few images.

    Args:
        values: mapping of a latent's name to numbers `[n, ...]`.
        latent_shapes: dict of a latent's name to the shape of a row.
        binary: names of the latents that are 0 or 1.

    Returns:
        dict of name to float32 `[n, ...]`, n of at least 1 and the same for all.

    Raises:
        ValueError: a latent is missing, unknown, of another shape or not finite, or
            neither 0 nor 1 where it is binary.
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
        raise refusal(
            rule, f"{values!r}", "The model has no latents: use `sample` instead."
        )
    if not isinstance(values, Mapping):
        raise refusal(rule, f"a {type(values).__name__}", _ENCODE)
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
        raise refusal(rule, received or "none", _ENCODE)
    arrays = {name: _as_float32(arrays[name]) for name in latent_shapes}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            value = array[~np.isfinite(array)][0]
            raise refusal(finite_rule(name), f"{name} with {value}", _ENCODE)
        others = array[(array != 0) & (array != 1)] if name in binary else array[:0]
        if others.size:
            received = f"{name} with {others.flat[0]}"
            raise refusal(binary_rule(name), received, _ENCODE)
    return arrays


_ENCODE = "`encode` returns such a dict."


def _as_array(rule, value):
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise refusal(rule, f"a {type(value).__name__} ({error})") from error
    if array.dtype == object:
        raise refusal(rule, f"a {type(value).__name__}, of which there is no array")
    return array


def _dtype_name(array):
    # A `tf.DType` has a name, the str of a `KerasTensor` is one.
    return getattr(array.dtype, "name", array.dtype)


def _is_numeric(array):
    # NumPy has no kind for bfloat16.
    return array.dtype.kind in "iuf" or array.dtype.name == "bfloat16"


def _as_float32(array):
    with np.errstate(over="ignore"):  # infinity, which is refused
        return array.astype(np.float32)
