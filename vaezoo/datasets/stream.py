"""Batches of images as a pure function of (seed, epoch, index).

Example i of epoch e is image `permutation_e(i)`, where the permutation is a function
of (seed, e) and the noise of a resampled dataset one of (seed, e, image). So no
state has to be saved to continue a pass in its middle: the position is enough.
"""

import itertools
import operator
from collections.abc import Callable

import numpy as np

from vaezoo.datasets import definitions


def load_dataset(
    name: str,
    split: str,
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    **options,
):
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
            or 3), `levels` (256, or 2 to cut at the middle level).

    Returns:
        A `tf.data.Dataset` of uint8 `[batch, height, width, channels]`: 0 to 255, or
        0 and 1 for a binary dataset.

    Raises:
        ValueError: no such dataset, split or option, or a batch size that is not a
            positive integer.
        DatasetNotFoundError: the files are not there and cannot be fetched, or are
            not the published ones.
    """
    epochs = itertools.count()
    definition = definitions.find(name, **options)
    return _batches(
        definition,
        split,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        first_step=lambda num_steps: next(epochs) * num_steps,
    )


def training_stream(
    name: str,
    *,
    batch_size: int,
    seed: int,
    position: Callable[[], int],
    split: str = "train",
    **options,
):
    """Streams the shuffled training split of a dataset, from any position.

    Each pass over the returned dataset (each epoch of `fit`) begins with batch
    `position()` of training, counted from 0 over all epochs, and ends with the epoch
    that holds it. So `fit` continues in the middle of an epoch, with the batches that
    it would have had, if `position` is the number of optimizer steps done.

    Args:
        name: as for `load_dataset`.
        batch_size: number of images in a batch; the last of an epoch may have fewer.
        seed: int: order and binarization are functions of (`seed`, epoch, index).
        position: called without arguments as the first batch of a pass is drawn;
            returns an int. Keras draws a batch within a step, so this should count
            steps that have ended; `optimizer.iterations` may have been raised already.
            For the same reason `fit` should not ask for more than a short pass has:
            give it the rest of the epoch as `steps_per_epoch`.
        split: the images to train on, as for `load_dataset`.
        **options: as for `load_dataset`.

    Returns:
        A `tf.data.Dataset` of uint8 `[batch, height, width, channels]`. Its cardinality
        is that of a whole epoch, though a pass from the middle of one has fewer.

    Raises:
        ValueError, DatasetNotFoundError: as `load_dataset`.
    """
    return _batches(
        definitions.find(name, **options),
        split,
        batch_size=batch_size,
        shuffle=True,
        seed=seed,
        first_step=lambda num_steps: position(),
    )


def _batches(definition, split, *, batch_size, shuffle, seed, first_step):
    """The batches from step `first_step(steps an epoch)` to the end of its epoch."""
    import tensorflow as tf

    batch_size = _positive_integer("batch_size", batch_size)
    seed = operator.index(seed)
    info = definition.info
    images = definitions.read(definition, split)
    num_images = len(images)
    num_steps = -(-num_images // batch_size)
    resample = info.binarization_seed is not None
    fixed = resample and "train" not in split.split("+")

    def batch(step):
        epoch, start = step // num_steps, step % num_steps * batch_size
        index = tf.range(start, tf.minimum(start + batch_size, num_images))
        if shuffle:
            index = tf.random.experimental.index_shuffle(
                index, tf.stack([seed, epoch]), num_images - 1
            )
        x = images.gather(index)
        if resample:
            key = [info.binarization_seed, 0] if fixed else [seed, epoch]
            x = _binarize(x, index, tf.stack([tf.cast(k, tf.int64) for k in key]))
        return tf.ensure_shape(x, (None, *info.image_shape))

    def steps_of_the_epoch(first):
        return tf.data.Dataset.range(first, (first // num_steps + 1) * num_steps)

    def first():
        return np.int64(first_step(num_steps))

    # Declared endless but empty, so that with `take` the dataset has the cardinality of
    # an epoch, which Keras relies on, and a pass may still have fewer batches.
    nothing = tf.data.Dataset.range(1).filter(lambda _: False).repeat()
    steps = tf.data.Dataset.from_tensors(0).map(
        lambda _: tf.ensure_shape(tf.numpy_function(first, [], tf.int64), ())
    )
    steps = steps.flat_map(steps_of_the_epoch).concatenate(nothing).take(num_steps)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return steps.map(batch).prefetch(2).with_options(options)


def _binarize(levels, index, key):
    """Draws x ~ Bernoulli(levels / 255), image by image from (key, index)."""
    import tensorflow as tf

    def uniforms(i):
        key_of_image = tf.random.experimental.stateless_fold_in(key, i)
        return tf.random.stateless_uniform(levels.shape[1:], key_of_image, alg="philox")

    u = tf.map_fn(uniforms, index, fn_output_signature=tf.float32)
    return tf.cast(u < tf.cast(levels, tf.float32) / 255.0, tf.uint8)


def _positive_integer(name: str, value) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(
            f"{name} must be a positive integer. Received: {name}={value!r}."
        )
    return number
