"""Batches of images as a pure function of (seed, epoch, index).

Example i of epoch e is image `permutation_e(i)`, where the permutation is a function
of (seed, e) and the noise of a resampled dataset one of (seed, e, image). So no
state has to be saved to continue a pass in its middle: the position is enough.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from vaezoo import checks, quiet
from vaezoo.datasets import definitions

if TYPE_CHECKING:
    import tensorflow as tf


def load_dataset(
    name: str,
    split: str,
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    **options: Any,
) -> tf.data.Dataset[tf.Tensor]:
    """Loads one split of a dataset as batches, the ragged last one included.

    Args:
        name: such as `mnist_static`, `omniglot_small` or `image_folder:PATH`; see
            `list_datasets`.
        split: `train`, `validation` or `test`, of those that the dataset has, or
            `train+validation` for both.
        batch_size: number of images in a batch.
        shuffle: whether each pass has an order of its own. The n-th pass is epoch n:
            its order is a function of (`seed`, n).
        seed: int, for the order, and for the draws of the training images of a
            dynamically binarized dataset (also one set of them a pass). Validation and
            test images do not depend on it.
        **options: for `image_folder`: `size` (int or `(height, width)`), `channels` (1
            or 3), `levels` (256, or 2 to cut at the middle level), `unreadable` ("skip"
            files that cannot be read, with a warning, or "refuse" them), `background`
            ("white" or "black", of transparent pixels) and `bits` (of the levels in
            16-bit files). The last three can be in the name too, where a run keeps
            them: `image_folder:PATH?unreadable=refuse&background=black`.

    Returns:
        A `tf.data.Dataset` of uint8 `[batch, height, width, channels]`: 0 to 255, or
        0 and 1 for a binary dataset.

    Raises:
        ValueError: no such dataset, split or option, or a batch size or a seed that
            breaks its rule.
        DatasetNotFoundError: the files are not there and cannot be fetched, or are
            not the published ones.
    """
    definition = definitions.find(name, **options)
    definitions.check_split(definition.info, split)
    quiet.import_tensorflow()
    import tensorflow as tf

    num_steps, batch = _batches(
        definition,
        split,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
    )
    epochs = itertools.count()
    steps = _counter(lambda: next(epochs) * num_steps).take(num_steps)
    known = tf.data.experimental.assert_cardinality(num_steps)
    return _sharded_by_element(steps.map(batch).apply(known).prefetch(2))


def training_stream(
    name: str,
    *,
    batch_size: int,
    seed: int,
    position: Callable[[], int],
    split: str = "train",
    crop_size: int | None = None,
    **options: Any,
) -> tuple[tf.data.Dataset[tf.Tensor] | tf.distribute.DistributedDataset, int]:
    """Streams the shuffled training split of a dataset, without end, from any step.

    A pass over the returned dataset begins with batch `position()` of training, counted
    from 0 over all epochs. So `fit` continues in the middle of an epoch, with the
    batches that it would have had, if `position` is the number of optimizer steps done.

    Under a `tf.distribute` strategy each replica reads its own rows of a batch and no
    others: a batch is cut into parts in the order of the replicas, as even as they can
    be, the larger first.

    Args:
        name: as for `load_dataset`.
        batch_size: number of images in a batch, over all replicas; the last of an epoch
            may have fewer.
        seed: int: order and binarization are functions of (`seed`, epoch, index).
        position: called without arguments as the first batch of a pass is drawn;
            returns an int. Keras draws a batch within a step, so this should count
            steps that have ended; `optimizer.iterations` may have been raised already.
        split: the images to train on, as for `load_dataset`.
        crop_size: side of a square that is cut out of each image, at a place that is a
            function of (`seed`, epoch, index); None for whole images.
        **options: as for `load_dataset`.

    Returns:
        A dataset of uint8 `[batch, height, width, channels]`, a `tf.data.Dataset`, or a
        `tf.distribute.DistributedDataset` in the scope of a strategy of more than one
        replica; and the number of steps of an epoch, which `fit` has to be given.

    Raises:
        ValueError, DatasetNotFoundError: as `load_dataset`.
    """
    import tensorflow as tf

    num_steps, batch = _batches(
        definitions.find(name, **options),
        split,
        batch_size=batch_size,
        shuffle=True,
        seed=seed,
        crop_size=crop_size,
    )

    def stream(part, num_parts, parts_here=1):
        """Batches, or the next `parts_here` parts of each from number `part` on."""
        steps = _counter(position).flat_map(
            lambda step: tf.data.Dataset.range(part, part + parts_here).map(
                lambda i: (step, i)
            )
        )
        batches = steps.map(
            lambda step, i: batch(step, i, num_parts),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return batches.prefetch(2 * parts_here)

    def stream_of_worker(context):
        here = context.num_replicas_in_sync // context.num_input_pipelines
        first = context.input_pipeline_id * here
        return stream(first, context.num_replicas_in_sync, here)

    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1:
        return _sharded_by_element(stream(0, 1)), num_steps
    return strategy.distribute_datasets_from_function(stream_of_worker), num_steps


def _batches(definition, split, *, batch_size, shuffle, seed, crop_size=None):
    """The steps of an epoch, and the function from a step (and a part) to images."""
    import tensorflow as tf

    batch_size = checks.integer("batch_size", batch_size)
    seed = checks.seed(seed)
    info = definition.info
    images = definitions.read(definition, split)
    num_images = len(images)
    num_steps = -(-num_images // batch_size)
    resample = info.binarization_seed is not None
    fixed = resample and "train" not in split.split("+")

    def batch(step, part=0, num_parts=1):
        epoch, start = step // num_steps, step % num_steps * batch_size
        size = tf.minimum(num_images - start, batch_size)

        def border(part):  # the first `size % num_parts` parts have one row more
            extra = tf.minimum(size % num_parts, part)
            return start + size // num_parts * part + extra

        index = tf.range(border(part), border(part + 1))
        if shuffle:
            # It refuses an empty vector, which a part of a small last batch may be.
            index = tf.random.experimental.index_shuffle(
                tf.concat([index, [start]], 0), tf.stack([seed, epoch]), num_images - 1
            )[:-1]
        x = images.gather(index)
        if resample:
            key = [info.binarization_seed, 0] if fixed else [seed, epoch]
            x = _binarize(x, index, tf.stack([tf.cast(k, tf.int64) for k in key]))
        x = tf.ensure_shape(x, (None, *info.image_shape))
        if crop_size is None:
            return x
        return _crops(x, index, tf.stack([tf.cast(seed, tf.int64), epoch]), crop_size)

    return num_steps, batch


def _counter(first):
    """Endless steps from `first()` on, which is asked for at the start of each pass."""
    import tensorflow as tf

    start = tf.data.Dataset.from_tensors(0).map(
        lambda _: tf.ensure_shape(
            tf.numpy_function(lambda: np.int64(first()), [], tf.int64), ()
        )
    )
    return start.flat_map(
        lambda step: tf.data.Dataset.range(step, np.iinfo("int64").max)
    )


def _sharded_by_element(dataset):
    """Has the workers of a strategy share the elements, as there are no files."""
    import tensorflow as tf

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return dataset.with_options(options)


def _binarize(levels, index, key):
    """Draws x ~ Bernoulli(levels / 255), image by image from (key, index)."""
    import tensorflow as tf

    def uniforms(i):
        key_of_image = tf.random.experimental.stateless_fold_in(key, i)
        return tf.random.stateless_uniform(levels.shape[1:], key_of_image, alg="philox")

    u = tf.map_fn(uniforms, index, fn_output_signature=tf.float32)
    return tf.cast(u < tf.cast(levels, tf.float32) / 255.0, tf.uint8)


def _crops(images, index, key, size):
    """Cuts a square out of each image, at a place drawn from (key, index)."""
    import tensorflow as tf

    height, width, channels = images.shape[1:]

    def crop(image_and_index):
        image, i = image_and_index
        key_of_image = tf.random.experimental.stateless_fold_in(key, i)
        # Another key than that of the image's binarization.
        key_of_image = tf.random.experimental.stateless_fold_in(key_of_image, size)
        ranges = tf.constant([height - size + 1, width - size + 1])
        u = tf.random.stateless_uniform([2], key_of_image, alg="philox")
        top, left = tf.unstack(tf.cast(u * tf.cast(ranges, tf.float32), tf.int32))
        return tf.slice(image, [top, left, 0], [size, size, channels])

    return tf.map_fn(
        crop,
        (images, index),
        fn_output_signature=tf.TensorSpec([size, size, channels], images.dtype),
    )
