"""Batches as `fit` is given them: their images, and their rows among all replicas'."""

import contextlib
import math
import re

import keras
import numpy as np
import tensorflow as tf

from vaezoo import checks, sampling


def images_in(data):
    """The images of a batch: images | (images, ...) | {"image": images, ...}.

    Raises:
        ValueError: a dict has no images, or the images come with weights.
    """
    if isinstance(data, dict):
        if "image" not in data:
            raise ValueError(
                "A dict of data must have the key 'image'. Received: "
                f"keys={sorted(data)}. Rename the key, or map to the images."
            )
        return data["image"]
    if isinstance(data, tuple | list):
        # Keras puts `sample_weight`, and what it makes of `class_weight`, third.
        if len(data) == 3 and data[2] is not None:
            raise ValueError(
                "Every image counts alike: a model takes no weights of images. "
                "Received: sample_weight or class_weight, or data of three parts. "
                "Draw images as often as they should count, as by "
                "`tf.data.Dataset.sample_from_datasets`."
            )
        return images_in(data[0])
    return data


def checked(images, *, image_shape, levels):
    """uint8 images `[batch, height, width, channels]`, all of whose rules hold.

    Args:
        images: an array or a tensor. In a graph, what is not known of its shape, and
            its values, are asserted there, with the words of the errors here.
        image_shape: `(height, width, channels)`, each an int, or `None` for any.
        levels: int. Values a channel takes.

    Raises:
        ValueError: they break a rule, as far as it can be seen here.
    """
    images = checks.images_spec(images, image_shape=image_shape, levels=levels)
    if tf.executing_eagerly():
        return tf.convert_to_tensor(checks.in_levels(images, levels))
    images = _of_shape(images, image_shape)
    if levels == 256:
        return images
    largest = tf.reduce_max(images)
    rule = checks.levels_rule("images", levels)
    in_range = _assert(
        tf.reduce_all(images < levels), f"{rule} Received: values up to {{}}.", largest
    )
    with tf.control_dependencies([in_range]):
        return tf.identity(images)


def _of_shape(images, image_shape):
    static = tf.TensorShape([None, *image_shape])
    if images.shape.rank == 4 and static.merge_with(images.shape) == images.shape:
        return images
    sizes = tf.shape(images)
    wanted = tf.constant([-1 if size is None else size for size in image_shape])
    # Three sizes of what may have more or fewer: a size of -2 is none.
    received = tf.concat([sizes, tf.fill([4], -2)], 0)[1:4]
    is_image = tf.equal(tf.size(sizes), 4)
    rule = checks.array_rule("images", "uint8", image_shape)
    is_right = _assert(
        is_image & tf.reduce_all((received == wanted) | (wanted < 0)),
        f"{rule} Received: shape={{}}. {checks.shape_advice()}",
        sizes,
    )
    with tf.control_dependencies([is_right]):
        images = tf.identity(images)
    images.set_shape(static)
    return images


def _assert(condition, message, value):
    return tf.debugging.Assert(condition, [tf.strings.format(message, value)])


@contextlib.contextmanager
def refusals():
    """Raise a rule that a graph found broken as the ValueError that it is here."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        rule = re.search(r"assertion failed: \[(`.*)\]$", error.message, re.MULTILINE)
        if rule is None:
            raise
        raise ValueError(rule[1]) from None


def check_arrays(data, **rules):
    """Check the images of arrays that `fit` or `evaluate` is given, all at once.

    Args:
        data: as of `images_in`; what is no array, such as a dataset, is checked batch
            by batch.
        **rules: `image_shape` and `levels`, as of `checks.images`.

    Raises:
        ValueError: they break a rule.
    """
    images = None if data is None else images_in(data)
    if isinstance(images, np.ndarray | np.generic) or (
        tf.is_tensor(images) and hasattr(images, "numpy")
    ):
        checks.images(images, **rules)


def is_indexed(x):
    """Whether the images of what `fit` was given can be had in any order."""
    return isinstance(x, keras.utils.PyDataset | dict | tuple | list) or hasattr(
        x, "shape"
    )


def peek(x, batch_size, strategy):
    """The images of the first batch of what `fit` was given, of all replicas together.

    Args:
        x: arrays, a dataset, a loader or a generator of batches.
        batch_size: int, for arrays.
        strategy: the model's `tf.distribute.Strategy`.

    Returns:
        The images, and `x` from the first batch on.

    Raises:
        ValueError: there is no batch.
    """
    if isinstance(x, tf.distribute.DistributedDataset):
        dtypes = []

        @tf.function
        def integers(data):  # collective operations have no uint8
            def of_replica(part):
                images = images_in(part)
                dtypes.append(images.dtype)
                return tf.cast(images, tf.int32)

            return strategy.run(of_replica, (data,))

        images = strategy.gather(integers(next(iter(x))), axis=0)
        return tf.cast(images, dtypes[0]), x
    if isinstance(x, keras.utils.PyDataset):
        return images_in(x[0]), x
    if is_indexed(x):
        return images_in(tf.nest.map_structure(lambda part: part[:batch_size], x)), x
    iterator = iter(x)
    try:
        batch = next(iterator)
    except StopIteration:
        raise ValueError(
            "A model is trained on at least one batch. Received: none, of a "
            f"{type(x).__name__}. Check what it reads."
        ) from None
    if iterator is not x:  # it begins anew
        return images_in(batch), x

    def from_first():
        yield batch
        yield from iterator

    return images_in(batch), from_first()


def first_images(data, limit):
    """The first images of batches of data, an array `[n, ...]`; of none, `[0]`.

    Args:
        data: a dataset, a loader or a generator, each batch as of `images_in`.
        limit: int, at which to stop reading, or `None`.
    """
    is_sequence = isinstance(data, keras.utils.PyDataset)
    parts, count = [], 0
    for batch in (
        map(data.__getitem__, range(data.num_batches)) if is_sequence else data
    ):
        parts.append(np.asarray(images_in(batch)))
        count += len(parts[-1])
        if limit is not None and count >= limit:
            break
    return np.concatenate(parts) if parts else np.zeros([0])


def global_rows(images):
    """The place of a replica's rows in the global batch.

    Args:
        images: `[batch, ...]`, in a replica's context.

    Returns:
        int64 `[batch]`, the index of each row; float32 scalar, the size of the global
        batch.
    """
    num_rows = tf.shape(images, out_type=tf.int64)[0]
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    if replicas == 1:
        return tf.range(num_rows), tf.cast(num_rows, tf.float32)
    here = tf.one_hot(context.replica_id_in_sync_group, replicas, dtype=tf.int64)
    counts = context.all_reduce(tf.distribute.ReduceOp.SUM, here * num_rows)
    before = tf.range(replicas) < context.replica_id_in_sync_group
    offset = tf.reduce_sum(tf.where(before, counts, tf.zeros_like(counts)))
    return offset + tf.range(num_rows), tf.cast(tf.reduce_sum(counts), tf.float32)


def hashes(images):
    """An int64 for each image, `[batch]`, a sum of its levels times fixed numbers."""
    sizes = tf.shape(images, tf.int64)
    flat = tf.reshape(images, [sizes[0], tf.reduce_prod(sizes[1:])])
    numbers = sampling.fold_in(0, tf.range(tf.shape(flat, tf.int64)[1]))
    return tf.reduce_sum(tf.cast(flat, tf.int64) * numbers, axis=1)  # wraps


def num_dims(images):
    """Dimensions of each image of a batch: an int, or a float32 scalar of a graph.

    Args:
        images: `[batch, height, width, channels]`.
    """
    sizes = images.shape[1:]
    if sizes.is_fully_defined():
        return math.prod(sizes)
    return tf.cast(tf.reduce_prod(tf.shape(images)[1:]), tf.float32)
