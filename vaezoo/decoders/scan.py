"""Drawing an image pixel by pixel: the row-cached scan, and the naive one.

`network.scanner(height, width, **conditioning)` is a network unrolled for sampling:
effective weights and conditioning are computed once, then

    context = scanner.first_row(batch)         # all that a row needs of those above
    left = scanner.first_column(batch)         # activations to the left, all zero
    pre = scanner.before_pixel(context, left, row, column)
    params, activations = scanner.pixel(pre, x)
    left = scanner.after_pixel(left, activations, x)
    context = scanner.next_row(context, row, xs, activations)

`activations` is a list of what a pixel leaves to its neighbours. The first of them, in
the shapes of `scanner.activation_shapes(batch)`, are for the next row: `next_row` gets
them stacked, a column first. What sees the pixel itself is in `pixel`, which is called
once a channel where the head has it so. A scan computes what one pass over the whole
image computes: the tests hold every network to that.

In a graph that XLA does not compile, a step costs what it costs to start its
operations, and a `tf.while_loop` hands each tensor that it reads of outside from step
to step, by three of them. So there a scanner's tensors are held in one list, and
`scanner.here()` is the scanner that reads them in the graph being built, be it of a
loop or of a branch; with XLA it is the scanner itself.
"""

import copy

import tensorflow as tf


class Held:
    """A nest of tensors, held in one list for each dtype.

    Args:
        nest: tensors in dicts, lists and tuples; what else is there is kept as it is.
    """

    def __init__(self, nest):
        self._nest = nest
        leaves = tf.nest.flatten(nest)
        by_dtype = {}
        self._places = {}
        for index, leaf in enumerate(leaves):
            if tf.is_tensor(leaf):
                tensors = by_dtype.setdefault(leaf.dtype, [])
                self._places[index] = leaf.dtype, len(tensors), leaf.shape
                tensors.append(leaf)
        self._lists = {dtype: _list(tensors) for dtype, tensors in by_dtype.items()}

    def read(self):
        """The nest, its tensors read from the lists in the graph being built."""
        leaves = tf.nest.flatten(self._nest)
        for index, (dtype, place, shape) in self._places.items():
            sizes = [-1 if size is None else size for size in shape]
            leaf = tf.raw_ops.TensorListGetItem(
                input_handle=self._lists[dtype],
                index=place,
                element_shape=tf.constant(sizes, tf.int32),
                element_dtype=dtype,
            )
            leaf.set_shape(shape)
            leaves[index] = leaf
        return tf.nest.pack_sequence_as(self._nest, leaves)


def _list(tensors):
    handle = tf.raw_ops.TensorListReserve(
        element_shape=-1, num_elements=len(tensors), element_dtype=tensors[0].dtype
    )
    for index, tensor in enumerate(tensors):
        handle = tf.raw_ops.TensorListSetItem(
            input_handle=handle, index=index, item=tensor
        )
    return handle


class Scanner:
    """What the scanners of all networks have: their tensors can be held in a list."""

    _held = None

    def hold(self):
        """From now on, `here` reads the tensors from a list."""
        self._held = Held(
            {
                name: value
                for name, value in vars(self).items()
                if any(map(tf.is_tensor, tf.nest.flatten(value)))
            }
        )

    def here(self):
        """The scanner whose tensors are of the graph being built."""
        if self._held is None:
            return self
        local = copy.copy(self)
        vars(local).update(self._held.read())
        return local


def draw_pixel(head, params_of, uniforms, temperature, known):
    """Draw one pixel's channels in order.

    Args:
        head: a likelihood head.
        params_of: function of the channels drawn so far, normalised, to the head's
            parameters and something else.
        uniforms: `[batch, head.num_uniforms]`.
        temperature: `[batch, 1]`.
        known: `None`, or values `[batch, channels]` and a bool `[batch, 1]`, false
            where they are to be taken.

    Returns:
        The channels, float32 `[batch, channels]`, and what else `params_of` gave last.
    """
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
    return tf.transpose(images, [1, 2, 0, 3])


def _prepare_known(known):
    """Float values and a boolean "fill this in", both in raster order."""
    if known is None:
        return None
    images, mask = known
    return _raster(tf.cast(images, tf.float32)), _raster(tf.cast(mask, tf.bool))


def row_cached_scan(
    network,
    head,
    uniforms,
    *,
    temperature,
    conditioning,
    known=None,
    in_graph=False,
):
    """Draw images pixel by pixel, computing nothing twice.

    Cost: `height * width * head.steps_per_pixel` sequential steps, each of one
    column of every layer; in all, about the multiplications of one pass of the
    network over the image. Works in graph mode and under XLA.

    Args:
        network: a network with a `scanner` (see `vaezoo.decoders.pixelcnn`).
        head: a likelihood head (see `vaezoo.distributions.images`).
        uniforms: float32 `[batch, height, width, head.num_uniforms]`.
        temperature: float32 `[batch, 1]`.
        conditioning: dict of the network's keyword arguments.
        known: `None`, or `(images, mask)` with images `[batch, height, width,
            channels]` and a mask `[batch, height, width, 1]` of 1 where a pixel is
            to be drawn; the others are forced to `images`.
        in_graph: bool. Whether it is to be fast without XLA, which does not compile
            what it takes.

    Returns:
        float32 levels `[batch, height, width, channels]`.
    """
    height, width = uniforms.shape[1:3]
    batch = tf.shape(uniforms)[0]
    static_batch = uniforms.shape[0]
    unrolled = network.scanner(height, width, **conditioning)
    if in_graph:
        unrolled.hold()
    uniforms = _raster(uniforms)
    known = _prepare_known(known)

    def scan_row(row, context, rows):
        scanner = unrolled.here()
        held_context = Held(context).read if in_graph else lambda: context
        row_uniforms = uniforms[row]
        row_known = None if known is None else [part[row] for part in known]

        def scan_pixel(column, left, values_row, activation_rows):
            scanner = unrolled.here()
            pre = scanner.before_pixel(held_context(), left, row, column)
            values, activations = draw_pixel(
                head,
                lambda x: scanner.pixel(pre, tf.cast(x, scanner.dtype)),
                row_uniforms[column],
                temperature,
                None if known is None else [part[column] for part in row_known],
            )
            x = tf.cast(head.normalize(values), scanner.dtype)
            left = scanner.after_pixel(left, activations, x)
            values_row = values_row.write(column, values)
            activation_rows = [
                row.write(column, part)
                for row, part in zip(activation_rows, activations, strict=False)
            ]
            return column + 1, left, values_row, activation_rows

        values_row = tf.TensorArray(
            tf.float32, width, element_shape=[static_batch, head.num_channels]
        )
        activation_rows = [
            tf.TensorArray(scanner.dtype, width, element_shape=shape)
            for shape in scanner.activation_shapes(static_batch)
        ]
        _, _, values_row, activation_rows = tf.while_loop(
            lambda column, *_: column < width,
            scan_pixel,
            (0, scanner.first_column(batch), values_row, activation_rows),
        )
        values_row = values_row.stack()
        xs = tf.cast(head.normalize(values_row), scanner.dtype)
        activations = [part.stack() for part in activation_rows]
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
        (0, unrolled.first_row(batch), rows),
    )
    return tf.transpose(rows.stack(), [2, 0, 1, 3])


def naive_scan(network, head, uniforms, *, temperature, conditioning, known=None):
    """`row_cached_scan`, by one full pass of the network for every (sub-)pixel.

    For tests and benchmarks: from the same noise it gives the same images, at
    `height * width * head.steps_per_pixel` passes.
    """
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

        values, _ = draw_pixel(
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


def affine(layer):
    """Effective `[channels, filters]` weights and bias of a 1x1 masked layer."""
    kernel = layer.kernel()
    return layer.centre_kernel(kernel), layer.static_term(kernel)


def flatten_columns(left):
    """`[..., columns, channels]` to `[..., columns * channels]`, leftmost first."""
    shape = tf.shape(left)
    size = left.shape[-2] * left.shape[-1]
    return tf.reshape(left, tf.concat([shape[:-2], [size]], 0))


def push(window, newest, *, axis):
    """Drop the oldest entry of `window` along `axis` and append `newest`."""
    if window.shape[axis] == 0:
        return window
    keep = [slice(None)] * axis + [slice(1, None)]
    return tf.concat([window[tuple(keep)], tf.expand_dims(newest, axis)], axis)
