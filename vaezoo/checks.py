"""The rules of what comes from outside, each written once.

Every check returns the value that it has checked, in the type that the code goes on
with, or raises a ValueError that states the rule, what was received and the next step.
"""

import operator


def integer(name, value, *, minimum=1, optional=False, advice=""):
    """Check a count, such as of images or epochs.

    Args:
        name: str, the argument's.
        value: an int or a NumPy integer; no bool.
        minimum: int, the least that it may be.
        optional: bool. Whether `None` is allowed too.
        advice: str, the next step, where there is more to say than the rule.

    Returns:
        An int, or `None`.

    Raises:
        ValueError: it is something else.
    """
    if value is None and optional:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < minimum:
        rule = "a positive integer" if minimum == 1 else f"an integer >= {minimum}"
        raise ValueError(
            f"`{name}` must be {rule}{' or None' * optional}. "
            f"Received: {name}={value!r}.{f' {advice}' * bool(advice)}"
        )
    return number
