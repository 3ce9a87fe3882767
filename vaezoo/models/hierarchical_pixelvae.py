"""Hierarchical PixelVAE: PixelCNNs over the pixels and over maps of latents.

Gulrajani et al. (2017), "PixelVAE: A Latent Variable Model for Natural Images",
arXiv 1611.05013: section 3.1, and the models of sections 4.2 and 4.3.
"""

import math

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from vaezoo import checks, inference, sampling
from vaezoo.decoders.residual_pixelcnn import ResidualPixelCNN
from vaezoo.distributions import heads
from vaezoo.distributions import images as image_distributions
from vaezoo.layers.embedding import LevelEmbedding
from vaezoo.layers.weight_norm import Conv2D, Dense
from vaezoo.models import batch_norm
from vaezoo.models.hierarchical_pixelvae_layers import Path
from vaezoo.models.vae import VAE

tfd = tfp.distributions

_MAX_LATENT = 50.0  # of what the decoders see
_PRIOR_KERNELS = (3, 3, 1)  # of the blocks over z1


@keras.saving.register_keras_serializable(package="vaezoo")
class HierarchicalPixelVAE(VAE):
    """PixelVAE of 8-bit images, with two levels of latents or with one.

        p(x, z1, z2) = p(x | z1) p(z1 | z2) N(z2; 0, I)
        p(z1 | z2) = prod over places i of N(z1_i; f(z1_1, ..., z1_{i-1}, z2)), diagonal
        q(z1, z2 | x) = q(z1 | x) q(z2 | x), diagonal Gaussians

    A PixelCNN models the pixels, another the maps z1, each conditioned by what comes
    from the latent above as maps of the same size. The KL term of z1 is, at each
    place, in closed form, given the draw of the places before. One level has z2 alone:
    `p(x | z2)`. The defaults are the paper's of 64x64 ImageNet.

    | the authors' code | arguments                                               |
    |---|---|
    | 64px_big          | the defaults                                            |
    | 64px_small        | `widths=(64, 64, 128, 256, 512), pixel_filters=128,     |
    |                   |  prior_filters=256, prior_scale_floor_steps=1000`       |
    | 32px_big          | `image_shape=(32, 32, 3), widths=(128, 256, 512, 512),  |
    |                   |  depths=(2, 2, 3, 3), z1_channels=128,                  |
    |                   |  pixel_filters=256, num_blocks=2, embedding_size=0,     |
    |                   |  prior_scale_floor_steps=1000`                          |
    | 32px_small        | `image_shape=(32, 32, 3), widths=(64, 128, 256, 512),   |
    |                   |  depths=(2, 2, 3, 3), pixel_filters=128, num_blocks=2,  |
    |                   |  prior_scale_floor_steps=1000`                          |
    | 64px, one level   | `z1_channels=0, depths=(1, 2, 2, 2, 2)`                 |
    | MNIST of 8 bits   | `image_shape=(28, 28, 1), widths=(16, 32, 32),          |
    |                   |  depths=(1, 2, 2), z1_channels=0, z2_size=128,          |
    |                   |  pixel_filters=32, num_blocks=4, embedding_size=0,      |
    |                   |  pooled=True`                                           |

    Departs from the paper: its equation 2 has no expectation over `log p(x | z1)` and
    lets q(z2) see z1; the bound here is the right one, and both posteriors are of the
    image, as in the authors' code. That code has z1 of 16x16 for 64x64 images, the
    paper's text says 8x8 (`z1_halvings=3`).

    Departs from that code: gains and biases of the weight-normalised layers are
    initialised on data, levels without embedding are scaled to [-1, 1], and the last
    layer of the pixels is not weight-normalised, but starts smooth over the levels, at
    their frequencies in a first batch. Batch normalisation, outside of the PixelCNNs
    only, has moving statistics in evaluation, where the code mixes in those of the
    image. Without a PixelCNN, a 1x1 layer takes its place; the code of a pooled
    posterior enters its decoder by a dense layer.

    Args:
        image_shape: `(height, width, channels)`, sizes that can be halved once for each
            width but the first.
        levels: int. Values a channel takes.
        widths: sequence of ints, at least 2. Feature maps at the image's size, at a
            half of it, and so on.
        depths: sequence of ints. Residual blocks at each of those sizes; at that of z1,
            on either side of it.
        z1_halvings: int. How many times z1's size is halved from the image's.
        z1_channels: int. Maps of z1; 0 for one level.
        z2_size: int.
        pixel_filters, num_blocks: ints. Width and residual blocks of the PixelCNN of
            the pixels.
        prior_filters: int. Width of the PixelCNN of z1.
        embedding_size: int. Size of the vectors of levels; 0 to scale levels.
        pixel_level_pixelcnn: bool. Without, pixels are independent given the latents.
        higher_level_pixelcnn: bool. Without, `p(z1 | z2)` is a diagonal Gaussian.
        pooled: bool. Whether q(z2 | x) sees the mean over places of the last maps.
        prior_scale_floor_steps: int. The first training steps, over which a floor under
            the scales of `p(z1 | z2)` falls from 1 to 0; 0 for none. There is none in
            evaluation, nor where the training of weights goes on.

    Raises:
        ValueError: if an argument breaks its rule.
    """

    def __init__(
        self,
        *,
        image_shape=(64, 64, 3),
        levels=256,
        widths=(192, 256, 512, 512, 512),
        depths=(1, 2, 3, 3, 3),
        z1_halvings=2,
        z1_channels=64,
        z2_size=512,
        pixel_filters=384,
        num_blocks=3,
        prior_filters=512,
        embedding_size=16,
        pixel_level_pixelcnn=True,
        higher_level_pixelcnn=True,
        pooled=False,
        prior_scale_floor_steps=500,
        **kwargs,
    ):
        super().__init__(image_shape=image_shape, levels=levels, **kwargs)
        self._config = {
            "image_shape": list(self.image_shape),
            "levels": self.levels,
            "widths": _of_sizes("widths", widths),
            "depths": _of_sizes("depths", depths),
            "z1_halvings": checks.integer("z1_halvings", z1_halvings),
            "z1_channels": checks.integer("z1_channels", z1_channels, minimum=0),
            "z2_size": checks.integer("z2_size", z2_size),
            "pixel_filters": checks.integer("pixel_filters", pixel_filters),
            "num_blocks": checks.integer("num_blocks", num_blocks),
            "prior_filters": checks.integer("prior_filters", prior_filters),
            "embedding_size": checks.integer(
                "embedding_size", embedding_size, minimum=0
            ),
            "prior_scale_floor_steps": checks.integer(
                "prior_scale_floor_steps", prior_scale_floor_steps, minimum=0
            ),
        }
        for name, value in (
            ("pixel_level_pixelcnn", pixel_level_pixelcnn),
            ("higher_level_pixelcnn", higher_level_pixelcnn),
            ("pooled", pooled),
        ):
            self._config[name] = checks.choice(name, value, (True, False))
        self._check_sizes()
        self.head = heads.Categorical(self.image_shape[2], self.levels)
        self.embedding = None
        if embedding_size:
            self.embedding = LevelEmbedding(
                self.levels, embedding_size, name="embedding"
            )
        self._prior_scale_floor = None
        if prior_scale_floor_steps and z1_channels:
            self._prior_scale_floor = self.add_weight(
                name="prior_scale_floor",
                shape=(),
                initializer="ones",
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
            )
        self._build_paths()
        self._build_pixels()
        self.finish_build()

    def _check_sizes(self):
        config, halvings = self._config, len(self._config["widths"]) - 1
        if len(config["depths"]) != halvings + 1:
            raise checks.refusal(
                "`widths` and `depths` must be of the same sizes of the image.",
                f"{halvings + 1} widths, {len(config['depths'])} depths",
            )
        if config["z1_channels"] and config["z1_halvings"] > halvings:
            raise checks.refusal(
                "z1 lies on the way to z2: `z1_halvings` must be at most the number of "
                "halvings, one less than `widths`.",
                f"z1_halvings={config['z1_halvings']}, widths={config['widths']}",
            )
        if any(side % 2**halvings for side in self.image_shape[:2]):
            raise checks.refusal(
                f"Images that are halved {halvings} times, once for each of `widths` "
                f"but the first, must have sizes divisible by {2**halvings}.",
                f"image_shape={self.image_shape}",
                "Resize them, or give fewer `widths` and `depths`.",
            )

    def _build_paths(self):
        """The encoders and decoders without the PixelCNNs, and that of z1."""
        config = self._config
        widths, depths = config["widths"], config["depths"]
        self.is_hierarchical = config["z1_channels"] > 0
        # The sizes below z1, and those above it; z1's own are in both.
        end = config["z1_halvings"] if self.is_hierarchical else len(widths) - 1
        lower, upper = slice(end + 1), slice(end, None)
        self.stem = Conv2D(widths[0], 1, name="stem")
        self.lower_encoder = Path(
            widths[lower], depths[lower], "down", name="lower_encoder"
        )
        self.lower_decoder = Path(
            widths[lower][::-1], depths[lower][::-1], "up", name="lower_decoder"
        )
        height, width = (side >> len(widths) - 1 for side in self.image_shape[:2])
        self._top_shape = [height, width, widths[-1]]
        # Small scales keep the first posteriors close to the priors.
        self.z2_parameters = Dense(
            2 * config["z2_size"], init_scale=0.1, name="z2_parameters"
        )
        self.project = Dense(math.prod(self._top_shape), name="project")
        if not self.is_hierarchical:
            return
        channels = config["z1_channels"]
        self._z1_shape = [*(side >> end for side in self.image_shape[:2]), channels]
        self.z1_parameters = Conv2D(
            2 * channels, 1, init_scale=0.1, name="z1_parameters"
        )
        self.z1_stem = Conv2D(widths[end], 1, name="z1_stem")
        self.upper_encoder = Path(
            widths[upper], depths[upper], "down", name="upper_encoder"
        )
        self.upper_decoder = Path(
            widths[upper][::-1], depths[upper][::-1], "up", name="upper_decoder"
        )
        if config["higher_level_pixelcnn"]:
            self.prior_pixelcnn = ResidualPixelCNN(
                num_colours=1,
                num_outputs=2 * channels,
                features=widths[end],
                filters=config["prior_filters"],
                kernel_sizes=_PRIOR_KERNELS,
                num_maps=widths[end],
                name="prior_pixelcnn",
            )
        else:
            self.prior_outputs = Conv2D(
                2 * channels, 1, init_scale=0.1, name="prior_outputs"
            )

    def _build_pixels(self):
        """The PixelCNN of the pixels, or the layer in its place."""
        config = self._config
        last = {"output_initializer": self._smooth_kernel}
        if config["pixel_level_pixelcnn"]:
            self.pixelcnn = ResidualPixelCNN(
                num_colours=self.image_shape[2],
                num_outputs=self.head.num_outputs,
                features=config["widths"][0],
                filters=config["pixel_filters"],
                kernel_sizes=[3] * config["num_blocks"],
                num_maps=config["widths"][0],
                embedding=self.embedding,
                normalized_outputs=False,
                name="pixelcnn",
                **last,
            )
            return
        self.pixel_outputs = Conv2D(
            self.head.num_outputs,
            1,
            normalized=False,
            direction_initializer=self._smooth_kernel,
            name="pixel_outputs",
        )

    def _smooth_kernel(self, shape, dtype=None):
        """A start that is smooth over the levels, at most as large as of 64 features"""
        kernel = self.head.smooth_kernel(shape, dtype)
        return kernel * min(1.0, math.sqrt(64 / shape[-2]))

    @property
    def decoder_network(self):
        """The PixelCNN of the pixels, where it can be kept from seeing the latents."""
        if not self._config["pixel_level_pixelcnn"]:
            return None
        return self.pixelcnn if self.pixelcnn.can_forget_conditioning else None

    def initialize_outputs(self, images):
        """Start at the frequencies of the levels."""
        has_pixelcnn = self._config["pixel_level_pixelcnn"]
        layer = self.pixelcnn.outputs if has_pixelcnn else self.pixel_outputs
        layer.bias.assign(self.head.level_logits(images))

    def recalibrate_batch_norm(self, dataset):
        """Recompute the statistics; see `vaezoo.models.batch_norm`."""
        batch_norm.recalibrate_batch_norm(self, dataset)

    # The paper: inference, the priors, the likelihood.

    def features(self, images, *, training=False):
        """(loc, scale) of each latent's posterior: a dict, float32."""
        hidden = self.head.normalize(tf.cast(images, tf.float32))
        if self.embedding is not None:
            hidden = self.embedding(hidden)
        hidden = self.lower_encoder(self.stem(hidden), training=training)
        features = {}
        if self.is_hierarchical:
            features["z1"] = _gaussian(self.z1_parameters(hidden))
            hidden = self.upper_encoder(hidden, training=training)
        if self._config["pooled"]:
            hidden = tf.reduce_mean(hidden, axis=[1, 2])
        else:
            hidden = tf.reshape(hidden, [-1, math.prod(self._top_shape)])
        features["z2"] = _gaussian(self.z2_parameters(hidden))
        return features

    def infer(self, features, *, seeds, training=False):
        """`z1, z2 ~ q(z1 | x) q(z2 | x)`, and `p(z1 | z2)` at that draw."""
        loc, scale = features["z2"]
        noise = sampling.row_normals(seeds, [self._config["z2_size"]], "z2")
        z2 = loc + scale * noise
        latents = {
            "z2": inference.Latent(
                z2,
                inference.diagonal_normal(loc, scale),
                inference.diagonal_normal(tf.zeros_like(loc), tf.ones_like(scale)),
            )
        }
        if not self.is_hierarchical:
            return latents, None
        loc, scale = features["z1"]
        z1 = loc + scale * sampling.row_normals(seeds, self._z1_shape, "z1")
        posterior = inference.diagonal_normal(loc, scale, event_ndims=3)
        prior, kl = self.z1_prior(z2, training=training), None
        if self._config["higher_level_pixelcnn"]:

            def kl():
                return tfd.kl_divergence(posterior, prior.normal(z1))

        latents["z1"] = inference.Latent(z1, posterior, prior, kl=kl)
        return latents, None

    def z1_prior(self, z2, *, training=False):
        """`p(z1 | z2)`, in training with the floor under its scales.

        Args:
            z2: float32 `[batch, z2_size]`.
            training: bool.

        Returns:
            A distribution over `[height, width, z1_channels]`, batch shape `[batch]`.
        """
        head = heads.Normal(
            self._z1_shape[-1],
            min_scale=self.prior_scale_floor if training else 0.0,
        )
        maps = self.upper_decoder(self._top_maps(z2), training=training)
        if not self._config["higher_level_pixelcnn"]:
            loc, scale = head.loc_and_scale(self.prior_outputs(maps))
            return inference.diagonal_normal(loc, scale, event_ndims=3)
        return image_distributions.AutoregressiveMaps(
            self.prior_pixelcnn,
            head,
            image_shape=self._z1_shape,
            batch_size=tf.shape(z2)[0],
            conditioning={"maps": maps / 2.0},
        )

    def _top_maps(self, z2):
        """The first maps on the way down, of the smallest size."""
        hidden = self.project(_clipped(z2))
        return tf.reshape(hidden, [-1, *self._top_shape])

    @property
    def prior_scale_floor(self):
        """That of the next training step: saved with the weights, a float32 scalar."""
        if self._prior_scale_floor is None:
            return tf.constant(0.0)
        return tf.convert_to_tensor(self._prior_scale_floor)

    def after_step(self, seed):
        """Lower the floor under the prior's scales."""
        if self._prior_scale_floor is None or self.mode == "decoder":
            return
        lower = self.prior_scale_floor - 1.0 / self._config["prior_scale_floor_steps"]
        self._prior_scale_floor.assign(tf.maximum(lower, 0.0))

    def generate(self, seeds, *, temperature):
        """`z2 ~ N(0, I)`, then `z1 ~ p(z1 | z2)` place by place; scales x temperature.

        Cost: of z1, the row-cached scan, as many sequential steps as it has places.
        """
        noise = sampling.row_normals(seeds, [self._config["z2_size"]], "z2")
        values = {"z2": temperature[:, None] * noise}
        if self.is_hierarchical:
            noise = sampling.row_normals(seeds, self._z1_shape, "z1")
            # One graph of the scan, however many signatures of an export draw maps.
            draw = self.traced(_draw_z1, reduce_retracing=False)
            values["z1"] = draw(values["z2"], noise, temperature)
        return values, None

    def likelihood(self, values, *, context=None, seeds=None, training=False):
        """`p(x | z1)`, of one level `p(x | z2)`; without values, the PixelCNN alone."""
        maps = self._maps(values, training) if values else None
        if not self._config["pixel_level_pixelcnn"]:
            return image_distributions.IndependentImage(
                self.pixel_outputs(maps), self.head, image_shape=self.image_shape
            )
        return image_distributions.AutoregressiveImage(
            self.pixelcnn,
            self.head,
            image_shape=self.image_shape,
            batch_size=tf.shape(seeds if maps is None else maps)[0],
            conditioning={} if maps is None else {"maps": maps},
        )

    def _maps(self, values, training):
        """What the pixels get of the latents, `[batch, height, width, widths[0]]`."""
        if not self.is_hierarchical:
            return self.lower_decoder(self._top_maps(values["z2"]), training=training)
        hidden = self.z1_stem(_clipped(values["z1"]))
        maps = self.lower_decoder(hidden, training=training)
        return maps / 2.0 if self._config["pixel_level_pixelcnn"] else maps


def _draw_z1(model, z2, noise, temperature):
    prior = model.z1_prior(z2)
    if isinstance(prior, image_distributions.AutoregressiveMaps):
        return prior.draw(noise, temperature=temperature, in_graph=True)
    scale = temperature[:, None, None, None] * prior.distribution.stddev()
    return prior.mean() + scale * noise


def _gaussian(parameters):
    """Location and scale, float32, of a layer's outputs."""
    loc, scale = tf.split(tf.cast(parameters, tf.float32), 2, axis=-1)
    return loc, heads.unit_scale(scale)


def _clipped(latent):
    return tf.clip_by_value(latent, -_MAX_LATENT, _MAX_LATENT)


def _of_sizes(name, values):
    """Positive ints, one for each size of the images: a list of at least two."""
    count = len(values) if isinstance(values, list | tuple) else 0
    of = [f"at 1/{2**halvings}" for halvings in range(max(count, 2))]
    return list(checks.integers(name, values, of=tuple(of)))
