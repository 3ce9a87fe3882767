"""PixelVAE's conditional PixelCNN: gated residual blocks, over images or maps."""

import keras
import tensorflow as tf

from vaezoo.decoders.causal_stack import CausalStackScanner
from vaezoo.decoders.gated_pixelcnn import gate
from vaezoo.decoders.scan import affine
from vaezoo.layers.causal import CausalConv2D


@keras.saving.register_keras_serializable(package="vaezoo")
class ResidualPixelCNN(keras.layers.Layer):
    """A 5x5 type-A convolution, gated residual blocks, a 1x1 layer.

    Gulrajani et al. (2017), sections 3 and 3.1, in the layers of the authors' code. The
    conditioning maps meet the features behind the first convolution, and are masked
    like them. It has a blind spot to the upper right.

    Args:
        num_colours: int. Channels that are generated in order at a place; 1 for
            maps whose channels are independent there, so that no output depends on its
            own place.
        num_outputs: int. Output channels a place; channel `k` belongs to colour
            `k mod num_colours`.
        features: int. Width of the first convolution.
        filters: int. Width of the blocks.
        kernel_sizes: sequence of odd ints, at least one. Kernel of each block.
        num_maps: int. Conditioning channels.
        embedding: a `vaezoo.layers.embedding.LevelEmbedding` that the image goes
            through, which others may share, or `None`.
        normalized_outputs: bool. Whether the last layer is weight-normalised; it then
            starts at a tenth of unit scale.
        output_initializer: function of a shape and a dtype to the first kernel of the
            last layer, or `None` for that of the others.
    """

    def __init__(
        self,
        *,
        num_colours,
        num_outputs,
        features,
        filters,
        kernel_sizes,
        num_maps,
        embedding=None,
        normalized_outputs=True,
        output_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        common = {"num_groups": num_colours, "dtype": self.dtype_policy}
        self.embedding = embedding
        self.first = CausalConv2D(features, 5, mask_type="A", name="first", **common)
        self.blocks = [
            MaskedResidualBlock(
                filters if index else features,
                filters,
                kernel_size,
                num_maps=0 if index else num_maps,
                name=f"block_{index}",
                **common,
            )
            for index, kernel_size in enumerate(kernel_sizes)
        ]
        self.outputs = CausalConv2D(
            num_outputs,
            1,
            mask_type="B",
            init_scale=0.1,
            normalized=normalized_outputs,
            direction_initializer=output_initializer,
            name="outputs",
            **common,
        )

    def build(self, values_shape, maps_shape=None):
        shape = tuple(values_shape)
        if self.embedding is not None:
            if not self.embedding.built:
                self.embedding.build(shape)
            shape = self.embedding.compute_output_shape(shape)
        for layer in [self.first, *self.blocks, self.outputs]:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def compute_output_shape(self, values_shape, maps_shape=None):
        return self.outputs.compute_output_shape(values_shape)

    def call(self, values, maps=None):
        """Map `[batch, height, width, channels]` to each place's parameters.

        Args:
            values: the image's levels scaled to [-1, 1], or the maps that are modelled.
            maps: conditioning `[batch, height, width, num_maps]`, or `None`.

        Returns:
            `[batch, height, width, num_outputs]`.
        """
        features = values if self.embedding is None else self.embedding(values)
        features = self.first(features)
        for block in self.blocks:
            features = block(features, maps)
            maps = None
        return self.outputs(features)

    @property
    def can_forget_conditioning(self):
        """Whether a weight stands between the maps and the features."""
        return self.blocks[0].shortcut is not None

    def forget_conditioning(self):
        """Set the weights of the conditioning maps to 0: the image alone is seen."""
        for layer in (self.blocks[0].gates, self.blocks[0].shortcut):
            layer.forget_maps()

    def scanner(self, height, width, *, maps=None):
        """The network unrolled for sampling; see `vaezoo.decoders.scan`."""
        return _ResidualPixelCNNScanner(self, width, maps)


class MaskedResidualBlock(keras.layers.Layer):
    """`x + conv(tanh(a) sigmoid(b))`, `a` and `b` convolutions of `elu(x)`; type B.

    A 1x1 layer stands for the first `x` where its width is not the output's.

    Args:
        num_features: int. Channels of the image's features in the input.
        filters: int. Output channels.
        kernel_size: odd int.
        num_maps: int. Conditioning channels of the input, behind the features.
        **common: arguments of the convolutions and of a Keras layer: `num_groups`,
            `dtype`, `name`.
    """

    def __init__(
        self, num_features, filters, kernel_size, *, num_maps, num_groups, **kwargs
    ):
        super().__init__(**kwargs)
        self.filters, self.num_maps = filters, num_maps

        def conv(width, size, name, **options):
            return CausalConv2D(
                width,
                size,
                mask_type="B",
                num_groups=num_groups,
                dtype=self.dtype_policy,
                name=name,
                **options,
            )

        # Both halves in one, each with channels of every colour in order.
        self.gates = conv(
            2 * filters, kernel_size, "gates", copies=2, num_maps=num_maps
        )
        self.outer = conv(filters, kernel_size, "outer")
        self.shortcut = None
        if num_features + num_maps != filters:
            self.shortcut = conv(filters, 1, "shortcut", num_maps=num_maps)

    def build(self, features_shape, maps_shape=None):
        inputs = (*features_shape[:-1], features_shape[-1] + self.num_maps)
        self.gates.build(inputs)
        if self.shortcut is not None:
            self.shortcut.build(inputs)
        self.outer.build(self.compute_output_shape(features_shape))

    def compute_output_shape(self, features_shape, maps_shape=None):
        return (*features_shape[:-1], self.filters)

    def call(self, features, maps=None):
        """Features, and conditioning maps or `None`: `[batch, height, width, k]`."""
        if maps is not None:
            maps = tf.cast(maps, features.dtype)
            features = tf.concat([features, maps], axis=-1)
        added = self.outer(gate(self.gates(tf.nn.elu(features))))
        if self.shortcut is not None:
            return self.shortcut(features) + added
        return self.widened(features) + added

    def widened(self, features):
        """Features, with zeros for the channels of maps that they lack."""
        missing = self.filters - features.shape[-1]
        if missing == 0:
            return features
        return tf.pad(features, [[0, 0]] * (features.shape.rank - 1) + [[0, missing]])

    def shortcut_static(self, maps):
        """What the maps and the bias add to the shortcut, as of `CausalConv2D`."""
        if self.shortcut is not None:
            return self.shortcut.static_term(self.shortcut.kernel(), maps)
        if maps is None:
            return tf.zeros([self.filters], self.compute_dtype)
        ahead = self.filters - maps.shape[-1]
        return tf.pad(maps, [[0, 0]] * 3 + [[ahead, 0]])


class _ResidualPixelCNNScanner(CausalStackScanner):
    """Row-cached ResidualPixelCNN: the maps' share is computed once, for all places."""

    def __init__(self, network, width, maps):
        dtype = network.compute_dtype
        if maps is not None:
            maps = tf.cast(maps, dtype)
        self.embedding = network.embedding
        if self.embedding is not None:
            self.table = tf.cast(tf.convert_to_tensor(self.embedding.table), dtype)
        self.blocks = network.blocks
        layers, static = [network.first], [network.first.static_term(None)]
        for block in network.blocks:
            layers += [block.gates, block.outer]
            active = None if maps is None or not block.num_maps else tf.nn.elu(maps)
            static.append(block.gates.static_term(block.gates.kernel(), active))
            static.append(block.outer.static_term(None))
        super().__init__(
            layers,
            width=width,
            dtype=dtype,
            static=static,
            extras=[network.blocks[0].shortcut_static(maps)],
        )
        shortcut = self.blocks[0].shortcut
        self.shortcut = None if shortcut is None else affine(shortcut)[0]
        self.outputs = affine(network.outputs)

    def inputs(self, x):
        return x if self.embedding is None else self.embedding.lookup(x, self.table)

    def pixel(self, pre, x):
        features = pre[0]
        if self.layers[0].sees_centre:
            features += tf.matmul(self.inputs(x), self.centre[0])
        activations = []
        for index, block in enumerate(self.blocks):
            here = 1 + 2 * index
            active = tf.nn.elu(features)
            gated = gate(pre[here] + tf.matmul(active, self.centre[here]))
            activations += [active, gated]
            if index == 0 and self.shortcut is not None:
                features = tf.matmul(features, self.shortcut)
            if index == 0:  # the maps' share
                features = block.widened(features) + pre[-1]
            features += pre[here + 1] + tf.matmul(gated, self.centre[here + 1])
        kernel, bias = self.outputs
        return tf.matmul(features, kernel) + bias, activations
