"""Experiments of "Auxiliary Guided Autoregressive Variational Autoencoders", section 4.

`lambdas`, `colours` and `auxiliary` compare runs of a small size, which the tables
state: what is ahead after a few epochs need not be at the end. The others look at
models: at the zoo's weights where there are any, or else at a run of that size.
"""

import numpy as np
import tensorflow as tf

from vaezoo import checks, datasets, plots, sampling, units
from vaezoo.experiments.comparison import (
    Variant,
    base_entry,
    cell,
    changes,
    errors,
    num_parameters,
    of_the_zoo,
    runs,
    short_recipe,
    test_images,
    train_variant,
    train_variants,
    write,
)
from vaezoo.zoo import recipes, registry

_ENTRY = "agave_cifar10_small"
_DATASET = "cifar10"
_LADDER = {"num_levels": 3, "latent_filters": 16}
# Of runs on two cores, in all experiments alike.
_SIZE = _LADDER | {"filters": 16, "num_resnets": 1, "ladder_filters": 32}
_BATCH_SIZE = 32
_EPOCHS = 3
_WARMUP = 0.5  # of the steps, over which the KL weight rises to lambda
_LAMBDA = 8.0  # of figures 5 and 8
_LAMBDAS = (1.0, 2.0, 4.0, 8.0, 12.0)  # figures 3 and 4
_LEVELS = (32, 8)  # of figure 8
_SHOWN = 8  # images of a row of the pictures
_PER_LATENT = 9  # samples beside each f(z), figure 5
_COLLAPSE_STEPS, _COLLAPSE_PART = 2_000, 100  # section 4.4; steps of a row of the table


def lambdas(out, **options):
    """What lambda does: KL, both reconstructions, both bits/dim (figures 3 and 4).

    The paper finds that with lambda the KL falls, the VAE's reconstructions get worse,
    and the bits/dim of the image better, most of all from 1 to 2.

    Raises:
        RuntimeError: the KL does not fall with lambda; the table is written.
    """
    variants = {
        f"{value:g}": Variant(recipe={"kl_weight": value}) for value in _LAMBDAS
    }
    path, kls = _sweep("lambda", "lambda", variants, out, options)
    if np.any(np.diff(kls) >= 0):
        raise RuntimeError(
            "The KL must fall with lambda. Measured: "
            f"{', '.join(f'{kl:.1f}' for kl in kls)} nats; see {path}. Train for "
            "more epochs."
        )
    return path


def colours(out, **options):
    """The auxiliary image in fewer colours (figure 8; lambda 8).

    The paper finds small, consistent gains of the image's bits/dim.
    """
    variants = {"256 levels": Variant()} | {
        f"{levels} levels": Variant({"auxiliary_levels": levels}) for levels in _LEVELS
    }
    return _sweep("colours", "auxiliary image", variants, out, options)[0]


def auxiliary(out, **options):
    """The auxiliary image smaller, or gray (figure 9 and section 4.5).

    The paper has 2.94 bits/dim with 16x16, 2.93 with 8x8 and 2.93 with gray of 4 bits,
    against 2.92 at best with the image itself, of its large model.
    """
    variants = {
        "32x32": Variant(paper={_DATASET: "2.92"}),
        "16x16": Variant({"auxiliary": "half"}, paper={_DATASET: "2.94"}),
        "8x8": Variant({"auxiliary": "quarter"}, paper={_DATASET: "2.93"}),
        "gray, 4 bits": Variant({"auxiliary": "gray"}, paper={_DATASET: "2.93"}),
    }
    return _sweep("auxiliary", "auxiliary image", variants, out, options)[0]


def conditional(out, *, seed, verbose, epochs=None, images=_SHOWN):
    """f(z) of draws of the prior, and nine images drawn with each (figure 5).

    How far images are from the f(z) that they were drawn with, against another's.
    """
    model, note = _model(out, epochs=epochs, seed=seed, verbose=verbose)
    values = _prior(model, images, seed)
    shown = _shown(model, values)
    drawn = _draw_each(model, values, _PER_LATENT, seed)
    picture = plots.image_grid(
        np.concatenate([shown[:, None], drawn], axis=1).reshape(-1, *model.image_shape),
        columns=1 + _PER_LATENT,
    )
    own = _distances(shown[:, None], drawn).mean(axis=1)
    others = _distances(np.roll(shown, 1, axis=0)[:, None], drawn).mean(axis=1)
    text = (
        f"{note} In the picture: f(z) of a draw of the prior, and {_PER_LATENT} images "
        f"drawn with it. Root mean squares of differences over pixels, in levels of "
        f"256, means of {images} draws with standard errors; f(z) holds none of the "
        "detail. The paper has a picture and no figures."
    )
    rows = [[cell(own), cell(others), cell(others - own)]]
    header = ["to the own f(z)", "to another one", "difference"]
    return write(out, "AGAVE conditional", text, header, rows, picture)


def interpolation(out, *, seed, verbose, epochs=None, images=4):
    """From one test image to another, in the latents of all levels (figure 6).

    `images` is the number of pairs.
    """
    model, note = _model(out, epochs=epochs, seed=seed, verbose=verbose)
    data = test_images(_DATASET, 2 * images)
    means = model.encode(data, seed=seed, mode="mean")
    shares = np.linspace(0, 1, _SHOWN, dtype=np.float32)

    def between(value):
        first, last = np.asarray(value)[::2, None], np.asarray(value)[1::2, None]
        share = shares.reshape([-1] + [1] * (value.shape.rank - 1))
        line = first + share * (last - first)
        return line.reshape(-1, *value.shape[1:])

    values = {name: between(value) for name, value in means.items()}
    shown = _shown(model, values).reshape(images, _SHOWN, *model.image_shape)
    drawn = model.decode(values, seed=sampling.row_seeds(seed, images * _SHOWN))
    drawn = drawn.numpy().reshape(shown.shape)
    rows, pictures = [], []
    for index in range(_SHOWN):
        distances = _distances(shown[:, index], drawn[:, index])
        rows.append([f"{shares[index]:.2f}", cell(distances)])
    blank = np.full_like(shown[:, 0], 255)
    for pair in range(images):
        ends = [data[2 * pair], *[blank[pair]] * (_SHOWN - 2), data[2 * pair + 1]]
        pictures += [np.stack(ends), shown[pair], drawn[pair]]
    picture = plots.image_grid(
        np.concatenate(pictures),
        columns=_SHOWN,
        labels=["test images", "f(z)", "drawn with it"] * images,
    )
    text = (
        f"{note} The means of the posteriors of two test images, and the points on the "
        "line between them, in all levels of latents at once. Root mean squares of "
        "differences between an image and its f(z), in levels of 256, means of "
        f"{images} pairs with standard errors. The paper has a picture."
    )
    header = ["share of the second image", "image to f(z)"]
    return write(out, "AGAVE interpolation", text, header, rows, picture)


def collapse(out, *, seed, verbose, epochs=None, images=256):
    """Training goes on without the auxiliary image: z empties (figure 7).

    The paper finds that the KL falls to zero within some 2000 steps, and images do not
    depend on z any more.
    """
    model, note = _model(out, epochs=epochs, seed=seed, verbose=verbose)
    data = test_images(_DATASET, images)
    recipe = registry.describe(_ENTRY).phases[-1]
    length = {"learning_rate_decay": recipes.LearningRateDecay()}
    length |= {"learning_rate_warmup_steps": 0, "auxiliary_weight": 0.0}
    recipe = recipe.model_copy(update=length)
    model.compile(**recipes.compile_arguments(recipe))
    stream = datasets.load_dataset(
        _DATASET, "train", batch_size=recipe.batch_size, shuffle=True, seed=seed
    ).repeat()
    encoded = data[:_SHOWN]
    pictures, labels, rows = [encoded], ["test images"], []

    def look(steps):
        terms = model.elbo_terms(data, seed=seed)
        kl = np.asarray(terms["kl"], float)
        bits = units.bits_per_dim(np.asarray(terms["elbo"], float), model.num_dims)
        values = model.encode(encoded, seed=seed)
        shown = _shown(model, values)
        drawn = _draw_each(model, values, 2, seed)
        own = _distances(shown[:, None], drawn).mean(axis=1)
        rows.append([f"{steps:,}", cell(kl), cell(bits), cell(own)])
        pictures.extend([shown, drawn[:, 0], drawn[:, 1]])
        labels.extend([f"f(z), {steps:,} steps", "drawn with it", "again"])

    look(0)
    for steps in range(_COLLAPSE_PART, _COLLAPSE_STEPS + 1, _COLLAPSE_PART):
        done = steps // _COLLAPSE_PART
        model.fit(
            stream,
            initial_epoch=done - 1,
            epochs=done,
            steps_per_epoch=_COLLAPSE_PART,
            verbose=verbose,
        )
        if done in (1, 2, 5) or steps % 500 == 0:
            look(steps)
    picture = plots.image_grid(
        np.concatenate(pictures), columns=len(encoded), labels=labels
    )
    text = (
        f"{note} Trained further without the auxiliary image's term, the KL weight "
        f"{recipe.kl_weight:g}; on the first {images:,} test images, with standard "
        "errors. In the picture: latents of the test images. The paper's KL falls to "
        "zero within about 2,000 steps."
    )
    header = ["steps", "KL, nats", "-ELBO, bits/dim", "image to f(z), levels of 256"]
    return write(out, "AGAVE collapse", text, header, rows, picture)


def samples(out, *, seed, verbose, epochs=None, images=256):
    """Samples of an IAF VAE, of PixelCNN++ and of AGAVE (figure 2 and table 1)."""
    recipe = _recipe(epochs or _EPOCHS)
    ladder = _LADDER | {"filters": _SIZE["ladder_filters"]}
    bound = {"kl_weight": 1.0, "free_bits_nats": 0.0}
    iafvae = train_variant(
        base_entry("iafvae_cifar10", ladder, recipe),
        Variant(recipe=bound),
        out=out,
        dataset=_DATASET,
        epochs=epochs or _EPOCHS,
        seed=seed,
        verbose=verbose,
    )
    agave, note = _model(out, epochs=epochs, seed=seed, verbose=verbose)
    pixelcnnpp, other = of_the_zoo(registry.describe("pixelcnnpp_cifar10_small"))
    data = test_images(_DATASET, images)
    values = _prior(agave, _SHOWN, seed)
    pictures, labels, rows = [], [], []
    for label, model, paper in (
        ("IAF VAE", iafvae, "3.11"),
        ("PixelCNN++", pixelcnnpp, "2.92"),
        ("AGAVE", agave, "2.92"),
    ):
        elbo = np.asarray(model.elbo(data, seed=seed), float)
        bits = cell(units.bits_per_dim(elbo, model.num_dims))
        rows.append([label, num_parameters(model), bits, paper])
        if model is agave:
            pictures += [_shown(model, values), model.decode(values, seed=seed).numpy()]
            labels += ["AGAVE, f(z)", "AGAVE"]
        else:
            pictures.append(model.sample(_SHOWN, seed=seed).numpy())
            labels.append(label)
    picture = plots.image_grid(np.concatenate(pictures), columns=_SHOWN, labels=labels)
    text = (
        f"{note} {other} The IAF VAE: `iafvae_cifar10`"
        f"{changes(ladder, recipe | bound)}, {epochs or _EPOCHS} epochs. "
        f"Bounds on the first {images:,} test images, with standard errors; "
        "the paper's are of large models."
    )
    header = ["model", "parameters", "-ELBO, bits/dim", "in the paper"]
    return write(out, "AGAVE samples", text, header, rows, picture)


def _sweep(
    title,
    subject,
    variants,
    out,
    options,
):
    """Train variants, and write what the paper plots of each; the path, and the KLs."""
    options = {"epochs": _EPOCHS, "images": 500, "num_seeds": 3} | options
    if options.pop("dataset", _DATASET) != _DATASET:
        raise checks.refusal("The paper's experiments are of CIFAR-10.", "a `dataset`")
    seed, epochs = options["seed"], options["epochs"]
    seeds = range(seed, seed + options["num_seeds"])
    recipe = _recipe(epochs)
    entry = base_entry(_ENTRY, _SIZE, recipe)
    data = test_images(_DATASET, options["images"])
    shown = data[:_SHOWN]
    rows, kls, pictures, labels = [], [], [shown], ["test images"]
    for label, variant in variants.items():
        models = train_variants(
            entry,
            variant,
            out=out,
            dataset=_DATASET,
            epochs=epochs,
            seeds=seeds,
            verbose=options["verbose"],
        )
        kl, cells = _measured(models, data, seed)
        kls.append(kl)
        rows.append([label, *cells, variant.paper.get(_DATASET, "-")])
        pictures += _reconstructions_and_samples(models[0], shown, seed)
        labels += [f"{label}, VR", "VS", "PR", "PS"]
    picture = plots.image_grid(
        np.concatenate(pictures), columns=len(shown), labels=labels
    )
    text = (
        f"Epochs of `{_DATASET}` each: {epochs}, joint from the first step, by the "
        f"recipe of `{_ENTRY}`{changes(_SIZE, recipe)}; {runs(seeds)}. Of the first "
        f"{len(data):,} test images. {errors(seeds)} The VAE's bits/dim are of the "
        f"auxiliary image. In the picture, of seed {seed}: f(z) of the test images "
        "above (VR) and of draws of the prior (VS), and the PixelCNN++'s images of "
        "both (PR, PS). The paper's figures are of its large model."
    )
    header = [
        subject,
        "KL, nats",
        "VAE reconstruction, bits/dim",
        "with the KL",
        "PixelCNN++ reconstruction, bits/dim",
        "with the KL",
        "in the paper",
    ]
    return write(out, f"AGAVE {title}", text, header, rows, picture), kls


def _measured(models, data, seed):
    """The mean KL of models of several seeds, and the cells of their row."""
    terms = [model.elbo_terms(data, seed=seed) for model in models]
    kl, auxiliary, reconstruction = (
        np.asarray([each[name] for each in terms], float)
        for name in ("kl", "auxiliary", "reconstruction")
    )
    first = models[0]
    cells = [
        (kl, 1),
        (units.bits_per_dim(-auxiliary, first.num_auxiliary_dims), 3),
        (units.bits_per_dim(-auxiliary - kl, first.num_auxiliary_dims), 3),
        (units.bits_per_dim(-reconstruction, first.num_dims), 3),
        (units.bits_per_dim(-reconstruction - kl, first.num_dims), 3),
    ]
    return kl.mean(), [cell(values, digits=digits) for values, digits in cells]


def _reconstructions_and_samples(model, images, seed):
    """f(z) of the images' latents and of the prior's, and an image drawn with each."""
    posterior = model.encode(images, seed=seed)
    prior = _prior(model, len(images), seed)
    shown = [_shown(model, values) for values in (posterior, prior)]
    drawn = [model.decode(values, seed=seed).numpy() for values in (posterior, prior)]
    return [*shown, *drawn]


def _prior(model, num, seed):
    """Draws of the prior: dict of latent name to `[num, ...]`."""
    return model.traced(_prior_draws)(tf.constant(sampling.row_seeds(seed, num)))


def _prior_draws(model, seeds):
    return model.generate(seeds, temperature=tf.ones(tf.shape(seeds)))[0]


def _draw_each(model, values, num, seed):
    """Images drawn with each row of latents: uint8 `[rows, num, ...]`."""
    repeated = {name: np.repeat(value, num, axis=0) for name, value in values.items()}
    rows = len(next(iter(repeated.values())))
    drawn = model.decode(repeated, seed=sampling.row_seeds(seed, rows)).numpy()
    return drawn.reshape(-1, num, *model.image_shape)


def _shown(model, values):
    """f(z) at the image's size, in three channels: uint8 `[n, height, width, 3]`."""
    f = model.auxiliary_means(values).numpy()
    stride = model.image_shape[0] // f.shape[1]
    f = f.repeat(stride, axis=1).repeat(stride, axis=2)
    return np.broadcast_to(f, (*f.shape[:-1], model.image_shape[-1]))


def _distances(first, second):
    """Root mean squares of differences over an image's pixels, `[...]`."""
    difference = first.astype(float) - second
    return np.sqrt((difference**2).mean(axis=(-3, -2, -1)))


def _model(out, *, epochs, seed, verbose):
    """The zoo's model if it has weights, else a small run; and a sentence on it."""
    entry = registry.describe(_ENTRY)
    if entry.weights is not None and epochs is None:
        return of_the_zoo(entry)
    epochs = epochs or _EPOCHS
    recipe = _recipe(epochs)
    model = train_variant(
        base_entry(_ENTRY, _SIZE, recipe),
        Variant(),
        out=out,
        dataset=_DATASET,
        epochs=epochs,
        seed=seed,
        verbose=verbose,
    )
    note = (
        f"AGAVE: `{_ENTRY}`{changes(_SIZE, recipe)}, trained for {epochs} epochs with "
        f"seed {seed}."
    )
    return model, note


def _recipe(epochs):
    """What differs in a recipe for joint runs of so many epochs."""
    recipe = short_recipe(
        _DATASET,
        epochs,
        batch_size=_BATCH_SIZE,
        kl_warmup=_WARMUP,
        ema_momentum=0.995,
    )
    return recipe | {"kl_weight": _LAMBDA}
