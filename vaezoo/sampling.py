"""Seeds and noise.

Everything random is a pure function of one int64 seed a row: row `i` of a batch
depends on `seeds[i]` alone, whatever the size of the batch or the order of calls.
A sample is a deterministic function of uniform noise, so two samplers of one
distribution are compared on the same noise, and must give the same image.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from vaezoo import checks
from vaezoo.typing import Seed

BATCH_SIZES = (1, 4, 16, 64, 256)  # that a batch to draw is padded to

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = 2**64 - 1


def _signed(value):
    return (value & _MASK) - (value >> 63 & 1) * 2**64


def splitmix64(value):
    """The mixing function of SplitMix64 on a Python int, wrapped to 64 bits.

    Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators".
    Returns an int in `[0, 2**64)`.
    """
    value &= _MASK
    value = (value ^ value >> 30) * _MULTIPLIERS[0] & _MASK
    value = (value ^ value >> 27) * _MULTIPLIERS[1] & _MASK
    return value ^ value >> 31


def row_seeds(seed: Seed, n: int) -> npt.NDArray[np.int64]:
    """Seeds of the `n` rows of a batch: `splitmix64(seed + (i + 1) * golden ratio)`.

    What `model.sample(n, seed=seed)` uses, so a client that sends these seeds to an
    exported sampler gets the same images.

    Args:
        seed: int in the range of int64; or int64 `[n]`, one a row, which is returned.
        n: int, at least 0.

    Returns:
        An int64 array `[n]`.

    Raises:
        ValueError: if `seed` or `n` breaks its rule.
    """
    n = checks.integer("n", n, minimum=0)
    known = checks.seeds(seed, n)
    if not isinstance(known, int):
        return known
    seeds = [_signed(splitmix64(known + (row + 1) * _GOLDEN)) for row in range(n)]
    return np.array(seeds, np.int64)


def padded_batches(num_rows, sizes=BATCH_SIZES):
    """Cut rows into batches of a few sizes, so that compiled functions see few shapes.

    A batch is padded to the next size by its last row: rows do not depend on others.

    Args:
        num_rows: int, at least 0.
        sizes: ints, rising.

    Yields:
        The indices of a batch's rows, an int array of one of the sizes, and how many of
        them, the first, are not padding.
    """
    for start in range(0, num_rows, sizes[-1]):
        num = min(sizes[-1], num_rows - start)
        size = next(size for size in sizes if size >= num)
        yield np.minimum(np.arange(start, start + size), start + num - 1), num


def fold_in(seeds, data):
    """Derive new seeds: `splitmix64(seeds + (data + 1) * golden ratio)`, wrapping.

    `fold_in(seed, i)` is `row_seeds(seed, n)[i]`; folding in the index of an
    importance sample, or a step, gives that sample's or step's own seeds.

    Args:
        seeds: int64 tensor of any shape.
        data: int64 tensor that broadcasts with `seeds`.

    Returns:
        An int64 tensor.
    """
    import tensorflow as tf

    def unsigned(value):
        return tf.bitcast(tf.cast(value, tf.int64), tf.uint64)

    def constant(value):
        return tf.constant(value, tf.uint64)

    def shift(value, bits):
        return tf.bitwise.right_shift(value, constant(bits))

    value = unsigned(seeds) + (unsigned(data) + constant(1)) * constant(_GOLDEN)
    value = tf.bitwise.bitwise_xor(value, shift(value, 30)) * constant(_MULTIPLIERS[0])
    value = tf.bitwise.bitwise_xor(value, shift(value, 27)) * constant(_MULTIPLIERS[1])
    value = tf.bitwise.bitwise_xor(value, shift(value, 31))
    return tf.bitcast(value, tf.int64)


def seeds_of(seeds, name):
    """The seeds of what has a name: a latent, or the pixels.

    Args:
        seeds: int64 `[batch]`, for all of them; or a dict of such by name.
        name: str.

    Returns:
        int64 `[batch]`.
    """
    return seeds[name] if isinstance(seeds, Mapping) else seeds


def row_normals_of(seeds, shape, names):
    """`row_normals` of several names and one shape, a row of all of them at a time.

    Args:
        seeds: int64 `[batch]`, or a dict of such by name.
        shape: static shape of one row's noise of a name.
        names: list of str, at least one.

    Returns:
        A list of float32 `[batch, *shape]`, one a name.
    """
    import tensorflow as tf

    seeds = tf.stack([seeds_of(seeds, name) for name in names], axis=1)
    tags = [tf.constant(_tag(name), tf.int64) for name in names]

    def draw(row):
        return [
            tf.random.stateless_normal(shape, seed=tf.stack([seed, tag]))
            for seed, tag in zip(tf.unstack(row), tags, strict=True)
        ]

    spec = [tf.TensorSpec(shape, tf.float32)] * len(names)
    return tf.map_fn(draw, tf.cast(seeds, tf.int64), fn_output_signature=spec)


def _tag(name):
    return zlib.crc32(name.encode())


def _row_noise(draw, seeds, shape, name):
    import tensorflow as tf

    seeds = seeds_of(seeds, name)
    tag = tf.constant(_tag(name), tf.int64)
    return tf.map_fn(
        lambda seed: draw(shape, seed=tf.stack([seed, tag])),
        tf.cast(seeds, tf.int64),
        fn_output_signature=tf.TensorSpec(shape, tf.float32),
    )


def row_uniforms(seeds, shape, name):
    """Uniform noise in [0, 1), each row from its own seed.

    Call it outside XLA, which draws other numbers from the same seed.

    Args:
        seeds: int64 `[batch]`, or a dict of such by `name`.
        shape: static shape of one row's noise.
        name: str. What the noise is for; two names never share noise.

    Returns:
        float32 `[batch, *shape]`.
    """
    import tensorflow as tf

    return _row_noise(tf.random.stateless_uniform, seeds, shape, name)


def row_normals(seeds, shape, name):
    """Standard normal noise, each row from its own seed; as `row_uniforms`."""
    import tensorflow as tf

    return _row_noise(tf.random.stateless_normal, seeds, shape, name)
