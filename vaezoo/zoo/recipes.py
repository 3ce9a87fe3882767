"""Recipes: how a model is trained, as data, and as arguments of `compile`."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class Schema(pydantic.BaseModel):
    """A record whose fields are all known, and none is missing."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, serialize_by_alias=True
    )


class GradientClip(Schema):
    """How gradients are clipped, once they are summed over replicas."""

    by: Literal["value", "global_norm"]
    limit: PositiveFloat
    unit: Literal["per_image", "per_dim"]


class LearningRateDecay(Schema):
    """How the learning rate goes down over the epochs of the recipe."""

    schedule: Literal["constant", "cosine", "linear"] = "constant"
    final_learning_rate: NonNegativeFloat = 0.0


class Recipe(Schema):
    """How a model is trained; learning rates are per step, KL terms in nats."""

    optimizer: Literal["adam", "adamax"]
    learning_rate: PositiveFloat
    learning_rate_decay: LearningRateDecay = LearningRateDecay()
    beta_2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    gradient_clip: GradientClip | None = None
    kl_warmup_steps: NonNegativeInt = 0
    kl_warmup_start: Annotated[float, Field(ge=0, le=1)] = 0.0
    free_bits_nats: NonNegativeFloat = 0.0
    soft_free_bits_nats: NonNegativeFloat = 0.0
    ema_momentum: Annotated[float, Field(gt=0, lt=1)] | None = None
    split: Literal["train", "train+validation"] = "train"
    batch_size: PositiveInt
    epochs: PositiveInt
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    seed: int = 0


def explain(error, subject):
    """What a `pydantic.ValidationError` says of a `subject`, a line a key, as a str."""
    lines = []
    for item in error.errors():
        key = ".".join(map(str, item["loc"])) or "(entry)"
        value = item["input"]
        received = f" Received: {value!r}." if not isinstance(value, dict) else ""
        lines.append(f"  {key}: {item['msg']}.{received}")
    return f"{subject} must follow its schema:\n" + "\n".join(lines)


def compile_arguments(recipe, *, steps_per_epoch=None):
    """Turns a recipe into the arguments of `VAE.compile`.

    Args:
        recipe: a `Recipe`.
        steps_per_epoch: int, over which the learning rate decays with the recipe's
            epochs; None keeps it at its first value.

    Returns:
        A dict.
    """
    import keras

    decay = recipe.learning_rate_decay
    learning_rate = recipe.learning_rate
    if decay.schedule != "constant" and steps_per_epoch is not None:
        steps = recipe.epochs * steps_per_epoch
        final = decay.final_learning_rate
        if decay.schedule == "cosine":
            learning_rate = keras.optimizers.schedules.CosineDecay(
                recipe.learning_rate, steps, alpha=final / recipe.learning_rate
            )
        else:
            learning_rate = keras.optimizers.schedules.PolynomialDecay(
                recipe.learning_rate, steps, end_learning_rate=final, power=1.0
            )
    optimizers = {"adam": keras.optimizers.Adam, "adamax": keras.optimizers.Adamax}
    clip = recipe.gradient_clip
    return {
        "optimizer": optimizers[recipe.optimizer](learning_rate, beta_2=recipe.beta_2),
        "kl_warmup_steps": recipe.kl_warmup_steps,
        "kl_warmup_start": recipe.kl_warmup_start,
        "free_bits_nats": recipe.free_bits_nats,
        "soft_free_bits_nats": recipe.soft_free_bits_nats,
        "ema_momentum": recipe.ema_momentum,
        "gradient_clip": None if clip is None else clip.model_dump(),
        "seed": recipe.seed,
    }
