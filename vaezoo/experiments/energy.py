"""Energy distances of images, as the authors of PixelCNN++ measure them.

Images are uint8 of 0 to 255, binary ones of 0 and 255.
"""

import numpy as np


def energy_distances(images, others):
    """The sum over pixels of `(1e-10 + |a - b|^2)^.75`, a and b a pixel's colours.

    Args:
        images, others: uint8 `[..., height, width, channels]` that broadcast, of 0 to
            255.

    Returns:
        float64 `[...]`.
    """
    differences = np.asarray(images, np.float64) - others
    squares = (differences**2).sum(axis=-1)
    return ((1e-10 + squares) ** 0.75).sum(axis=(-2, -1))


def mutual_distances(rows):
    """Mean energy distance between two images of a row.

    Args:
        rows: uint8 `[rows, images, height, width, channels]`, of 0 to 255.

    Returns:
        float64 `[rows]`.
    """
    first, second = np.triu_indices(rows.shape[1], 1)
    pairs = zip(first, second, strict=True)
    distances = [energy_distances(rows[:, i], rows[:, j]) for i, j in pairs]
    return np.mean(distances, axis=0)


def energy_scores(images, rows):
    """How far an image is from a row: `2 mean d(image, row) - mutual distance`.

    Args:
        images: uint8 `[rows, height, width, channels]`, of 0 to 255.
        rows: uint8 `[rows, images, height, width, channels]`, of 0 to 255.

    Returns:
        float64 `[rows]`.
    """
    distances = energy_distances(images[:, None], rows).mean(axis=1)
    return 2 * distances - mutual_distances(rows)
