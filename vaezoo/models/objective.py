"""What a training step minimises: the ELBO's terms with their weights, and clipping."""

import dataclasses
import warnings

import keras
import tensorflow as tf

from vaezoo import checks, inference
from vaezoo.zoo.optimizers import KernelMuon
from vaezoo.zoo.schedules import LearningRateWarmup

# What a config may name beside Keras's own, in a process that has read no recipe.
_OF_RECIPES = {each.__name__: each for each in (KernelMuon, LearningRateWarmup)}

# Arguments of Keras's `compile` that a model does not take, and why.
_LOSS = "The loss is the negative ELBO, with `kl_weight` and free bits."
_METRICS = "The metrics are the loss, the ELBO, its terms and bits/dim."
_NOT_TAKEN = {
    "loss": _LOSS,
    "loss_weights": _LOSS,
    "metrics": _METRICS,
    "weighted_metrics": _METRICS,
    "jit_compile": "XLA leaves out the assertions of a training step. Draws are "
    "compiled: `sample(num, jit=True)`.",
    "auto_scale_loss": "Losses are not scaled.",
}


def refuse_arguments(arguments):
    """Refuse what Keras's `compile` takes and a model's does not.

    Args:
        arguments: dict of name to value. One that asks for nothing passes.

    Raises:
        TypeError: Keras knows no such argument either.
        ValueError: it asks for something.
    """
    for name, value in arguments.items():
        if name not in _NOT_TAKEN:
            raise TypeError(f"compile() got an unexpected keyword argument {name!r}")
        asks = value not in (None, False, "auto", [], {})
        if asks and not (name == "auto_scale_loss" and value is True):
            raise checks.refusal(
                f"`{name}` is not an argument of a model's `compile`.",
                f"{name}={value!r}",
                _NOT_TAKEN[name],
            )


def usable_optimizer(optimizer):
    """The Keras optimizer of a name or a config, or itself.

    Raises:
        ValueError: if it averages weights or scales losses.
    """
    with keras.saving.custom_object_scope(_OF_RECIPES):
        optimizer = keras.optimizers.get(optimizer)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise checks.refusal(
            "Losses are not scaled, since weights and their gradients are float32.",
            "a LossScaleOptimizer",
            "Give `compile` the optimizer inside it.",
        )
    if optimizer.use_ema:
        raise checks.refusal(
            "The moving average of the weights is the model's, not the optimizer's.",
            "an optimizer with use_ema=True",
            f"Give `compile` ema_momentum={optimizer.ema_momentum} instead.",
        )
    return optimizer


@dataclasses.dataclass(frozen=True)
class Objective:
    """The options of `TrainedModel.compile` that decide on a step, but the optimizer.

    Raises:
        ValueError: if an option breaks its rule.
    """

    kl_weight: float = 1.0
    kl_warmup_steps: int = 0
    kl_warmup_start: float = 0.0
    latent_kl_warmup_steps: dict[str, int] | None = None
    free_bits_nats: float = 0.0
    soft_free_bits_nats: float = 0.0
    auxiliary_weight: float = 1.0
    historyless_share: float = 0.0
    ema_momentum: float | None = None
    gradient_clip: dict | None = None
    gradient_accumulation_steps: int = 1
    seed: int = 0

    def __post_init__(self):
        for name, minimum in (
            ("kl_warmup_steps", 0),
            ("gradient_accumulation_steps", 1),
        ):
            count = checks.integer(name, getattr(self, name), minimum=minimum)
            object.__setattr__(self, name, count)
        object.__setattr__(self, "seed", checks.seed(self.seed))
        for name, bounds in (
            ("kl_weight", {"above": 0}),
            ("kl_warmup_start", {"minimum": 0, "maximum": 1}),
            ("free_bits_nats", {"minimum": 0}),
            ("soft_free_bits_nats", {"minimum": 0}),
            ("auxiliary_weight", {"minimum": 0}),
            ("historyless_share", {"minimum": 0, "maximum": 1}),
            ("ema_momentum", {"above": 0, "below": 1, "optional": True}),
        ):
            checks.number(name, getattr(self, name), **bounds)
        if self.kl_weight < 1:
            warnings.warn(
                "With a `kl_weight` below 1 the loss is no bound of a likelihood, nor "
                "of one that is joint with an auxiliary image; from 1 on it is, and "
                "from 2 of both images' apart. The ELBO that is reported stays one. "
                f"Received: kl_weight={self.kl_weight}.",
                stacklevel=4,
            )
        clip = self.gradient_clip
        if clip is None:
            return
        if not isinstance(clip, dict) or clip.keys() != {"by", "limit", "unit"}:
            raise ValueError(
                "`gradient_clip` must be None or {'by': 'value' or 'global_norm', "
                "'limit': a positive number, 'unit': 'per_image' or 'per_dim'}. "
                f"Received: gradient_clip={clip!r}."
            )
        checks.choice("gradient_clip['by']", clip["by"], ("value", "global_norm"))
        checks.choice("gradient_clip['unit']", clip["unit"], ("per_image", "per_dim"))
        checks.number("gradient_clip['limit']", clip["limit"], above=0)

    def check_latents(self, names):
        """Refuse a KL warm-up of latents that the model does not have.

        Args:
            names: the model's latents.

        Raises:
            ValueError: there is one, or its steps are negative.
        """
        ramps = self.latent_kl_warmup_steps or {}
        if not ramps.keys() <= set(names) or min(ramps.values(), default=0) < 0:
            raise ValueError(
                "`latent_kl_warmup_steps` must give some of the latents "
                f"{list(names)} a number of steps of at least 0. Received: "
                f"latent_kl_warmup_steps={ramps}."
            )

    def refuse_free_bits(self):
        """Refuse free bits of a KL term that training does not compute.

        Raises:
            ValueError: there are some.
        """
        for name in ("free_bits_nats", "soft_free_bits_nats"):
            if getattr(self, name):
                raise checks.refusal(
                    "Free bits need the KL term's value, which relaxed latents do not "
                    "have in training.",
                    f"{name}={getattr(self, name)}",
                    "Leave it at 0, and let the KL term rise by `kl_warmup_steps`.",
                )

    def kl_term(self, kls, step, *, mean_kls):
        """The KL term of the loss, with free bits and its weights.

        Args:
            kls: dict of latent name to float32 `[batch, groups]` nats, of at least one.
            step: int64 scalar.
            mean_kls: the means of each latent's groups over the global batch, float32
                `[groups]`, for free bits; `None` without.

        Returns:
            float32 `[batch]`, nats.
        """
        weight = self.kl_weight * inference.kl_weight(
            step, self.kl_warmup_steps, self.kl_warmup_start
        )
        ramps = self.latent_kl_warmup_steps or {}
        if self.free_bits_nats:
            kls = {
                name: inference.free_bits(values, mean, self.free_bits_nats)
                for (name, values), mean in zip(kls.items(), mean_kls, strict=True)
            }
        return weight * tf.add_n(
            [
                inference.kl_weight(step, ramps.get(name, 0))
                * tf.reduce_sum(values, axis=-1)
                for name, values in kls.items()
            ]
        )

    def clip(self, gradients, num_dims):
        """Gradients of the loss in nats an image, clipped in the option's unit.

        Args:
            gradients: list of tensors, means over the global batch.
            num_dims: the dimensions of an image, an int or a float32 scalar.

        Returns:
            list of tensors.
        """
        clip = self.gradient_clip
        if clip is None:
            return gradients
        limit = clip["limit"] * (num_dims if clip["unit"] == "per_dim" else 1)
        if clip["by"] == "value":
            return [tf.clip_by_value(x, -limit, limit) for x in gradients]
        return tf.clip_by_global_norm(gradients, limit)[0]

    def row_checks(self, images):
        """Assertions on a replica's rows, as operations of the step's graph."""
        num_parts = self.gradient_accumulation_steps
        if num_parts == 1:
            return []
        return [
            tf.debugging.assert_greater_equal(
                tf.shape(images)[0],
                num_parts,
                message=f"A replica must have at least "
                f"gradient_accumulation_steps={num_parts} rows of every batch. "
                "Leave out the ragged last one (drop_remainder), or take fewer.",
            )
        ]

    def split_rows(self, tensor):
        """The parts whose gradients are accumulated, as even as they can be."""
        num_parts = self.gradient_accumulation_steps
        if num_parts == 1:
            return [tf.identity(tensor)]
        num_rows = tf.shape(tensor)[0]
        extra = tf.cast(tf.range(num_parts) < num_rows % num_parts, tf.int32)
        return tf.split(tensor, num_rows // num_parts + extra, num=num_parts)
