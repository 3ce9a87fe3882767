"""AGAVE: a PixelCNN++ on what a VAE has decoded, kept in use by an auxiliary image.

Lucas and Verbeek (2018), "Auxiliary Guided Autoregressive Variational Autoencoders".
"""

import keras
import tensorflow as tf

from vaezoo import checks
from vaezoo.decoders.feature_stream import FeatureStream
from vaezoo.distributions import heads
from vaezoo.distributions import images as image_distributions
from vaezoo.models.iaf_ladder import IAFLadder, LadderVAE
from vaezoo.models.iafvae import ladder_arguments
from vaezoo.models.pixelcnnpp import decoder

# What y is -> the image's size by its own.
AUXILIARY_STRIDES = {"image": 1, "half": 2, "quarter": 4, "gray": 1}
_GRAY_LEVELS = 16
_LUMA = (0.299, 0.587, 0.114)


@keras.saving.register_keras_serializable(package="vaezoo")
class AGAVE(LadderVAE):
    """A VAE with two decoders: of an auxiliary image y, and of the image (section 3).

        L = E_q[log p(x | f(z))] + E_q[log p(y | f(z))] - lambda KL(q(z | x) || p(z))

    (equation 7). y is a function of x: the image, its colours in fewer levels, a
    smaller image, or a gray one. Its pixels are independent given z, each channel a
    logistic whose location is f(z), so that z has to tell what y is; the PixelCNN++,
    of any capacity, is conditioned on f(z) and need not do without it. How much z tells
    is set by lambda, which is `kl_weight` of `compile`: 1 makes L a bound of
    log p(x, y), 2 the sum of two, larger ones a looser bound; below 1 it is none.

    What is scored is p(x) alone: the ELBO, bits/dim and `log_likelihood` have neither
    lambda nor y. The auxiliary image's own bits/dim are a further metric.

    f(z), at the image's size, goes through convolutions that are not masked, as many as
    a stream of the PixelCNN++ has blocks; each block gets what its own gives.

    Modes of training: "auxiliary" is of the VAE alone, "decoder" of the PixelCNN++,
    without latents; the paper trains the two apart, then all in "joint", which starts
    where they have ended. The defaults are the paper's of CIFAR-10: 105,173,649
    parameters, of which the ladder of latents, `IAFLadder`, has 41,557,929.

    Readings of ours, where the paper is silent: what blocks get of f(z) starts at 0; a
    smaller f(z) is repeated to the image's size; a smaller y is the mean of the
    pixels, rounded; gray is .299 R + .587 G + .114 B, of 16 levels; the end levels have
    the mass beyond them. Equation 10 calls s a variance: it is the logistic's scale.

    Args:
        image_shape: `(height, width, channels)`, sizes divisible by 4.
        levels: int. Values a channel takes.
        filters, num_resnets, num_components, dropout, strided: of the PixelCNN++; as of
            `PixelCNNPP`.
        num_levels: int. Levels of latents, each half the image's size.
        ladder_filters: int. Feature maps of the ladder.
        latent_filters: int. Maps of each latent.
        auxiliary: what y is: "image", "half" or "quarter" the image's size, or "gray".
        auxiliary_levels: int. Values a channel of y takes, a divisor of `levels`;
            `None` for 16 of a gray image, else as many as the image's.
        edge_bins: bool. Whether y's end levels have the mass beyond them; the paper's
            equation 10 has not, and sums to less than 1.

    Raises:
        ValueError: if an argument breaks its rule.
    """

    def __init__(
        self,
        *,
        image_shape=(32, 32, 3),
        levels=256,
        filters=160,
        num_resnets=5,
        num_components=10,
        dropout=0.5,
        strided=True,
        num_levels=20,
        ladder_filters=160,
        latent_filters=32,
        auxiliary="image",
        auxiliary_levels=None,
        edge_bins=True,
        **kwargs,
    ):
        super().__init__(image_shape=image_shape, levels=levels, **kwargs)
        height, width, channels = self.image_shape
        if height % 4 or width % 4:
            raise checks.refusal(
                "AGAVE's images are halved twice: their height and width must be "
                "divisible by 4.",
                f"image_shape={self.image_shape}",
                "Pad or resize them.",
            )
        config, self.head, self.network = decoder(
            self.image_shape,
            self.levels,
            filters=filters,
            num_resnets=num_resnets,
            num_components=num_components,
            dropout=dropout,
            strided=strided,
        )
        auxiliary = checks.choice("auxiliary", auxiliary, tuple(AUXILIARY_STRIDES))
        self.auxiliary_levels = self._auxiliary_levels(auxiliary, auxiliary_levels)
        arguments = ladder_arguments(num_levels, ladder_filters, latent_filters)
        self._config = config | {
            "num_levels": arguments["num_levels"],
            "ladder_filters": arguments["filters"],
            "latent_filters": arguments["latent_filters"],
            "auxiliary": auxiliary,
            "auxiliary_levels": auxiliary_levels,
            "edge_bins": checks.choice("edge_bins", edge_bins, (True, False)),
        }
        self._stride = AUXILIARY_STRIDES[auxiliary]
        y_shape = (
            height // self._stride,
            width // self._stride,
            1 if auxiliary == "gray" else channels,
        )
        self.num_auxiliary_dims = y_shape[0] * y_shape[1] * y_shape[2]
        self.auxiliary_head = heads.Logistic(
            y_shape[2], self.auxiliary_levels, edge_bins=edge_bins
        )
        self.ladder = IAFLadder(
            self.image_shape,
            self.levels,
            stride=self._stride,
            output_channels=y_shape[2],
            name="ladder",
            **arguments,
        )
        self.ladder.build()
        self.stream = FeatureStream(
            filters, self.network.block_counts, strided=strided, name="stream"
        )
        self.finish_build()

    def _auxiliary_levels(self, auxiliary, levels):
        if auxiliary == "gray" and self.image_shape[2] != 3:
            raise checks.refusal(
                'auxiliary="gray" is of images of three channels, R, G and B.',
                f"image_shape={self.image_shape}",
                "Use fewer levels or a smaller image instead.",
            )
        if levels is None:
            is_reduced = auxiliary == "gray" and self.levels % _GRAY_LEVELS == 0
            return _GRAY_LEVELS if is_reduced else self.levels
        levels = checks.integer("auxiliary_levels", levels, minimum=2)
        if self.levels % levels:
            raise checks.refusal(
                "`auxiliary_levels` must divide the image's levels, so that each of "
                "them holds as many.",
                f"auxiliary_levels={levels}, levels={self.levels}",
                "Use a power of two.",
            )
        return levels

    @property
    def decoder_network(self):
        """PixelCNN++, which stands alone where nothing conditions it."""
        return self.network

    @property
    def auxiliary_variables(self):
        """Those of the VAE of y."""
        return self.ladder.trainable_variables

    # The paper: the PixelCNN++ on what the VAE has decoded, and y.

    def likelihood(self, values, *, context=None, seeds=None, training=False):
        """`p(x | f(z))`, pixel after pixel."""
        conditioning = {}
        if values:
            f = self.decoded(values, context)
            for axis in (1, 2):
                f = tf.repeat(f, self._stride, axis=axis)
            # In the units of the image that the network sees.
            conditioning["injections"] = self.stream(2.0 * f)
        return image_distributions.AutoregressiveImage(
            self.network,
            self.head,
            image_shape=self.image_shape,
            batch_size=tf.shape(f if values else seeds)[0],
            conditioning=conditioning,
            call_options={"seeds": seeds, "training": training},
        )

    def auxiliary_loss(self, images, values, *, context=None):
        """`-log p(y | z)`, nats `[batch]`."""
        f = self.decoded(values, context)
        params = self.ladder.logistics(f, self.auxiliary_levels)
        log_probs = self.auxiliary_head.log_prob(params, self.auxiliary_images(images))
        return -tf.reduce_sum(log_probs, axis=[1, 2])

    def auxiliary_images(self, images):
        """Y of each image: float32 `[batch, height, width, channels]`, whole levels.

        Args:
            images: uint8 `[batch, height, width, channels]`.
        """
        values = tf.cast(images, tf.float32)
        if self._config["auxiliary"] == "gray":
            luma = tf.reduce_sum(values * tf.constant(_LUMA), axis=-1, keepdims=True)
            values = tf.floor(luma + 0.5)
        if self._stride > 1:
            means = tf.nn.avg_pool2d(values, self._stride, self._stride, "VALID")
            values = tf.floor(means + 0.5)
        return tf.floor(values / (self.levels // self.auxiliary_levels))

    def auxiliary_means(self, latents):
        """f(z) of latents as an image: what conditions the image, at y's size.

        Args:
            latents: dict of latent name to float `[n, ...]`, as of `encode`.

        Returns:
            uint8 `[n, height, width, channels]`, in the image's levels.
        """
        values = checks.latents(latents, latent_shapes=self.latent_shapes)
        f = self.traced(_decoded)(values)
        return tf.cast(tf.floor((f + 0.5) * self.levels), tf.uint8)


def _decoded(model, values):
    return model.ladder.decode(values)
