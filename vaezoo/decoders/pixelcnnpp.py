"""PixelCNN++: two streams through a U, from an image to each pixel's parameters."""

import itertools

import keras
import tensorflow as tf

from vaezoo.decoders.pixelcnnpp_scan import PixelCNNPPScanner
from vaezoo.layers.causal import down_shift
from vaezoo.layers.dropout import Dropout
from vaezoo.layers.shifted import (
    ShiftedConv2D,
    ShiftedConv2DTranspose,
    concat_elu,
    right_shift,
)
from vaezoo.layers.weight_norm import Dense

KERNELS = {"down": (2, 3), "down_right": (2, 2)}
_NAMES = {"down": "rows", "down_right": "pixels"}
_SIZE_RULE = (
    "`images` of a strided PixelCNN++, which halves them twice, must have a height and "
    "a width divisible by 4. Received: {}. Pad or resize them, or build it with "
    "strided=False."
)
_NUM_LEVELS = 3  # resolutions of the U: 1, 1/2 and 1/4 of the image


@keras.saving.register_keras_serializable(package="vaezoo")
class GatedResnet(keras.layers.Layer):
    """A residual block of one stream.

        h   = conv(f(x)) + nin(f(a)) + U elu(s),    f = concat_elu
        b,c = conv(dropout(f(h))) + V z
        x'  = x + b sigmoid(c)

    The terms of `a`, what else the block sees at its own position, of the vector `z`
    and of the maps `s` are absent without them. U starts at 0.

    Args:
        filters: int. Channels of x and x'.
        stream: "down" or "down_right".
        dropout: float in [0, 1). Rate of the dropout.
    """

    def __init__(self, filters, *, stream, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        size, policy = KERNELS[stream], self.dtype_policy
        self.first = ShiftedConv2D(
            filters, size, stream=stream, dtype=policy, name="first"
        )
        self.skip = Dense(filters, dtype=policy, name="skip")
        self.dropout = Dropout(dropout, dtype=policy, name="dropout")
        # A small scale starts the block near the identity.
        self.second = ShiftedConv2D(
            2 * filters,
            size,
            stream=stream,
            init_scale=0.1,
            dtype=policy,
            name="second",
        )
        self.code = keras.layers.Dense(
            2 * filters,
            use_bias=False,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.05),
            dtype=policy,
            name="code",
        )
        self.injection = keras.layers.Dense(
            filters,
            use_bias=False,
            kernel_initializer="zeros",
            dtype=policy,
            name="injection",
        )

    def build(
        self, inputs_shape, skip_shape=None, code_shape=None, injected_shape=None
    ):
        def doubled(shape):
            return (*shape[:-1], 2 * shape[-1])

        self.first.build(doubled(inputs_shape))
        if skip_shape is not None:
            self.skip.build(doubled(skip_shape))
        self.second.build(doubled(inputs_shape))
        if code_shape is not None:
            self.code.build(code_shape)
        if injected_shape is not None:
            self.injection.build(injected_shape)

    def compute_output_shape(self, inputs_shape, *other_shapes):
        return inputs_shape

    def call(
        self,
        inputs,
        skip=None,
        code=None,
        injected=None,
        *,
        seeds=None,
        training=False,
    ):
        """Map `[batch, height, width, filters]` to the same shape."""
        features = self.first(concat_elu(inputs))
        if skip is not None:
            features += self.skip(concat_elu(skip))
        if injected is not None:
            features += self.injection(tf.nn.elu(injected))
        features = self.dropout(concat_elu(features), seeds=seeds, training=training)
        features = self.second(features)
        if code is not None:
            features += self.code(code)[:, None, None, :]
        values, gates = tf.split(features, 2, axis=-1)
        return inputs + values * tf.sigmoid(gates)


def _forget(layer, slices, *, axis):
    """Set the direction of some inputs of a layer to 0."""
    direction = tf.convert_to_tensor(layer.direction).numpy()
    for start, stop in slices:
        direction[(slice(None),) * axis + (slice(start, stop),)] = 0.0
    layer.direction.assign(direction)


class Stream:
    """The layers of one stream, in the order in which they are called.

    Attributes:
        up: for each resolution, the finest first, a list of `GatedResnet`.
        down: the same of the way back, the coarsest first.
        shrink: two `ShiftedConv2D`, from one resolution to the next.
        grow: two layers, back to the finer one.
    """

    def __init__(self, stream, filters, num_resnets, *, dropout, strided, dtype):
        def resnets(name, count):
            return [
                GatedResnet(
                    filters,
                    stream=stream,
                    dropout=dropout,
                    dtype=dtype,
                    name=f"{_NAMES[stream]}_{name}_{index}",
                )
                for index in range(count)
            ]

        def conv(name, **options):
            return ShiftedConv2D(
                filters,
                KERNELS[stream],
                stream=stream,
                dtype=dtype,
                name=f"{_NAMES[stream]}_{name}",
                **options,
            )

        steps = range(_NUM_LEVELS - 1)
        self.up = [resnets(f"up_{level}", num_resnets) for level in range(_NUM_LEVELS)]
        self.shrink = [
            conv(f"shrink_{level}", strides=2 if strided else 1) for level in steps
        ]
        # One more on the way back wherever a resolution was left: the nodes that are
        # passed across are those after each resnet and after each change of size.
        self.down = [
            resnets(f"down_{level}", num_resnets + (level > 0))
            for level in range(_NUM_LEVELS)
        ]
        self.grow = [
            ShiftedConv2DTranspose(
                filters,
                stream=stream,
                dtype=dtype,
                name=f"{_NAMES[stream]}_grow_{level}",
            )
            if strided
            else conv(f"grow_{level}")
            for level in steps
        ]


@keras.saving.register_keras_serializable(package="vaezoo")
class PixelCNNPPNetwork(keras.layers.Layer):
    """PixelCNN++ (Salimans et al., 2017, section 2 and figure 2), without a blind spot.

    A stream that sees the rows above and one that sees the pixels to the left go down
    to a quarter of the image's size and back, and at each node of the way back see the
    node of the way there. Weight-normalised. Every output channel sees all colours of
    the pixels before its own and none of its own, so that a head must say how a
    pixel's colours depend on each other.

    It may be conditioned on maps of the image's size, which are concatenated to the
    image; on a vector; on maps that are concatenated to what each node of the way
    there hands across (PixelVAE++); and on maps that are added in each block (AGAVE's,
    of a `FeatureStream`). The way there, `up`, is a pass of its own that an encoder may
    read. Which of them there are is decided in `build`; those that are left out of a
    call are zero.

    Args:
        num_outputs: int. Output channels a pixel.
        filters: int. Width of both streams.
        num_resnets: int. Residual blocks at each resolution of the way there.
        dropout: float in [0, 1). Rate of the dropout in each block.
        strided: bool. Whether the streams change size; without, all of it has the
            image's size.

    Raises:
        ValueError: in a call, if strides do not divide the image's sizes.
    """

    def __init__(
        self, *, num_outputs, filters, num_resnets, dropout=0.0, strided=True, **kwargs
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.num_resnets = num_resnets
        self.strided = strided
        self.num_maps = self.num_skips = 0
        policy = self.dtype_policy

        def first(name, kernel_size, stream):
            return ShiftedConv2D(
                filters, kernel_size, stream=stream, dtype=policy, name=name
            )

        # What each stream starts from: the rows above; the rows above, as wide as 3,
        # and the column to the left, as high as 2.
        self.rows_above = first("rows_above", (2, 3), "down")
        self.row_above = first("row_above", (1, 3), "down")
        self.column_left = first("column_left", (2, 1), "down_right")
        options = {"dropout": dropout, "strided": strided, "dtype": policy}
        self.rows = Stream("down", filters, num_resnets, **options)
        self.pixels = Stream("down_right", filters, num_resnets, **options)
        # From the last node to where the way back starts, where more is concatenated.
        self.starts = [
            Dense(filters, dtype=policy, name=f"{name}_start")
            for name in _NAMES.values()
        ]
        # Keras tracks layers in lists of a layer's own.
        self.layers_of_streams = [
            layer
            for stream in (self.rows, self.pixels)
            for part in (*stream.up, stream.shrink, *stream.down, stream.grow)
            for layer in part
        ]
        self.outputs = Dense(num_outputs, dtype=policy, name="outputs")

    @property
    def num_nodes(self):
        """Nodes of the way there: those after each block and each change of size."""
        return _NUM_LEVELS * (self.num_resnets + 1)

    @property
    def block_counts(self):
        """A stream's blocks at each resolution: of the way there, of the way back."""
        return list(map(len, self.rows.up)), list(map(len, self.rows.down))

    def build(
        self,
        images_shape,
        maps_shape=None,
        code_shape=None,
        skips_shape=None,
        injections_shape=None,
    ):
        self.num_maps = 0 if maps_shape is None else maps_shape[-1]
        self.num_skips = 0 if skips_shape is None else skips_shape[0][-1]
        channels = images_shape[-1] + 1 + self.num_maps
        features = (*images_shape[:-1], self.filters)
        for layer in (self.rows_above, self.row_above, self.column_left):
            layer.build((*images_shape[:-1], channels))

        def wide(num_streams):  # what a skip brings: shapes as channels only
            return (*features[:-1], num_streams * self.filters + self.num_skips)

        # As wide in every block.
        injected = None if injections_shape is None else injections_shape[0]
        rows, pixels = self.rows, self.pixels
        for level in range(_NUM_LEVELS):
            for down, right in zip(rows.up[level], pixels.up[level], strict=True):
                down.build(features, None, code_shape, injected)
                right.build(features, features, code_shape, injected)
            if level < _NUM_LEVELS - 1:
                rows.shrink[level].build(features)
                pixels.shrink[level].build(features)
        if self.num_skips:
            for layer in self.starts:
                layer.build(wide(1))
        for level in range(_NUM_LEVELS):
            for down, right in zip(rows.down[level], pixels.down[level], strict=True):
                down.build(features, wide(1), code_shape, injected)
                right.build(features, wide(2), code_shape, injected)
            if level < _NUM_LEVELS - 1:
                rows.grow[level].build(features)
                pixels.grow[level].build(features)
        self.outputs.build(features)

    def compute_output_shape(self, images_shape, *other_shapes):
        return (*images_shape[:-1], self.outputs.filters)

    def call(
        self,
        images,
        maps=None,
        code=None,
        skips=None,
        injections=None,
        *,
        nodes=None,
        seeds=None,
        training=False,
    ):
        """Map `[batch, height, width, channels]` to `[..., num_outputs]`.

        Args:
            images: in the head's units.
            maps: `[batch, height, width, num_maps]`, or `None`.
            code: `[batch, size]`, a vector that every block sees, or `None`.
            skips: for each node, as of `up`, `[batch, height, width, num_skips]` of its
                height and width; or `None`.
            injections: for each block of a stream, in the order of their calls,
                `[batch, height, width, k]` of its height and width; or `None`.
            nodes: what `up` gave for these images, maps, code and injections, where it
                is known.
            seeds: int64 `[batch]`, for dropout; needed where `training`.
            training: bool.
        """
        options = {"code": code, "seeds": seeds, "training": training}
        if nodes is None:
            nodes = self.up(images, maps, injections=injections, **options)
        return self.down(nodes, skips, injections=injections, **options)

    def up(
        self,
        images,
        maps=None,
        code=None,
        injections=None,
        *,
        seeds=None,
        training=False,
    ):
        """The way there: a list of nodes, from the image's size to a quarter of it.

        Args: as of `call`.

        Returns:
            `num_nodes` pairs of `[batch, height, width, filters]`, of the stream of
            rows and of that of pixels. A pixel stream's node sees the pixels before its
            own, all of which the other one's sees too, but for those of its row.
        """
        self.check_size(*images.shape[1:3])
        if self.strided and None in images.shape[1:3]:
            images = self._checked(images)
        options = {"code": code, "seeds": seeds, "training": training}
        # A channel of ones shows the edge of the image.
        parts = [images, tf.ones_like(images[..., :1])]
        if self.num_maps:
            zeros = tf.zeros([*tf.unstack(tf.shape(images)[:-1]), self.num_maps])
            parts.append(tf.cast(zeros if maps is None else maps, images.dtype))
        images = tf.concat(parts, axis=-1)
        down = down_shift(self.rows_above(images))
        right = down_shift(self.row_above(images))
        right += right_shift(self.column_left(images))
        rows, pixels = self.rows, self.pixels
        nodes = [(down, right)]
        injected = self._in_turn(injections)
        for level in range(_NUM_LEVELS):
            for block, other in zip(rows.up[level], pixels.up[level], strict=True):
                more = next(injected)
                down = block(down, injected=more, **options)
                right = other(right, down, injected=more, **options)
                nodes.append((down, right))
            if level < _NUM_LEVELS - 1:
                down = rows.shrink[level](down)
                right = pixels.shrink[level](right)
                nodes.append((down, right))
        return nodes

    def _in_turn(self, injections, *, start=0):
        """The injection of each block from `start` on, `None` where there are none."""
        return (
            itertools.repeat(None) if injections is None else iter(injections[start:])
        )

    def down(
        self,
        nodes,
        skips=None,
        code=None,
        injections=None,
        *,
        seeds=None,
        training=False,
    ):
        """The way back, from `up`'s nodes to the outputs. Args: as of `call`."""
        options = {"code": code, "seeds": seeds, "training": training}
        nodes = list(nodes)
        skips = [None] * len(nodes) if skips is None else list(skips)

        def handed_across():
            """The next node's two streams, and what is concatenated to both."""
            (down, right), skip = nodes.pop(), skips.pop()
            if not self.num_skips:
                return down, right, []
            if skip is None:
                skip = tf.zeros([*tf.unstack(tf.shape(down)[:-1]), self.num_skips])
            return down, right, [tf.cast(skip, down.dtype)]

        down, right, more = handed_across()
        if self.num_skips:
            down, right = (
                layer(tf.nn.elu(tf.concat([features, *more], axis=-1)))
                for layer, features in zip(self.starts, (down, right), strict=True)
            )
        rows, pixels = self.rows, self.pixels
        injected = self._in_turn(injections, start=sum(self.block_counts[0]))
        for level in range(_NUM_LEVELS):
            for block, other in zip(rows.down[level], pixels.down[level], strict=True):
                skip_down, skip_right, more = handed_across()
                options["injected"] = next(injected)
                down = block(down, tf.concat([skip_down, *more], axis=-1), **options)
                skip = tf.concat([down, skip_right, *more], axis=-1)
                right = other(right, skip, **options)
            if level < _NUM_LEVELS - 1:
                down = rows.grow[level](down)
                right = pixels.grow[level](right)
        return self.outputs(tf.nn.elu(right))

    def scanner(
        self, height, width, *, maps=None, code=None, skips=None, injections=None
    ):
        """The network unrolled for sampling; see `vaezoo.decoders.scan`."""
        return PixelCNNPPScanner(self, height, width, maps, code, skips, injections)

    def forget_conditioning(self):
        """Set the weights of what is conditioned on to 0: the image alone is seen."""
        for block in self.layers_of_streams:
            if isinstance(block, GatedResnet):
                for layer in (block.code, block.injection):
                    if layer.built:
                        layer.kernel.assign(tf.zeros_like(layer.kernel))
        if self.num_maps:
            for layer in (self.rows_above, self.row_above, self.column_left):
                _forget(layer, [[-self.num_maps, None]], axis=2)
        if not self.num_skips:
            return
        for layer in self.starts:
            _forget(layer, [[self.filters, None]], axis=0)
        for stream, num_streams in ((self.rows, 1), (self.pixels, 2)):
            first, size = num_streams * self.filters, self.num_skips
            both = [[first, first + size], [2 * first + size, None]]
            for block in (block for level in stream.down for block in level):
                _forget(block.skip, both, axis=0)

    def check_size(self, height, width):
        """Refuse images that the strides do not divide.

        Raises:
            ValueError: if `height` or `width`, where known, is not a multiple of 4.
        """
        sizes = [size for size in (height, width) if size is not None]
        if self.strided and any(size % 4 for size in sizes):
            raise ValueError(_SIZE_RULE.format(f"{height}x{width}"))

    def _checked(self, images):
        sizes = tf.shape(images)[1:3]
        message = tf.strings.format(_SIZE_RULE, sizes)
        is_divided = tf.reduce_all(tf.equal(sizes % 4, 0))
        with tf.control_dependencies([tf.debugging.Assert(is_divided, [message])]):
            return tf.identity(images)
