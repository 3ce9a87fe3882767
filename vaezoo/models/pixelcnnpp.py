"""PixelCNN++: an autoregressive model of images, without latents."""

import keras
import tensorflow as tf

from vaezoo import checks
from vaezoo.decoders import pixelcnnpp
from vaezoo.distributions import heads
from vaezoo.distributions import images as image_distributions
from vaezoo.models.vae import VAE


def decoder(
    image_shape, levels, *, filters, num_resnets, num_components, dropout, strided
):
    """PixelCNN++ for images: also the decoder of models with latents.

    Args: as of `PixelCNNPP`, the shape and the levels checked.

    Returns:
        The arguments as a dict, for a model's configuration; the head; the network, not
        built.

    Raises:
        ValueError: if an argument breaks its rule.
    """
    config = {
        "image_shape": list(image_shape),
        "levels": levels,
        "filters": checks.integer("filters", filters),
        "num_resnets": checks.integer("num_resnets", num_resnets),
        "num_components": checks.integer("num_components", num_components),
        "dropout": checks.number("dropout", dropout, minimum=0, below=1),
        "strided": checks.choice("strided", strided, (True, False)),
    }
    height, width, channels = image_shape
    if levels == 2 and channels > 1:
        raise checks.refusal(
            "A PixelCNN++ of binary images has one channel: its network shows a "
            "channel none of its own pixel's.",
            f"image_shape={image_shape}, levels=2",
            "Use PixelVAE, whose masks order the channels.",
        )
    if levels == 2:
        head = heads.Bernoulli(channels)
    else:
        head = heads.LogisticMixture(channels, levels, num_components=num_components)
    network = pixelcnnpp.PixelCNNPPNetwork(
        num_outputs=head.num_outputs,
        filters=filters,
        num_resnets=num_resnets,
        dropout=dropout,
        strided=strided,
        name="network",
    )
    network.check_size(height, width)
    return config, head, network


@keras.saving.register_keras_serializable(package="vaezoo")
class PixelCNNPP(VAE):
    """PixelCNN++ (Salimans, Karpathy, Chen and Kingma, 2017); likelihoods are exact.

    Images of 8 bits have a mixture of discretised logistics with linear dependence
    between a pixel's colours (sections 2.1 and 2.2), binary ones a Bernoulli logit. The
    defaults are the paper's of CIFAR-10: 53,659,080 parameters.

    Args:
        image_shape: `(height, width, channels)`; sizes divisible by 4 where `strided`,
            and one channel where `levels` is 2.
        levels: int. Values a channel takes.
        filters: int. Width of both streams.
        num_resnets: int. Residual blocks at each of the three resolutions.
        num_components: int. Logistics in the mixture.
        dropout: float in [0, 1). Rate of the dropout in each block.
        strided: bool. Whether the streams change size.

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
        **kwargs,
    ):
        super().__init__(image_shape=image_shape, levels=levels, **kwargs)
        self._config, self.head, self.network = decoder(
            self.image_shape,
            self.levels,
            filters=filters,
            num_resnets=num_resnets,
            num_components=num_components,
            dropout=dropout,
            strided=strided,
        )
        self.finish_build()

    @property
    def decoder_network(self):
        """The whole of it: the mode "decoder" trains on images of any size."""
        return self.network

    def features(self, images, *, training=False):
        """None: there are no latents."""
        return {}

    def infer(self, features, *, seeds, training=False):
        """No latents."""
        return {}, None

    def generate(self, seeds, *, temperature):
        """No latents."""
        return {}, None

    def likelihood(self, values, *, context=None, seeds=None, training=False):
        """`p(x)`, pixel after pixel."""
        return image_distributions.AutoregressiveImage(
            self.network,
            self.head,
            image_shape=self.image_shape,
            batch_size=tf.shape(seeds)[0],
            call_options={"seeds": seeds, "training": training},
        )
