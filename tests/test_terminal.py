"""Lines of progress."""

import io
import sys

import pytest

from vaezoo import terminal


class Stream(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.isatty = lambda: is_terminal


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress(is_terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(is_terminal))
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    progress = terminal.Progress(4000)
    for step in range(1, 5):
        now[0] += 8
        progress.update(1000 * step, "elbo -1.0")
    text = sys.stderr.getvalue()
    if is_terminal:
        lines = text.split("\r")[1:]
        assert len(lines) == 4 and lines[-1].endswith("\n")
        assert lines[0].rstrip() == "1,000/4,000 images, elbo -1.0, 24 s left"
    else:  # a line after more than 10 seconds, and at the end
        assert text == (
            "2,000/4,000 images, elbo -1.0, 16 s left\n"
            "4,000/4,000 images, elbo -1.0, 0 s left\n"
        )


def test_durations():
    durations = [terminal.duration(seconds) for seconds in (0.2, 59, 90, 5400)]
    assert durations == ["1 s", "59 s", "1.5 min", "1.5 h"]
