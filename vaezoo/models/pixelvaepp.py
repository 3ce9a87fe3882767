"""PixelVAE++: binary latents under an RBM prior, and a PixelCNN++ decoder.

Sadeghi, Andriyash, Vinci, Buffoni and Amin (2019), "PixelVAE++: Improved PixelVAE with
Discrete Prior".
"""

import math

import keras
import numpy as np
import tensorflow as tf

from vaezoo import checks, inference, sampling
from vaezoo.distributions import annealing, relaxed_bernoulli
from vaezoo.distributions import images as image_distributions
from vaezoo.distributions.rbm import NUM_UPDATES, RBM
from vaezoo.inference import tfd
from vaezoo.models.pixelcnnpp import decoder
from vaezoo.models.pixelvaepp_layers import (
    CodeEncoder,
    ImageEncoder,
    MapDecoder,
    NodeDecoder,
    NodeEncoder,
)
from vaezoo.models.vae import VAE

_EQUILIBRATION_SWEEPS = 1_000


@keras.saving.register_keras_serializable(package="vaezoo")
class PixelVAEPP(VAE):
    """PixelCNN++ with up to three groups of latents (section 2.2).

        p(x, z) = p(x | z1, z2, z3) p(z1, z2, z3)
        q(z | x) = q(z1 | x) q(z2 | x) q(z3 | x, z1, z2)

    z1 becomes maps that are concatenated to the image, z2 is a vector that every block
    sees, and z3 is read off the nodes of the decoder's own way down over the image,
    and concatenated to what they hand across: the posterior and the likelihood share
    that pass, which samples z1 and z2 condition. The prior is a Boltzmann machine

        p(z) = exp(a l + b r + l W r) / Z

    between the sides l, which is (z1, z2), and r, which is z3; of z1 alone its two
    halves. All is one latent, "z", of the groups one after the other.

    Training relaxes binary units (section 2.1; `distributions.relaxed_bernoulli`) and
    estimates the gradient of log Z by persistent chains. What it minimises is no bound;
    evaluation is of binary units, with log Z estimated by annealed importance sampling
    (`estimate_log_z`).

    Departs from the paper: equations 2 and 3 print the ratio of p(z) and q(z | x) with
    the other sign. Training estimates log Z's gradient by persistent chains, not by an
    annealing of 50,000 updates for each step.

    Ours, where the paper is silent: layers are weight-normalised, with ELU; z3 is read
    off the stream of pixels, and concatenated in both streams, so that the way up
    starts from the last node and its z3 through one dense layer each; where z1 is not
    a power of two as large as the image, its maps are cropped on the way; the encoder
    sees the image as the decoder does; the Gaussian prior's latents are as many.

    Args:
        image_shape: `(height, width, channels)`; one channel where `levels` is 2.
        levels: int. Values a channel takes.
        filters, num_resnets, num_components, dropout, strided: of the decoder; as of
            `PixelCNNPP`.
        prior: "rbm", binary latents; or "gaussian", N(0, I) and as many real ones.
        z1_size: int, at least 2. Latents that become maps beside the image.
        z2_size: int. Latents that every block sees; 0 for none.
        z3_size: int. Latents of each node of the way down; 0 for none.
        relaxation_temperature: float above 0. Of the relaxed units in training.
        final_relaxation_temperature, relaxation_steps: float above 0, or `None`, and
            int: where there is one, the temperature moves to it, linearly over so many
            training steps.
        num_chains, num_sweeps: ints. Persistent chains, and Gibbs updates of each
            between two steps.

    Raises:
        ValueError: if an argument breaks its rule.
    """

    def __init__(
        self,
        *,
        image_shape=(32, 32, 3),
        levels=256,
        filters=128,
        num_resnets=5,
        num_components=10,
        dropout=0.5,
        strided=True,
        prior="rbm",
        z1_size=512,
        z2_size=128,
        z3_size=64,
        relaxation_temperature=0.25,
        final_relaxation_temperature=None,
        relaxation_steps=1,
        num_chains=500,
        num_sweeps=50,
        **kwargs,
    ):
        super().__init__(image_shape=image_shape, levels=levels, **kwargs)
        config, self.head, self.network = decoder(
            self.image_shape,
            self.levels,
            filters=filters,
            num_resnets=num_resnets,
            num_components=num_components,
            dropout=dropout,
            strided=strided,
        )
        self._config = config | {
            "prior": checks.choice("prior", prior, ("rbm", "gaussian")),
            "z1_size": checks.integer(
                "z1_size", z1_size, minimum=2, advice="Each side of the RBM has units."
            ),
            "z2_size": checks.integer("z2_size", z2_size, minimum=0),
            "z3_size": checks.integer("z3_size", z3_size, minimum=0),
            "relaxation_temperature": checks.number(
                "relaxation_temperature", relaxation_temperature, above=0
            ),
            "final_relaxation_temperature": checks.number(
                "final_relaxation_temperature",
                final_relaxation_temperature,
                above=0,
                optional=True,
            ),
            "relaxation_steps": checks.integer("relaxation_steps", relaxation_steps),
            "num_chains": checks.integer("num_chains", num_chains),
            "num_sweeps": checks.integer("num_sweeps", num_sweeps),
        }
        self.is_discrete = prior == "rbm"
        num_nodes = self.network.num_nodes if z3_size else 0
        self.group_sizes = [z1_size, z2_size, *[z3_size] * num_nodes]
        self.num_latents = sum(self.group_sizes)
        self._build_layers(num_nodes)
        if self.is_discrete:
            self._build_rbm()
        # Before the way there is called alone.
        sides = [
            [side * decoder.strides for side in decoder.size]
            for decoder in self.node_decoders
        ]
        self.network.build(
            (None, *self.image_shape),
            (None, *self.image_shape),
            (None, z2_size) if z2_size else None,
            [(None, *side, filters) for side in sides] or None,
        )
        self.finish_build()

    def _build_layers(self, num_nodes):
        height, width, channels = self.image_shape
        config = self._config
        num_parameters = 1 if self.is_discrete else 2  # of a latent
        # A small scale keeps the first Gaussian posteriors close to the prior.
        start = {"init_scale": 1.0 if self.is_discrete else 0.1}
        self.encoder = ImageEncoder(
            num_parameters * config["z1_size"], **start, name="q_z1"
        )
        self.maps = MapDecoder(self.image_shape, name="f_z1")
        if config["z2_size"]:
            self.code_encoder = CodeEncoder(
                num_parameters * config["z2_size"], **start, name="q_z2"
            )
        self.node_encoders, self.node_decoders = [], []
        per_level = config["num_resnets"] + 1
        for node in range(num_nodes):
            level = node // per_level
            scale = 2**level if config["strided"] else 1  # of this node's map
            size = height // 4, width // 4
            options = {"strides": 4 // scale, "name": f"z3_{node}"}
            self.node_encoders.append(
                NodeEncoder(
                    num_parameters * config["z3_size"], **start, **_named("q", options)
                )
            )
            self.node_decoders.append(
                NodeDecoder(size, config["filters"], **_named("f", options))
            )

    def _build_rbm(self):
        z1_size, z2_size, *z3_sizes = self.group_sizes
        left = z1_size + z2_size if z3_sizes else self.num_latents // 2
        right = self.num_latents - left

        def weight(name, shape, initializer="zeros", **options):
            return self.add_weight(
                name=name,
                shape=shape,
                initializer=initializer,
                autocast=False,
                **options,
            )

        self._rbm_weights = weight("rbm_weights", (left, right))
        self._rbm_left_bias = weight("rbm_left_bias", (left,))
        self._rbm_right_bias = weight("rbm_right_bias", (right,))
        # Estimates: log Z from below and from above, and the former's standard error;
        # of weights of 0 the truth.
        same = {"trainable": False, "aggregation": "only_first_replica"}
        uniform = keras.initializers.Constant(self.num_latents * math.log(2))
        self._log_z = weight("log_z", (), uniform, **same)
        self._log_z_error = weight("log_z_error", (), **same)
        self._log_z_reverse = weight("log_z_reverse", (), uniform, **same)
        self._log_z_known = weight("log_z_known", (), "ones", dtype="bool", **same)
        chains = keras.Variable(
            tf.zeros([self._config["num_chains"], left], tf.uint8),
            dtype="uint8",
            trainable=False,
            aggregation="only_first_replica",
            name="chains",
        )
        object.__setattr__(self, "_chains", chains)

    @property
    def rbm(self):
        """The prior as it is now, an `RBM`."""
        return RBM(
            self._rbm_weights,
            self._rbm_left_bias,
            self._rbm_right_bias,
            log_z=self._log_z,
            log_z_known=self._log_z_known,
        )

    @property
    def decoder_network(self):
        """PixelCNN++, which stands alone where no latent conditions it."""
        return self.network

    # The paper: inference, the prior, the likelihood.

    def features(self, images, *, training=False):
        """Parameters of z1 and z2; and the image, which z3 is read off."""
        values = self.head.normalize(tf.cast(images, tf.float32))
        features = {"z1": self.encoder(values)}
        if self.group_sizes[1]:
            features["z2"] = self.code_encoder(values)
        return features | ({"image": values} if self.node_encoders else {})

    def infer(self, features, *, seeds, training=False):
        """`z1, z2 ~ q(z1, z2 | x)`, then z3 off the nodes that they condition."""
        noise = iter(self._noise(seeds))
        drawn = [self._draw(features["z1"], next(noise), training)]
        code = None
        if self.group_sizes[1]:
            drawn.append(self._draw(features["z2"], next(noise), training))
            code = drawn[1][0]
        context = {"maps": self.maps(drawn[0][0])}
        if self.node_encoders:
            options = {"code": code, "seeds": seeds, "training": training}
            nodes = self.network.up(features["image"], context["maps"], **options)
            context["image"] = nodes
            for encoder, (_, pixels) in zip(self.node_encoders, nodes, strict=True):
                drawn.append(self._draw(encoder(pixels), next(noise), training))
        values, *parameters = (
            tf.concat(parts, axis=-1) for parts in zip(*drawn, strict=True)
        )
        return {"z": self._latent(values, *parameters, training=training)}, context

    def _noise(self, seeds):
        """Noise of each group of latents, `[batch, size]`."""
        draw = sampling.row_uniforms if self.is_discrete else sampling.row_normals
        noise = draw(seeds, [self.num_latents], "z")
        sizes = [size for size in self.group_sizes if size]
        return tf.split(noise, sizes, axis=-1)

    def _draw(self, parameters, noise, training):
        """A group's draw, and its parameters in float32."""
        parameters = tf.cast(parameters, tf.float32)
        if self.is_discrete:
            if not training:
                return relaxed_bernoulli.discrete(parameters, noise), parameters
            temperature = self.relaxation_temperature
            return relaxed_bernoulli.relaxed(parameters, noise, temperature), parameters
        loc, log_scale = tf.split(parameters, 2, axis=-1)
        scale = tf.exp(inference.bounded_log_scale(log_scale))
        return loc + scale * noise, loc, scale

    def _latent(self, values, *parameters, training):
        if not self.is_discrete:
            zeros = tf.zeros_like(values)
            return inference.Latent(
                values,
                inference.diagonal_normal(*parameters),
                inference.diagonal_normal(zeros, tf.ones_like(zeros)),
            )
        (logits,), rbm = parameters, self.rbm
        left = values[:, : rbm.num_left] if self.node_encoders else None
        training_kl = None
        if training:
            training_kl = relaxed_bernoulli.relaxed_kl(
                logits, values, rbm, tf.convert_to_tensor(self._chains)
            )
        return inference.Latent(
            values,
            tfd.Independent(tfd.Bernoulli(logits=logits, dtype=tf.float32), 1),
            rbm,
            kl=lambda: rbm.kl_from(logits, left=left),
            training_kl=training_kl,
        )

    def generate(self, seeds, *, temperature, num_gibbs_updates=NUM_UPDATES):
        """`z ~ p(z)`: of the RBM, after so many Gibbs updates from fair bits."""
        if self.is_discrete:
            values = self.rbm.gibbs(
                sampling.seeds_of(seeds, "z"),
                num_updates=num_gibbs_updates,
                temperature=temperature,
            )
        else:
            noise = sampling.row_normals(seeds, [self.num_latents], "z")
            values = temperature[:, None] * noise
        return {"z": values}, None

    def likelihood(self, values, *, context=None, seeds=None, training=False):
        """`p(x | z)`, pixel after pixel."""
        conditioning, context = {}, context or {}
        call_options = {"seeds": seeds, "training": training}
        if values:
            sizes = self.group_sizes
            z1, z2, *z3 = tf.split(values["z"], sizes, axis=-1)
            maps = context.get("maps")
            conditioning["maps"] = self.maps(z1) if maps is None else maps
            if sizes[1]:
                conditioning["code"] = z2
            if z3:
                pairs = zip(self.node_decoders, z3, strict=True)
                conditioning["skips"] = [decoder(part) for decoder, part in pairs]
                call_options["nodes"] = context.get("image")
        return image_distributions.AutoregressiveImage(
            self.network,
            self.head,
            image_shape=self.image_shape,
            batch_size=tf.shape(values["z"] if values else seeds)[0],
            conditioning=conditioning,
            call_options=call_options,
        )

    # The RBM: chains in training, log Z before evaluation.

    @property
    def relaxation_temperature(self):
        """That of the training step being computed: a float, or a float32 scalar."""
        first = self._config["relaxation_temperature"]
        last = self._config["final_relaxation_temperature"]
        if last is None or not self.compiled:
            return first
        step = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.float32)
        share = tf.minimum(step / self._config["relaxation_steps"], 1.0)
        return first + share * (last - first)

    @property
    def sampling_options(self):
        """What `sample` takes further: the Gibbs updates of the RBM."""
        return {"num_gibbs_updates": NUM_UPDATES} if self.is_discrete else {}

    @property
    def binary_latents(self):
        """The latents that are 0 or 1."""
        return ("z",) if self.is_discrete else ()

    @property
    def trains_on_bound(self):
        """Whether the loss is a bound: not of relaxed units."""
        return not self.is_discrete

    @property
    def exact_variables(self):
        """What a file of float16 holds in float32: log Z is of hundreds of nats."""
        if not self.is_discrete:
            return ()
        return (self._log_z, self._log_z_error, self._log_z_reverse)

    @property
    def training_variables(self):
        """The persistent chains: the left sides, uint8 `[num_chains, left]`."""
        return [self._chains] if self.is_discrete else []

    def begin_training(self):
        """Equilibrate new chains under the weights, which may be trained ones."""
        if not self.is_discrete:
            return
        seeds = tf.constant(sampling.row_seeds(0, self._config["num_chains"]))
        chains = tf.cast(self.rbm.first_chains(seeds), tf.uint8)
        weights = self._rbm_weights, self._rbm_left_bias, self._rbm_right_bias
        # Of weights of 0 the fair bits are draws already.
        if any(np.any(tf.convert_to_tensor(weight)) for weight in weights):
            chains = self.traced(_equilibrated)(chains)
        self._chains.assign(chains)

    def after_step(self, seed):
        """Carry the chains on under the new weights, whose log Z is not known."""
        if not self.is_discrete or self.mode == "decoder":
            return
        chains = self.rbm.update_chains(
            tf.convert_to_tensor(self._chains),
            seed,
            num_sweeps=self._config["num_sweeps"],
        )
        self._chains.assign(chains)
        self._log_z_known.assign(False)

    def before_evaluation(self):
        """Estimate log Z where it is not known."""
        is_needed = self.is_discrete and self.mode != "decoder"
        if is_needed and not self._is_log_z_known():
            self.estimate_log_z()

    def before_shipping(self):
        """Estimate log Z anew, of the weights as they ship."""
        if self.is_discrete:
            self.estimate_log_z(verbose=1)

    def estimates(self):
        """Log Z in nats, from below in the mean; `log_z_reverse` is from above."""
        if not self.is_discrete:
            return {}
        value, error, reverse = (
            float(tf.convert_to_tensor(variable))
            for variable in (self._log_z, self._log_z_error, self._log_z_reverse)
        )
        return {"log_z": (value, error), "log_z_reverse": (reverse, math.nan)}

    def check_scorable(self):
        """Refuse to score while log Z is not known.

        Raises:
            ValueError: always then.
        """
        if self.is_discrete and not self._is_log_z_known():
            raise checks.refusal(
                "A model with an RBM prior is scored with its log Z, which training "
                "changes and leaves unknown.",
                f"{self.name!r} before `estimate_log_z`",
                "Call model.estimate_log_z(), which anneals chains of the RBM.",
            )

    def _is_log_z_known(self):
        return bool(tf.convert_to_tensor(self._log_z_known).numpy())

    def estimate_log_z(self, *, seed=0, verbose=0, **options):
        """Estimate the RBM's log Z by annealed importance sampling, and keep it.

        Forward annealing is low in the mean, so that it makes likelihoods too high; the
        reverse one is high. Both are kept with the weights, and stand on the cards.

        Cost: as of `vaezoo.distributions.annealing.bracket_log_z`.

        Args:
            seed: int.
            verbose: 1 to print progress.
            **options: `num_chains`, `num_temperatures` and so on, of `bracket_log_z`.

        Returns:
            The `Bracket`.

        Raises:
            ValueError: if an option breaks its rule, or the prior is no RBM.
        """
        if not self.is_discrete:
            raise checks.refusal(
                "Only an RBM has a log Z to estimate.",
                f"a {type(self).__name__} with prior={self._config['prior']!r}",
            )
        bracket = annealing.bracket_log_z(
            self.rbm, seed=seed, verbose=verbose, **options
        )
        self._log_z.assign(bracket.forward.value)
        self._log_z_error.assign(bracket.forward.standard_error)
        self._log_z_reverse.assign(bracket.reverse.value)
        self._log_z_known.assign(True)
        return bracket


def _equilibrated(model, chains):
    """Chains under the model's RBM as it is, from any that they start from."""
    return model.rbm.update_chains(chains, -1, num_sweeps=_EQUILIBRATION_SWEEPS)


def _named(prefix, options):
    return options | {"name": f"{prefix}_{options['name']}"}
