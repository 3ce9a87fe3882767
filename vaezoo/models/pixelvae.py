"""PixelVAE: a VAE whose decoder is a shallow conditional PixelCNN.

Gulrajani et al. (2017), "PixelVAE: A Latent Variable Model for Natural Images",
arXiv 1611.05013: the models of section 4.1 and table 1, for binary images.
"""

import keras
import tensorflow as tf

from vaezoo import checks, inference, sampling
from vaezoo.decoders.gated_pixelcnn import GatedPixelCNN
from vaezoo.decoders.pixelcnn import PixelCNN
from vaezoo.distributions import heads
from vaezoo.distributions import images as image_distributions
from vaezoo.layers.weight_norm import Conv2D, Conv2DTranspose, Dense
from vaezoo.models.vae import VAE

_WIDTHS = (32, 32, 64, 64)  # encoder and upsampling path, from the image inwards


@keras.saving.register_keras_serializable(package="vaezoo")
class PixelVAE(VAE):
    """PixelVAE with one Gaussian latent `z`, over binary images.

        p(x, z) = N(z; 0, I) prod over i of p(x_i | x_1, ..., x_{i-1}, z)     (eq. 1)
        q(z | x) = N(z; loc(x), scale(x)^2), diagonal

    Six rows of table 1 are six sets of arguments:

    | row of table 1                | arguments                            |
    |---|---|
    | VAE                           | `num_layers=0`                       |
    | PixelVAE                      | `gated=False`                        |
    | GatedPixelVAE                 | the defaults                         |
    | GatedPixelVAE w/o upsampling  | `upsample=False, latent_size=16,     |
    |                               |  filters=16`                         |
    | PixelCNN                      | `latent_size=0, gated=False`         |
    | GatedPixelCNN                 | `latent_size=0`                      |

    The paper gives no sizes; those of the defaults and of the table are of the authors'
    code, whose L layers behind the first are `num_layers = L + 1` here.

    Departs from that code: the kernels' gains and biases are initialised on data (it
    starts each gain at the norm of its initial kernel), and row 0 of the link from the
    vertical to the horizontal stack sees zeros (there, the bias of the shifted stack).
    The paper has a plain PixelCNN with ReLU, the code has none: its layout is ours.
    The gates of the head are 32 wide without latents as behind the upsampling path,
    whatever `filters`, and `filters` wide without upsampling, as in the code. The
    posterior's log scales are kept within +-10, and image sizes other than 28x28 are
    halved three times, rounding up.

    Args:
        image_shape: `(height, width, channels)`. Channels are generated in order.
        latent_size: int. Size of `z`; 0 for a PixelCNN without latents.
        num_layers: int, 0 to 16. Masked spatial layers of the decoder, the first
            included; 0 is the convolutional VAE, pixels independent given `z`.
        filters: int. Width of the PixelCNN.
        kernel_size: odd int. Kernel of every masked layer but the first.
        first_kernel_size: odd int. Kernel of the first masked layer.
        gated: bool. Gated PixelCNN rather than a plain one with ReLU.
        upsample: bool. Whether `z` reaches the decoder as maps of the image's size,
            concatenated to the image; without, it is added in every gate.
        mask_z_channels: bool. Whether the first masked layer masks those maps like
            the image, as the authors' code does.

    Raises:
        ValueError: if the arguments contradict each other or an argument is out of
            its range.
    """

    def __init__(
        self,
        *,
        image_shape=(28, 28, 1),
        latent_size=64,
        num_layers=13,
        filters=32,
        kernel_size=5,
        first_kernel_size=7,
        gated=True,
        upsample=True,
        mask_z_channels=True,
        **kwargs,
    ):
        super().__init__(image_shape=image_shape, levels=2, **kwargs)
        self._config = {
            "image_shape": list(self.image_shape),
            "latent_size": latent_size,
            "num_layers": num_layers,
            "filters": filters,
            "kernel_size": kernel_size,
            "first_kernel_size": first_kernel_size,
            "gated": gated,
            "upsample": upsample,
            "mask_z_channels": mask_z_channels,
        }
        self._check_arguments()
        self.latent_size = latent_size
        channels = self.image_shape[2]
        self.head = heads.Bernoulli(channels)
        self.encoder = Encoder(latent_size, name="encoder") if latent_size else None
        upsample = upsample and latent_size > 0
        self.upsampling = (
            Upsampling(self.image_shape[:2], name="upsampling") if upsample else None
        )
        common = {
            "num_colours": channels,
            "num_outputs": self.head.num_outputs,
            "filters": filters,
            "num_layers": num_layers,
            "kernel_size": kernel_size,
            "first_kernel_size": first_kernel_size,
            "num_maps": _WIDTHS[0] if upsample else 0,
            "mask_maps": mask_z_channels,
            "name": "decoder",
        }
        if num_layers == 0:
            self.decoder = Dense(self.head.num_outputs, name="decoder")
        elif gated:
            # Authors' code: the gates of the head are 32 wide behind the upsampling
            # path and as wide as the stacks where z is added in every gate.
            width = _WIDTHS[0] if upsample or not latent_size else filters
            self.decoder = GatedPixelCNN(
                **common,
                head_filters=(width, width),
                code_size=0 if upsample else latent_size,
            )
        else:
            self.decoder = PixelCNN(**common, head_filters=(filters, filters))
        self.finish_build()

    def _check_arguments(self):
        config = self._config
        bounds = {"num_layers": (0, 16), "latent_size": (0, None), "filters": (1, None)}
        for name, (least, most) in bounds.items():
            config[name] = checks.integer(
                name, config[name], minimum=least, maximum=most
            )
        upsamples = config["upsample"] and config["latent_size"]
        if config["num_layers"] == 0 and not upsamples:
            raise ValueError(
                "A decoder of 0 masked layers needs the maps of z: `latent_size` above "
                "0 and `upsample=True`. Received: "
                f"latent_size={config['latent_size']}, upsample={config['upsample']}."
            )
        if config["latent_size"] and not config["upsample"] and not config["gated"]:
            raise ValueError(
                "Without upsampling z enters through the gates, so `upsample=False` "
                "needs `gated=True`. Received: gated=False."
            )

    def features(self, images, *, training=False):
        """Posterior parameters, float32 `[batch, latent_size]` each."""
        if self.encoder is None:
            return {}
        loc, log_scale = self.encoder(tf.cast(images, tf.float32))
        return {"loc": loc, "log_scale": inference.bounded_log_scale(log_scale)}

    def infer(self, features, *, seeds, training=False):
        """`z ~ q(z | x)`, from the encoder's features."""
        if self.encoder is None:
            return {}, None
        loc, scale = features["loc"], tf.exp(features["log_scale"])
        noise = sampling.row_normals(seeds, [self.latent_size], "z")
        latent = inference.Latent(
            value=loc + scale * noise,
            posterior=inference.diagonal_normal(loc, scale),
            prior=inference.diagonal_normal(tf.zeros_like(loc), tf.ones_like(scale)),
        )
        return {"z": latent}, None

    def generate(self, seeds, *, temperature):
        """`z ~ N(0, temperature^2 I)`."""
        if self.encoder is None:
            return {}, None
        noise = sampling.row_normals(seeds, [self.latent_size], "z")
        return {"z": temperature[:, None] * noise}, None

    def likelihood(self, values, *, context=None, seeds=None, training=False):
        """`p(x | z)`: Bernoulli pixels, autoregressive unless `num_layers` is 0."""
        if self.encoder is None:
            conditioning, batch_size = {}, tf.shape(seeds)[0]
        else:
            z = values["z"]
            batch_size = tf.shape(z)[0]
            if self.upsampling is None:
                conditioning = {"code": z}
            else:
                conditioning = {"maps": self.upsampling(z)}
        if self._config["num_layers"] == 0:
            return image_distributions.IndependentImage(
                self.decoder(conditioning["maps"]),
                self.head,
                image_shape=self.image_shape,
            )
        return image_distributions.AutoregressiveImage(
            self.decoder,
            self.head,
            image_shape=self.image_shape,
            batch_size=batch_size,
            conditioning=conditioning,
        )


class Encoder(keras.layers.Layer):
    """Posterior parameters from an image: eight 3x3 convolutions and a dense layer.

    Each of the three halvings rounds up (28, 14, 8, 4): odd sizes that will be halved
    are padded with zeros below and to the right, 7 to 8 before the fifth convolution.
    """

    def __init__(self, latent_size, **kwargs):
        super().__init__(**kwargs)
        first, second, third, fourth = _WIDTHS
        plan = (
            (first, 1),
            (second, 2),
            (second, 1),
            (third, 2),
            (third, 1),
            (fourth, 2),
            (fourth, 1),
            (fourth, 1),
        )
        self.convolutions = [
            Conv2D(width, 3, strides=strides, activation="relu", name=f"conv_{index}")
            for index, (width, strides) in enumerate(plan)
        ]
        # A small scale keeps the first posteriors close to the prior.
        self.parameters = Dense(2 * latent_size, init_scale=0.1, name="parameters")

    def compute_output_shape(self, input_shape):
        shape = (input_shape[0], self.parameters.filters // 2)
        return shape, shape

    def call(self, images):
        """`[batch, height, width, channels]` to location and log scale, float32."""
        features = images
        halvings = sum(layer.strides == 2 for layer in self.convolutions)
        for convolution in self.convolutions:
            if halvings:  # the authors' code: 7x7 is padded before it is convolved
                odd = [size % 2 for size in features.shape[1:3]]
                features = tf.pad(features, [[0, 0], [0, odd[0]], [0, odd[1]], [0, 0]])
            halvings -= convolution.strides == 2
            features = convolution(features)
        flat = tf.reshape(features, [-1, features.shape[1:].num_elements()])
        parameters = tf.cast(self.parameters(flat), tf.float32)
        return tf.split(parameters, 2, axis=-1)


class Upsampling(keras.layers.Layer):
    """Maps of the image's size from a code: the encoder's shapes, backwards.

    A transposed convolution doubles the size; where the encoder padded (7 to 8),
    the last row and column are cropped.
    """

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        first, second, third, fourth = _WIDTHS
        self.sizes = [tuple(size)]
        for _ in range(3):
            self.sizes.append(tuple(-(-side // 2) for side in self.sizes[-1]))
        height, width = self.sizes[3]
        self.project = Dense(height * width * fourth, activation="relu", name="project")

        def conv(width, name):
            return Conv2D(width, 3, activation="relu", name=name)

        def double(width, name):
            return Conv2DTranspose(width, 3, activation="relu", name=name)

        # Up to the sizes[2], sizes[1] and sizes[0].
        self.stages = [
            [double(third, "double_0"), conv(third, "conv_2")],
            [double(second, "double_1"), conv(second, "conv_3")],
            [double(first, "double_2"), conv(first, "conv_4")],
        ]
        self.first = [conv(fourth, "conv_0"), conv(fourth, "conv_1")]

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.sizes[0], _WIDTHS[0])

    def call(self, code):
        """`[batch, latent_size]` to `[batch, height, width, 32]`."""
        features = self.project(code)
        features = tf.reshape(features, [-1, *self.sizes[3], _WIDTHS[3]])
        for layer in self.first:
            features = layer(features)
        for (doubling, convolution), size in zip(
            self.stages, self.sizes[2::-1], strict=True
        ):
            features = doubling(features)
            # Authors' code: the 8x8 maps are convolved before the crop to 7x7.
            features = convolution(features)[:, : size[0], : size[1]]
        return features
