"""Seeds, noise and the row-cached scan.

Everything random is a pure function of one int64 seed a row: row `i` of a batch
depends on `seeds[i]` alone, whatever the size of the batch or the order of calls.
A sample is a deterministic function of uniform noise, so two samplers of one
distribution are compared on the same noise, and must give the same image.
"""

import operator
import zlib

import numpy as np

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


def row_seeds(seed, n):
    """Seeds of the `n` rows of a batch: `splitmix64(seed + (i + 1) * golden ratio)`.

    What `model.sample(n, seed=seed)` uses, so a client that sends these seeds to an
    exported sampler gets the same images.

    Args:
        seed: int in the range of int64.
        n: int, at least 0.

    Returns:
        An int64 array `[n]`.

    Raises:
        ValueError: if `seed` is not an int64 integer or `n` is negative.
    """
    try:
        seed, n = operator.index(seed), operator.index(n)
    except TypeError:
        raise ValueError(
            f"`seed` and `n` must be integers. Received: seed={seed!r}, n={n!r}. "
            "Pass an int, or draw one with numpy."
        ) from None
    if not -(2**63) <= seed < 2**63 or n < 0:
        raise ValueError(
            "`seed` must fit in int64 and `n` be at least 0. "
            f"Received: seed={seed}, n={n}. Reduce the seed modulo 2**63."
        )
    seeds = [_signed(splitmix64(seed + (row + 1) * _GOLDEN)) for row in range(n)]
    return np.array(seeds, np.int64)


def row_temperatures(temperature, n):
    """Temperatures of the `n` rows of a batch.

    Args:
        temperature: float above 0, or `[n]`, one a row.
        n: int.

    Returns:
        A float32 array `[n]`.

    Raises:
        ValueError: if a temperature is not positive and finite, or the shape is wrong.
    """
    temperatures = np.asarray(temperature, np.float32)
    if temperatures.shape not in ((), (n,)) or not np.all(
        (temperatures > 0) & np.isfinite(temperatures)
    ):
        raise ValueError(
            "`temperature` must be positive and finite, a number or one a row "
            f"[{n}]. Received: temperature={temperature!r}. 1.0 is the model."
        )
    return np.broadcast_to(temperatures, [n])


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


def _row_noise(draw, seeds, shape, name):
    import tensorflow as tf

    tag = tf.constant(zlib.crc32(name.encode()), tf.int64)
    return tf.map_fn(
        lambda seed: draw(shape, seed=tf.stack([seed, tag])),
        tf.cast(seeds, tf.int64),
        fn_output_signature=tf.TensorSpec(shape, tf.float32),
    )


def row_uniforms(seeds, shape, name):
    """Uniform noise in [0, 1), each row from its own seed.

    Call it outside XLA, which draws other numbers from the same seed.

    Args:
        seeds: int64 `[batch]`.
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


def _draw_pixel(head, params_of, uniforms, temperature, known):
    """Draw one pixel's channels in order; return them and `params_of`'s last extra.

    `params_of(values)` gives the head's parameters from the channels drawn so far.
    """
    import tensorflow as tf

    values = tf.zeros_like(uniforms[:, :1]) + tf.zeros([head.num_channels])
    extra = None
    for step in range(head.steps_per_pixel):
        params, extra = params_of(head.normalize(values))
        drawn = head.draw(
            tf.cast(params, tf.float32),
            uniforms,
            values=values,
            step=step,
            temperature=temperature,
        )
        if known is not None:
            pixel, fill = known
            drawn = tf.where(fill, drawn, pixel)
        values = drawn
    return values, extra


def _raster(images):
    """`[batch, height, width, k]` to `[height, width, batch, k]`."""
    import tensorflow as tf

    return tf.transpose(images, [1, 2, 0, 3])


def _prepare_known(known):
    """Float values and a boolean "fill this in", both in raster order."""
    import tensorflow as tf

    if known is None:
        return None
    images, mask = known
    return _raster(tf.cast(images, tf.float32)), _raster(tf.cast(mask, tf.bool))


def row_cached_scan(network, head, uniforms, *, temperature, conditioning, known=None):
    """Draw images pixel by pixel, computing nothing twice.

    Cost: `height * width * head.steps_per_pixel` sequential steps, each of one
    column of every layer; in all, about the multiplications of one pass of the
    network over the image. Works in graph mode and under XLA.

    Args:
        network: a network with a `scanner` (see `vaezoo.layers.pixelcnn`).
        head: a likelihood head (see `vaezoo.distributions.images`).
        uniforms: float32 `[batch, height, width, head.num_uniforms]`.
        temperature: float32 `[batch, 1]`.
        conditioning: dict of the network's keyword arguments.
        known: `None`, or `(images, mask)` with images `[batch, height, width,
            channels]` and a mask `[batch, height, width, 1]` of 1 where a pixel is
            to be drawn; the others are forced to `images`.

    Returns:
        float32 levels `[batch, height, width, channels]`.
    """
    import tensorflow as tf

    height, width = uniforms.shape[1:3]
    batch = tf.shape(uniforms)[0]
    static_batch = uniforms.shape[0]
    scanner = network.scanner(height, width, **conditioning)
    uniforms = _raster(uniforms)
    known = _prepare_known(known)

    def scan_row(row, context, rows):
        row_uniforms = uniforms[row]
        row_known = None if known is None else [part[row] for part in known]

        def scan_pixel(column, left, values_row, activations_row):
            pre = scanner.before_pixel(context, left, column)
            values, activations = _draw_pixel(
                head,
                lambda x: scanner.pixel(pre, tf.cast(x, scanner.dtype)),
                row_uniforms[column],
                temperature,
                None if known is None else [part[column] for part in row_known],
            )
            x = tf.cast(head.normalize(values), scanner.dtype)
            left = scanner.after_pixel(left, activations, x)
            values_row = values_row.write(column, values)
            if scanner.keeps_activations:
                activations_row = activations_row.write(column, activations)
            return column + 1, left, values_row, activations_row

        values_row = tf.TensorArray(
            tf.float32, width, element_shape=[static_batch, head.num_channels]
        )
        activations_row = tf.TensorArray(
            scanner.dtype,
            width if scanner.keeps_activations else 0,
            element_shape=[None, static_batch, scanner.filters]
            if not scanner.keeps_activations
            else [len(scanner.blocks), static_batch, scanner.filters],
        )
        _, _, values_row, activations_row = tf.while_loop(
            lambda column, *_: column < width,
            scan_pixel,
            (0, scanner.first_column(batch), values_row, activations_row),
            maximum_iterations=width,
        )
        values_row = values_row.stack()
        xs = tf.cast(head.normalize(values_row), scanner.dtype)
        activations = activations_row.stack() if scanner.keeps_activations else None
        context = scanner.next_row(
            context, row, tf.transpose(xs, [1, 0, 2]), activations
        )
        return row + 1, context, rows.write(row, values_row)

    rows = tf.TensorArray(
        tf.float32, height, element_shape=[width, static_batch, head.num_channels]
    )
    _, _, rows = tf.while_loop(
        lambda row, *_: row < height,
        scan_row,
        (0, scanner.first_row(batch), rows),
        maximum_iterations=height,
    )
    return tf.transpose(rows.stack(), [2, 0, 1, 3])


def naive_scan(network, head, uniforms, *, temperature, conditioning, known=None):
    """`row_cached_scan`, by one full pass of the network for every (sub-)pixel.

    For tests and benchmarks: from the same noise it gives the same images, at
    `height * width * head.steps_per_pixel` passes.
    """
    import tensorflow as tf

    height, width = uniforms.shape[1:3]
    shape = [uniforms.shape[0], height, width, head.num_channels]
    uniforms_of = _raster(uniforms)
    known = _prepare_known(known)

    def scan_pixel(index, images):
        row, column = index // width, index % width
        here = tf.one_hot(index, height * width)
        here = tf.reshape(here, [1, height, width, 1])

        def params_of(x):
            # `images` holds zeros from here on: the pixel so far is added in place.
            inputs = head.normalize(images) * (1 - here) + x[:, None, None, :] * here
            params = network(inputs, **conditioning)
            return params[:, row, column], None

        values, _ = _draw_pixel(
            head,
            params_of,
            uniforms_of[row, column],
            temperature,
            None if known is None else [part[row, column] for part in known],
        )
        return index + 1, images + values[:, None, None, :] * here

    images = tf.zeros_like(uniforms[..., :1]) + tf.zeros([head.num_channels])
    _, images = tf.while_loop(
        lambda index, _: index < height * width,
        scan_pixel,
        (0, tf.ensure_shape(images, shape)),
        maximum_iterations=height * width,
    )
    return images
