"""How far a long task is, told on the error stream."""

import math
import sys
import time

_SECONDS_BETWEEN_LINES = 10.0  # where nobody sees them move


class Progress:
    """A line of progress: `done/total unit, text, time left`.

    On a terminal it is written over and over. Elsewhere, in a pipe or a log, a new line
    comes now and then and at the end, without control characters.

    Args:
        total: int, how many there are.
        unit: str, what of.
    """

    def __init__(self, total, unit="images"):
        self._total, self._unit = total, unit
        self._start = self._shown = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def update(self, done, text=""):
        """Tell that `done` of them are done, and whatever else there is to say."""
        now = time.monotonic()
        is_due = now - self._shown >= _SECONDS_BETWEEN_LINES or done == self._total
        if not self._is_terminal and not is_due:
            return
        self._shown = now
        left = duration((now - self._start) * (self._total - done) / done)
        parts = [f"{done:,}/{self._total:,} {self._unit}", text, f"{left} left"]
        line = ", ".join(part for part in parts if part)
        if self._is_terminal:
            line = f"\r{line:<72}"
        end = "" if self._is_terminal and done < self._total else "\n"
        print(line, end=end, file=sys.stderr, flush=True)


def duration(seconds):
    """Seconds as a reader wants them: "40 s", "2.5 min", "1.5 h"."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{math.ceil(seconds)} s"
