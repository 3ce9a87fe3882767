"""Images addressed by index: what every dataset reads a split into."""

from typing import Protocol

import numpy as np


class Images(Protocol):
    """The stored images of one split."""

    def __len__(self) -> int:
        """Returns the number of images."""

    def gather(self, indices):
        """Returns uint8 `[batch, height, width, channels]`, as a graph function.

        Args:
            indices: int64 tensor `[batch]`.
        """


class ImageArray:
    """Images held in memory.

    Args:
        images: uint8 array `[num_images, height, width, channels]`.
    """

    def __init__(self, images: np.ndarray):
        import tensorflow as tf

        with tf.device("CPU"):
            self._images = tf.constant(images, tf.uint8)

    def __len__(self) -> int:
        return int(self._images.shape[0])

    def gather(self, indices):
        import tensorflow as tf

        return tf.gather(self._images, indices)
