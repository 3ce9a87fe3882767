"""Where the time of a training step goes: `vaezoo train --profile`."""

import collections
import re
import sys
import time
from pathlib import Path

import keras
import tensorflow as tf

from vaezoo import plots

_NUM_SHOWN = 12  # kinds of operations in the table
# "layer/Relu:Relu"; "ExecutorState::Process" and the like are no operations. oneDNN's
# and the fused ones have the plain names that they stand for.
_OPERATION = re.compile(r"[^:]+:(?:_MklNative|_Mkl|_(?=Fused))?(\w+)")
# They last as long as what they call or wait for, which is counted by itself.
_CALLERS = re.compile(r"PartitionedCall$|While$|If$|Case$|^_")


class Profile(keras.callbacks.Callback):
    """Traces a few training steps for TensorBoard, and prints a summary.

    Args:
        folder: where TensorBoard looks.
        first: int. Steps of this `fit` that are left out: they trace and compile.
        steps: int. Steps traced.
    """

    def __init__(self, folder, *, first=5, steps=10):
        super().__init__()
        self._folder = Path(folder)
        self._first, self._last = first, first + steps
        self._steps = steps
        self._done = 0
        self._start = None

    def on_train_batch_begin(self, batch, logs=None):
        if self._done == self._first:
            tf.profiler.experimental.start(str(self._folder))
            self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self._done += 1
        if self._done == self._last:
            self._finish()

    def on_train_end(self, logs=None):
        if self._first < self._done < self._last:
            self._steps = self._done - self._first
            self._finish()

    def _finish(self):
        seconds = time.perf_counter() - self._start
        self._done = self._last
        tf.profiler.experimental.stop()
        newest = max(self._folder.rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)
        print(
            f"\n{summary(newest, steps=self._steps, seconds=seconds)}\n"
            f"The trace is in {self._folder}: tensorboard --logdir {self._folder}",
            file=sys.stderr,
        )


def summary(path, *, steps, seconds):
    """What a trace says of the processor's time, as text with a Markdown table.

    Args:
        path: an `.xplane.pb` file of TensorFlow's profiler.
        steps: int, training steps in it.
        seconds: float, their wall-clock time.

    Returns:
        A str.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace.FromString(Path(path).read_bytes())
    plane = next(plane for plane in space.planes if plane.name == "/host:CPU")
    times, counts = collections.Counter(), collections.Counter()
    waiting = 0.0
    for line in plane.lines:
        for event in line.events:
            name = plane.event_metadata[event.metadata_id].name
            milliseconds = event.duration_ps / 1e9 / steps
            if name.startswith("IteratorGetNextOp"):
                waiting += milliseconds
            elif line.name.startswith("tf_Compute"):
                operation = _OPERATION.fullmatch(name)
                if operation and not _CALLERS.search(operation[1]):
                    times[operation[1]] += milliseconds
                    counts[operation[1]] += 1
    total = sum(times.values())
    step = 1000 * seconds / steps
    shown = times.most_common(_NUM_SHOWN)
    rows = [
        [kind, f"{value:.2f}", f"{value / total:.0%}", f"{counts[kind] / steps:.0f}"]
        for kind, value in shown
    ]
    rest = total - sum(value for _, value in shown)
    rows.append(["others", f"{rest:.2f}", f"{rest / total:.0%}", ""])
    table = plots.markdown_table(["operation", "ms a step", "share", "a step"], rows)
    return (
        f"A step takes {step:.1f} ms, of which it waits {waiting:.1f} ms for data. "
        f"{total / step:.2f} operations run at a time; their times on the CPU:\n\n"
        f"{table}"
    )
