"""Grids of images as PNG files."""

import math
from pathlib import Path

import numpy as np
import tensorflow as tf

from vaezoo import weights

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
    with weights.atomic_path(Path(path)) as temporary:
        Path(temporary).write_bytes(data)
