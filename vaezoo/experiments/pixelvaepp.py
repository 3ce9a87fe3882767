"""Experiments of "PixelVAE++: Improved PixelVAE with Discrete Prior" (Sadeghi et al.).

`conditional`, `prior` and `mixing` look at models: at the zoo's weights where there are
any, or else at runs of a small size. `priors`, `groups` and `temperatures` compare runs
of that size, which the tables state beside the paper's figures.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from vaezoo import checks, plots, sampling
from vaezoo.experiments.comparison import (
    Variant,
    base_entry,
    cell,
    changes,
    compare,
    of_the_zoo,
    short_recipe,
    steps_per_epoch,
    test_images,
    train_variant,
    write,
)
from vaezoo.experiments.energy import (
    energy_distances,
    energy_scores,
    mutual_distances,
)
from vaezoo.zoo import registry

_DATASETS = ("mnist_static", "mnist_dynamic", "omniglot", "caltech101", "cifar10")
# Of runs on two cores, in all experiments alike.
_SIZE = {
    "filters": 16,
    "num_resnets": 1,
    "dropout": 0.0,
    "num_chains": 1_000,
    "num_sweeps": 25,
}
_BATCH_SIZE = 32
_EPOCHS = 4
_WARMUP = 0.5  # of the steps; the paper does not say over how many its KL weight rises
_BUDGET = {
    "dataset": "mnist_static",
    "epochs": _EPOCHS,
    "images": 500,
    "num_importance_samples": 16,
    "num_seeds": 3,
}
# Table 1 (bits/dim of CIFAR-10, nats of the others) and appendix D.
_RBM = {
    "mnist_static": "LL 78.65, KL 7.62",
    "mnist_dynamic": "LL 78.00, KL 5.05",
    "omniglot": "LL 88.29, KL 2.56",
    "caltech101": "LL 77.46, KL 6.85",
    "cifar10": "LL 2.90, KL .016 bits/dim",
}
_GAUSSIAN = {
    "mnist_static": "LL 78.66, KL 6.86",
    "mnist_dynamic": "LL 78.01, KL 4.20",
    "omniglot": "LL 88.65, KL 1.63",
    "caltech101": "LL 79.52, KL 4.00",
    "cifar10": "LL 2.92, KL .005 bits/dim",
}
_FAMILIES = {"RBM prior": "pixelvaepp", "Gaussian prior": "pixelvaepp_gaussian"}
_PRIORS = {
    "RBM prior": Variant(paper=_RBM),
    "Gaussian prior": Variant({"prior": "gaussian"}, paper=_GAUSSIAN),
}
_PRIOR_UPDATES = 50_000  # appendix D
_SAMPLES = 8  # of a row of the pictures
_ROWS = 8  # of a panel of the pictures
_MIXING_CHAINS = 400
_MIXING_UPDATES = (1, 10, 100, 1_000, 10_000, 50_000)
_SHOWN_CHAINS = 16


def conditional(out, *, seed, verbose, dataset="mnist_static", epochs=None, images=128):
    """Several images drawn with the latents of one test image (figures 2 to 4).

    Rows are sorted by their energy distance to the test image. A row whose latents say
    nothing of the image is as far from it as from another one.
    """
    data = test_images(_checked(dataset), images)

    def draw(model):
        values = model.encode(data, seed=seed)["z"].numpy()
        return _rows(model, values, seed, verbose)

    def describe(rows, images):
        own = energy_scores(images, rows)
        other = energy_scores(np.roll(images, 1, axis=0), rows)
        cells = [*map(_thousands, (own, other, other - own)), *_spreads(rows)]
        return own, cells

    header = ["to the test image", "to another one", "difference"]
    text = (
        "Each row has eight images, drawn with the latents of the test image at its "
        "left; the rows nearest to their test images are on the left of the picture, "
        "the farthest on the right."
    )
    return _of_rows(
        "conditional",
        text,
        header,
        draw,
        describe,
        images=data,
        out=out,
        dataset=dataset,
        epochs=epochs,
        seed=seed,
        verbose=verbose,
    )


def prior(out, *, seed, verbose, dataset="mnist_static", epochs=None, images=128):
    """Several images drawn with one draw of the prior (figures 5 to 7).

    `images` is the number of rows. A draw of the RBM is after 50,000 Gibbs updates; the
    rows are sorted by the energy distance between their images.
    """
    _checked(dataset)

    def draw(model):
        options = dict.fromkeys(model.sampling_options, _PRIOR_UPDATES)
        seeds = tf.constant(sampling.row_seeds(seed, images))
        values = model.traced(_prior_draws, **options)(seeds)["z"].numpy()
        return _rows(model, values, seed, verbose)

    def describe(rows, _):
        return mutual_distances(rows), _spreads(rows)

    text = (
        "Each row has eight images, drawn with one draw of the prior (of the RBM after "
        f"{_PRIOR_UPDATES:,} Gibbs updates from fair bits); the rows whose images are "
        "most alike are on the left of the picture, the least alike on the right."
    )
    return _of_rows(
        "prior",
        text,
        [],
        draw,
        describe,
        out=out,
        dataset=dataset,
        epochs=epochs,
        seed=seed,
        verbose=verbose,
    )


def mixing(out, *, seed, verbose, dataset="mnist_static", epochs=None):
    """How fast Gibbs chains of the RBM forget where they began, and themselves.

    Free energies, `-log sum over r of exp(-E(l, r))`, of chains from fair bits and of
    chains from latents of test images; and, of the chains at the end, the correlation
    of their free energies so many updates apart.
    """
    model, note = _model(
        "RBM prior",
        out,
        dataset=_checked(dataset),
        epochs=epochs,
        seed=seed,
        verbose=verbose,
    )
    data = test_images(dataset, _MIXING_CHAINS)
    latents = model.encode(data, seed=seed)["z"]
    fair = model.rbm.first_chains(tf.constant(sampling.row_seeds(seed, len(data))))
    starts = {"fair": fair, "images": latents[:, : model.rbm.num_left]}
    traces = {
        name: dict(_chains(model, left, sampling.fold_in(seed, index)))
        for index, (name, left) in enumerate(starts.items())
    }
    end = traces["fair"][_MIXING_UPDATES[-1]]
    later = dict(_chains(model, end, sampling.fold_in(seed, len(starts))))
    energies = {
        name: {updates: _free_energies(model, left) for updates, left in trace.items()}
        for name, trace in (traces | {"later": later}).items()
    }
    rows, pictures = [], []
    for updates in (0, *_MIXING_UPDATES):
        fair, images = energies["fair"][updates], energies["images"][updates]
        variance = fair.var(ddof=1) + images.var(ddof=1)
        rows.append(
            [
                f"{updates:,}",
                cell(fair),
                cell(images),
                f"{fair.mean() - images.mean():+.2f} ± "
                f"{math.sqrt(variance / len(data)):.2f}",
                f"{_correlation(energies['later'][0], energies['later'][updates]):.2f}",
            ]
        )
        left = traces["fair"][updates][:_SHOWN_CHAINS]
        probabilities = tf.sigmoid(model.rbm.right_logits(left))
        uniforms = tf.random.stateless_uniform(probabilities.shape, (seed, updates))
        right = tf.cast(uniforms < probabilities, tf.float32)
        values = {"z": tf.concat([left, right], axis=-1)}
        pictures.append(model.decode(values, seed=seed).numpy())
    bracket = model.estimates()
    log_z, error = bracket["log_z"]
    text = (
        f"{note} Nats, means over {len(data):,} chains with standard errors. Log Z is "
        f"{log_z:.2f} ± {error:.2f} by annealing forward and "
        f"{bracket['log_z_reverse'][0]:.2f} by annealing in reverse. The correlation "
        "of two free energies of independent chains is 0 within "
        f"{2 / math.sqrt(len(data)):.2f}. In the picture: images drawn with the chains "
        "from fair bits, a column a chain. The paper draws after 50,000 updates and "
        "has no figures of this."
    )
    header = [
        "updates",
        "free energy from fair bits",
        "from test images",
        "difference",
        "correlation with itself so many updates before",
    ]
    picture = plots.image_grid(
        np.concatenate(pictures),
        columns=len(pictures[0]),
        levels=model.levels,
        labels=[row[0] for row in rows],
    )
    return write(out, "PixelVAEPP mixing", text, header, rows, picture)


def priors(out, **options):
    """RBM against Gaussian prior, of as many latents (table 1)."""
    return _compare("priors", _PRIORS, out, options)


def groups(out, **options):
    """z1 alone against all three groups of latents.

    The paper finds that z2 and z3 do not improve binary images (section 4).
    """
    paper = {name: "no better (binary images)" for name in _DATASETS[:-1]}
    variants = {
        "z1": Variant(paper=_RBM),
        "z1 and z2": Variant({"z2_size": 64}, paper=paper),
        "z1, z2 and z3": Variant({"z2_size": 64, "z3_size": 16}, paper=paper),
    }
    return _compare("groups", variants, out, options)


def temperatures(out, *, epochs=_EPOCHS, dataset="mnist_static", **options):
    """The temperature of the relaxation, constant and annealed (appendix C).

    The paper trains at .25; finds that at .5 the relaxed posterior and the RBM come
    apart, and at .1 the gradient is too noisy; that lowering the temperature makes
    results worse, and that raising it changes nothing.
    """
    steps = epochs * steps_per_epoch(_checked(dataset), _BATCH_SIZE)

    def annealed(first, last):
        return {
            "relaxation_temperature": first,
            "final_relaxation_temperature": last,
            "relaxation_steps": steps,
        }

    def claim(text):
        return dict.fromkeys(_DATASETS, text)

    variants = {
        ".25": Variant(paper=_RBM),
        ".1": Variant({"relaxation_temperature": 0.1}, paper=claim("noisy gradient")),
        ".5": Variant(
            {"relaxation_temperature": 0.5}, paper=claim("mismatch with the RBM")
        ),
        ".5 to .25": Variant(annealed(0.5, 0.25), paper=claim("worse")),
        ".1 to .25": Variant(annealed(0.1, 0.25), paper=claim("no effect")),
    }
    options = {"num_seeds": 1, "epochs": epochs, "dataset": dataset} | options
    return _compare("temperatures", variants, out, options)


def _of_rows(title, text, header, draw, describe, *, images=None, out, **how):
    """The table and the picture of rows of images, of both priors.

    Args:
        draw: function from a model to rows, uint8 `[rows, images, ...]`.
        describe: function from rows and `images`, both of 0 to 255, to what the rows
            are sorted by, `[rows]`, and cells.
        images: uint8 `[rows, ...]`, what stands at the left of each row, or `None`.
    """
    table, notes, pictures, labels = [], [], [], []
    for label in _PRIORS:
        model, note = _model(label, out, **how)
        notes.append(note)
        rows = draw(model)
        first = None if images is None else plots.to_bytes(images, model.levels)
        order, cells = describe(rows, first)
        table.append([label, *cells])
        if first is not None:
            rows = np.concatenate([first[:, None], rows], axis=1)
        rows = rows[np.argsort(order)]
        shown = min(_ROWS, -(-len(rows) // 2))
        panels = np.concatenate([rows[:shown], rows[-shown:]], axis=1)
        pictures.append(panels.reshape(-1, *model.image_shape))
        labels += [label] + [""] * (shown - 1)
    picture = plots.image_grid(
        np.concatenate(pictures), columns=panels.shape[1], labels=labels
    )
    text = (
        f"{' '.join(notes)} {text} Thousands of energy distance, means of {len(rows)} "
        "rows with standard errors; the images of different rows are as far apart as "
        "independent draws. The paper has pictures and no figures."
    )
    header = ["model", *header, "between images of a row", "of different rows"]
    return write(out, f"PixelVAEPP {title}", text, header, table, picture)


def _rows(model, values, seed, verbose):
    """Eight images for each row of latents: uint8 `[rows, 8, ...]` of 0 to 255."""
    rows = []
    progress = keras.utils.Progbar(
        len(values), verbose=1 if verbose == "auto" else verbose, unit_name="row"
    )
    for first in range(0, len(values), 8):
        part = np.repeat(values[first : first + 8], _SAMPLES, axis=0)
        start = sampling.fold_in(seed, first)
        images = model.decode({"z": part}, seed=sampling.row_seeds(start, len(part)))
        rows.append(images.numpy().reshape(-1, _SAMPLES, *model.image_shape))
        progress.update(min(first + 8, len(values)))
    return plots.to_bytes(np.concatenate(rows), model.levels)


def _prior_draws(model, seeds, **options):
    temperature = tf.ones(tf.shape(seeds), tf.float32)
    return model.generate(seeds, temperature=temperature, **options)[0]


def _spreads(rows):
    """Cells: distances between images of a row, and of one row and the next."""
    following = np.roll(rows, 1, axis=0)
    return [
        _thousands(mutual_distances(rows)),
        _thousands(energy_distances(rows, following).mean(axis=1)),
    ]


def _chains(model, left, seed):
    """(updates, left sides) of chains after 0 and each of `_MIXING_UPDATES`."""
    yield 0, left
    done = 0
    for updates in _MIXING_UPDATES:
        carry_on = model.traced(_updated, num_sweeps=updates - done)
        left = carry_on(left, sampling.fold_in(seed, updates))
        done = updates
        yield updates, left


def _updated(model, left, seed, *, num_sweeps):
    return model.rbm.update_chains(left, seed, num_sweeps=num_sweeps)


def _free_energies(model, left):
    return -np.float64(model.rbm.left_log_marginal(left).numpy())


def _correlation(first, second):
    return np.corrcoef(first, second)[0, 1]


def _thousands(distances):
    return cell(distances / 1_000)


def _model(label, out, *, dataset, epochs, seed, verbose):
    """The zoo's model of a prior if it has weights, else a run; and what it is."""
    entry = registry.describe(f"{_FAMILIES[label]}_{dataset}")
    if entry.weights is not None and epochs is None:
        return of_the_zoo(entry)
    epochs = epochs or _EPOCHS
    recipe = _recipe(dataset, epochs)
    model = train_variant(
        base_entry(f"pixelvaepp_{dataset}", _SIZE, recipe),
        _PRIORS[label],
        out=out,
        dataset=dataset,
        epochs=epochs,
        seed=seed,
        verbose=verbose,
    )
    note = (
        f"{label}: `{entry.name}`{changes(_SIZE, recipe)}, trained for {epochs} epochs "
        f"with seed {seed}."
    )
    return model, note


def _compare(title, variants, out, options):
    """Compare variants of the small size, of one dataset."""
    options = _BUDGET | options
    dataset = _checked(options["dataset"])
    columns = {
        "latents": lambda model: model.num_latents,
        "log Z, nats": _log_z,
    }
    return compare(
        f"pixelvaepp_{dataset}",
        variants,
        title=f"PixelVAEPP {title}",
        out=out,
        arguments=_SIZE,
        recipe=_recipe(dataset, options["epochs"]),
        columns=columns,
        **options,
    )


def _log_z(model):
    if not model.is_discrete:
        return "-"
    (value, _), (reverse, _) = model.estimates().values()
    return f"{value:.2f} to {reverse:.2f}"


def _checked(dataset):
    return checks.choice("dataset", dataset, _DATASETS)


def _recipe(dataset, epochs):
    """What differs in a recipe for runs of so many epochs."""
    return short_recipe(
        dataset, epochs, batch_size=_BATCH_SIZE, kl_warmup=_WARMUP, ema_momentum=0.995
    )
