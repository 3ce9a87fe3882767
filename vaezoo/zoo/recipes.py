"""Recipes: how a model is trained, as data, and as arguments of `compile`."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

_SPANNING = ("cosine", "linear")  # schedules that end with the recipe


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
    """How the learning rate goes down.

    "cosine" and "linear" reach `final_learning_rate` at the recipe's last step;
    "exponential" multiplies by `decay_rate` in every `decay_steps` steps, little by
    little, and "staircase" at their end.
    """

    schedule: Literal["constant", "cosine", "linear", "exponential", "staircase"] = (
        "constant"
    )
    final_learning_rate: NonNegativeFloat = 0.0
    decay_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    decay_steps: PositiveInt | None = None

    @pydantic.model_validator(mode="after")
    def _is_consistent(self):
        is_geometric = self.schedule in ("exponential", "staircase")
        given = [self.decay_rate is not None, self.decay_steps is not None]
        if any(given) != is_geometric or all(given) != is_geometric:
            raise ValueError(
                "`decay_rate` and `decay_steps` go with the schedules exponential and "
                "staircase, which need both"
            )
        if is_geometric and self.final_learning_rate:
            raise ValueError("`final_learning_rate` goes with cosine and linear")
        return self


class Recipe(Schema):
    """How a model is trained; learning rates are per step, KL terms in nats.

    One of several recipes, which are trained by in turn, is a phase. Its `mode` is one
    of the model's: "joint", or "decoder" for the decoder alone. It ends after `epochs`,
    or after `max_steps` where that comes first.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = "joint"
    mode: str = "joint"
    optimizer: Literal["adam", "adamax", "muon"]
    learning_rate: PositiveFloat
    learning_rate_warmup_steps: NonNegativeInt = 0
    learning_rate_decay: LearningRateDecay = LearningRateDecay()
    beta_1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    epsilon: PositiveFloat = 1e-7
    gradient_clip: GradientClip | None = None
    kl_weight: PositiveFloat = 1.0
    kl_warmup_steps: NonNegativeInt = 0
    kl_warmup_start: Annotated[float, Field(ge=0, le=1)] = 0.0
    latent_kl_warmup_steps: dict[str, NonNegativeInt] = {}
    free_bits_nats: NonNegativeFloat = 0.0
    soft_free_bits_nats: NonNegativeFloat = 0.0
    soft_free_bits_weight: Annotated[float, Field(gt=0, le=1)] = 1.0
    auxiliary_weight: NonNegativeFloat = 1.0
    historyless_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    ema_momentum: Annotated[float, Field(gt=0, lt=1)] | None = None
    selection: Literal["last", "validation"] = "last"
    split: Literal["train", "train+validation"] = "train"
    crop_size: PositiveInt | None = None
    batch_size: PositiveInt
    epochs: PositiveInt
    max_steps: PositiveInt | None = None
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    seed: int = 0

    @pydantic.model_validator(mode="after")
    def _is_consistent(self):
        if self.selection == "validation" and self.split != "train":
            raise ValueError(
                "`selection` by validation needs `split: train`, which holds the "
                "validation images out"
            )
        return self

    def num_steps(self, steps_per_epoch):
        """The steps of the recipe, an int, where an epoch has so many."""
        steps = self.epochs * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def depends_on_its_length(self):
        """Whether a step would be another one if the recipe were longer."""
        return self.learning_rate_decay.schedule in _SPANNING


def _is_one_or_several(value):
    return "(phases)" if isinstance(value, list | tuple) else "(recipe)"


# The tags are left out of messages, by `explain`.
Training = Annotated[
    Annotated[Recipe, pydantic.Tag("(recipe)")]
    | Annotated[list[Recipe], Field(min_length=1), pydantic.Tag("(phases)")],
    pydantic.Discriminator(_is_one_or_several),
]


def explain(error, subject, *, prefix=""):
    """What a `pydantic.ValidationError` says of a `subject`, a line a key, as a str."""
    lines = []
    for item in error.errors():
        keys = [str(key) for key in item["loc"] if not str(key).startswith("(")]
        key = prefix + ".".join(keys) or "(entry)"
        value = item["input"]
        received = f" Received: {value!r}." if not isinstance(value, dict) else ""
        lines.append(f"  {key.rstrip('.')}: {item['msg']}.{received}")
    return f"{subject} must follow its schema:\n" + "\n".join(lines)


def changed(phases, changes):
    """Recipes with some of their values changed.

    Args:
        phases: a list of `Recipe`.
        changes: dict of key to value. A key is "training.learning_rate", or of one of
            several phases "training.decoder.learning_rate" or
            "training.0.learning_rate"; and so on into the keys of a recipe.

    Returns:
        A list of `Recipe`.

    Raises:
        ValueError: there is no such phase or key, or the schema has another value; the
            key is named.
    """
    trees = [recipe.model_dump() for recipe in phases]
    prefixes = {}
    for name, value in changes.items():
        top, *keys = name.split(".")
        index, keys, prefix = _phase_of(phases, keys)
        if top != "training" or not keys:
            raise ValueError(_no_such_key(name, phases))
        _set(trees[index], keys, value)
        prefixes.setdefault(index, prefix)
    results = list(phases)
    for index, prefix in prefixes.items():
        try:
            results[index] = Recipe.model_validate(trees[index])
        except pydantic.ValidationError as error:
            raise ValueError(explain(error, "A recipe", prefix=prefix)) from None
    return results


def _phase_of(phases, keys):
    """The index of the phase that is meant, the keys within it, and those before."""
    names = [recipe.name for recipe in phases]
    first = keys[0] if keys else ""
    if len(keys) > 1 and first in names and first not in Recipe.model_fields:
        return names.index(first), keys[1:], f"training.{first}."
    if len(keys) > 1 and first.isdigit() and int(first) < len(phases):
        return int(first), keys[1:], f"training.{first}."
    if len(phases) > 1:
        return 0, [], ""
    return 0, keys, "training."


def _no_such_key(name, phases):
    example = "training.learning_rate"
    if len(phases) > 1:
        names = ", ".join(f"{i} or {recipe.name}" for i, recipe in enumerate(phases))
        example = f"training.{phases[0].name}.learning_rate, where the phase is {names}"
    return (
        f"A change of a recipe must be of a key such as {example}. Received: {name!r}."
    )


def _set(tree, keys, value: Any):
    *path, last = keys
    for key in path:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[last] = value


def compile_arguments(recipe, *, steps_per_epoch=None):
    """Turns a recipe into the arguments of a model's `compile`.

    Args:
        recipe: a `Recipe`.
        steps_per_epoch: int, for a learning rate that falls until the recipe's end;
            None keeps such a one at its first value.

    Returns:
        A dict.
    """
    clip = recipe.gradient_clip
    return {
        "optimizer": _optimizer(recipe, _learning_rate(recipe, steps_per_epoch)),
        "kl_weight": recipe.kl_weight,
        "kl_warmup_steps": recipe.kl_warmup_steps,
        "kl_warmup_start": recipe.kl_warmup_start,
        "latent_kl_warmup_steps": recipe.latent_kl_warmup_steps or None,
        "free_bits_nats": recipe.free_bits_nats,
        "soft_free_bits_nats": recipe.soft_free_bits_nats,
        "soft_free_bits_weight": recipe.soft_free_bits_weight,
        "auxiliary_weight": recipe.auxiliary_weight,
        "historyless_share": recipe.historyless_share,
        "ema_momentum": recipe.ema_momentum,
        "gradient_clip": None if clip is None else clip.model_dump(),
        "seed": recipe.seed,
    }


def _optimizer(recipe, learning_rate):
    """A Keras optimizer; with Muon the betas are those of the vectors' Adam."""
    import keras

    of_adam = {"beta_1": recipe.beta_1, "beta_2": recipe.beta_2}
    if recipe.optimizer == "muon":
        from vaezoo.zoo.optimizers import KernelMuon

        of_adam = {f"adam_{name}": value for name, value in of_adam.items()}
        return KernelMuon(learning_rate, epsilon=recipe.epsilon, **of_adam)
    optimizers = {"adam": keras.optimizers.Adam, "adamax": keras.optimizers.Adamax}
    optimizer = optimizers[recipe.optimizer]
    return optimizer(learning_rate, epsilon=recipe.epsilon, **of_adam)


def _learning_rate(recipe, steps_per_epoch):
    """A float or a Keras schedule."""
    from keras.optimizers import schedules

    rate, decay = recipe.learning_rate, recipe.learning_rate_decay
    if decay.schedule in ("exponential", "staircase"):
        rate = schedules.ExponentialDecay(
            rate,
            decay.decay_steps,
            decay.decay_rate,
            staircase=decay.schedule == "staircase",
        )
    elif decay.schedule in _SPANNING and steps_per_epoch is not None:
        steps, final = recipe.num_steps(steps_per_epoch), decay.final_learning_rate
        if decay.schedule == "cosine":
            rate = schedules.CosineDecay(rate, steps, alpha=final / rate)
        else:
            rate = schedules.PolynomialDecay(
                rate, steps, end_learning_rate=final, power=1.0
            )
    if recipe.learning_rate_warmup_steps:
        from vaezoo.zoo.schedules import LearningRateWarmup

        rate = LearningRateWarmup(rate, recipe.learning_rate_warmup_steps)
    return rate
