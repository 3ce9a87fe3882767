"""FAME: a ladder of feature-map latents under a PixelCNN decoder.

"Feature Map Variational Auto-Encoders" (anonymous submission, 2018): the models of
table 1, for grey and for natural images.
"""

import keras
import tensorflow as tf

from vaezoo import checks, inference, sampling
from vaezoo.decoders.pixelcnn import PixelCNN
from vaezoo.distributions import heads
from vaezoo.distributions import images as image_distributions
from vaezoo.layers import ladder
from vaezoo.layers.weight_norm import Conv2D
from vaezoo.models import batch_norm
from vaezoo.models.vae import VAE

_NUM_LEVELS = 5


@keras.saving.register_keras_serializable(package="vaezoo")
class FAME(VAE):
    """Feature-map VAE with five latents, z5 at the top.

        p(x, z) = p(x | z1) N(z5; 0, I) prod over i < 5 of p(z_i | z_{i+1})   (eq. 1)
        q(z | x) = q(z5 | x) prod over i < 5 of q(z_i | z_{i+1}, x)           (eq. 7)

    All are diagonal Gaussians. Inference goes down the ladder: what the image says of
    `z_i`, from a deterministic bottom-up pass, is merged with `p(z_i | z_{i+1})` by
    precision (eqs. 8, 9), which the posterior so shares with the prior. From z1 come
    maps of the image's size, which are concatenated to the image for a masked PixelCNN
    (section 2.3); "No Concatenation" leaves out the image, and one pass generates
    (section 3).

    | column of table 1   | arguments                                               |
    |---|---|
    | natural images      | the defaults                                            |
    | gray-scaled images  | `image_shape=(28, 28, 1), levels=2, spatial=False`      |
    | no concatenation    | `concatenate=False`                                     |

    Departs from the paper: equation 9 prints a standard deviation where its square is
    meant. Without concatenation the decoder's convolutions are not masked; the paper
    omits the image and says nothing of the masks.

    Ours, where the paper is silent: a latent's location and scale have a layer each,
    on the same features ("1 x Dense"); the top-down blocks are the bottom-up ones
    backwards, and where sizes are odd (7 of 28x28) the first rows and columns are
    kept; the bottom-up pass is deterministic, through no latent; the convolution
    before a batch normalisation has no bias; scales are floored at 1e-4; the maps of
    z1 are not masked; the decoder has two 3x3 convolutions a residual block and ends
    in 1x1 convolutions, the last of which starts smooth over the levels, at their
    frequencies in a first batch; and the statistics' momentum.

    Args:
        image_shape: `(height, width, channels)`. Channels are generated in order.
        levels: int. 2 for binary images (Bernoulli), else a categorical of so many
            levels.
        spatial: bool. Latents that are feature maps (the column of natural images),
            rather than vectors (gray-scaled images).
        concatenate: bool. Whether the PixelCNN sees the image.
        latent_sizes: sequence of 5 ints, of z1 to z5: feature maps of z1 to z4 and the
            size of z5 where `spatial`, else sizes. `None` for the paper's.
        filters: int. Width of the deterministic layers. `None` for the paper's, 192
            or 64; the first level has half of it (`spatial`), its first layer (else).
        pixelcnn_filters: int. Width of the decoder.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        *,
        image_shape=(32, 32, 3),
        levels=256,
        spatial=True,
        concatenate=True,
        latent_sizes=None,
        filters=None,
        pixelcnn_filters=64,
        **kwargs,
    ):
        super().__init__(image_shape=image_shape, levels=levels, **kwargs)
        if latent_sizes is None:
            latent_sizes = (8, 16, 16, 16, 64) if spatial else (64, 32, 16, 8, 4)
        filters = filters or (192 if spatial else 64)
        self._config = {
            "image_shape": list(self.image_shape),
            "levels": self.levels,
            "spatial": spatial,
            "concatenate": concatenate,
            "latent_sizes": list(latent_sizes),
            "filters": filters,
            "pixelcnn_filters": pixelcnn_filters,
        }
        self._check_arguments()
        self.latent_sizes = tuple(latent_sizes)
        height, width, channels = self.image_shape
        sizes = [(height, width)]  # of the image and of z1 to z5
        for _ in range(_NUM_LEVELS):
            sizes.append(tuple(-(-side // 2) for side in sizes[-1]))

        if levels == 2:
            self.head = heads.Bernoulli(channels)
        else:
            self.head = heads.Categorical(channels, levels)
        build = _build_spatial if spatial else _build_dense
        self.bottom_up, self.posteriors, self.top_down, self.priors = build(
            sizes, self.latent_sizes, filters
        )
        decoder = {
            "filters": pixelcnn_filters,
            "num_outputs": self.head.num_outputs,
            "output_initializer": self.head.smooth_kernel if levels > 2 else None,
        }
        if concatenate:
            self.pixelcnn = PixelCNN(
                num_colours=channels,
                num_layers=9,
                block_size=2,
                kernel_size=3,
                first_kernel_size=7,
                head_filters=(pixelcnn_filters, pixelcnn_filters),
                num_maps=filters // 2,
                mask_maps=False,
                normalized=False,
                name="pixelcnn",
                **decoder,
            )
        else:
            self.decoder = OnePassDecoder(name="decoder", **decoder)
        self.finish_build()

    def _check_arguments(self):
        config = self._config
        of = tuple(f"z{level}" for level in range(1, _NUM_LEVELS + 1))
        sizes = checks.integers("latent_sizes", config["latent_sizes"], of=of)
        config["latent_sizes"] = list(sizes)
        for name, minimum in (("filters", 2), ("pixelcnn_filters", 1)):
            config[name] = checks.integer(name, config[name], minimum=minimum)

    @property
    def decoder_network(self):
        """The PixelCNN, which can be trained before there is a z to see."""
        return self.pixelcnn if self._config["concatenate"] else None

    @property
    def starts_from_data(self):
        """Whether a first batch sets the output layer's biases."""
        return self.levels > 2

    def initialize_outputs(self, images):
        """Start at the frequencies of the levels."""
        if self.levels > 2:
            network = self.pixelcnn if self._config["concatenate"] else self.decoder
            network.outputs.bias.assign(self.head.level_logits(images))

    def recalibrate_batch_norm(self, dataset):
        """Recompute the statistics; see `vaezoo.models.batch_norm`."""
        batch_norm.recalibrate_batch_norm(self, dataset)

    def features(self, images, *, training=False):
        """What the image says of each latent: dict of `z1` to `z5` to (loc, scale)."""
        hidden = tf.cast(images, tf.float32)
        if self.levels > 2:
            hidden = self.head.normalize(hidden)
        features = {}
        for level in range(1, _NUM_LEVELS + 1):
            for layer in self.bottom_up[level - 1]:
                hidden = layer(hidden, training=training)
            features[f"z{level}"] = self.posteriors[level - 1](hidden)
        return features

    def infer(self, features, *, seeds, training=False):
        """Down the ladder: `z_i ~ q(z_i | z_{i+1}, x)`."""
        latents, prior = {}, None
        for level in range(_NUM_LEVELS, 0, -1):
            posterior = features[f"z{level}"]
            if prior is None:
                prior = tf.zeros_like(posterior[0]), tf.ones_like(posterior[1])
            else:
                posterior = ladder.merge_precisions(posterior, prior)
            latents[f"z{level}"] = self._latent(level, posterior, prior, seeds)
            hidden, prior = self._below(level, latents[f"z{level}"].value, training)
        return latents, hidden

    def _latent(self, level, posterior, prior, seeds):
        loc, scale = posterior
        event_ndims = loc.shape.rank - 1
        noise = sampling.row_normals(seeds, loc.shape[1:].as_list(), f"z{level}")
        return inference.Latent(
            value=loc + scale * noise,
            posterior=inference.diagonal_normal(*posterior, event_ndims=event_ndims),
            prior=inference.diagonal_normal(*prior, event_ndims=event_ndims),
        )

    def _below(self, level, value, training=False):
        """Top-down features, and (loc, scale) of `p(z_{i-1} | z_i)`, `None` for z1."""
        hidden = value
        for layer in self.top_down[level - 1]:
            hidden = layer(hidden, training=training)
        return hidden, self.priors[level - 2](hidden) if level > 1 else None

    def generate(self, seeds, *, temperature):
        """Ancestral: `z5 ~ N(0, I)`, `z_i ~ p(z_i | z_{i+1})`, scales x temperature."""
        size = [tf.shape(temperature)[0], self.latent_sizes[-1]]
        prior = tf.zeros(size), tf.ones(size)
        values = {}
        for level in range(_NUM_LEVELS, 0, -1):
            loc, scale = prior
            rank = loc.shape.rank
            scale *= tf.reshape(temperature, [-1] + [1] * (rank - 1))
            latent = self._latent(level, (loc, scale), prior, seeds)
            values[f"z{level}"] = latent.value
            hidden, prior = self._below(level, latent.value)
        return values, hidden

    def likelihood(self, values, *, context=None, seeds=None, training=False):
        """`p(x | z1)`; the context is d(z1), the maps that the PixelCNN sees.

        Without values, that of the PixelCNN alone.
        """
        maps = context
        if maps is None and values:
            maps, _ = self._below(1, values["z1"], training)
        if not self._config["concatenate"]:
            return image_distributions.IndependentImage(
                self.decoder(maps), self.head, image_shape=self.image_shape
            )
        return image_distributions.AutoregressiveImage(
            self.pixelcnn,
            self.head,
            image_shape=self.image_shape,
            batch_size=tf.shape(seeds if maps is None else maps)[0],
            conditioning={} if maps is None else {"maps": maps},
        )


class OnePassDecoder(keras.layers.Layer):
    """The PixelCNN's layers without masks and without the image: maps to parameters."""

    def __init__(self, *, filters, num_outputs, output_initializer, **kwargs):
        super().__init__(**kwargs)

        def conv(width, size, name, **options):
            return Conv2D(width, size, normalized=False, name=name, **options)

        self.first = conv(filters, 7, "first")
        self.blocks = [
            [conv(filters, 3, f"block_{i}_{j}") for j in range(2)] for i in range(4)
        ]
        self.head = [conv(filters, 1, f"head_{i}") for i in range(2)]
        self.outputs = conv(
            num_outputs, 1, "head_2", direction_initializer=output_initializer
        )

    def compute_output_shape(self, input_shape):
        return self.outputs.compute_output_shape(input_shape)

    def call(self, maps):
        """`[batch, height, width, channels]` to `[batch, height, width, outputs]`."""
        features = self.first(maps)
        for inner, outer in self.blocks:
            features += outer(tf.nn.relu(inner(tf.nn.relu(features))))
        for layer in [*self.head, self.outputs]:
            features = layer(tf.nn.relu(features))
        return features


class _Crop(keras.layers.Layer):
    """Cuts `[batch, height, width, channels]` to its first rows and columns."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.size, input_shape[3])

    def call(self, features, training=False):
        return features[:, : self.size[0], : self.size[1]]


class _Reshape(keras.layers.Layer):
    """Reshapes all axes but the first."""

    def __init__(self, shape, **kwargs):
        super().__init__(**kwargs)
        self.shape = shape

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.shape)

    def call(self, features, training=False):
        return tf.reshape(features, [-1, *self.shape])


def _dense_parameters(size, name):
    """Of a latent vector: two dense layers on the flattened features."""
    return ladder.GaussianParameters(
        lambda part: keras.Sequential(
            [keras.layers.Flatten(), keras.layers.Dense(size, name="dense")], name=part
        ),
        name=name,
    )


def _map_parameters(filters, name):
    """Of latent feature maps: two 3x3 convolutions."""
    return ladder.GaussianParameters(
        lambda part: keras.layers.Conv2D(filters, 3, padding="same", name=part),
        name=name,
    )


def _build_spatial(sizes, latents, filters):
    """The column of natural images: lists by level of layers and of parameters."""
    widths = [filters // 2] + [filters] * (_NUM_LEVELS - 1)
    bottom_up = [
        [
            ladder.conv(width, f"up_{level}_0"),
            ladder.conv(width, f"up_{level}_1"),
            ladder.conv(width, f"up_{level}_2", strides=2),
        ]
        for level, width in enumerate(widths, start=1)
    ]
    posteriors = [
        _map_parameters(size, f"posterior_{level}")
        for level, size in enumerate(latents[:-1], start=1)
    ]
    posteriors.append(_dense_parameters(latents[-1], f"posterior_{_NUM_LEVELS}"))
    # From z_i to the size of z_{i-1}; from z1 to the image's. z5 is a vector.
    top_down = [
        [
            ladder.deconv(width, f"down_{level}_0"),
            _Crop(sizes[level - 1], name=f"crop_{level}"),
            ladder.conv(width, f"down_{level}_1"),
            ladder.conv(width, f"down_{level}_2"),
        ]
        for level, width in enumerate(widths, start=1)
    ]
    height, width = sizes[-1]
    top_down[-1] = [
        ladder.dense(height * width * filters, "down_dense"),
        _Reshape((height, width, filters), name="down_reshape"),
        *top_down[-1],
    ]
    priors = [
        _map_parameters(size, f"prior_{level}")
        for level, size in enumerate(latents[:-1], start=1)
    ]
    return bottom_up, posteriors, top_down, priors


def _build_dense(sizes, latents, filters):
    """The column of gray-scaled images: lists by level of layers and of parameters."""
    bottom_up, posteriors, top_down, priors = [], [], [], []
    for level, size in enumerate(latents, start=1):
        first = {"filters": filters // 2, "kernel_size": 5} if level == 1 else {}
        options = {"filters": filters} | first
        bottom_up.append(
            [
                ladder.conv(name=f"up_{level}_0", strides=2, **options),
                ladder.conv(filters, f"up_{level}_1"),
            ]
        )
        posteriors.append(_dense_parameters(size, f"posterior_{level}"))
        height, width = sizes[level]
        top_down.append(
            [
                ladder.dense(height * width * filters, f"down_{level}_0"),
                _Reshape((height, width, filters), name=f"reshape_{level}"),
                ladder.conv(filters, f"down_{level}_1"),
                ladder.deconv(name=f"down_{level}_2", **options),
                _Crop(sizes[level - 1], name=f"crop_{level}"),
            ]
        )
        if level < _NUM_LEVELS:
            priors.append(_dense_parameters(size, f"prior_{level}"))
    return bottom_up, posteriors, top_down, priors
