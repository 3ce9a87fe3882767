"""Grids of images and bars as PNG files, tables as Markdown."""

import math
from pathlib import Path

import numpy as np
import tensorflow as tf

from vaezoo.files import atomic_path

_MIN_SIDE = 64  # smaller images are enlarged by whole pixels to about this size


def image_grid(images, *, columns=None, levels=256):
    """Arrange images in one picture, with a gap of one pixel.

    Args:
        images: uint8 `[n, height, width, channels]`, n of at least 1, 1 or 3 channels.
        columns: int. Images a row of the grid; `None` for a square one.
        levels: int. 2 shows {0, 1} as black and white.

    Returns:
        uint8 `[grid height, grid width, channels]`.

    Raises:
        ValueError: if the shape is wrong.
    """
    images = np.asarray(images)
    if images.ndim != 4 or len(images) == 0 or images.shape[-1] not in (1, 3):
        raise ValueError(
            "`images` must be uint8 [n, height, width, 1 or 3], n at least 1. "
            f"Received: shape={images.shape}."
        )
    images = (images * (255 // (levels - 1))).astype(np.uint8)
    scale = max(1, round(_MIN_SIDE / max(images.shape[1:3])))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    num, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    grid = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 128)
    for index, image in enumerate(images):
        top = index // columns * (height + 1) + 1
        left = index % columns * (width + 1) + 1
        grid[top : top + height, left : left + width] = image
    return grid.astype(np.uint8)


def save_png(path, image):
    """Write a uint8 picture `[height, width, 1 or 3]` as PNG, whole or not at all.

    Raises:
        OSError: if the file cannot be written.
    """
    data = tf.io.encode_png(image).numpy()
    with atomic_path(Path(path)) as temporary:
        Path(temporary).write_bytes(data)


def bars(values, *, height=100, width=24):
    """A bar chart without labels: white bars on black, the highest of full height.

    Args:
        values: floats `[n]`, n of at least 1, not negative.
        height, width: ints. Pixels of the highest bar and of each bar.

    Returns:
        uint8 `[height + 2, n * (width + 8) + 8, 1]`.
    """
    values = np.maximum(np.asarray(values, np.float64), 0.0)
    picture = np.zeros([height + 2, len(values) * (width + 8) + 8, 1], np.uint8)
    for index, value in enumerate(values / max(values.max(), 1e-12)):
        left = 8 + index * (width + 8)
        top = height + 1 - round(value * height)
        picture[top : height + 1, left : left + width] = 255
    return picture


def markdown_table(header, rows):
    """A Markdown table, a line a row, ending with a new line."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
