"""Batches as `fit` is given them: their images, and their rows among all replicas'."""

import keras
import tensorflow as tf

from vaezoo import checks, sampling


def images_in(data):
    """The images of a batch: images | (images, ...) | {"image": images, ...}.

    Raises:
        ValueError: a dict has no images.
    """
    if isinstance(data, dict):
        if "image" not in data:
            raise ValueError(
                "A dict of data must have the key 'image'. Received: "
                f"keys={sorted(data)}. Rename the key, or map to the images."
            )
        return data["image"]
    if isinstance(data, tuple | list):
        return images_in(data[0])
    return data


def in_levels(images, levels):
    """uint8 images whose values are checked: here, or by an assertion in the graph.

    Raises:
        ValueError: there are values here, and one is not in `0..levels - 1`.
    """
    if tf.executing_eagerly():
        return tf.convert_to_tensor(checks.in_levels(images, levels))
    if levels == 256:
        return images
    in_range = tf.debugging.assert_less(
        images,
        tf.cast(levels, tf.uint8),
        message=checks.levels_rule("images", levels),
    )
    with tf.control_dependencies([in_range]):
        return tf.identity(images)


def first_batch(x, batch_size, strategy):
    """The images of the first batch of what `fit` was given, of all replicas together.

    Args:
        x: arrays, a dataset or a `keras.utils.PyDataset`.
        batch_size: int, for arrays.
        strategy: the model's `tf.distribute.Strategy`.
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
        return tf.cast(images, dtypes[0])
    if isinstance(x, tf.data.Dataset):
        return images_in(next(iter(x)))
    if isinstance(x, keras.utils.PyDataset):
        return images_in(x[0])
    return images_in(tf.nest.map_structure(lambda part: part[:batch_size], x))


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
    flat = tf.reshape(images, [-1, images.shape[1:].num_elements()])
    numbers = sampling.fold_in(0, tf.range(flat.shape[1], dtype=tf.int64))
    return tf.reduce_sum(tf.cast(flat, tf.int64) * numbers, axis=1)  # wraps
