"""The base class: what a paper implements, and every model's public methods."""

import functools
import math
import secrets

import numpy as np
import tensorflow as tf

from vaezoo import sampling
from vaezoo.models import computations
from vaezoo.models.step import TrainedModel

_SAMPLE_BUCKETS = (1, 4, 16, 64, 256)  # batch sizes that the scan is compiled for
_OUTPUTS_PER_PASS = 2**25  # parameters of pixels (128 MiB) computed at once


class VAE(TrainedModel):
    """A variational autoencoder over uint8 images `[batch, height, width, channels]`.

    A model implements `features`, `infer`, `generate` and `likelihood`, and calls
    `finish_build` at the end of its constructor. A model without latents returns no
    latents, and its likelihoods are exact. Losses are in nats, summed over an image
    and averaged over the batch.

    Args:
        image_shape: `(height, width, channels)`.
        levels: int. Values a channel takes: 2 for binary images, 256 for 8 bits.

    Raises:
        ValueError: if `image_shape` is not three positive integers.
    """

    def __init__(self, *, image_shape, levels, **kwargs):
        super().__init__(**kwargs)
        shape = tuple(image_shape)
        if len(shape) != 3 or not all(
            isinstance(size, int) and size > 0 for size in shape
        ):
            raise ValueError(
                "`image_shape` must be (height, width, channels), three positive "
                f"integers. Received: image_shape={image_shape!r}."
            )
        self.image_shape = shape
        self.levels = levels
        self.num_dims = math.prod(shape)
        # Functions compiled by this instance; kept out of Keras's tracking.
        object.__setattr__(self, "_functions", {})

    @property
    def rows_per_pass(self):
        """Decoder rows, images x importance samples, that a bound computes at once."""
        outputs = self.num_dims * self.levels
        return max(1, min(128, _OUTPUTS_PER_PASS // outputs))

    # The paper's part: what a model implements.

    def features(self, images, *, training=False):
        """What the posterior needs of the images: deterministic, once an image.

        Args:
            images: uint8 `[batch, height, width, channels]`.
            training: bool.

        Returns:
            A nest of tensors `[batch, ...]`.
        """
        raise NotImplementedError

    def infer(self, features, *, seeds, training=False):
        """Draw the latents from the posterior, the top one first.

        Args:
            features: what `features` returned, `[batch, ...]`.
            seeds: int64 `[batch]`.
            training: bool.

        Returns:
            latents: dict of name to `vaezoo.inference.Latent`.
            context: what `likelihood` would compute again from the values, or `None`.
        """
        raise NotImplementedError

    def generate(self, seeds, *, temperature):
        """Draw the latents from the prior.

        Args:
            seeds: int64 `[batch]`.
            temperature: float32 `[batch]`.

        Returns:
            values: dict of name to tensor `[batch, ...]`.
            context: as of `infer`.
        """
        raise NotImplementedError

    def likelihood(self, values, *, context=None, seeds=None, training=False):
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

    def get_config(self):
        """Arguments of the constructor, which a model keeps in `_config`."""
        return {"name": self.name, **self._config}

    def build(self, input_shape=None):
        """Nothing to do: a model is built by its constructor."""

    def _checked(self, images, *, name="images", levels=None, channels=None):
        """Images as a uint8 tensor, or a ValueError that says what is wrong."""
        size = (None, None) if self.takes_any_size else self.image_shape[:2]
        expected = (*size, channels or self.image_shape[2])
        levels = levels or self.levels
        rule = (
            f"`{name}` must be uint8 [batch, {', '.join(map(str, expected))}] with "
            f"values in 0..{levels - 1}."
        )
        try:
            images = tf.convert_to_tensor(images)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{rule} Received: a {type(images).__name__} ({error})."
            ) from error
        if images.dtype != tf.uint8:
            raise ValueError(
                f"{rule} Received: dtype={images.dtype.name}. Scaling is the model's: "
                "pass the pixels' integer levels, as `images.astype('uint8')`."
            )
        if images.shape.rank != 4 or not images.shape[1:].is_compatible_with(expected):
            raise ValueError(
                f"{rule} Received: shape={tuple(images.shape)}. Resize or reshape the "
                "images, or load the model with `image_shape=`."
            )
        if levels < 256 and tf.executing_eagerly() and tf.size(images) > 0:
            largest = int(tf.reduce_max(images))
            if largest >= levels:
                raise ValueError(
                    f"{rule} Received: values up to {largest}. Binarize first, as "
                    "`(images > 127).astype('uint8')`."
                )
        return images

    def call(self, images, training=False):
        """The ELBO's terms, as `elbo_terms`, for rows seeded with 0."""
        seeds = sampling.fold_in(0, tf.range(tf.shape(images)[0], dtype=tf.int64))
        return computations.elbo_terms(self, images, seeds, training=training)[0]

    # The public methods.

    def _compiled(self, computation, **options):
        """A computation of this model, traced once for each set of options."""
        key = (computation, self.mode, tuple(sorted(options.items())))
        if key not in self._functions:
            function = functools.partial(computation, self, **options)
            self._functions[key] = tf.function(function, reduce_retracing=True)
        return self._functions[key]

    def _in_batches(self, function, rows, *, buckets):
        """Apply `function` to nests of rows `[n, ...]` in batches of a few sizes.

        A batch is padded to the next bucket by repeating its last row, so that
        compiled functions see few shapes; rows do not influence each other.
        """
        rows = tf.nest.map_structure(tf.convert_to_tensor, rows)
        num_rows = tf.nest.flatten(rows)[0].shape[0]
        results = []
        for start in range(0, num_rows, buckets[-1]):
            size = min(buckets[-1], num_rows - start)
            bucket = next(b for b in buckets if b >= size)
            index = tf.minimum(tf.range(start, start + bucket), start + size - 1)
            batch = tf.nest.map_structure(lambda x, i=index: tf.gather(x, i), rows)
            result = function(*batch)
            results.append(tf.nest.map_structure(lambda x, n=size: x[:n], result))
        return tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), *results)

    def _row_seeds(self, seed, num, *, name="seed"):
        if np.ndim(seed) == 0:
            return sampling.row_seeds(seed, num)
        seeds = np.asarray(seed)
        if seeds.shape != (num,) or seeds.dtype != np.int64:
            raise ValueError(
                f"`{name}` must be an int, or int64 [{num}], one a row. Received: "
                f"shape={seeds.shape}, dtype={seeds.dtype}. "
                "`vaezoo.row_seeds(seed, n)` makes such an array."
            )
        return seeds

    def sample(self, num, *, seed=None, temperature=1.0, jit=True):
        """Draw images from the model: exactly the distribution that is scored.

        Cost: one pixel at a time, `height * width` sequential steps (times the
        channels where a channel's distribution needs the network again); in all
        about two passes of the decoder. The first call of a batch size (1, 4, 16, 64
        or 256, to which a batch is padded) compiles, which takes seconds.

        Args:
            num: int, at least 1. Number of images.
            seed: int, or int64 `[num]`, one a row; `None` for a fresh one. Row `i`
                depends on its own seed and on nothing else.
            temperature: float above 0, or `[num]`, one a row. Scales the
                distributions of latents and pixels; 1 is the model.
            jit: bool. Whether to compile with XLA. With and without it about one
                value in 10,000 of an 8-bit image differs, by floating-point ties.

        Returns:
            uint8 `[num, height, width, channels]`.

        Raises:
            ValueError: if `num`, `seed` or `temperature` breaks its rule.
        """
        if isinstance(num, bool) or not isinstance(num, int | np.integer) or num < 1:
            raise ValueError(
                f"`num` must be an integer of at least 1. Received: num={num!r}. Pass "
                "the number of images to draw."
            )
        if seed is None:
            seed = secrets.randbits(63)
        seeds = self._row_seeds(seed, num)
        temperatures = sampling.row_temperatures(temperature, num)
        return self._in_batches(
            self._compiled(computations.sample, jit=jit),
            (seeds, temperatures),
            buckets=_SAMPLE_BUCKETS,
        )

    def _score(self, computation, images, seed, **options):
        images = self._checked(images)
        if images.shape[0] == 0:
            raise ValueError(
                "`images` must hold at least one image. Received: "
                f"shape={tuple(images.shape)}. Pass a batch of one or more."
            )
        seeds = self._row_seeds(seed, images.shape[0])
        buckets = options.pop("buckets", _SAMPLE_BUCKETS[:-1])
        return self._in_batches(
            self._compiled(computation, **options), (images, seeds), buckets=buckets
        )

    def log_likelihood(self, images, *, num_importance_samples=1, seed=0):
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
        count = num_importance_samples
        if (
            isinstance(count, bool)
            or not isinstance(count, int | np.integer)
            or count < 1
        ):
            raise ValueError(
                "`num_importance_samples` must be an integer of at least 1. Received: "
                f"num_importance_samples={count!r}. 1 estimates the ELBO."
            )
        chunk = min(int(count), self.rows_per_pass)
        buckets = [b for b in _SAMPLE_BUCKETS if b * chunk <= 2 * self.rows_per_pass]
        return self._score(
            computations.log_likelihood,
            images,
            seed,
            num_importance_samples=int(count),
            chunk=chunk,
            buckets=buckets or [1],
        )

    def elbo(self, images, *, seed=0):
        """One-sample estimate of each image's ELBO, float32 `[n]` in nats.

        Args and errors: as of `log_likelihood`. Where TFP or the model knows the KL
        term in closed form, it is used.
        """
        return self.elbo_terms(images, seed=seed)["elbo"]

    def elbo_terms(self, images, *, seed=0):
        """The ELBO's terms of each image.

        Args and errors: as of `log_likelihood`.

        Returns:
            dict of float32 `[n]` in nats: `elbo`, `reconstruction` (`-log p(x | z)`),
            `kl`, and `kl/<latent>`; `elbo == -(reconstruction + kl)`.
        """
        return self._score(_terms, images, seed)

    def encode(self, images, *, seed=0, mode="sample"):
        """Latents of each image under the posterior.

        Args:
            images: uint8 `[n, height, width, channels]`.
            seed: int, or int64 `[n]`, one a row.
            mode: `"sample"`, a draw from `q(z | x)`, or `"mean"`, its mean (below
                another latent: given the draw of that latent).

        Returns:
            dict of latent name to `[n, ...]`; empty for a model without latents.
        """
        if mode not in ("sample", "mean"):
            raise ValueError(
                f"`mode` must be 'sample' or 'mean'. Received: mode={mode!r}."
            )
        return self._score(
            computations.encode if mode == "sample" else computations.encode_mean,
            images,
            seed,
        )

    def decode(self, latents, *, seed=0, jit=True):
        """Draw images from `p(x | z)`; the cost is that of `sample`.

        Args:
            latents: dict of latent name to float `[n, ...]`, as from `encode`.
            seed: int, or int64 `[n]`, one a row.
            jit: bool. As of `sample`.

        Returns:
            uint8 `[n, height, width, channels]`.

        Raises:
            ValueError: if a latent is missing, unknown or of another shape.
        """
        values = {name: tf.convert_to_tensor(latents[name]) for name in latents}
        received = {name: tuple(value.shape) for name, value in values.items()}
        rule = {name: (None, *shape) for name, shape in self.latent_shapes.items()}
        if (
            not rule
            or received.keys() != rule.keys()
            or any(received[name][1:] != rule[name][1:] for name in rule)
            or len({shape[0] for shape in received.values()}) != 1
            or 0 in {shape[0] for shape in received.values()}
        ):
            raise ValueError(
                f"`latents` must hold exactly {rule} with one batch size of at least "
                f"1 for all. Received: {received}. `encode` returns such a dict"
                + ("." if rule else "; this model has no latents: use `sample`.")
            )
        num = next(iter(received.values()))[0]
        seeds = self._row_seeds(seed, num)
        values = {name: tf.cast(value, tf.float32) for name, value in values.items()}
        return self._in_batches(
            self._compiled(computations.decode, jit=jit),
            (values, seeds),
            buckets=_SAMPLE_BUCKETS,
        )

    def reconstruct(self, images, *, seed=0, jit=True):
        """Encode each image with a draw of `q(z | x)` and draw `x' ~ p(x | z)`.

        Args, cost and errors: as of `encode` and `sample`; `jit` as of `sample`.

        Returns:
            uint8 `[n, height, width, channels]`: samples, not means.
        """
        return self._score(computations.reconstruct, images, seed, jit=jit)

    def complete(self, images, mask, *, seed=0, num_rounds=10, jit=True):
        """Fill in the masked pixels, approximately given the known ones.

        Exact draws from `p(missing | known)` are intractable with latents. This
        starts from a sample forced to the known pixels and then, `num_rounds` times,
        draws `z ~ q(z | filled image)` and redraws the missing pixels in raster order
        with the known ones forced. Even then a missing pixel is conditioned on the
        known pixels after it through z alone. Without latents one pass is made,
        which ignores the known pixels after it. Cost: `num_rounds + 1` samples.

        Args:
            images: uint8 `[n, height, width, channels]`; masked pixels are ignored.
            mask: uint8 `[n, height, width, 1]`, 1 where a pixel is to be filled in.
            seed: int, or int64 `[n]`, one a row.
            num_rounds: int, at least 0.
            jit: bool. As of `sample`.

        Returns:
            uint8 `[n, height, width, channels]`, equal to `images` where `mask` is 0.

        Raises:
            ValueError: if `images`, `mask` or `num_rounds` breaks its rule.
        """
        images = self._checked(images)
        mask = self._checked(mask, name="mask", levels=2, channels=1)
        if images.shape[0] != mask.shape[0] or images.shape[0] == 0:
            raise ValueError(
                "`mask` must have one row an image, at least one. Received: "
                f"{images.shape[0]} images and {mask.shape[0]} masks."
            )
        if not isinstance(num_rounds, int | np.integer) or num_rounds < 0:
            raise ValueError(
                "`num_rounds` must be an integer of at least 0. Received: "
                f"num_rounds={num_rounds!r}."
            )
        seeds = self._row_seeds(seed, images.shape[0])
        return self._in_batches(
            self._compiled(computations.complete, num_rounds=int(num_rounds), jit=jit),
            (images, mask, seeds),
            buckets=_SAMPLE_BUCKETS,
        )


def _terms(model, images, seeds):
    return computations.elbo_terms(model, images, seeds)[0]
