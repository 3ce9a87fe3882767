"""Layers of ladder networks: normalised convolutions and the precision-weighted merge.

Sonderby et al. (2016), "Ladder Variational Autoencoders".
"""

import keras
import tensorflow as tf


def merge_precisions(posterior, prior):
    """The product of two diagonal Gaussians, normalised (Sonderby et al., eqs. 17-19).

        1 / scale^2 = 1 / scale_q^2 + 1 / scale_p^2
        loc = scale^2 (loc_q / scale_q^2 + loc_p / scale_p^2)

    (Equation 9 of FAME prints the first with scale in place of its square.) Computed
    as the prior moved towards the posterior, which is stable where either is sharp.

    Args:
        posterior: `(loc, scale)`, what the image says, tensors of one shape.
        prior: `(loc, scale)`, what the latents above say, of the same shape.

    Returns:
        `(loc, scale)`, float32.
    """
    (loc_q, scale_q), (loc_p, scale_p) = posterior, prior
    variance_q = tf.maximum(tf.square(tf.cast(scale_q, tf.float32)), 1e-8)
    variance_p = tf.maximum(tf.square(tf.cast(scale_p, tf.float32)), 1e-8)
    weight = variance_p / (variance_p + variance_q)  # of the posterior
    loc_p = tf.cast(loc_p, tf.float32)
    loc = loc_p + weight * (tf.cast(loc_q, tf.float32) - loc_p)
    return loc, tf.sqrt(weight * variance_q)


class GaussianParameters(keras.layers.Layer):
    """Location and scale of a latent, from layers of their own.

    The scale, a standard deviation, is `softplus + 1e-4`.

    Args:
        make_layer: function from a name to a Keras layer, linear.
    """

    def __init__(self, make_layer, **kwargs):
        super().__init__(**kwargs)
        self.loc, self.scale = make_layer("loc"), make_layer("scale")

    def compute_output_shape(self, input_shape):
        shape = self.loc.compute_output_shape(input_shape)
        return shape, shape

    def call(self, features):
        """`(loc, scale)`, float32."""
        loc = tf.cast(self.loc(features), tf.float32)
        scale = tf.nn.softplus(tf.cast(self.scale(features), tf.float32)) + 1e-4
        return loc, scale


class Normalized(keras.layers.Layer):
    """A linear layer without bias, batch normalisation, ReLU.

    The statistics are those of the global batch under a `tf.distribute` strategy. Not
    for autoregressive networks: statistics over positions show a pixel the future.

    Args:
        layer: a Keras layer without bias.
    """

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer
        self.normalization = keras.layers.BatchNormalization(
            epsilon=1e-3, momentum=0.99, synchronized=True, name="normalization"
        )

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def call(self, inputs, training=False):
        """The layer's shape, normalised over all axes but the last."""
        features = self.normalization(self.layer(inputs), training=training)
        return tf.nn.relu(features)


def dense(size, name):
    """`Normalized` dense layer."""
    layer = keras.layers.Dense(
        size, use_bias=False, kernel_initializer="he_normal", name="dense"
    )
    return Normalized(layer, name=name)


def conv(filters, name, *, kernel_size=3, strides=1):
    """`Normalized` convolution, zero-padded to `ceil(size / strides)`."""
    layer = keras.layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name="conv",
    )
    return Normalized(layer, name=name)


def deconv(filters, name, *, kernel_size=3):
    """`Normalized` transposed convolution that doubles height and width."""
    layer = keras.layers.Conv2DTranspose(
        filters,
        kernel_size,
        strides=2,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name="deconv",
    )
    return Normalized(layer, name=name)
