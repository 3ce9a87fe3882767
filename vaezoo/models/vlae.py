"""VLAE: a VAE whose decoder sees a small window, under a learned prior of its code.

Chen et al. (2017), "Variational Lossy Autoencoder", arXiv 1611.02731: the models for
binary 28x28 images (section 4.1 and appendix A), with the baselines of table 1.
"""

import keras
import tensorflow as tf

from vaezoo import checks, inference, sampling
from vaezoo.decoders.pixelcnn import PixelCNN
from vaezoo.distributions import flows, heads
from vaezoo.distributions import images as image_distributions
from vaezoo.layers.made import MADE
from vaezoo.layers.weight_norm import Conv2D, Conv2DTranspose, Dense
from vaezoo.models.vae import VAE

_WIDTHS = (16, 32, 32)  # residual blocks of encoder and decoder, from the image inwards
_FEATURES = 450  # units between the residual blocks and the code
_MAPS = 4  # feature maps through which the code reaches the PixelCNN


@keras.saving.register_keras_serializable(package="vaezoo")
class VLAE(VAE):
    """Variational lossy autoencoder with one latent `z`, over binary images.

        p(x | z) = prod over i of p(x_i | z, x in a window around i)  (section 3.1)
        z = f(eps), eps ~ N(0, I), f an autoregressive flow           (section 3.2)
        q(z | x) = N(z; loc(x), scale(x)^2), diagonal
        L = E_q[log p(x | z) + log N(f^-1(z); 0, I) + log |det d eps / dz|
                - log q(z | x)]                                    (eqs. 12, 13)

    The window is small, so what lies beyond it has to be in z: the code is lossy, and
    the size of the window decides what is lost. The paper's models are arguments:

    | model                          | arguments                                     |
    |---|---|
    | VLAE                           | the defaults                                  |
    | VLAE with IAF posterior        | `prior="gaussian", posterior="iaf"`           |
    | PixelCNN with Gaussian prior   | `prior="gaussian"`                            |
    | VAE with factorised decoder    | `decoder="factorised"`                        |
    | AF-VAE (table 1)               | `decoder="factorised", latent_size=32,        |
    |                                |  flow_steps=8, flow_hidden_sizes=(1920,)`     |
    | IAF-VAE (baseline)             | as AF-VAE, and `prior="gaussian",             |
    |                                |  posterior="iaf", flow_transform="gated"`     |
    | unconditional decoder          | `latent_size=0`                               |

    Cost: `log p(z)` of an AF prior takes `flow_steps` passes of a MADE, a draw
    `flow_steps * latent_size` sequential steps that add up to as many
    multiplications. An IAF posterior is the other way round.

    Sections, equations and tables are those of arXiv 1611.02731, version 1.

    Departs from the paper: its maps of z are masked like the image in the first
    masked layer, here only with `mask_z_channels=True`; the posterior's log scales
    are kept within +-10; image sizes other than 28x28 are halved three times,
    rounding up.

    Readings of ours, where the paper's words allow others:

    - Encoder and decoder follow Kingma et al. (2016), appendix B, to which the paper
      defers; the places of the 1x1 blocks among the masked layers are ours.
    - "3-layer MADE": three weight matrices, so two hidden layers.
    - "All the masked convolution layer have their weights tied": one kernel for the
      layers of type B, each with a gain and a bias of its own. The first, of type A
      and over other inputs, cannot share it.
    - Weight normalisation starts at unit variance, and at 0.1 of it for the
      posterior's parameters and the flow's outputs; the paper names no scale.
    - AF-VAE is "the best performing model" of Kingma et al. (2016) with its flow as
      prior: neither the 8 steps nor their width, 1,920, stand in the paper.

    Args:
        image_shape: `(height, width, channels)`. Channels are generated in order.
        latent_size: int. Size of `z`; 0 for the decoder alone, otherwise at least 2
            with a flow.
        prior: `"af"` or `"gaussian"`.
        posterior: `"gaussian"` or `"iaf"`.
        flow_steps: int, at least 1. Steps of the flow.
        flow_hidden_sizes: sequence of ints. Hidden widths of each step's MADE.
        flow_transform: `"mean_only"`, `"affine"`, `"damped"` or `"gated"`; see
            `vaezoo.distributions.flows.AutoregressiveStep`.
        decoder: `"pixelcnn"` or `"factorised"` (pixels independent given `z`).
        num_layers: int, at least 1. Masked layers of the PixelCNN, which reach
            `num_layers * (kernel_size // 2)` rows up and columns to either side.
        filters: int. Width of the PixelCNN.
        kernel_size: odd int. Kernel of every masked layer.
        tied: bool. Whether the type-B layers share one kernel's direction.
        mask_z_channels: bool. Whether the first masked layer masks the maps of z.

    Raises:
        ValueError: if the arguments contradict each other or an argument is out of
            its range.
    """

    def __init__(
        self,
        *,
        image_shape=(28, 28, 1),
        latent_size=64,
        prior="af",
        posterior="gaussian",
        flow_steps=4,
        flow_hidden_sizes=(640, 640),
        flow_transform="mean_only",
        decoder="pixelcnn",
        num_layers=6,
        filters=12,
        kernel_size=3,
        tied=True,
        mask_z_channels=False,
        **kwargs,
    ):
        super().__init__(image_shape=image_shape, levels=2, **kwargs)
        self._config = {
            "image_shape": list(self.image_shape),
            "latent_size": latent_size,
            "prior": prior,
            "posterior": posterior,
            "flow_steps": flow_steps,
            "flow_hidden_sizes": list(flow_hidden_sizes),
            "flow_transform": flow_transform,
            "decoder": decoder,
            "num_layers": num_layers,
            "filters": filters,
            "kernel_size": kernel_size,
            "tied": tied,
            "mask_z_channels": mask_z_channels,
        }
        self._check_arguments()
        self.latent_size = latent_size
        channels = self.image_shape[2]
        self.head = heads.Bernoulli(channels)
        self.pixelcnn = None
        if decoder == "pixelcnn":
            self.pixelcnn = PixelCNN(
                num_colours=channels,
                num_outputs=self.head.num_outputs,
                filters=filters,
                num_layers=num_layers,
                kernel_size=kernel_size,
                first_kernel_size=kernel_size,
                head_filters=(),
                num_maps=_MAPS if latent_size else 0,
                mask_maps=mask_z_channels,
                activation="elu",
                tied=tied,
                # Two 1x1 blocks between every other masked layer.
                pointwise_after=range(2, num_layers, 2),
                name="pixelcnn",
            )
        if latent_size:
            num_maps = _MAPS if self.pixelcnn else self.head.num_outputs
            self.encoder = Encoder(latent_size, name="encoder")
            self.decoder = Decoder(self.image_shape[:2], num_maps, name="decoder")
        self.prior_flow = self._build_flow("prior_flow") if prior == "af" else []
        self.posterior_flow = (
            self._build_flow("posterior_flow", context_size=_FEATURES)
            if posterior == "iaf"
            else []
        )
        self.finish_build()

    def _check_arguments(self):
        config = self._config
        choices = {
            "prior": ("af", "gaussian"),
            "posterior": ("gaussian", "iaf"),
            "decoder": ("pixelcnn", "factorised"),
            "flow_transform": tuple(flows.NUM_OUTPUTS),
        }
        for name, allowed in choices.items():
            checks.choice(name, config[name], allowed)
        for name, minimum in (("latent_size", 0), ("num_layers", 1), ("filters", 1)):
            config[name] = checks.integer(name, config[name], minimum=minimum)
        config["flow_steps"] = checks.integer(
            "flow_steps",
            config["flow_steps"],
            advice="Without a flow, prior='gaussian' and posterior='gaussian'.",
        )
        has_flow = config["prior"] == "af" or config["posterior"] == "iaf"
        size = config["latent_size"]
        if size == 0 and config["decoder"] == "factorised":
            raise ValueError(
                "A factorised decoder needs a code. Received: latent_size=0, "
                "decoder='factorised'. Set `latent_size`, or decoder='pixelcnn'."
            )
        if size == 1 and has_flow:
            raise ValueError(
                "`latent_size` must be 0, or at least 2 with a flow (1 without). "
                f"Received: latent_size={size}, prior={config['prior']!r}, "
                f"posterior={config['posterior']!r}."
            )

    def _build_flow(self, name, *, context_size=0):
        if not self.latent_size:
            return []
        config = self._config
        return [
            MADE(
                self.latent_size,
                config["flow_hidden_sizes"],
                num_outputs=flows.NUM_OUTPUTS[config["flow_transform"]],
                context_size=context_size,
                name=f"{name}_{step}",
            )
            for step in range(config["flow_steps"])
        ]

    def prior(self, batch_size, *, scale=1.0):
        """`p(z)` over `[batch_size, latent_size]`.

        Args:
            batch_size: int or int tensor.
            scale: float, or float32 `[batch_size, 1]`, of the flow's noise.
        """
        zeros = tf.zeros([batch_size, self.latent_size])
        noise = inference.diagonal_normal(zeros, tf.ones_like(zeros) * scale)
        if not self.prior_flow:
            return noise
        return flows.FlowDistribution(noise, self._flow(self.prior_flow))

    def _flow(self, networks, context=None):
        return flows.autoregressive_flow(
            networks, transform=self._config["flow_transform"], context=context
        )

    def features(self, images, *, training=False):
        """Posterior parameters `[batch, latent_size]` and context `[batch, 450]`."""
        if not self.latent_size:
            return {}
        loc, log_scale, context = self.encoder(tf.cast(images, tf.float32) - 0.5)
        features = {"loc": loc, "log_scale": inference.bounded_log_scale(log_scale)}
        return features | ({"context": context} if self.posterior_flow else {})

    def infer(self, features, *, seeds, training=False):
        """`z ~ q(z | x)`, from the encoder's features."""
        if not self.latent_size:
            return {}, None
        loc, scale = features["loc"], tf.exp(features["log_scale"])
        noise = sampling.row_normals(seeds, [self.latent_size], "z")
        value = loc + scale * noise
        posterior = inference.diagonal_normal(loc, scale)
        if self.posterior_flow:
            flow = self._flow(self.posterior_flow, context=features["context"])
            posterior = flows.FlowDistribution(posterior, flows.tfb.Invert(flow))
            value = posterior.bijector.forward(value)
        prior = self.prior(tf.shape(loc)[0])
        return {"z": inference.Latent(value, posterior, prior)}, None

    def generate(self, seeds, *, temperature):
        """`z = f(eps)`, `eps ~ N(0, temperature^2 I)`."""
        if not self.latent_size:
            return {}, None
        noise = sampling.row_normals(seeds, [self.latent_size], "z")
        noise = temperature[:, None] * noise
        if self.prior_flow:
            noise = self._flow(self.prior_flow).forward(noise)
        return {"z": noise}, None

    def likelihood(self, values, *, context=None, seeds=None, training=False):
        """`p(x | z)`: Bernoulli pixels, autoregressive within the window."""
        if not self.latent_size:
            maps, batch_size = None, tf.shape(seeds)[0]
        else:
            maps, batch_size = self.decoder(values["z"]), tf.shape(values["z"])[0]
        if self.pixelcnn is None:
            return image_distributions.IndependentImage(
                maps, self.head, image_shape=self.image_shape
            )
        return image_distributions.AutoregressiveImage(
            self.pixelcnn,
            self.head,
            image_shape=self.image_shape,
            batch_size=batch_size,
            conditioning={} if maps is None else {"maps": maps},
        )


class ResidualBlock(keras.layers.Layer):
    """`elu(h + conv(elu(conv(h))))`, 3x3 (Kingma et al., 2016, appendix B).

    Args:
        filters: int. Feature maps.
        resize: `None`; `"down"` to halve height and width; `"up"` to double them. A
            resized block has a convolution in place of the identity.
    """

    def __init__(self, filters, *, resize=None, **kwargs):
        super().__init__(**kwargs)

        def first(name, **options):
            if resize == "up":
                return Conv2DTranspose(filters, 3, name=name, **options)
            strides = 2 if resize == "down" else 1
            return Conv2D(filters, 3, strides=strides, name=name, **options)

        self.inner = first("inner", activation="elu")
        self.outer = Conv2D(filters, 3, name="outer")
        self.shortcut = first("shortcut") if resize else None

    def compute_output_shape(self, input_shape):
        return self.inner.compute_output_shape(input_shape)

    def call(self, features):
        shortcut = features if self.shortcut is None else self.shortcut(features)
        return tf.nn.elu(shortcut + self.outer(self.inner(features)))


class Encoder(keras.layers.Layer):
    """Location, log scale and context of the code, from an image."""

    def __init__(self, latent_size, **kwargs):
        super().__init__(**kwargs)
        self.blocks = []
        for index, width in enumerate(_WIDTHS):
            if index:  # a block of stride 1 between those of stride 2
                before = _WIDTHS[index - 1]
                self.blocks.append(ResidualBlock(before, name=f"block_{index}"))
            self.blocks.append(
                ResidualBlock(width, resize="down", name=f"down_{index}")
            )
        self.dense = Dense(_FEATURES, activation="elu", name="dense")
        # A small scale keeps the first posteriors close to the prior.
        self.parameters = Dense(2 * latent_size, init_scale=0.1, name="parameters")

    def compute_output_shape(self, input_shape):
        shape = (input_shape[0], self.parameters.filters // 2)
        return shape, shape, (input_shape[0], _FEATURES)

    def call(self, images):
        """`[batch, height, width, channels]` to two of `[batch, latent_size]`, a third.

        The third is the context of an IAF, `[batch, 450]`.
        """
        features = images
        for block in self.blocks:
            features = block(features)
        size = features.shape[1:].num_elements()
        features = self.dense(tf.reshape(features, [-1, size]))
        parameters = tf.cast(self.parameters(features), tf.float32)
        return *tf.split(parameters, 2, axis=-1), features


class Decoder(keras.layers.Layer):
    """Feature maps of the image's size from a code: the encoder, backwards."""

    def __init__(self, size, num_maps, **kwargs):
        super().__init__(**kwargs)
        self.sizes = [tuple(size)]
        for _ in _WIDTHS:
            self.sizes.append(tuple(-(-side // 2) for side in self.sizes[-1]))
        height, width = self.sizes[-1]
        self.dense = [
            Dense(_FEATURES, activation="elu", name="dense_0"),
            Dense(height * width * _WIDTHS[-1], activation="elu", name="dense_1"),
        ]
        # Widths after each doubling: 32, 32, 16.
        self.stages = []
        for index, filters in enumerate(reversed(_WIDTHS)):
            stage = [ResidualBlock(filters, resize="up", name=f"up_{index}")]
            if index < len(_WIDTHS) - 1:
                stage.append(ResidualBlock(filters, name=f"block_{index}"))
            self.stages.append(stage)
        self.maps = Conv2D(num_maps, 3, name="maps")

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.sizes[0], self.maps.filters)

    def call(self, code):
        """`[batch, latent_size]` to `[batch, height, width, num_maps]`."""
        features = code
        for layer in self.dense:
            features = layer(features)
        features = tf.reshape(features, [-1, *self.sizes[-1], _WIDTHS[-1]])
        for stage, size in zip(self.stages, self.sizes[-2::-1], strict=True):
            doubling, *others = stage
            features = doubling(features)[:, : size[0], : size[1]]
            for block in others:
                features = block(features)
        return self.maps(features)
