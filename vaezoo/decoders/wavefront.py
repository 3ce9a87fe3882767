"""Drawing an image along a wavefront: several rows at once, each behind the one above.

A pixel of a plain stack of masked convolutions needs a few columns more of the row
above than its own. So row `r` may run `lag` columns behind row `r - 1`, and an image
takes `width + lag (height - 1)` steps of a pixel of several rows instead of `height *
width` steps of one. Without XLA, where a step costs what it costs to start its
operations, that is several times faster; with XLA the row-cached scan is, which
computes nothing outside the image.

At step `t` row `r` is at column `t - lag r`, so about `width / lag` rows are inside the
image at once. Row `r` has slot `r mod num_slots`, and there are enough of them that a
row starts only when the kernels no longer reach the one before it in its slot. What
lies `i` rows above and `j` columns to the right was drawn `lag i - j` steps ago, `i`
slots before: of the last steps' activations, a kernel reads the same places always.
"""

import numpy as np
import tensorflow as tf

from vaezoo.decoders.scan import Held, Scanner, draw_pixel


class _Schedule:
    """Which pixel each slot draws at each step; all arrays are of numpy.

    Attributes:
        num_steps, num_slots: ints.
        pixels: int `[num_steps * num_slots]`, the pixel's index in raster order; that
            of another pixel where a slot is outside the image.
        is_inside: bool `[num_steps, num_slots]`.
        places: int `[height * width]`: where among `pixels` each pixel is drawn.
    """

    def __init__(self, height, width, lag, num_slots):
        self.num_steps = width + lag * (height - 1)
        self.num_slots = num_slots
        slots = np.arange(self.num_slots)
        since = np.arange(self.num_steps)[:, None] - lag * slots
        rows, columns = np.divmod(since, lag * self.num_slots)
        rows = slots + self.num_slots * rows
        self.is_inside = (rows >= 0) & (rows < height) & (columns < width)
        pixels = np.where(self.is_inside, rows * width + columns, 0)
        self.pixels = pixels.reshape(-1)
        rows, columns = np.divmod(np.arange(height * width), width)
        steps = columns + lag * rows
        self.places = steps * self.num_slots + rows % self.num_slots


def wavefront_scan(network, head, uniforms, *, temperature, conditioning, known=None):
    """`vaezoo.decoders.scan.row_cached_scan`, for networks that have a `wavefront`.

    From the same noise it gives the same images, but for floating-point ties. Cost:
    `width + lag (height - 1)` steps, times `head.steps_per_pixel`, each of about
    `width / lag` pixels of an image.
    """
    height, width = uniforms.shape[1:3]
    batch = tf.shape(uniforms)[0]
    unrolled = network.wavefront(height, width, **conditioning)
    unrolled.hold()
    schedule = _Schedule(height, width, unrolled.lag, unrolled.num_slots)
    num_steps, num_slots = schedule.num_steps, schedule.num_slots

    def scheduled(images):
        """`[batch, height, width, k]` to `[steps, batch * slots, k]`."""
        size = images.shape[-1]
        flat = tf.reshape(images, [batch, height * width, size])
        flat = tf.gather(flat, schedule.pixels, axis=1)
        steps = tf.reshape(flat, [batch, num_steps, num_slots, size])
        steps = tf.transpose(steps, [1, 0, 2, 3])
        return tf.reshape(steps, [num_steps, batch * num_slots, size])

    if known is not None:
        images, mask = known
        known = [
            scheduled(tf.cast(images, tf.float32)),
            scheduled(tf.cast(mask, tf.bool)),
        ]
    inside = tf.constant(schedule.is_inside, unrolled.dtype)
    inside = tf.tile(inside, [1, batch])[..., None]
    held = Held(
        {
            "static": unrolled.static(scheduled),
            "uniforms": scheduled(uniforms),
            "known": known,
            "inside": inside,
            "temperature": tf.repeat(temperature, num_slots, axis=0),
        }
    )

    def step(t, past, drawn):
        front, given = unrolled.here(), held.read()
        known, inside = given["known"], given["inside"][t]
        pre = front.before_pixels(given["static"], past, t)
        values, activations = draw_pixel(
            head,
            lambda x: front.pixel(pre, tf.cast(x, front.dtype)),
            given["uniforms"][t],
            given["temperature"],
            None if known is None else [part[t] for part in known],
        )
        x = tf.cast(head.normalize(values), front.dtype)
        # Outside of the image there are zeros, as a convolution pads with.
        past = front.after_pixels(past, x * inside, activations, inside)
        return t + 1, past, drawn.write(t, values)

    drawn = tf.TensorArray(
        tf.float32, num_steps, element_shape=[None, head.num_channels]
    )
    _, _, drawn = tf.while_loop(
        lambda t, *_: t < num_steps,
        step,
        (0, unrolled.first(batch), drawn),
    )
    shape = [num_steps, batch, num_slots, head.num_channels]
    steps = tf.transpose(tf.reshape(drawn.stack(), shape), [1, 0, 2, 3])
    steps = tf.reshape(steps, [batch, num_steps * num_slots, head.num_channels])
    images = tf.gather(steps, schedule.places, axis=1)
    return tf.reshape(images, [*_sizes(uniforms), head.num_channels])


def _sizes(images):
    """`[batch, height, width]`, of numbers where they are known."""
    batch, height, width, _ = images.shape
    return [tf.shape(images)[0] if batch is None else batch, height, width]


class PixelCNNWavefront(Scanner):
    """A plain PixelCNN along a wavefront.

    Args:
        scanner: the network's scanner, whose kernels and whose work at a pixel it uses.
    """

    def __init__(self, scanner):
        self._scanner = scanner
        self.dtype = scanner.dtype
        self._layers = [scanner.first, *scanner.blocks[:1]]
        # Columns to the right that a kernel reaches in a row above.
        reach = max(layer.columns for layer in self._layers if layer.rows)
        self.lag = 1 + reach
        self.num_slots = -(-(scanner.width + reach) // self.lag)
        self._first = tf.concat([scanner.first_above, scanner.first_left], 0)
        if scanner.blocks:
            self._blocks = tf.concat([scanner.above, scanner.left], 1)

    def hold(self):
        super().hold()
        self._scanner.hold()

    def here(self):
        local = super().here()
        local._scanner = self._scanner.here()
        return local

    def pixel(self, pre, x):
        return self._scanner.pixel(pre, x)

    def static(self, scheduled):
        """What the first layer gets of the conditioning maps, and its bias."""
        if not self._scanner.has_maps:
            return self._scanner.first_static
        return scheduled(tf.transpose(self._scanner.first_static, [1, 0, 2, 3]))

    def _num_steps(self, layer):
        """Steps that a layer's kernel looks back."""
        return max(self.lag * layer.rows + layer.columns, 1)

    def first(self, batch):
        """The last steps before the image, of each kind of layer: zeros.

        Each is `[..., batch, steps * slots, k]`, the last step first.
        """
        scanner = self._scanner
        leads = [[], [len(scanner.blocks)]]
        sizes = [scanner.num_colours, scanner.filters]
        return [
            tf.zeros(
                [*lead, batch, self._num_steps(layer) * self.num_slots, size],
                self.dtype,
            )
            for layer, lead, size in zip(self._layers, leads, sizes, strict=False)
        ]

    def _patches(self, past, layer):
        """What a kernel's taps read, in order: `[..., batch * slots, taps * k]`."""
        above = [
            (row, column)
            for row in range(layer.rows, 0, -1)
            for column in range(-layer.columns, layer.columns + 1)
        ]
        taps = [*above, *((0, column) for column in range(-layer.columns, 0))]
        slots = np.arange(self.num_slots)[:, None]
        rows, columns = np.reshape(taps, [-1, 2]).T
        ago = self.lag * rows - columns - 1
        places = ago * self.num_slots + (slots - rows) % self.num_slots
        patches = tf.gather(past, places.reshape(-1), axis=past.shape.rank - 2)
        size = len(taps) * past.shape[-1]
        return tf.reshape(patches, [*past.shape[:-3], -1, size])

    def before_pixels(self, static, past, t):
        """The layers' sums at a pixel of every slot, but for the pixels themselves."""
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
            x: `[batch * slots, channels]`, 0 outside the image.
            activations: as `pixel` gave them, `[blocks, batch * slots, filters]`.
            inside: `[batch * slots, 1]`, 1 in the image.
        """
        slots = self.num_slots
        newest = [x, *(part * inside for part in activations)]
        return [
            tf.concat(
                [
                    tf.reshape(new, [*part.shape[:-3], -1, slots, part.shape[-1]]),
                    part[..., :-slots, :],
                ],
                axis=-2,
            )
            for part, new in zip(past, newest, strict=True)
        ]
