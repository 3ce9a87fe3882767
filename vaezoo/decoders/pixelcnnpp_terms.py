"""What the scan of PixelCNN++ is put together from: functions of rows and kernels."""

import dataclasses

import tensorflow as tf

from vaezoo.layers.causal import down_shift
from vaezoo.layers.shifted import right_shift


@dataclasses.dataclass
class Level:
    """The blocks of one resolution, those of the way there and of the way back."""

    rows: list  # the row stream's
    pixels: list  # the pixel stream's, in the same order
    num_up: int
    step: int  # pixels of the image a position of the level


def by_level(items, levels):
    """Items of a stream's blocks in the order of their calls, by level.

    Args:
        items: a list: of the way there, and back from the coarsest level.
        levels: list of `Level`, the finest first.

    Returns:
        Of each level a list, in the order of its blocks.
    """
    items = iter(items)
    parts = [[next(items) for _ in range(level.num_up)] for level in levels]
    for level, part in reversed(list(zip(levels, parts, strict=True))):
        part += [next(items) for _ in range(len(level.rows) - level.num_up)]
    return parts


def gate(features):
    """`a sigmoid(b)` of features `[a, b]`."""
    values, gates = tf.split(features, 2, axis=-1)
    return values * tf.sigmoid(gates)


def shifted(rows):
    """Rows `[..., width, channels]`, a column later."""
    padding = [[0, 0]] * (rows.shape.rank - 2) + [[1, 0], [0, 0]]
    return tf.pad(rows[..., :-1, :], padding)


def product(rows, kernel):
    """Rows `[..., width, channels]` times `[channels, filters]`."""
    return tf.einsum("...c,cf->...f", rows, kernel)


def two_columns(rows, kernel):
    """At each place of rows, two taps: on it, and on the place to its left.

    Args:
        rows: `[..., batch, width, channels]`.
        kernel: `[..., 2, channels, filters]`, of the left and of the own place.

    Returns:
        `[..., batch, width, filters]`.
    """
    shape = tf.shape(rows)
    patches = tf.concat([shifted(rows), rows], axis=-1)
    flat = tf.reshape(patches, tf.concat([shape[:-3], [-1, patches.shape[-1]]], 0))
    size, filters = patches.shape[-1], kernel.shape[-1]
    kernel = tf.reshape(kernel, tf.concat([shape[:-3], [size, filters]], 0))
    return tf.reshape(tf.matmul(flat, kernel), tf.concat([shape[:-1], [filters]], 0))


def parts_of(kernel, filters, num_streams):
    """A skip's kernel as one of each thing that is concatenated: `[2 size, F]` each.

    That of `concat_elu([a, b, ...])` has the inputs `[a, b, ..., -a, -b, ...]`: the
    streams', of `filters` channels, and then those of the skip's own maps, if any.
    """
    rest = kernel.shape[0] // 2 - num_streams * filters
    sizes = [filters] * num_streams + [rest] * (rest > 0)
    parts = tf.split(kernel, 2 * sizes, axis=0)
    pairs = zip(parts[: len(sizes)], parts[len(sizes) :], strict=True)
    return [tf.concat(pair, axis=0) for pair in pairs]


def map_terms(network, maps):
    """What both streams start from of the maps: `[height, batch, width, F]` twice.

    Maps are known everywhere, so that their part of a convolution is of the whole
    image.
    """
    maps = tf.cast(maps, network.compute_dtype)

    def part(layer):
        return layer.linear(maps, layer.kernel()[:, :, -network.num_maps :])

    start = down_shift(part(network.row_above))
    start += right_shift(part(network.column_left))
    return [
        tf.transpose(term, [1, 0, 2, 3])
        for term in (down_shift(part(network.rows_above)), start)
    ]


def block_terms(maps, kernels, activation):
    """What maps that are known everywhere give to a level's blocks.

    Args:
        maps: of each block, in order, `[batch, height, width, k]`, or `None`.
        kernels: of each block, `[n, F]`; unused where it has no maps.
        activation: from maps to `[..., n]`.

    Returns:
        `[height, blocks, batch, width, F]`.
    """
    terms = [
        None if part is None else product(activation(part), kernel)
        for part, kernel in zip(maps, kernels, strict=True)
    ]
    zeros = tf.zeros_like(next(term for term in terms if term is not None))
    terms = tf.stack([zeros if term is None else term for term in terms])
    return tf.transpose(terms, [2, 0, 1, 3, 4])
