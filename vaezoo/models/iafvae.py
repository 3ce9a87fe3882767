"""The ResNet VAE with inverse autoregressive flow, of natural images.

Kingma et al. (2016), "Improving Variational Inference with Inverse Autoregressive
Flow", arXiv 1606.04934: section 5.2.
"""

import keras

from vaezoo import checks
from vaezoo.distributions import heads
from vaezoo.distributions import images as image_distributions
from vaezoo.models.iaf_ladder import IAFLadder, LadderVAE


def ladder_arguments(num_levels, filters, latent_filters):
    """The arguments of a ladder, checked, as a dict.

    Raises:
        ValueError: if one is not a positive integer.
    """
    return {
        "num_levels": checks.integer("num_levels", num_levels),
        "filters": checks.integer("filters", filters),
        "latent_filters": checks.integer("latent_filters", latent_filters),
    }


@keras.saving.register_keras_serializable(package="vaezoo")
class IAFVAE(LadderVAE):
    """A deep VAE whose posteriors are inverse autoregressive flows.

        p(x | z) = prod over i of Logistic(x_i; f_i(z), s_c), rounded to levels

    with latents z_L, ..., z_1 of maps half the image's size, from the top down; see
    `vaezoo.models.iaf_ladder.IAFLadder`. The defaults are the authors' best model of
    CIFAR-10: 41,557,929 parameters. Free bits, an argument of `compile`, are by feature
    map.

    Readings of ours: the pixels' logistics start with a standard deviation of a quarter
    of the range; the hidden layers of the flows start at unit scale; a scale for each
    channel, where the authors' code has one for all.

    Args:
        image_shape: `(height, width, channels)`, sizes that are even.
        levels: int. Values a channel takes.
        num_levels: int. Levels of latents.
        filters: int. Feature maps.
        latent_filters: int. Maps of each latent.
        edge_bins: bool. Whether the first and last level have the mass beyond them;
            without, as in the authors' code, the probabilities of a pixel's levels sum
            to less than 1, and the bound is still one.

    Raises:
        ValueError: if an argument breaks its rule.
    """

    def __init__(
        self,
        *,
        image_shape=(32, 32, 3),
        levels=256,
        num_levels=20,
        filters=160,
        latent_filters=32,
        edge_bins=True,
        **kwargs,
    ):
        super().__init__(image_shape=image_shape, levels=levels, **kwargs)
        height, width, channels = self.image_shape
        if height % 2 or width % 2:
            raise checks.refusal(
                "An IAFVAE halves its images: their height and width must be even.",
                f"image_shape={self.image_shape}",
                "Pad or resize them.",
            )
        arguments = ladder_arguments(num_levels, filters, latent_filters)
        self._config = {
            "image_shape": list(self.image_shape),
            "levels": self.levels,
            "edge_bins": checks.choice("edge_bins", edge_bins, (True, False)),
            **arguments,
        }
        self.head = heads.Logistic(channels, self.levels, edge_bins=edge_bins)
        self.ladder = IAFLadder(
            self.image_shape,
            self.levels,
            output_channels=channels,
            name="ladder",
            **arguments,
        )
        self.ladder.build()
        self.finish_build()

    def likelihood(self, values, *, context=None, seeds=None, training=False):
        """`p(x | z)`: pixels and channels independent given the latents."""
        f = self.decoded(values, context)
        return image_distributions.IndependentImage(
            self.ladder.logistics(f, self.levels),
            self.head,
            image_shape=self.image_shape,
        )
