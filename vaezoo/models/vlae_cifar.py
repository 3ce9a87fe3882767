"""VLAE of natural images: a code of maps under a flow of maps, and chosen windows.

Chen et al. (2017), "Variational Lossy Autoencoder", arXiv 1611.02731, version 2:
section 4.4 and appendix B.
"""

import keras
import tensorflow as tf

from vaezoo import checks, inference, sampling
from vaezoo.decoders.conv_made import ConvMADE
from vaezoo.decoders.windowed_pixelcnnpp import WINDOWS, WindowedPixelCNNPP
from vaezoo.distributions import flows, heads
from vaezoo.distributions import images as image_distributions
from vaezoo.layers.weight_norm import Conv2D, Conv2DTranspose
from vaezoo.models.vae import VAE
from vaezoo.models.vlae import ResidualBlock

_DEPTHS = (2, 2, 3)  # residual blocks at the image's size, a half and a quarter of it
_DENSE_STEPS = 3  # convolutions of a dense block


@keras.saving.register_keras_serializable(package="vaezoo")
class ConvVLAE(VAE):
    """Variational lossy autoencoder whose one latent `z` is maps: CIFAR-10's.

        p(x | z) = prod over i of p(x_i | z, x in a window around i)
        z = f(eps), eps ~ N(0, I), f an autoregressive flow of maps
        q(z | x) = N(z; loc(x), scale(x)^2), diagonal

    The window decides what is left to the code: `window="7x4"` with `grayscale` leaves
    it the colours too. 8-bit channels have a mixture of discretised logistics, as in
    PixelCNN++. The defaults are the paper's best model of a ResNet; soft free bits
    (appendix C) are an argument of `compile`.

    Cost: `log p(z)` takes a pass of each step's masked convolutions, a draw the row-
    cached scan of each: `flow_steps * height / 4 * width / 4 * latent_channels`
    sequential steps.

    Readings of ours, where the paper's words allow others:

    - "Reversed between every other step": two steps share an order.
    - A step's two hidden layers are of masked convolutions, and so is its output.
    - Of the decoder's 4 blocks, those beyond what a window needs are 1x1; the maps of z
      enter each of them, unmasked; and a block is linked to all those before it.
    - A dense block is of three 3x3 convolutions, and its output is what they have
      added, a little wider than the residual blocks that it replaces: one a size.

    Args:
        image_shape: `(height, width, channels)`, sizes divisible by 4.
        levels: int. Values a channel takes.
        latent_channels: int. Maps of `z`, each a quarter of the image's size.
        encoder: "resnet" or "densenet"; the decoder is symmetric.
        widths: two ints. Feature maps at the image's size, and at the smaller ones.
        flow_steps: int, at least 1.
        flow_hidden_filters: sequence of ints. Hidden widths of each step.
        window: "4x2", "5x3" or "7x4": columns and rows above the pixel that it sees.
        grayscale: bool. Whether the window is seen without its colours.
        filters, num_blocks: ints. Width and blocks of the PixelCNN++.
        num_components: int. Logistics in the mixture.

    Raises:
        ValueError: if an argument breaks its rule.
    """

    def __init__(
        self,
        *,
        image_shape=(32, 32, 3),
        levels=256,
        latent_channels=16,
        encoder="resnet",
        widths=(48, 96),
        flow_steps=6,
        flow_hidden_filters=(128, 128),
        window="7x4",
        grayscale=False,
        filters=64,
        num_blocks=4,
        num_components=10,
        **kwargs,
    ):
        super().__init__(image_shape=image_shape, levels=levels, **kwargs)
        height, width, channels = self.image_shape
        self._config = {
            "image_shape": list(self.image_shape),
            "levels": self.levels,
            "latent_channels": checks.integer("latent_channels", latent_channels),
            "encoder": checks.choice("encoder", encoder, ("resnet", "densenet")),
            "widths": list(checks.integers("widths", widths, of=("outer", "inner"))),
            "flow_steps": checks.integer("flow_steps", flow_steps),
            "flow_hidden_filters": list(flow_hidden_filters),
            "window": checks.choice("window", window, tuple(WINDOWS)),
            "grayscale": checks.choice("grayscale", grayscale, (True, False)),
            "filters": checks.integer("filters", filters),
            "num_blocks": checks.integer("num_blocks", num_blocks, minimum=2),
            "num_components": checks.integer("num_components", num_components),
        }
        if height % 4 or width % 4:
            raise checks.refusal(
                "A ConvVLAE halves its images twice: their height and width must be "
                "divisible by 4.",
                f"image_shape={self.image_shape}",
                "Pad or resize them.",
            )
        if grayscale and channels != 3:
            raise checks.refusal(
                "A window is grayscale of images of three channels, R, G and B.",
                f"image_shape={self.image_shape}, grayscale=True",
                "Leave `grayscale` out.",
            )
        self.head = heads.LogisticMixture(
            channels, self.levels, num_components=num_components
        )
        is_dense = encoder == "densenet"
        latent_shape = (height // 4, width // 4, latent_channels)
        self.encoder = Encoder(latent_channels, widths, is_dense, name="encoder")
        self.decoder = Decoder(widths, is_dense, name="decoder")
        self.prior_flow = [
            ConvMADE(
                latent_shape,
                flow_hidden_filters,
                num_outputs=flows.NUM_OUTPUTS["mean_only"],
                name=f"prior_flow_{step}",
            )
            for step in range(flow_steps)
        ]
        self.pixelcnn = WindowedPixelCNNPP(
            num_outputs=self.head.num_outputs,
            window=window,
            grayscale=grayscale,
            filters=filters,
            num_blocks=num_blocks,
            name="pixelcnn",
        )
        self._latent_shape = list(latent_shape)
        self.finish_build()

    def flow(self):
        """The bijector `f` from noise to codes, a fresh one."""
        return flows.autoregressive_flow(
            self.prior_flow, transform="mean_only", reverse_every=2
        )

    def prior(self, batch_size):
        """`p(z)` over `[batch_size, height / 4, width / 4, latent_channels]`."""
        zeros = tf.zeros([batch_size, *self._latent_shape])
        noise = inference.diagonal_normal(zeros, tf.ones_like(zeros), event_ndims=3)
        return flows.FlowDistribution(noise, self.flow())

    def features(self, images, *, training=False):
        """Posterior parameters, `[batch, height / 4, width / 4, latent_channels]`."""
        loc, log_scale = self.encoder(self.head.normalize(tf.cast(images, tf.float32)))
        return {"loc": loc, "log_scale": inference.bounded_log_scale(log_scale)}

    def infer(self, features, *, seeds, training=False):
        """`z ~ q(z | x)`, from the encoder's features."""
        loc, scale = features["loc"], tf.exp(features["log_scale"])
        value = loc + scale * sampling.row_normals(seeds, self._latent_shape, "z")
        posterior = inference.diagonal_normal(loc, scale, event_ndims=3)
        prior = self.prior(tf.shape(loc)[0])
        return {"z": inference.Latent(value, posterior, prior)}, None

    def generate(self, seeds, *, temperature):
        """`z = f(eps)`, `eps ~ N(0, temperature^2 I)`."""
        noise = sampling.row_normals(seeds, self._latent_shape, "z")
        noise = temperature[:, None, None, None] * noise
        # One graph of the scans, however many signatures of an export draw codes.
        draw = self.traced(_draw_code, reduce_retracing=False)
        return {"z": draw(noise)}, None

    def likelihood(self, values, *, context=None, seeds=None, training=False):
        """`p(x | z)`: autoregressive within the window."""
        return image_distributions.AutoregressiveImage(
            self.pixelcnn,
            self.head,
            image_shape=self.image_shape,
            batch_size=tf.shape(values["z"])[0],
            conditioning={"maps": self.decoder(values["z"])},
        )


def _draw_code(model, noise):
    return model.flow().forward(noise)


class DenseBlock(keras.layers.Layer):
    """Convolutions that see all before them; the output is what they have added.

    Huang et al. (2016), "Densely Connected Convolutional Networks".

    Args:
        filters: int. The output is the first multiple of the steps above it.
    """

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        growth = filters // _DENSE_STEPS + 1
        self.steps = [
            Conv2D(growth, 3, activation="elu", name=f"step_{index}")
            for index in range(_DENSE_STEPS)
        ]

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], sum(step.filters for step in self.steps))

    def call(self, features):
        """`[batch, height, width, k]` to `[batch, height, width, output]`."""
        added = []
        for step in self.steps:
            added.append(step(tf.concat([features, *added], axis=-1)))
        return tf.concat(added, axis=-1)


def _stage(filters, depth, is_dense, name):
    """The blocks of one size."""
    if is_dense:
        return [DenseBlock(filters, name=f"{name}_dense")]
    return [ResidualBlock(filters, name=f"{name}_block_{i}") for i in range(depth)]


class Encoder(keras.layers.Layer):
    """Location and log scale of the code, from an image."""

    def __init__(self, latent_channels, widths, is_dense, **kwargs):
        super().__init__(**kwargs)
        outer, inner = widths
        first = Conv2D(outer, 3, activation="elu", name="first")
        self.blocks = [first, *_stage(outer, _DEPTHS[0], is_dense, "whole")]
        for name, depth in zip(("half", "quarter"), _DEPTHS[1:], strict=True):
            down = Conv2D(inner, 3, strides=2, activation="elu", name=f"{name}_down")
            self.blocks += [down, *_stage(inner, depth, is_dense, name)]
        # A small scale keeps the first posteriors close to the prior.
        self.parameters = Conv2D(
            2 * latent_channels, 1, init_scale=0.1, name="parameters"
        )

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        shape = (batch, height // 4, width // 4, self.parameters.filters // 2)
        return shape, shape

    def call(self, images):
        """`[batch, height, width, channels]` to two of a quarter of its size."""
        features = images
        for block in self.blocks:
            features = block(features)
        parameters = tf.cast(self.parameters(features), tf.float32)
        return tuple(tf.split(parameters, 2, axis=-1))


class Decoder(keras.layers.Layer):
    """Feature maps of the image's size from a code: the encoder, backwards."""

    def __init__(self, widths, is_dense, **kwargs):
        super().__init__(**kwargs)
        outer, inner = widths
        whole, half, quarter = _DEPTHS
        first = Conv2D(inner, 1, activation="elu", name="first")
        self.blocks = [first, *_stage(inner, quarter, is_dense, "quarter")]
        for name, depth, filters in (("half", half, inner), ("whole", whole, outer)):
            up = Conv2DTranspose(filters, 3, activation="elu", name=f"{name}_up")
            self.blocks += [up, *_stage(filters, depth, is_dense, name)]

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        last = self.blocks[-1].compute_output_shape(input_shape)
        return (batch, 4 * height, 4 * width, last[-1])

    def call(self, code):
        """`[batch, height / 4, width / 4, channels]` to `[batch, height, width, k]`."""
        features = code
        for block in self.blocks:
            features = block(features)
        return features
