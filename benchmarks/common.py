"""What the benchmarks share: timing, tables, and the networks of the speed goals."""

import os
import platform
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf


def seconds(function, *args, repeats=5, warm_up=True):
    """Smallest wall-clock time of `function(*args)` over `repeats` calls."""
    if warm_up:
        _finish(function(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        _finish(function(*args))
        times.append(time.perf_counter() - start)
    return min(times)


def _finish(result):
    for tensor in tf.nest.flatten(result):
        np.asarray(tensor)


def print_machine():
    """The line that every table needs above it."""
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"TensorFlow {tf.__version__}, load {os.getloadavg()[0]:.2f}\n"
    )


def print_table(header, rows):
    """Print a Markdown table."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("| " + " | ".join(padded) + " |")
    print(flush=True)


def masked_network(num_colours=1, num_outputs=1):
    """The masked PixelCNN of the goals: 8 masked 3x3 layers of 64 filters."""
    from vaezoo.layers.pixelcnn import PixelCNN

    network = PixelCNN(
        num_colours=num_colours,
        num_outputs=num_outputs,
        filters=64,
        num_layers=8,
        kernel_size=3,
        first_kernel_size=3,
        head_filters=(),
    )
    network(tf.zeros([1, 28, 28, num_colours]))
    return network
