"""The gradients of an objective over a replica's rows, in one part or several."""

import tensorflow as tf

from vaezoo import sampling
from vaezoo.models import computations


def accumulate(model, objective, parts, step, all_means, *, soft_weight=1.0):
    """Loss and terms of each row, and the gradients' sums over a replica's rows.

    Args:
        model: the model that is trained.
        objective: its `vaezoo.models.objective.Objective`.
        parts: list of (images, seeds), computed one after the other.
        step: int64 scalar.
        all_means: function from sums over this replica's rows to means over the
            global batch.
        soft_weight: float32 scalar, a weight of the KL term beside the objective's:
            that of soft free bits.

    Returns:
        float32 `[batch]`, the loss of each row in nats; dict of the ELBO's terms
        `[batch]`; list of gradients of the model's trained variables.
    """
    mean_kls = None
    if objective.free_bits_nats and len(parts) > 1 and model.mode != "decoder":
        # Free bits are of the whole batch, so its KL has to be known beforehand.
        kls = [_kl_terms(model, *part) for part in parts]
        mean_kls = all_means(
            [
                tf.add_n([tf.reduce_sum(x) for x in values])
                for values in zip(*kls, strict=True)
            ]
        )
    variables = model.trained_variables
    gradients, losses, all_terms = [], [], []
    for images, seeds in parts:
        # After the part before, so that one part's activations are held at a time.
        with tf.control_dependencies(gradients), tf.GradientTape() as tape:
            terms, latents = computations.elbo_terms(
                model, images, seeds, training=True
            )
            means = mean_kls
            if objective.free_bits_nats and latents and means is None:
                means = all_means(_sums(terms, latents))
            kl = objective.kl_term(terms, list(latents), step, mean_kls=means)
            loss = terms["reconstruction"] + soft_weight * kl
            auxiliary = model.auxiliary_loss(images, latents)
            if auxiliary is not None:
                loss += auxiliary
            total_loss = tf.reduce_sum(loss)
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
    terms = {name: tf.concat([t[name] for t in all_terms], 0) for name in terms}
    return tf.concat(losses, 0), terms, gradients


def _kl_terms(model, images, seeds):
    """KL of each latent of a training step, a list of `[batch]`."""
    features = model.features(images, training=True)
    latents, _ = model.infer(features, seeds=sampling.fold_in(seeds, 0), training=True)
    return [latent.kl_divergence(training=True) for latent in latents.values()]


def _sums(terms, latents):
    """Sums of each latent's KL over a replica's rows."""
    kls = [terms[f"kl/{name}"] for name in latents]
    return [tf.reduce_sum(tf.stop_gradient(values)) for values in kls]
