"""Training: the class below every model, with its compile, step and fit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from vaezoo import checks, inference, sampling, strategies, units
from vaezoo.layers import weight_norm
from vaezoo.models import batches, computations
from vaezoo.models.gradients import accumulate
from vaezoo.models.objective import Objective, refuse_arguments, usable_optimizer
from vaezoo.models.resumable import ResumableModel

_EVALUATION_STEP = -1  # keys the noise of `test_step`, which no training step shares


class TrainedModel(ResumableModel):
    """A model that is trained on the ELBO, exactly under every strategy.

    Losses are in nats, summed over an image and averaged over the batch. `VAE` below it
    has what a paper implements, and every public method that is not about training.

    A model has modes: in "joint", the usual one, all of it is trained; in "decoder",
    where its paper's decoder can stand alone, the decoder is, without latents; in
    "auxiliary", where its latents explain another image too, what does so is, without
    the decoder.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._mode = "joint"
        self._data_initialized = self.add_weight(
            name="data_initialized",
            shape=(),
            dtype="bool",
            initializer=lambda shape, dtype: tf.zeros(shape, dtype),
            trainable=False,
        )

    # Hooks, empty by default.

    num_auxiliary_dims: int | None = None  # values of the auxiliary image

    def auxiliary_loss(self, images, values, *, context=None):
        """`-log p(y | z)` of an auxiliary image y of the images, or `None` without one.

        A further term of the training loss, and none of the ELBO.

        Args:
            images: uint8 `[batch, height, width, channels]`.
            values: dict of latent name to its draws.
            context: as of `VAE.infer`.

        Returns:
            float32 `[batch]`, nats; or `None`.
        """
        return None

    def begin_training(self):
        """Called when a `fit` begins, unless it goes on from a `training_state`."""

    def after_step(self, seed):
        """Called at the end of a training step, in its graph, for such state.

        Args:
            seed: int64 scalar, another one at each step.
        """

    def before_evaluation(self):
        """Called before the model is evaluated, for what has to be estimated first."""

    @property
    def trains_on_bound(self):
        """Whether a training step's loss is made of the ELBO's terms.

        If not, they are reported in evaluation alone.
        """
        return True

    # Modes, and data-dependent initialisation.

    @property
    def decoder_network(self):
        """The layer that the mode "decoder" trains; `None` where there is no such."""
        return None

    @property
    def auxiliary_variables(self):
        """The variables that the mode "auxiliary" trains; empty where there is none."""
        return []

    @property
    def modes(self):
        """The modes that the model has, a tuple of str."""
        modes = ["joint"]
        if self.decoder_network is not None:
            modes.append("decoder")
        if self.auxiliary_variables:
            modes.append("auxiliary")
        return tuple(modes)

    @property
    def mode(self):
        """What a training step trains: one of `modes`."""
        return self._mode

    @mode.setter
    def mode(self, value):
        advice = f"A {type(self).__name__} like this one has no other."
        self._mode = checks.choice("mode", value, self.modes, advice=advice)
        self.train_function = self.test_function = None  # traced for another mode

    def begin_phase(self, mode):
        """Set the mode at the start of a phase of training.

        A decoder that is trained alone starts with weights of 0 for what it will see
        of the latents, so that joint training starts where the decoder ended.

        Raises:
            ValueError: if the model has no such mode.
        """
        self.mode = mode
        if mode == "decoder":
            self.decoder_network.forget_conditioning()

    @property
    def trained_variables(self):
        """The variables that the mode trains: those that an optimizer is built for."""
        if self.mode == "auxiliary":
            return self.auxiliary_variables
        layer = self.decoder_network if self.mode == "decoder" else self
        return layer.trainable_variables

    @property
    def takes_any_size(self):
        """Whether the mode trains on images of any size, such as crops."""
        return self.mode == "decoder"

    @property
    def accepted_shape(self):
        """`(height, width, channels)` of the images taken; `None` for any size."""
        size = (None, None) if self.takes_any_size else self.image_shape[:2]
        return (*size, self.image_shape[2])

    @property
    def starts_from_data(self):
        """Whether some initial weights are set by a first batch of data."""
        layers = self._flatten_layers(include_self=False)
        return any(getattr(layer, "normalized", False) for layer in layers)

    @property
    def data_initialized(self):
        """Whether data-dependent initialisation has run; saved with the weights."""
        return bool(tf.convert_to_tensor(self._data_initialized).numpy())

    @data_initialized.setter
    def data_initialized(self, value):
        self._data_initialized.assign(value)

    def initialize(self, images):
        """Data-dependent initialisation: gains and biases of the layers.

        `fit` does this by itself on its first batch. Eager, one pass.

        Args:
            images: uint8 `[batch, height, width, channels]`, a real batch.
        """
        images = checks.images(
            images, image_shape=self.accepted_shape, levels=self.levels
        )
        images = tf.constant(images)
        seeds = tf.constant(sampling.row_seeds(0, images.shape[0]))
        self.initialize_outputs(images)
        with weight_norm.data_dependent_init():
            computations.elbo_terms(self, images, seeds, training=True)
        strategy = self.distribute_strategy
        if strategies.is_multi_worker(strategy):  # unlike processors round unlike
            arrays = [variable.numpy() for variable in self.weights]
            arrays = strategies.from_chief(strategy, arrays)
            for variable, array in zip(self.weights, arrays, strict=True):
                variable.assign(array)
        self.data_initialized = True

    def initialize_outputs(self, images):
        """Set what of the output layer starts from data, for models that have such."""

    # Compilation.

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "adam",
        *,
        kl_weight: float = 1.0,
        kl_warmup_steps: int = 0,
        kl_warmup_start: float = 0.0,
        latent_kl_warmup_steps: dict[str, int] | None = None,
        free_bits_nats: float = 0.0,
        soft_free_bits_nats: float = 0.0,
        soft_free_bits_weight: float = 1.0,
        auxiliary_weight: float = 1.0,
        historyless_share: float = 0.0,
        ema_momentum: float | None = None,
        gradient_clip: dict[str, Any] | None = None,
        gradient_accumulation_steps: int = 1,
        seed: int = 0,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        **others: Any,
    ) -> None:
        """Configure training.

        Args:
            optimizer: a Keras optimizer, its name or its config.
            kl_weight: float above 0. Weight of the KL term in the loss; with another
                than 1 the loss is not the negative ELBO, and `elbo` still is the ELBO.
            kl_warmup_steps: int. Steps over which that weight rises linearly.
            kl_warmup_start: float from 0 to 1. The share of it at the first step.
            latent_kl_warmup_steps: dict of latent name to int, or `None`. Steps of a
                rise from 0 of that latent's own, by which its weight is multiplied.
            free_bits_nats: float. Nats of KL a latent may spend at no cost; where its
                KL is of groups, such as feature maps, each of them.
            soft_free_bits_nats: float. Nats of KL in all that the weight of the KL
                term, between 0 and 1, is steered towards; 0 to leave it alone. See
                `vaezoo.inference.soft_free_bits`.
            soft_free_bits_weight: float. That weight at the first step.
            auxiliary_weight: float, at least 0. Weight in the loss of the auxiliary
                image's term, of models with one.
            historyless_share: float from 0 to 1. Share of the training images that an
                autoregressive decoder does not see, so that latents have to tell of
                them ("historyless decoding"; Bowman et al., 2016, arXiv 1511.06349,
                section 3.1). A hidden image is one of zeros, after scaling. In the mode
                "joint" alone.
            ema_momentum: float in (0, 1), or `None`. Momentum of the moving average of
                the trained weights, which validation scores and `fit` leaves; see
                `vaezoo.models.averages.WeightAverages`.
            gradient_clip: `None`, or `{"by": "value" | "global_norm", "limit": float,
                "unit": "per_image" | "per_dim"}`. The gradient that is clipped, after
                the reduction over replicas, is of the loss in nats an image or a
                dimension.
            gradient_accumulation_steps: int, at least 1. Parts of a replica's rows that
                are computed one after the other, and their gradients added up: the same
                step in less memory. Exact, but that batch normalisation has the
                statistics of each part; free bits cost a pass of the encoder more.
            seed: int. Seed of the run's noise.
            run_eagerly, steps_per_execution: as in Keras.
            **others: further arguments of Keras's, which may ask for nothing: `loss`,
                `metrics`, `jit_compile`.

        Raises:
            ValueError: if an argument breaks its rule, or if the optimizer averages
                weights or scales losses.
        """
        refuse_arguments(others)
        objective = Objective(
            kl_weight=kl_weight,
            kl_warmup_steps=kl_warmup_steps,
            kl_warmup_start=kl_warmup_start,
            latent_kl_warmup_steps=latent_kl_warmup_steps,
            free_bits_nats=free_bits_nats,
            soft_free_bits_nats=soft_free_bits_nats,
            auxiliary_weight=auxiliary_weight,
            historyless_share=historyless_share,
            ema_momentum=ema_momentum,
            gradient_clip=gradient_clip,
            gradient_accumulation_steps=gradient_accumulation_steps,
            seed=seed,
        )
        objective.check_latents(self.latent_shapes)
        if not self.trains_on_bound:
            objective.refuse_free_bits()
        checks.number(
            "soft_free_bits_weight", soft_free_bits_weight, above=0, maximum=1
        )
        optimizer = usable_optimizer(optimizer)
        super().compile(
            optimizer=optimizer,
            jit_compile=False,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
        )
        self._objective = objective
        weight = None
        if soft_free_bits_nats:
            weight = keras.Variable(
                soft_free_bits_weight,
                trainable=False,
                # Every replica computes the same value.
                aggregation="only_first_replica",
                name="soft_free_bits_weight",
            )
        object.__setattr__(self, "_soft_free_bits_weight", weight)
        object.__setattr__(self, "_averages", None)
        names = ["loss", "elbo", "reconstruction", "kl"]
        names += [f"kl/{name}" for name in self.latent_shapes]
        names.append("bits_per_dim")
        if self.num_auxiliary_dims:
            names += ["auxiliary", "auxiliary_bits_per_dim"]
        self._means = [keras.metrics.Mean(name=name) for name in names]

    def get_compile_config(self):
        """Arguments of `compile`, for saving; `None` of a model not compiled."""
        if not self.compiled:
            return None
        config = {
            "optimizer": keras.optimizers.serialize(self.optimizer),
            "steps_per_execution": self.steps_per_execution,
            **dataclasses.asdict(self._objective),
        }
        if self._soft_free_bits_weight is not None:
            config["soft_free_bits_weight"] = float(self._soft_free_bits_weight)
        return config

    def compile_from_config(self, config):
        """`compile` as saved by `get_compile_config`, optimizer variables included."""
        self.compile(**config)
        self.optimizer.build(self.trained_variables)

    # Metrics and data.

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

    def _get_metrics_result_or_logs(self, logs):
        # Keras takes an epoch's logs from one replica where some metrics are left out.
        results = self.get_metrics_result()
        return {name: value for name, value in results.items() if name in logs}

    def _update_metrics(self, images, loss, terms):
        """Count a batch in; returns the means of what is known of it, by name."""
        values = {**terms, "loss": loss}
        if "elbo" in terms:
            num_dims = batches.num_dims(images)
            if self.mode == "auxiliary":
                num_dims = self.num_auxiliary_dims
            values["bits_per_dim"] = units.bits_per_dim(terms["elbo"], num_dims)
        if "auxiliary" in terms:  # the same KL, of another image
            nats = -(terms["auxiliary"] + terms["kl"])
            values["auxiliary_bits_per_dim"] = units.bits_per_dim(
                nats, self.num_auxiliary_dims
            )
        for mean in self._means:
            if mean.name in values:  # a part of a model has no terms of the others
                mean.update_state(values[mean.name])
        results = self.get_metrics_result()
        return {name: value for name, value in results.items() if name in values}

    def _seeds(self, step, rows):
        run = sampling.fold_in(self._objective.seed, step)
        return sampling.fold_in(run, rows)

    # Steps.

    def train_step(self, data):
        """One step on one replica's rows; exactly the step of the global batch."""
        with tf.init_scope():
            if tf.executing_eagerly() and not self.data_initialized:
                raise RuntimeError(
                    "A model is initialised on data before its first training step. "
                    "Received: a model with data_initialized=False. Call `fit`, which "
                    "does it, or `model.initialize(images)` with one real batch."
                )
        images, objective = self.images_of(data), self._objective
        context = tf.distribute.get_replica_context()
        all_sum = functools.partial(context.all_reduce, tf.distribute.ReduceOp.SUM)
        step = tf.convert_to_tensor(self.optimizer.iterations)
        rows, global_size = batches.global_rows(images)

        def all_means(values):
            return [total / global_size for total in all_sum(values)]

        with tf.control_dependencies(objective.row_checks(images)):
            parts = list(
                zip(
                    objective.split_rows(images),
                    objective.split_rows(self._seeds(step, rows)),
                    strict=True,
                )
            )
        soft = self._soft_free_bits_weight
        loss, terms, gradients = accumulate(
            self,
            objective,
            parts,
            step,
            all_means,
            soft_weight=1.0 if soft is None else tf.convert_to_tensor(soft),
        )

        variables = self.trained_variables
        gradients = objective.clip(all_means(gradients), batches.num_dims(images))
        # The optimizer sums over replicas once more.
        replicas = context.num_replicas_in_sync
        self.optimizer.apply_gradients(
            [(x / replicas, v) for x, v in zip(gradients, variables, strict=True)]
        )
        if self.averages is not None:
            self.averages.update()
        if soft is not None:
            (mean_kl,) = all_means([tf.reduce_sum(terms["kl"])])
            target = objective.soft_free_bits_nats
            soft.assign(
                inference.soft_free_bits(tf.convert_to_tensor(soft), mean_kl, target)
            )
        self.after_step(sampling.fold_in(objective.seed, step))
        if self.mode != "decoder" and not self.trains_on_bound:
            terms = {"reconstruction": terms["reconstruction"]}
        return self._update_metrics(images, loss, terms)

    def test_step(self, data):
        """The ELBO's terms with the KL weight 1.

        An image's noise is keyed by the image, so that the figure depends neither on
        the order nor on the batches.
        """
        images = self.images_of(data)
        seeds = self._seeds(_EVALUATION_STEP, batches.hashes(images))
        terms, _ = computations.elbo_terms(self, images, seeds)
        loss = -terms["elbo"]
        if "auxiliary" in terms:
            loss += self._objective.auxiliary_weight * terms["auxiliary"]
        return self._update_metrics(images, loss, terms)

    def fit(
        self,
        x: Any = None,
        *args: Any,
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Keras's `fit`, on images | (images, ...) | {"image": images}.

        Before the first step the model is initialised on the first batch, once. With
        `ema_momentum`, validation and what callbacks see at the end of an epoch are the
        moving averages of the weights, and so is the model after `fit`, however it
        ends.

        Args:
            x: uint8 images `[n, height, width, channels]`, or batches of them: a
                `tf.data.Dataset`, a loader or a generator.
            callbacks: list of Keras callbacks, or `None`.
            *args, **kwargs: as Keras's, but for weights of images.

        Returns:
            Keras's `History`.

        Raises:
            ValueError: if images break a rule, or have weights, or there are none.
        """
        self.check_data("fit", x, **kwargs)
        if not self.data_initialized:
            batch_size = kwargs.get("batch_size") or 32
            images, x = batches.peek(x, batch_size, self.distribute_strategy)
            self.initialize(images)
        if not batches.is_indexed(x):
            kwargs.setdefault("shuffle", False)  # Keras warns that it cannot
        if not self.takes_up_training():
            self.begin_training()
        averages = None if self.optimizer is None else self.averages
        with batches.refusals():
            if averages is None:
                return super().fit(x, *args, callbacks=callbacks, **kwargs)
            try:
                callbacks = [averages, *(callbacks or [])]
                return super().fit(x, *args, callbacks=callbacks, **kwargs)
            finally:
                averages.leave()

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Keras's `evaluate`: the means of the ELBO's terms, with the KL weight 1."""
        with self._averages_shown():
            self.before_evaluation()
        return super().evaluate(x, *args, **kwargs)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras would build the model on the mean of the replicas' first batches, which
        # fails where they differ in size. Only the optimizer is left to build.
        if self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trained_variables)
