"""Drawing an image along a wavefront: many rows at once, each behind the one above it.

A pixel of a plain stack of masked convolutions needs a few columns more of the row
above than its own. So row `r` may run `lag` columns behind row `r - 1`, and an image
takes `width + lag (height - 1)` steps of a pixel of every row instead of `height *
width` steps of one. Without XLA, where a step costs what it costs to start its
operations, that is several times faster for a few images; with XLA, and for many
images, the row-cached scan is, which computes nothing outside the image.

At step `t` row `r` is at column `t - lag r`. What lies `i` rows above and `j` columns
to the right was drawn `lag i - j` steps ago, so the activations of the last steps hold
all that a kernel reads.
"""

import tensorflow as tf

from vaezoo.decoders.scan import draw_pixel


def wavefront_scan(network, head, uniforms, *, temperature, conditioning, known=None):
    """`vaezoo.decoders.scan.row_cached_scan`, for networks that have a `wavefront`.

    From the same noise it gives the same images, but for floating-point ties. Cost:
    `width + lag (height - 1)` steps, times `head.steps_per_pixel`, each of `height`
    pixels of an image.
    """
    height, width = uniforms.shape[1:3]
    batch = tf.shape(uniforms)[0]
    front = network.wavefront(height, width, **conditioning)
    lag = front.lag
    num_steps = width + lag * (height - 1)
    columns = tf.range(num_steps)[:, None] - lag * tf.range(height)  # [steps, height]
    is_inside = (columns >= 0) & (columns < width)
    columns = tf.clip_by_value(columns, 0, width - 1)

    def skewed(images):
        """`[batch, height, width, k]` to `[steps, height * batch, k]`."""
        rows = tf.transpose(images, [1, 2, 0, 3])
        moved = tf.gather(rows, tf.transpose(columns), batch_dims=1)
        moved = tf.transpose(moved, [1, 0, 2, 3])
        return tf.reshape(moved, [num_steps, height * batch, images.shape[-1]])

    steps_uniforms = skewed(uniforms)
    if known is not None:
        images, mask = known
        known = skewed(tf.cast(images, tf.float32)), skewed(tf.cast(mask, tf.bool))
    static = front.static(skewed)
    inside = tf.cast(tf.repeat(is_inside, batch, axis=1), front.dtype)[..., None]
    temperature = tf.tile(temperature, [height, 1])

    def step(t, past, drawn):
        pre = front.before_pixels(static, past, t)
        values, activations = draw_pixel(
            head,
            lambda x: front.pixel(pre, tf.cast(x, front.dtype)),
            steps_uniforms[t],
            temperature,
            None if known is None else [part[t] for part in known],
        )
        x = tf.cast(head.normalize(values), front.dtype)
        # Outside of the image there are zeros, as a convolution pads with.
        past = front.after_pixels(past, x * inside[t], activations, inside[t])
        return t + 1, past, drawn.write(t, values)

    drawn = tf.TensorArray(
        tf.float32, num_steps, element_shape=[None, head.num_channels]
    )
    _, _, drawn = tf.while_loop(
        lambda t, *_: t < num_steps,
        step,
        (0, front.first(batch), drawn),
        maximum_iterations=num_steps,
    )
    shape = [num_steps, height, batch, head.num_channels]
    drawn = tf.transpose(tf.reshape(drawn.stack(), shape), [1, 0, 2, 3])
    when = tf.range(width) + lag * tf.range(height)[:, None]  # [height, width]
    images = tf.transpose(tf.gather(drawn, when, batch_dims=1), [2, 0, 1, 3])
    return tf.ensure_shape(
        images, [uniforms.shape[0], height, width, head.num_channels]
    )


class PixelCNNWavefront:
    """A plain PixelCNN along a wavefront.

    Args:
        scanner: the network's scanner, whose kernels and whose work at a pixel it uses.
    """

    def __init__(self, scanner):
        self._scanner = scanner
        self.dtype = scanner.dtype
        self.pixel = scanner.pixel
        self._layers = [scanner.first, *scanner.blocks[:1]]
        self.lag = 1 + max(layer.columns for layer in self._layers if layer.rows)
        self._first = tf.concat([scanner.first_above, scanner.first_left], 0)
        if scanner.blocks:
            self._blocks = tf.concat([scanner.above, scanner.left], 1)

    def static(self, skewed):
        """What the first layer gets of the conditioning maps, and its bias."""
        if not self._scanner.has_maps:
            return self._scanner.first_static
        return skewed(tf.transpose(self._scanner.first_static, [1, 0, 2, 3]))

    def _num_steps(self, layer):
        """Steps that a layer's kernel looks back."""
        return max(self.lag * layer.rows + layer.columns, 1)

    def first(self, batch):
        """The last steps before the image, of each kind of layer: zeros."""
        scanner = self._scanner
        rows = [scanner.height, batch]
        sizes = [[scanner.num_colours], [scanner.filters]]
        leading = [[], [len(scanner.blocks)]]
        return [
            tf.zeros([self._num_steps(layer), *lead, *rows, *size], self.dtype)
            for layer, lead, size in zip(self._layers, leading, sizes, strict=False)
        ]

    def _patches(self, past, layer):
        """What a kernel's taps read, in order: `[..., height * batch, taps * k]`."""
        above = [
            (row, column)
            for row in range(layer.rows, 0, -1)
            for column in range(-layer.columns, layer.columns + 1)
        ]
        taps = [*above, *((0, column) for column in range(-layer.columns, 0))]
        parts = []
        for row, column in taps:
            part = past[self.lag * row - column - 1]  # [..., height, batch, k]
            padding = [[0, 0]] * (part.shape.rank - 3) + [[row, 0], [0, 0], [0, 0]]
            height = self._scanner.height
            parts.append(tf.pad(part, padding)[..., :height, :, :])
        patches = tf.concat(parts, -1)
        shape = tf.shape(patches)
        leading = tf.concat([shape[:-3], [shape[-3] * shape[-2]]], 0)
        return tf.reshape(patches, tf.concat([leading, [patches.shape[-1]]], 0))

    def before_pixels(self, static, past, t):
        """The layers' sums at a pixel of every row, but for the pixels themselves."""
        term = static[t] if self._scanner.has_maps else static
        first = tf.matmul(self._patches(past[0], self._layers[0]), self._first) + term
        if not self._scanner.blocks:
            return [first]
        patches = self._patches(past[1], self._layers[1])
        blocks = tf.matmul(patches, self._blocks) + self._scanner.bias[:, 0]
        return [first, *tf.unstack(blocks, num=len(self._scanner.blocks))]

    def after_pixels(self, past, x, activations, inside):
        """The last steps, one step later.

        Args:
            past: as of `first`.
            x: `[height * batch, channels]`, 0 outside the image.
            activations: as `pixel` gave them, `[blocks, height * batch, filters]`.
            inside: `[height * batch, 1]`, 1 in the image.
        """
        newest = [x, *(part * inside for part in activations)]
        return [
            tf.concat([tf.reshape(new, tf.shape(part[:1])), part[:-1]], 0)
            for part, new in zip(past, newest, strict=True)
        ]
