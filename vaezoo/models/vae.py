"""The base class: everything that is the same for every model, written once."""

import functools
import math
import secrets

import keras
import numpy as np
import tensorflow as tf

from vaezoo import inference, sampling, strategies, units
from vaezoo.layers import weight_norm

_SAMPLE_BUCKETS = (1, 4, 16, 64, 256)  # batch sizes that the scan is compiled for
_OUTPUTS_PER_PASS = 2**25  # parameters of pixels (128 MiB) computed at once
_EVALUATION_STEP = -1  # keys the noise of `test_step`, which no training step shares


class VAE(keras.Model):
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
        self._data_initialized = self.add_weight(
            name="data_initialized",
            shape=(),
            dtype="bool",
            initializer=lambda shape, dtype: tf.zeros(shape, dtype),
            trainable=False,
        )
        # Functions compiled by this instance; kept out of Keras's tracking.
        object.__setattr__(self, "_functions", {})
        object.__setattr__(self, "_soft_free_bits_weight", None)

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

    def auxiliary_loss(self, images, latents):
        """A further term of the training loss, nats `[batch]`, or `None`."""
        return None

    def after_step(self):
        """Called once after each optimizer step, for state such as chains."""

    # Building, initialisation, configuration.

    def finish_build(self):
        """Create every variable, by one pass over a zero image."""
        images = tf.zeros([1, *self.image_shape], tf.uint8)
        latents = self._elbo_terms(images, tf.zeros([1], tf.int64))[1]
        self.latent_shapes = {
            name: tuple(latent.value.shape[1:]) for name, latent in latents.items()
        }
        layers = self._flatten_layers(include_self=False)
        if not any(getattr(layer, "normalized", False) for layer in layers):
            self.data_initialized = True
        self.built = True

    def get_config(self):
        """Arguments of the constructor, which a model keeps in `_config`."""
        return {"name": self.name, **self._config}

    def build(self, input_shape=None):
        """Nothing to do: a model is built by its constructor."""

    @property
    def data_initialized(self):
        """Whether data-dependent initialisation has run; saved with the weights."""
        return bool(tf.convert_to_tensor(self._data_initialized).numpy())

    @data_initialized.setter
    def data_initialized(self, value):
        self._data_initialized.assign(value)

    def initialize(self, images):
        """Data-dependent initialisation of the weight-normalised layers.

        `fit` does this by itself on its first batch. Eager, one pass.

        Args:
            images: uint8 `[batch, height, width, channels]`, a real batch.
        """
        images = self._checked(images)
        seeds = tf.constant(sampling.row_seeds(0, images.shape[0]))
        with weight_norm.data_dependent_init():
            self._elbo_terms(images, seeds, training=True)
        strategy = self.distribute_strategy
        if strategies.is_multi_worker(strategy):  # unlike processors round unlike
            arrays = [variable.numpy() for variable in self.weights]
            arrays = strategies.from_chief(strategy, arrays)
            for variable, array in zip(self.weights, arrays, strict=True):
                variable.assign(array)
        self.data_initialized = True

    def _checked(self, images, *, name="images", levels=None, channels=None):
        """Images as a uint8 tensor, or a ValueError that says what is wrong."""
        expected = (*self.image_shape[:2], channels or self.image_shape[2])
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

    # The terms of the bound, and training.

    def _elbo_terms(self, images, seeds, *, training=False):
        """Reconstruction and KL terms of each image, and the latents drawn.

        The draw is importance sample 0 of `log_likelihood` with the same seeds.

        Returns:
            terms: dict of float32 `[batch]` nats: `elbo`, `reconstruction`, `kl` and
                `kl/<latent>`, with `elbo == -(reconstruction + kl)`.
            latents: dict of name to Latent.
        """
        seeds = sampling.fold_in(seeds, 0)
        features = self.features(images, training=training)
        latents, context = self.infer(features, seeds=seeds, training=training)
        likelihood = self.likelihood(
            {name: latent.value for name, latent in latents.items()},
            context=context,
            seeds=seeds,
            training=training,
        )
        reconstruction = -likelihood.log_prob(images)
        kls = {name: latent.kl_divergence() for name, latent in latents.items()}
        kl = tf.add_n([*kls.values(), tf.zeros_like(reconstruction)])
        terms = {
            "elbo": -(reconstruction + kl),
            "reconstruction": reconstruction,
            "kl": kl,
        }
        terms |= {f"kl/{name}": value for name, value in kls.items()}
        return terms, latents

    def call(self, images, training=False):
        """The ELBO's terms, as `elbo_terms`, for rows seeded with 0."""
        seeds = sampling.fold_in(0, tf.range(tf.shape(images)[0], dtype=tf.int64))
        return self._elbo_terms(images, seeds, training=training)[0]

    def compile(
        self,
        optimizer="adam",
        *,
        kl_warmup_steps=0,
        kl_warmup_start=0.0,
        free_bits_nats=0.0,
        soft_free_bits_nats=0.0,
        soft_free_bits_weight=1.0,
        gradient_clip=None,
        gradient_accumulation_steps=1,
        seed=0,
        run_eagerly=False,
    ):
        """Configure training.

        Args:
            optimizer: a Keras optimizer or its name.
            kl_warmup_steps: int. Steps over which the weight of the KL term in the
                loss rises linearly to 1.
            kl_warmup_start: float from 0 to 1. That weight at the first step.
            free_bits_nats: float. Nats of KL a latent may spend at no cost.
            soft_free_bits_nats: float. Nats of KL in all that the weight of the KL
                term, between 0 and 1, is steered towards; 0 to leave it alone. See
                `vaezoo.inference.soft_free_bits`.
            soft_free_bits_weight: float. That weight at the first step.
            gradient_clip: `None`, or `{"by": "value" | "global_norm", "limit": float,
                "unit": "per_image" | "per_dim"}`. The gradient that is clipped, after
                the reduction over replicas, is of the loss in nats an image or a
                dimension.
            gradient_accumulation_steps: int, at least 1. Parts of a replica's rows that
                are computed one after the other, and their gradients added up: the same
                step in less memory. Exact, but that batch normalisation has the
                statistics of each part; free bits cost a pass of the encoder more.
            seed: int. Seed of the run's noise.
            run_eagerly: bool. As in Keras.
        """
        if gradient_clip is not None and (
            set(gradient_clip) != {"by", "limit", "unit"}
            or gradient_clip["by"] not in ("value", "global_norm")
            or gradient_clip["unit"] not in ("per_image", "per_dim")
            or not gradient_clip["limit"] > 0
        ):
            raise ValueError(
                "`gradient_clip` must be None or {'by': 'value' or 'global_norm', "
                "'limit': a positive number, 'unit': 'per_image' or 'per_dim'}. "
                f"Received: gradient_clip={gradient_clip!r}."
            )
        if min(kl_warmup_steps, free_bits_nats, soft_free_bits_nats) < 0:
            raise ValueError(
                "`kl_warmup_steps`, `free_bits_nats` and `soft_free_bits_nats` must be "
                f"at least 0. Received: kl_warmup_steps={kl_warmup_steps}, "
                f"free_bits_nats={free_bits_nats}, "
                f"soft_free_bits_nats={soft_free_bits_nats}."
            )
        if not 0 <= kl_warmup_start <= 1:
            raise ValueError(
                "`kl_warmup_start` must be from 0 to 1. Received: "
                f"kl_warmup_start={kl_warmup_start}."
            )
        if not 0 < soft_free_bits_weight <= 1:
            raise ValueError(
                "`soft_free_bits_weight` must be above 0 and at most 1. Received: "
                f"soft_free_bits_weight={soft_free_bits_weight}."
            )
        parts = gradient_accumulation_steps
        if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
            raise ValueError(
                "`gradient_accumulation_steps` must be a positive integer. Received: "
                f"gradient_accumulation_steps={parts!r}."
            )
        super().compile(optimizer=optimizer, jit_compile=False, run_eagerly=run_eagerly)
        self._compile_options = {
            "kl_warmup_steps": kl_warmup_steps,
            "kl_warmup_start": kl_warmup_start,
            "free_bits_nats": free_bits_nats,
            "soft_free_bits_nats": soft_free_bits_nats,
            "gradient_clip": gradient_clip,
            "gradient_accumulation_steps": gradient_accumulation_steps,
            "seed": seed,
        }
        weight = None
        if soft_free_bits_nats:
            weight = keras.Variable(
                soft_free_bits_weight,
                trainable=False,
                # Every replica computes the same value.
                aggregation="only_first_replica",
                name="soft_free_bits_weight",
            )
        # State of training, as the optimizer's: not one of the model's weights.
        object.__setattr__(self, "_soft_free_bits_weight", weight)
        names = ["loss", "elbo", "reconstruction", "kl"]
        names += [f"kl/{name}" for name in self.latent_shapes]
        self._means = [
            keras.metrics.Mean(name=name) for name in [*names, "bits_per_dim"]
        ]

    def get_compile_config(self):
        """Arguments of `compile`, for saving."""
        config = {
            "optimizer": keras.optimizers.serialize(self.optimizer),
            **self._compile_options,
        }
        for variable in self.training_variables:
            config[variable.name] = float(variable)
        return config

    @property
    def training_variables(self):
        """State of training that neither the model nor its optimizer holds."""
        weight = self._soft_free_bits_weight
        return [] if weight is None else [weight]

    def compile_from_config(self, config):
        """`compile` as saved by `get_compile_config`, optimizer variables included."""
        config = dict(config)
        optimizer = keras.optimizers.deserialize(config.pop("optimizer"))
        self.compile(optimizer, **config)
        self.optimizer.build(self.trainable_variables)

    @property
    def metrics(self):
        """The means of the loss, the ELBO's terms and bits/dim, in nats and bits."""
        return list(getattr(self, "_means", []))

    def get_metrics_result(self):
        """Current value of each metric."""
        results = super().get_metrics_result()
        strategy = tf.distribute.get_strategy()
        multi_worker = tf.distribute.MultiWorkerMirroredStrategy
        if not tf.executing_eagerly() and isinstance(strategy, multi_worker):
            # Keras reduces logs over axis 0, which scalars do not have.
            results = {name: tf.reshape(value, [1]) for name, value in results.items()}
        return results

    def _update_metrics(self, loss, terms):
        values = {
            **terms,
            "loss": loss,
            "bits_per_dim": units.bits_per_dim(terms["elbo"], self.num_dims),
        }
        for mean in self._means:
            mean.update_state(values[mean.name])

    def _batch(self, data):
        """Images of what `fit` was given: images | (images, ...) | {"image": ...}."""
        images = data
        if isinstance(images, dict):
            if "image" not in images:
                raise ValueError(
                    "A dict of data must have the key 'image'. Received: "
                    f"keys={sorted(images)}. Rename the key, or map to the images."
                )
            images = images["image"]
        elif isinstance(images, tuple | list):
            return self._batch(images[0])
        return self._checked(images)

    def _global_rows(self, images):
        """Index of each row in the global batch, and the size of that batch."""
        num_rows = tf.shape(images, out_type=tf.int64)[0]
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync
        if replicas == 1:
            return tf.range(num_rows), tf.cast(num_rows, tf.float32)
        here = tf.one_hot(context.replica_id_in_sync_group, replicas, dtype=tf.int64)
        counts = context.all_reduce(tf.distribute.ReduceOp.SUM, here * num_rows)
        before = tf.range(replicas) < context.replica_id_in_sync_group
        offset = tf.reduce_sum(tf.where(before, counts, tf.zeros_like(counts)))
        return offset + tf.range(num_rows), tf.cast(tf.reduce_sum(counts), tf.float32)

    def _seeds(self, step, rows):
        run = sampling.fold_in(self._compile_options["seed"], step)
        return sampling.fold_in(run, rows)

    def train_step(self, data):
        """One step on one replica's rows; exactly the step of the global batch."""
        with tf.init_scope():
            if tf.executing_eagerly() and not self.data_initialized:
                raise RuntimeError(
                    "A model is initialised on data before its first training step. "
                    "Received: a model with data_initialized=False. Call `fit`, which "
                    "does it, or `model.initialize(images)` with one real batch."
                )
        images = self._batch(data)
        options = self._compile_options
        context = tf.distribute.get_replica_context()
        all_sum = functools.partial(context.all_reduce, tf.distribute.ReduceOp.SUM)
        step = tf.convert_to_tensor(self.optimizer.iterations)
        rows, global_size = self._global_rows(images)
        seeds = self._seeds(step, rows)
        with tf.control_dependencies(self._batch_checks(images)):
            parts = self._split_rows(images), self._split_rows(seeds)
        parts = list(zip(*parts, strict=True))

        mean_kls = None
        if options["free_bits_nats"] and len(parts) > 1:
            # Free bits are of the whole batch, so its KL has to be known beforehand.
            kls = [self._kl_terms(*part) for part in parts]
            mean_kls = [
                all_sum(tf.add_n([tf.reduce_sum(x) for x in values])) / global_size
                for values in zip(*kls, strict=True)
            ]
        variables = self.trainable_variables
        gradients, losses, all_terms = [], [], []
        for part in parts:
            # After the part before, so that one part's activations are held at a time.
            with tf.control_dependencies(gradients), tf.GradientTape() as tape:
                terms, latents = self._elbo_terms(*part, training=True)
                kl = terms["kl"]
                if options["free_bits_nats"] and latents:
                    kls = [terms[f"kl/{name}"] for name in latents]
                    means = mean_kls
                    if means is None:
                        sums = [tf.reduce_sum(tf.stop_gradient(x)) for x in kls]
                        means = [x / global_size for x in all_sum(sums)]
                    kl = tf.add_n(
                        [
                            inference.free_bits(value, mean, options["free_bits_nats"])
                            for value, mean in zip(kls, means, strict=True)
                        ]
                    )
                loss = terms["reconstruction"] + self._kl_weight(step) * kl
                auxiliary = self.auxiliary_loss(part[0], latents)
                if auxiliary is not None:
                    loss += auxiliary
                total_loss = self.optimizer.scale_loss(tf.reduce_sum(loss))
            of_part = [  # a variable may be unused, such as the last vertical gate's
                tf.zeros(variable.shape) if gradient is None else gradient
                for variable, gradient in zip(
                    variables, tape.gradient(total_loss, variables), strict=True
                )
            ]
            if gradients:
                of_part = [x + y for x, y in zip(gradients, of_part, strict=True)]
            gradients = of_part
            losses.append(loss)
            all_terms.append(terms)
        loss = tf.concat(losses, 0)
        terms = {name: tf.concat([t[name] for t in all_terms], 0) for name in terms}

        gradients = [x / global_size for x in all_sum(gradients)]
        gradients = self._clip(gradients, options["gradient_clip"])
        # The optimizer sums over replicas once more.
        replicas = context.num_replicas_in_sync
        self.optimizer.apply_gradients(
            [(x / replicas, v) for x, v in zip(gradients, variables, strict=True)]
        )
        if self._soft_free_bits_weight is not None:
            mean_kl = all_sum(tf.reduce_sum(terms["kl"])) / global_size
            self._soft_free_bits_weight.assign(
                inference.soft_free_bits(
                    tf.convert_to_tensor(self._soft_free_bits_weight),
                    mean_kl,
                    options["soft_free_bits_nats"],
                )
            )
        self.after_step()
        self._update_metrics(loss, terms)
        return self.get_metrics_result()

    def _batch_checks(self, images):
        """Assertions on a batch of images, as operations of the step's graph."""
        checks = []
        if self.levels < 256:
            checks.append(
                tf.debugging.assert_less(
                    images,
                    tf.cast(self.levels, tf.uint8),
                    message=f"Images must have values in 0..{self.levels - 1}.",
                )
            )
        num_parts = self._compile_options["gradient_accumulation_steps"]
        if num_parts > 1:
            checks.append(
                tf.debugging.assert_greater_equal(
                    tf.shape(images)[0],
                    num_parts,
                    message=f"A replica must have at least "
                    f"gradient_accumulation_steps={num_parts} rows of every batch. "
                    "Leave out the ragged last one (drop_remainder), or take fewer.",
                )
            )
        return checks

    def _split_rows(self, tensor):
        """The parts whose gradients are accumulated, as even as they can be."""
        num_parts = self._compile_options["gradient_accumulation_steps"]
        if num_parts == 1:
            return [tf.identity(tensor)]
        num_rows = tf.shape(tensor)[0]
        extra = tf.cast(tf.range(num_parts) < num_rows % num_parts, tf.int32)
        return tf.split(tensor, num_rows // num_parts + extra, num=num_parts)

    def _kl_terms(self, images, seeds):
        """KL of each latent of a training step, a list of `[batch]`."""
        features = self.features(images, training=True)
        latents, _ = self.infer(
            features, seeds=sampling.fold_in(seeds, 0), training=True
        )
        return [latent.kl_divergence() for latent in latents.values()]

    def _kl_weight(self, step):
        options = self._compile_options
        weight = inference.kl_weight(
            step, options["kl_warmup_steps"], options["kl_warmup_start"]
        )
        if self._soft_free_bits_weight is not None:
            weight *= self._soft_free_bits_weight
        return weight

    def _clip(self, gradients, clip):
        if clip is None:
            return gradients
        scale = self.num_dims if clip["unit"] == "per_dim" else 1
        limit = clip["limit"] * scale
        if clip["by"] == "value":
            return [tf.clip_by_value(x, -limit, limit) for x in gradients]
        return tf.clip_by_global_norm(gradients, limit)[0]

    def test_step(self, data):
        """The ELBO's terms with the KL weight 1.

        An image's noise is keyed by the image, so that the figure depends neither on
        the order nor on the batches.
        """
        images = self._batch(data)
        seeds = self._seeds(_EVALUATION_STEP, _hashes(images))
        terms, latents = self._elbo_terms(images, seeds)
        loss = -terms["elbo"]
        auxiliary = self.auxiliary_loss(images, latents)
        if auxiliary is not None:
            loss += auxiliary
        self._update_metrics(loss, terms)
        return self.get_metrics_result()

    def fit(self, x=None, *args, callbacks=None, **kwargs):
        """Keras's `fit`, on images | (images, ...) | {"image": images}.

        Before the first step the model is initialised on the first batch, once. With
        an optimizer that keeps an exponential moving average of the weights,
        validation uses the average, and so does the model after `fit`.

        Args:
            x: arrays, or a `tf.data.Dataset` of batches, of uint8 images
                `[batch, height, width, channels]`.
            callbacks: list of Keras callbacks, or `None`.
            *args, **kwargs: as Keras's.

        Returns:
            Keras's `History`.
        """
        if not self.data_initialized:
            self.initialize(self._first_batch(x, kwargs.get("batch_size") or 32))
        callbacks = list(callbacks or [])
        if self.optimizer is not None and self.optimizer.use_ema:
            callbacks.append(keras.callbacks.SwapEMAWeights())
        if isinstance(x, tf.data.Dataset | tf.distribute.DistributedDataset):
            kwargs.setdefault("shuffle", False)  # Keras warns that it cannot
        return super().fit(x, *args, callbacks=callbacks, **kwargs)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras would build the model on the mean of the replicas' first batches, which
        # fails where they differ in size. Only the optimizer is left to build.
        if self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    def _first_batch(self, x, batch_size):
        """The first batch of what `fit` was given, of all replicas together."""
        if isinstance(x, tf.distribute.DistributedDataset):
            strategy = self.distribute_strategy

            @tf.function
            def integers(data):  # collective operations have no uint8
                return strategy.run(
                    lambda part: tf.cast(self._batch(part), tf.int32), (data,)
                )

            images = integers(next(iter(x)))
            return tf.cast(strategy.gather(images, axis=0), tf.uint8)
        if isinstance(x, tf.data.Dataset):
            return self._batch(next(iter(x)))
        if isinstance(x, keras.utils.PyDataset):
            return self._batch(x[0])
        return self._batch(tf.nest.map_structure(lambda part: part[:batch_size], x))

    # Pure graph functions of seeds, shared by the methods below and by exports.

    def _sample(self, seeds, temperature, *, jit=False):
        values, context = self.generate(seeds, temperature=temperature)
        return self._draw(values, context, seeds, temperature, jit=jit)

    def _draw(self, values, context, seeds, temperature, known=None, *, jit=False):
        """The scan, shared by sample, decode, reconstruct and complete."""
        noise_shape = self.likelihood(values, context=context, seeds=seeds).noise_shape
        # Noise is drawn outside XLA, which would draw other numbers.
        uniforms = sampling.row_uniforms(seeds, noise_shape, "pixels")

        def scan(values, context, seeds, uniforms, temperature, known):
            likelihood = self.likelihood(values, context=context, seeds=seeds)
            return likelihood.draw(uniforms, temperature=temperature, known=known)

        if jit:
            scan = tf.function(scan, jit_compile=True)
        images = scan(values, context, seeds, uniforms, temperature, known)
        return tf.ensure_shape(images, [seeds.shape[0], *self.image_shape])

    def _posterior(self, images, seeds):
        features = self.features(images)
        return self.infer(features, seeds=sampling.fold_in(seeds, 0))

    def _encode(self, images, seeds):
        latents, _ = self._posterior(images, seeds)
        return {name: latent.value for name, latent in latents.items()}

    def _decode(self, values, seeds, *, jit=False):
        return self._draw(values, None, seeds, _ones(seeds), jit=jit)

    def _reconstruct(self, images, seeds, *, jit=False):
        latents, context = self._posterior(images, seeds)
        values = {name: latent.value for name, latent in latents.items()}
        return self._draw(values, context, seeds, _ones(seeds), jit=jit)

    def _complete(self, images, mask, seeds, *, num_rounds=10, jit=False):
        known = (images, mask)
        values, context = self.generate(seeds, temperature=_ones(seeds))
        images = self._draw(values, context, seeds, _ones(seeds), known, jit=jit)
        if not self.latent_shapes:  # one pass is exact
            return images

        def next_round(index, images):
            round_seeds = sampling.fold_in(seeds, index)
            latents, context = self._posterior(images, round_seeds)
            values = {name: latent.value for name, latent in latents.items()}
            drawn = self._draw(
                values, context, round_seeds, _ones(seeds), known, jit=jit
            )
            return index + 1, drawn

        return tf.while_loop(
            lambda index, _: index < num_rounds,
            next_round,
            (tf.constant(0, tf.int64), images),
            parallel_iterations=1,
        )[1]

    def _log_likelihood(self, images, seeds, *, num_importance_samples, chunk=None):
        if not self.latent_shapes:
            return self.likelihood({}, seeds=seeds).log_prob(images)
        chunk = chunk or min(int(num_importance_samples), self.rows_per_pass)
        features = self.features(images)

        def repeat(tensor):
            return tf.repeat(tensor, chunk, axis=0)

        features = tf.nest.map_structure(repeat, features)
        repeated = repeat(images)

        def log_weight(row_seeds):
            latents, context = self.infer(features, seeds=row_seeds)
            values = {name: latent.value for name, latent in latents.items()}
            likelihood = self.likelihood(values, context=context, seeds=row_seeds)
            ratios = [latent.log_ratio() for latent in latents.values()]
            return likelihood.log_prob(repeated) + tf.add_n(ratios)

        return inference.importance_weighted_bound(
            log_weight, seeds, num_importance_samples, chunk=chunk
        )

    # The public methods.

    def _compiled(self, name, **options):
        """`self._<name>` as a graph, traced once for each set of options."""
        key = (name, tuple(sorted(options.items())))
        if key not in self._functions:
            method = functools.partial(getattr(self, f"_{name}"), **options)
            self._functions[key] = tf.function(method, reduce_retracing=True)
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
            self._compiled("sample", jit=jit),
            (seeds, temperatures),
            buckets=_SAMPLE_BUCKETS,
        )

    def _score(self, name, images, seed, **options):
        images = self._checked(images)
        if images.shape[0] == 0:
            raise ValueError(
                "`images` must hold at least one image. Received: "
                f"shape={tuple(images.shape)}. Pass a batch of one or more."
            )
        seeds = self._row_seeds(seed, images.shape[0])
        buckets = options.pop("buckets", _SAMPLE_BUCKETS[:-1])
        return self._in_batches(
            self._compiled(name, **options), (images, seeds), buckets=buckets
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
            "log_likelihood",
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
        return self._score("terms", images, seed)

    def _terms(self, images, seeds):
        return self._elbo_terms(images, seeds)[0]

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
            "encode" if mode == "sample" else "encode_mean", images, seed
        )

    def _encode_mean(self, images, seeds):
        latents, _ = self._posterior(images, seeds)
        return {name: latent.posterior.mean() for name, latent in latents.items()}

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
            self._compiled("decode", jit=jit), (values, seeds), buckets=_SAMPLE_BUCKETS
        )

    def reconstruct(self, images, *, seed=0, jit=True):
        """Encode each image with a draw of `q(z | x)` and draw `x' ~ p(x | z)`.

        Args, cost and errors: as of `encode` and `sample`; `jit` as of `sample`.

        Returns:
            uint8 `[n, height, width, channels]`: samples, not means.
        """
        return self._score("reconstruct", images, seed, jit=jit)

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
            self._compiled("complete", num_rounds=int(num_rounds), jit=jit),
            (images, mask, seeds),
            buckets=_SAMPLE_BUCKETS,
        )


def _hashes(images):
    """An int64 for each image, `[batch]`, a sum of its levels times fixed numbers."""
    flat = tf.reshape(images, [-1, math.prod(images.shape[1:])])
    numbers = sampling.fold_in(0, tf.range(flat.shape[1], dtype=tf.int64))
    return tf.reduce_sum(tf.cast(flat, tf.int64) * numbers, axis=1)  # wraps


def _ones(seeds):
    """Temperature 1 for each row."""
    return tf.ones(tf.shape(seeds), tf.float32)
