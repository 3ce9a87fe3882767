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


class ConcatenatedImages:
    """Several splits as one, in order.

    Args:
        parts: list of `Images` of one shape, none of them empty.
    """

    def __init__(self, parts):
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def gather(self, indices):
        import tensorflow as tf

        images, start = None, 0
        for part in self._parts:
            inside = tf.clip_by_value(indices - start, 0, len(part) - 1)
            gathered = part.gather(inside)
            if images is None:
                images = gathered
            else:
                is_here = tf.reshape(indices >= start, [-1, 1, 1, 1])
                images = tf.where(is_here, gathered, images)
            start += len(part)
        return images


class MappedImages:
    """Images in a file, of which only those asked for are read into memory.

    Args:
        path: a `.npy` file of uint8 `[num_images, height, width, channels]`.
    """

    def __init__(self, path):
        self._images = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._images)

    def gather(self, indices):
        import tensorflow as tf

        images = tf.numpy_function(
            lambda rows: np.array(self._images[rows]), [indices], tf.uint8
        )
        return tf.ensure_shape(images, [indices.shape[0], *self._images.shape[1:]])


class HalvedImages:
    """Images of half the height and width, the integer means of 2x2 levels.

    Args:
        images: `Images` of an even height and width.
    """

    def __init__(self, images):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def gather(self, indices):
        import tensorflow as tf

        images = tf.cast(self._images.gather(indices), tf.int32)
        rows = images[:, ::2] + images[:, 1::2]
        return tf.cast((rows[:, :, ::2] + rows[:, :, 1::2]) // 4, tf.uint8)
