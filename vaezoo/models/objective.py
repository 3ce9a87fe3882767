"""What a training step minimises: the ELBO's terms with their weights, and clipping."""

import dataclasses
import math

import tensorflow as tf

from vaezoo import checks, inference


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
    ema_momentum: float | None = None
    gradient_clip: dict | None = None
    gradient_accumulation_steps: int = 1
    seed: int = 0

    def __post_init__(self):
        clip = self.gradient_clip
        if clip is not None and (
            set(clip) != {"by", "limit", "unit"}
            or clip["by"] not in ("value", "global_norm")
            or clip["unit"] not in ("per_image", "per_dim")
            or not clip["limit"] > 0
        ):
            raise ValueError(
                "`gradient_clip` must be None or {'by': 'value' or 'global_norm', "
                "'limit': a positive number, 'unit': 'per_image' or 'per_dim'}. "
                f"Received: gradient_clip={clip!r}."
            )
        for name in ("kl_warmup_steps", "free_bits_nats", "soft_free_bits_nats"):
            self._require(getattr(self, name) >= 0, name, "at least 0")
        self._require(self.kl_weight > 0, "kl_weight", "above 0")
        self._require(0 <= self.kl_warmup_start <= 1, "kl_warmup_start", "from 0 to 1")
        is_momentum = self.ema_momentum is None or 0 < self.ema_momentum < 1
        self._require(is_momentum, "ema_momentum", "between 0 and 1, or None")
        checks.integer("gradient_accumulation_steps", self.gradient_accumulation_steps)

    def _require(self, holds, name, rule):
        if not holds:
            raise ValueError(
                f"`{name}` must be {rule}. Received: {name}={getattr(self, name)!r}."
            )

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

    def kl_term(self, terms, latents, step, *, mean_kls):
        """The KL term of the loss, with free bits and its weights.

        Args:
            terms: dict of float32 `[batch]` nats, as of `computations.elbo_terms`.
            latents: the names of the latents, which may be none.
            step: int64 scalar.
            mean_kls: the mean KL of each latent over the global batch, float32 scalars,
                for free bits; `None` without.

        Returns:
            float32 `[batch]`, nats.
        """
        weight = self.kl_weight * inference.kl_weight(
            step, self.kl_warmup_steps, self.kl_warmup_start
        )
        ramps = self.latent_kl_warmup_steps or {}
        if not latents or not (self.free_bits_nats or ramps):
            return weight * terms["kl"]
        kls = [terms[f"kl/{name}"] for name in latents]
        if self.free_bits_nats:
            kls = [
                inference.free_bits(value, mean, self.free_bits_nats)
                for value, mean in zip(kls, mean_kls, strict=True)
            ]
        return weight * tf.add_n(
            [
                inference.kl_weight(step, ramps.get(name, 0)) * value
                for name, value in zip(latents, kls, strict=True)
            ]
        )

    def clip(self, gradients, num_dims):
        """Gradients of the loss in nats an image, clipped in the option's unit.

        Args:
            gradients: list of tensors, means over the global batch.
            num_dims: int, the dimensions of an image.

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

    def batch_checks(self, images, levels):
        """Assertions on a replica's images, as operations of the step's graph."""
        found = []
        if levels < 256:
            found.append(
                tf.debugging.assert_less(
                    images,
                    tf.cast(levels, tf.uint8),
                    message=f"Images must have values in 0..{levels - 1}.",
                )
            )
        num_parts = self.gradient_accumulation_steps
        if num_parts > 1:
            found.append(
                tf.debugging.assert_greater_equal(
                    tf.shape(images)[0],
                    num_parts,
                    message=f"A replica must have at least "
                    f"gradient_accumulation_steps={num_parts} rows of every batch. "
                    "Leave out the ragged last one (drop_remainder), or take fewer.",
                )
            )
        return found

    def split_rows(self, tensor):
        """The parts whose gradients are accumulated, as even as they can be."""
        num_parts = self.gradient_accumulation_steps
        if num_parts == 1:
            return [tf.identity(tensor)]
        num_rows = tf.shape(tensor)[0]
        extra = tf.cast(tf.range(num_parts) < num_rows % num_parts, tf.int32)
        return tf.split(tensor, num_rows // num_parts + extra, num=num_parts)


def num_dims(images):
    """Dimensions of each image of a batch, from its static shape: an int."""
    return math.prod(images.shape[1:])
