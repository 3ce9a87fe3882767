"""The rules of numbers and choices."""

import math
import numbers
import operator
from typing import Any

import numpy as np

_INT64 = np.iinfo(np.int64)


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
    number = as_int(value)
    too_large = number is not None and maximum is not None and number > maximum
    if number is None or number < minimum or too_large:
        if maximum is not None:
            rule = f"an integer in {minimum}..{maximum}"
        elif minimum == 1:
            rule = "a positive integer"
        else:
            rule = f"an integer of at least {minimum}"
        raise refusal(
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
        found = tuple(map(as_int, value))
    except TypeError:
        found = ()
    if len(found) != len(of) or any(number is None or number < 1 for number in found):
        raise refusal(
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
        raise refusal(f"`{name}` must be {rule}.", f"{name}={value!r}", advice)
    return value


def sampling_options(options, defaults):
    """Options of a model's sampling, checked.

    Args:
        options: dict of name to value.
        defaults: dict of the names that the model has to their defaults.

    Returns:
        dict of every name to an int.

    Raises:
        ValueError: a name is unknown, or a value is not a positive integer.
    """
    unknown = sorted(options.keys() - defaults.keys())
    if unknown:
        raise refusal(
            f"Sampling options must be those of the model, {sorted(defaults) or 'none'}"
            ".",
            ", ".join(f"{name}={options[name]!r}" for name in unknown),
            "Check the name, or leave it out.",
        )
    return {
        name: integer(name, options.get(name, default))
        for name, default in defaults.items()
    }


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
    raise refusal(
        f"`{name}` must be {' or '.join(filter(None, [', '.join(first), last]))}.",
        f"{name}={value!r}",
        advice,
    )


def names(name, values, *, of):
    """Check that a mapping has a value for each of a few names, and for no other.

    Args:
        name: str, the argument's.
        values: a mapping.
        of: the names, each a str.

    Raises:
        ValueError: a name is missing, or there is an unknown one.
    """
    if set(values) != set(of):
        raise refusal(
            f"`{name}` by name must have exactly the keys {', '.join(map(repr, of))}.",
            f"{name}={dict(values)!r}",
            "Give each of them a value, equal ones where you have no choice to make.",
        )


def seed(value):
    """Check a seed: an int that fits in int64.

    Raises:
        ValueError: it is something else.
    """
    number = as_int(value)
    if number is None or not _INT64.min <= number <= _INT64.max:
        raise refusal(
            "`seed` must be an integer that fits in int64.",
            f"seed={value!r}",
            "Pass an int, or draw one with numpy.",
        )
    return number


def refusal(rule, received, advice=""):
    """The ValueError that states a rule, what was received and the next step."""
    return ValueError(f"{rule} Received: {received}. {advice}".rstrip())


def as_int(value):
    """The int that a value is, or `None`: a bool and a float are none."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
