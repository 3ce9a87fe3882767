"""What a model computes, as plain graph functions of seeds.

Every function here takes a model, which implements the interface of
`vaezoo.models.vae.VAE`, and tensors: images uint8 `[batch, height, width, channels]`,
seeds int64 `[batch]`. Row `i` of a result depends on the rows `i` of the arguments and
on nothing else. The model's public methods compile them, and exports trace them.
"""

import tensorflow as tf

from vaezoo import checks, inference, sampling
from vaezoo.distributions.images import AutoregressiveImage


def elbo_terms(model, images, seeds, *, training=False, historyless_share=0.0):
    """The ELBO's terms of each image, and the latents drawn.

    The draw is importance sample 0 of `log_likelihood` with the same seeds. In the
    model's mode "decoder" there are no latents: the decoder alone is scored. In
    "auxiliary" the reconstruction is of the auxiliary image: its ELBO alone is.

    Args:
        historyless_share: float from 0 to 1. Probability with which an image is hidden
            from the decoder, whose terms then are of latents alone.

    Returns:
        terms: dict of float32 `[batch]` nats: `elbo`, `reconstruction`, `kl` and
            `kl/<latent>`, with `elbo == -(reconstruction + kl)`; and of a model with an
            auxiliary image y `auxiliary`, `-log p(y | z)`.
        latents: dict of name to `vaezoo.inference.Latent`; of one row, whose terms are
            left out, where a replica has none.
    """
    num_rows = tf.shape(seeds)[0]
    images, seeds = one_row_for_none(images, seeds)
    seeds = sampling.fold_in(seeds, 0)
    latents, context = {}, None
    if model.mode != "decoder":
        features = model.features(images, training=training)
        latents, context = model.infer(features, seeds=seeds, training=training)
    auxiliary = None
    if latents:
        auxiliary = model.auxiliary_loss(images, draws(latents), context=context)
    if model.mode == "auxiliary":
        if historyless_share:
            raise _no_images_to_hide("the mode 'auxiliary', without the decoder")
        reconstruction, auxiliary = auxiliary, None
    else:
        likelihood = model.likelihood(
            draws(latents), context=context, seeds=seeds, training=training
        )
        options = {}
        if historyless_share:
            if not latents:
                raise _no_images_to_hide("a mode or a model without latents")
            if not isinstance(likelihood, AutoregressiveImage):
                raise _no_images_to_hide("a decoder that sees no image")
            uniforms = sampling.row_uniforms(seeds, [], "historyless")
            options["hidden"] = uniforms < historyless_share
        reconstruction = -likelihood.log_prob(images, **options)
    kls = {
        name: latent.kl_divergence(training=training)
        for name, latent in latents.items()
    }
    kl = tf.add_n([*kls.values(), tf.zeros_like(reconstruction)])
    terms = {
        "elbo": -(reconstruction + kl),
        "reconstruction": reconstruction,
        "kl": kl,
    }
    terms |= {f"kl/{name}": value for name, value in kls.items()}
    if auxiliary is not None:
        terms["auxiliary"] = auxiliary
    return {name: value[:num_rows] for name, value in terms.items()}, latents


def _no_images_to_hide(received):
    return checks.refusal(
        "`historyless_share` hides images from an autoregressive decoder, so that "
        "latents have to tell of them.",
        received,
        "Leave it at 0.",
    )


def one_row_for_none(*tensors):
    """Tensors `[batch, ...]` as they are; where `batch` is 0, a row of ones each.

    With oneDNN, TensorFlow's convolution gives 0 rows the shape of its input. Ones are
    valid images, masks, seeds, latents and temperatures. In training, batch
    normalisation counts the row, where the last batch has fewer rows than replicas.
    """
    if tensors[0].shape[0]:  # known, and not 0
        return tensors
    missing = tf.cast(tf.equal(tf.shape(tensors[0])[:1], 0), tf.int32)

    def filled(tensor):
        row = tf.ones(tf.concat([missing, tf.shape(tensor)[1:]], 0), tensor.dtype)
        return tf.ensure_shape(tf.concat([tensor, row], 0), [None, *tensor.shape[1:]])

    return tuple(map(filled, tensors))


def draws(latents):
    """The values of a dict of latents, by name."""
    return {name: latent.value for name, latent in latents.items()}


def posterior(model, images, seeds):
    """Latents of the images, and their context: what `elbo_terms` draws.

    The context is without what belongs to these images, as others are drawn with it.
    """
    features = model.features(images)
    latents, context = model.infer(features, seeds=sampling.fold_in(seeds, 0))
    if isinstance(context, dict):
        context = {name: value for name, value in context.items() if name != "image"}
    return latents, context


def encode(model, images, seeds):
    """A draw of each latent from `q(z | x)`: dict of name to `[batch, ...]`."""
    return draws(posterior(model, images, seeds)[0])


def encode_mean(model, images, seeds):
    """The mean of each latent under `q(z | x)`, given the draws of those above it."""
    latents, _ = posterior(model, images, seeds)
    return {name: latent.posterior.mean() for name, latent in latents.items()}


def draw(model, values, context, seeds, *, temperature=None, known=None, jit=False):
    """Images from `p(x | z)`: the scan that every method which draws pixels shares.

    Cost: `height * width` sequential steps (times the channels where a channel's
    distribution needs the network again), in all about one pass of the decoder.

    Args:
        model: the model.
        values: dict of latent name to `[batch, ...]`.
        context: as of `VAE.infer`, or `None`.
        seeds: int64 `[batch]`.
        temperature: float32 `[batch]`; 1 where `None`.
        known: `(images, mask)`, pixels that are forced where the mask, uint8 `[batch,
            height, width, 1]`, is 0; `None` to draw them all.
        jit: bool. Whether to compile the scan with XLA.

    Returns:
        uint8 `[batch, height, width, channels]`.
    """
    if temperature is None:
        temperature = tf.ones(tf.shape(seeds), tf.float32)
    noise_shape = model.likelihood(values, context=context, seeds=seeds).noise_shape
    # Noise is drawn outside XLA, which would draw other numbers.
    uniforms = sampling.row_uniforms(seeds, noise_shape, "pixels")
    if known is None:  # one kind of scan, whatever it is for
        height, width, channels = model.image_shape
        sizes = [tf.shape(seeds)[0], height, width]
        known = tf.zeros([*sizes, channels], tf.uint8), tf.ones([*sizes, 1], tf.uint8)

    # One function of the model: what calls it, as the signatures of an export, has one
    # graph of it between them.
    scan = model.traced(
        _scan,
        reduce_retracing=False,
        jit_compile=jit or None,
        in_graph=not jit,
    )
    images = scan(values, context, seeds, uniforms, temperature, known)
    return tf.ensure_shape(images, [seeds.shape[0], *model.image_shape])


def _scan(model, values, context, seeds, uniforms, temperature, known, *, in_graph):
    likelihood = model.likelihood(values, context=context, seeds=seeds)
    return likelihood.draw(
        uniforms,
        temperature=temperature,
        known=known,
        in_graph=in_graph,
    )


def sample(model, seeds, temperature, *, jit=False, **options):
    """Images from the model; `temperature` is float32 `[batch]`.

    `seeds` may be a dict too, with those of each latent and of the "pixels"; `options`
    are the model's `sampling_options`.
    """
    values, context = model.generate(seeds, temperature=temperature, **options)
    seeds = sampling.seeds_of(seeds, "pixels")
    return draw(model, values, context, seeds, temperature=temperature, jit=jit)


def decode(model, values, seeds, *, jit=False):
    """Images from `p(x | z)` for latents of a dict, `[batch, ...]` each."""
    return draw(model, values, None, seeds, jit=jit)


def reconstruct(model, images, seeds, *, jit=False):
    """Images `x' ~ p(x | z)`, `z ~ q(z | x)`."""
    latents, context = posterior(model, images, seeds)
    return draw(model, draws(latents), context, seeds, jit=jit)


def complete(model, images, mask, seeds, *, num_rounds=10, jit=False):
    """Images with the pixels filled in where `mask` is 1; see `VAE.complete`."""
    known = images, mask
    temperature = tf.ones(tf.shape(seeds), tf.float32)
    values, context = model.generate(seeds, temperature=temperature)
    images = draw(model, values, context, seeds, known=known, jit=jit)
    if not model.latent_shapes:  # one pass is exact
        return images

    def next_round(index, images):
        round_seeds = sampling.fold_in(seeds, index)
        latents, context = posterior(model, images, round_seeds)
        drawn = draw(model, draws(latents), context, round_seeds, known=known, jit=jit)
        return index + 1, drawn

    return tf.while_loop(
        lambda index, _: index < num_rounds,
        next_round,
        (tf.constant(0, tf.int64), images),
        parallel_iterations=1,
    )[1]


def log_likelihood(model, images, seeds, *, num_importance_samples, rows_at_once=None):
    """The bound `L_K` of each image, float32 `[batch]` nats; exact without latents.

    Cost: one pass of the encoder an image and K of the decoder. Memory grows neither
    with K nor with the batch: `rows_at_once` rows of the decoder, images x importance
    samples, are computed at a time, by default `model.rows_per_pass`.
    """
    rows_at_once = rows_at_once or model.rows_per_pass
    chunk = min(num_importance_samples, rows_at_once) if model.latent_shapes else 1
    block = rows_at_once // chunk

    def score_block(start, nats):
        rows = slice(start, start + block)
        if model.latent_shapes:
            part = _bound(
                model, images[rows], seeds[rows], num_importance_samples, chunk
            )
        else:
            part = model.likelihood({}, seeds=seeds[rows]).log_prob(images[rows])
        return start + block, tf.concat([nats, part], 0)

    return tf.while_loop(
        lambda start, _: start < tf.shape(seeds)[0],
        score_block,
        (tf.constant(0), tf.zeros([0])),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None])),
        parallel_iterations=1,
    )[1]


def _bound(model, images, seeds, num_importance_samples, chunk):
    """The bound of a few images, `chunk` importance samples of each at once."""
    features = model.features(images)

    def repeat(tensor):
        return tf.repeat(tensor, chunk, axis=0)

    features = tf.nest.map_structure(repeat, features)
    repeated = repeat(images)

    def log_weight(row_seeds):
        latents, context = model.infer(features, seeds=row_seeds)
        likelihood = model.likelihood(draws(latents), context=context, seeds=row_seeds)
        ratios = [latent.log_ratio() for latent in latents.values()]
        return likelihood.log_prob(repeated) + tf.add_n(ratios)

    return inference.importance_weighted_bound(
        log_weight, seeds, num_importance_samples, chunk=chunk
    )
