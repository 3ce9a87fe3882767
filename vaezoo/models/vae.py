"""The base class: what a paper implements, and every model's public methods."""

from __future__ import annotations

import functools
import math
import secrets
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import tensorflow as tf

from vaezoo import checks, sampling
from vaezoo.models import computations
from vaezoo.models.step import TrainedModel
from vaezoo.typing import Array, Seed

if TYPE_CHECKING:
    from vaezoo.distributions.images import AutoregressiveImage, IndependentImage
    from vaezoo.inference import Latent
    from vaezoo.zoo.entries import ZooEntry

_OUTPUTS_PER_PASS = 2**25  # parameters of pixels (128 MiB) computed at once


class VAE(TrainedModel):
    """A variational autoencoder over uint8 images `[batch, height, width, channels]`.

    A model implements `features`, `infer`, `generate` and `likelihood`, keeps the head
    of its likelihood as `head`, and calls `finish_build` at the end of its constructor.
    A model without latents returns no latents, and its likelihoods are exact. Losses
    are in nats, summed over an image and averaged over the batch.

    Args:
        image_shape: `(height, width, channels)`.
        levels: int. Values a channel takes: 2 for binary images, 256 for 8 bits.

    Raises:
        ValueError: if `image_shape` is not three positive integers, or `levels` not an
            integer in 2..256.
    """

    image_shape: tuple[int, int, int]
    head: Any  # of `vaezoo.distributions.heads`
    latent_shapes: dict[str, tuple[int, ...]]
    zoo_entry: ZooEntry  # of a model that `vaezoo.load` made

    def __init__(self, *, image_shape: Sequence[int], levels: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.image_shape = checks.image_shape(image_shape)
        self.levels = checks.integer("levels", levels, minimum=2, maximum=256)
        self.num_dims = math.prod(self.image_shape)
        # Functions compiled by this instance; kept out of Keras's tracking.
        object.__setattr__(self, "_functions", {})

    @property
    def rows_per_pass(self) -> int:
        """Decoder rows, images x importance samples, that a bound computes at once."""
        height, width, _ = self.image_shape
        outputs = height * width * self.head.num_outputs
        return max(1, min(128, _OUTPUTS_PER_PASS // outputs))

    # The paper's part: what a model implements.

    def features(self, images: tf.Tensor, *, training: bool = False) -> Any:
        """What the posterior needs of the images: deterministic, once an image.

        Args:
            images: uint8 `[batch, height, width, channels]`.
            training: bool.

        Returns:
            A nest of tensors `[batch, ...]`.
        """
        raise NotImplementedError

    def infer(
        self, features: Any, *, seeds: tf.Tensor, training: bool = False
    ) -> tuple[dict[str, Latent], Any]:
        """Draw the latents from the posterior, the top one first.

        Args:
            features: what `features` returned, `[batch, ...]`.
            seeds: int64 `[batch]`.
            training: bool.

        Returns:
            latents: dict of name to `vaezoo.inference.Latent`.
            context: what `likelihood` would compute again from the values, or `None`.
                Of a dict, "image" is what belongs to the image too: other images that
                are drawn with the context do not get it.
        """
        raise NotImplementedError

    def generate(
        self, seeds: tf.Tensor, *, temperature: tf.Tensor, **options: int
    ) -> tuple[dict[str, tf.Tensor], Any]:
        """Draw the latents from the prior.

        Args:
            seeds: int64 `[batch]`; or a dict of such by latent, whose noise is drawn
                by its name, as `sampling.row_normals(seeds, shape, "z")`.
            temperature: float32 `[batch]`.
            **options: those of `sampling_options`.

        Returns:
            values: dict of name to tensor `[batch, ...]`.
            context: as of `infer`.
        """
        raise NotImplementedError

    def likelihood(
        self,
        values: Mapping[str, tf.Tensor],
        *,
        context: Any = None,
        seeds: tf.Tensor | None = None,
        training: bool = False,
    ) -> AutoregressiveImage | IndependentImage:
        """The distribution `p(x | z)` over uint8 images.

        Args:
            values: dict of name to the latents' draws, `[batch, ...]`; a model
                without latents reads the batch size from `seeds`.
            context: an optimisation; `None` gives the same distribution.
            seeds: int64 `[batch]`, for dropout.
            training: bool.

        Returns:
            A distribution of `vaezoo.distributions.images`, batch shape `[batch]`.
        """
        raise NotImplementedError

    @property
    def sampling_options(self) -> dict[str, int]:
        """Further options of `sample` and their defaults: positive integers by name."""
        return {}

    @property
    def binary_latents(self) -> tuple[str, ...]:
        """The latents whose values are 0 or 1."""
        return ()

    @property
    def exact_variables(self) -> Sequence[Any]:
        """Variables that files of float16 weights hold in float32."""
        return ()

    def before_shipping(self) -> None:
        """Called before weights, rounded as they ship, become a zoo entry's."""

    def estimates(self) -> dict[str, tuple[float, float]]:
        """What the scores rest on that was estimated of the weights and kept with them.

        Returns:
            dict of name to (value, standard error), nan for an unknown one.
        """
        return {}

    def check_scorable(self) -> None:
        """Refuse to score with a model that something has to be estimated of first."""

    # Building, initialisation, configuration.

    def finish_build(self):
        """Create every variable, by one pass over a zero image."""
        images = tf.zeros([1, *self.image_shape], tf.uint8)
        seeds = tf.zeros([1], tf.int64)
        _, latents = computations.elbo_terms(self, images, seeds)
        self.latent_shapes = {
            name: tuple(latent.value.shape[1:]) for name, latent in latents.items()
        }
        self.data_initialized = not self.starts_from_data
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor, which a model keeps in `_config`."""
        return {"name": self.name, "dtype": self.dtype_policy.name, **self._config}

    def build(self, input_shape=None):
        """Nothing to do: a model is built by its constructor."""

    def call(self, images, training=False):
        """The ELBO's terms, as `elbo_terms`, for rows seeded with 0."""
        images = self.images_of(images)
        seeds = sampling.fold_in(0, tf.range(tf.shape(images)[0], dtype=tf.int64))
        return computations.elbo_terms(self, images, seeds, training=training)[0]

    def load_weights(self, *args, **kwargs):
        """Keras's `load_weights`, of the optimizer's state too where training began."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            super().load_weights(*args, **kwargs)

    # The public methods.

    def traced(
        self, computation, *, reduce_retracing=True, jit_compile=None, **options
    ):
        """A computation of this model as a `tf.function`, made once.

        Args:
            computation: function of this model and nests of tensors.
            reduce_retracing, jit_compile: as of `tf.function`.
            **options: the computation's, by name.

        Returns:
            The `tf.function` of the tensors; the same one for the same arguments, as
            long as the mode is the same.
        """
        how = {"reduce_retracing": reduce_retracing, "jit_compile": jit_compile}
        key = (computation, self.mode, *sorted((how | options).items(), key=str))
        if key not in self._functions:
            function = functools.partial(computation, self, **options)
            self._functions[key] = tf.function(function, autograph=False, **how)
        return self._functions[key]

    def _in_batches(self, function, rows, *, buckets):
        """Apply `function` to nests of rows `[n, ...]` in `sampling.padded_batches`."""
        rows = tf.nest.map_structure(tf.convert_to_tensor, rows)
        num_rows = tf.nest.flatten(rows)[0].shape[0]
        results = []
        for index, size in sampling.padded_batches(num_rows, buckets):
            batch = tf.nest.map_structure(lambda x, i=index: tf.gather(x, i), rows)
            result = function(*batch)
            results.append(tf.nest.map_structure(lambda x, n=size: x[:n], result))
        return tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), *results)

    def sample(
        self,
        num: int,
        *,
        seed: Seed | Mapping[str, Seed] | None = None,
        temperature: Array = 1.0,
        jit: bool = True,
        **options: int,
    ) -> tf.Tensor:
        """Draw images from the model: exactly the distribution that is scored.

        Cost: one pixel at a time, `height * width` sequential steps (times the
        channels where a channel's distribution needs the network again); in all
        about two passes of the decoder. The first call of a batch size (1, 4, 16, 64
        or 256, to which a batch is padded) compiles, which takes seconds.

        Args:
            num: int, at least 1. Number of images.
            seed: int, or int64 `[num]`, one a row; `None` for a fresh one. Row `i`
                depends on its own seed and on nothing else. Or a dict of such, of each
                latent's and of the "pixels": to hold the noise of some, and draw that
                of the others anew.
            temperature: float above 0, or `[num]`, one a row. Scales the
                distributions of latents and pixels; 1 is the model.
            jit: bool. Whether to compile with XLA. With and without it about one
                value in 10,000 of an 8-bit image differs, by floating-point ties.
            **options: the model's own, of `sampling_options`: positive integers.

        Returns:
            uint8 `[num, height, width, channels]`.

        Raises:
            ValueError: if `num`, `seed`, `temperature` or an option breaks its rule.
        """
        options = checks.sampling_options(options, self.sampling_options)
        num = checks.integer("num", num)
        if seed is None:
            seed = secrets.randbits(63)
        if isinstance(seed, Mapping):
            checks.names("seed", seed, of=(*self.latent_shapes, "pixels"))
            seeds = {name: sampling.row_seeds(each, num) for name, each in seed.items()}
        else:
            seeds = sampling.row_seeds(seed, num)
        temperatures = checks.temperatures(temperature, num)
        return self._in_batches(
            self.traced(computations.sample, jit=jit, **options),
            (seeds, temperatures),
            buckets=sampling.BATCH_SIZES,
        )

    def _score(self, computation, images, seed, **options):
        images = self._images(images)
        seeds = sampling.row_seeds(seed, len(images))
        return self._in_batches(
            self.traced(computation, **options),
            (images, seeds),
            buckets=sampling.BATCH_SIZES[:-1],
        )

    def _images(self, images):
        return checks.images(
            images, image_shape=self.accepted_shape, levels=self.levels
        )

    def log_likelihood(
        self, images: Array, *, num_importance_samples: int = 1, seed: Seed = 0
    ) -> tf.Tensor:
        """Importance-weighted bound `L_K` on each image's log-likelihood, in nats.

        `L_K <= log p(x)` in expectation, tighter as K grows (Burda et al., 2016);
        exact for a model without latents. One pass of the encoder an image and K of
        the decoder; memory does not grow with K.

        Args:
            images: uint8 `[n, height, width, channels]`, any n of at least 1.
            num_importance_samples: int, at least 1: K. With 1 it estimates the ELBO.
            seed: int, or int64 `[n]`, one a row.

        Returns:
            float32 `[n]`, nats an image.

        Raises:
            ValueError: if `images` or `num_importance_samples` breaks its rule.
        """
        num_importance_samples = checks.integer(
            "num_importance_samples",
            num_importance_samples,
            advice="1 estimates the ELBO.",
        )
        self.check_scorable()
        images = self._images(images)
        seeds = sampling.row_seeds(seed, len(images))
        # In blocks of rows of its own, not padded: K passes of a row cost too much.
        bound = self.traced(
            computations.log_likelihood, num_importance_samples=num_importance_samples
        )
        return bound(tf.constant(images), tf.constant(seeds))

    def elbo(self, images: Array, *, seed: Seed = 0) -> tf.Tensor:
        """One-sample estimate of each image's ELBO, float32 `[n]` in nats.

        Args and errors: as of `log_likelihood`. Where TFP or the model knows the KL
        term in closed form, it is used.
        """
        return self.elbo_terms(images, seed=seed)["elbo"]

    def elbo_terms(self, images: Array, *, seed: Seed = 0) -> dict[str, tf.Tensor]:
        """The ELBO's terms of each image.

        Args and errors: as of `log_likelihood`.

        Returns:
            dict of float32 `[n]` in nats: `elbo`, `reconstruction` (`-log p(x | z)`),
            `kl`, and `kl/<latent>`; `elbo == -(reconstruction + kl)`.
        """
        self.check_scorable()
        return self._score(_terms, images, seed)

    def encode(
        self,
        images: Array,
        *,
        seed: Seed = 0,
        mode: Literal["sample", "mean"] = "sample",
    ) -> dict[str, tf.Tensor]:
        """Latents of each image under the posterior.

        Args:
            images: uint8 `[n, height, width, channels]`.
            seed: int, or int64 `[n]`, one a row.
            mode: `"sample"`, a draw from `q(z | x)`, or `"mean"`, its mean (below
                another latent: given the draw of that latent).

        Returns:
            dict of latent name to `[n, ...]`; empty for a model without latents.
        """
        computation = {
            "sample": computations.encode,
            "mean": computations.encode_mean,
        }[checks.choice("mode", mode, ("sample", "mean"))]
        return self._score(computation, images, seed)

    def decode(
        self, latents: Mapping[str, Array], *, seed: Seed = 0, jit: bool = True
    ) -> tf.Tensor:
        """Draw images from `p(x | z)`; the cost is that of `sample`.

        Args:
            latents: dict of latent name to float `[n, ...]`, as from `encode`.
            seed: int, or int64 `[n]`, one a row.
            jit: bool. As of `sample`.

        Returns:
            uint8 `[n, height, width, channels]`.

        Raises:
            ValueError: if a latent is missing, unknown, of another shape or not finite.
        """
        values = checks.latents(
            latents, latent_shapes=self.latent_shapes, binary=self.binary_latents
        )
        num = len(next(iter(values.values())))
        seeds = sampling.row_seeds(seed, num)
        return self._in_batches(
            self.traced(computations.decode, jit=jit),
            (values, seeds),
            buckets=sampling.BATCH_SIZES,
        )

    def reconstruct(
        self, images: Array, *, seed: Seed = 0, jit: bool = True
    ) -> tf.Tensor:
        """Encode each image with a draw of `q(z | x)` and draw `x' ~ p(x | z)`.

        Args, cost and errors: as of `encode` and `sample`; `jit` as of `sample`.

        Returns:
            uint8 `[n, height, width, channels]`: samples, not means.
        """
        return self._score(computations.reconstruct, images, seed, jit=jit)

    def complete(
        self,
        images: Array,
        mask: Array,
        *,
        seed: Seed = 0,
        num_rounds: int = 10,
        jit: bool = True,
    ) -> tf.Tensor:
        """Fill in the masked pixels, approximately given the known ones.

        Exact draws from `p(missing | known)` are intractable with latents. This
        starts from a sample forced to the known pixels and then, `num_rounds` times,
        draws `z ~ q(z | filled image)` and redraws the missing pixels in raster order
        with the known ones forced. Even then a missing pixel is conditioned on the
        known pixels after it through z alone. Without latents one pass is made,
        which ignores the known pixels after it. Cost: `num_rounds + 1` samples.

        Args:
            images: uint8 `[n, height, width, channels]`; masked pixels are ignored.
            mask: uint8 or bool `[n, height, width, 1]`, or `[height, width, 1]`, one
                for all images; 1 where a pixel is to be filled in.
            seed: int, or int64 `[n]`, one a row.
            num_rounds: int, at least 0.
            jit: bool. As of `sample`.

        Returns:
            uint8 `[n, height, width, channels]`, equal to `images` where `mask` is 0.

        Raises:
            ValueError: if `images`, `mask` or `num_rounds` breaks its rule.
        """
        images = self._images(images)
        num = len(images)
        mask = checks.mask(mask, image_shape=images.shape[1:], num=num)
        num_rounds = checks.integer("num_rounds", num_rounds, minimum=0)
        seeds = sampling.row_seeds(seed, num)
        return self._in_batches(
            self.traced(computations.complete, num_rounds=num_rounds, jit=jit),
            (images, mask, seeds),
            buckets=sampling.BATCH_SIZES,
        )


def _terms(model, images, seeds):
    return computations.elbo_terms(model, images, seeds)[0]
