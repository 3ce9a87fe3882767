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
            [tf.add_n(_sums(values)) for values in zip(*kls, strict=True)]
        )
    variables = model.trained_variables
    gradients, losses, all_terms = [], [], []
    for images, seeds in parts:
        # After the part before, so that one part's activations are held at a time.
        with tf.control_dependencies(gradients), tf.GradientTape() as tape:
            terms, latents = computations.elbo_terms(
                model,
                images,
                seeds,
                training=True,
                historyless_share=objective.historyless_share,
            )
            loss = terms["reconstruction"]
            if latents:
                # A replica without rows has drawn latents for one, which is left out.
                kls = {
                    name: latent.group_kls(training=True)[: tf.shape(seeds)[0]]
                    for name, latent in latents.items()
                }
                means = mean_kls
                if objective.free_bits_nats and means is None:
                    means = all_means(_sums(kls.values()))
                kl = objective.kl_term(kls, step, mean_kls=means)
                loss += soft_weight * kl
            if "auxiliary" in terms and objective.auxiliary_weight:
                loss += objective.auxiliary_weight * terms["auxiliary"]
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
    """KL of each latent of a training step, a list of `[batch, groups]`."""
    features = model.features(images, training=True)
    latents, _ = model.infer(features, seeds=sampling.fold_in(seeds, 0), training=True)
    return [latent.group_kls(training=True) for latent in latents.values()]


def _sums(kls):
    """Sums over a replica's rows, `[groups]` each."""
    return [tf.reduce_sum(tf.stop_gradient(values), axis=0) for values in kls]
