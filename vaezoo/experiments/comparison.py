"""Training a few variants of one model on one budget, and comparing them."""

import dataclasses
import datetime
import math
import re
from pathlib import Path

import numpy as np

from vaezoo import datasets, evaluation, plots, units
from vaezoo.files import atomic_path
from vaezoo.training.run import train
from vaezoo.zoo import provenance, registry

_SHOWN = 10  # images in the picture


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is different about one of the models that are compared.

    Args:
        arguments: dict of the constructor's arguments that differ from the entry's.
        recipe: dict of keys of the training recipe that differ from everybody's.
        paper: dict of dataset to the paper's figures there, a str for the table.
    """

    arguments: dict = dataclasses.field(default_factory=dict)
    recipe: dict = dataclasses.field(default_factory=dict)
    paper: dict = dataclasses.field(default_factory=dict)


def compare(
    entry_name,
    variants,
    *,
    title,
    out,
    dataset,
    epochs,
    images,
    num_importance_samples,
    num_seeds,
    seed,
    verbose,
    arguments=None,
    recipe=None,
    columns=None,
    samples=None,
):
    """Train and measure variants of an entry, and write a table and a picture.

    Every variant is trained once a seed, and all are scored on the same images with
    the same noise; differences are taken image by image and seed by seed.

    Args:
        entry_name: a name of the zoo; its training recipe is everybody's.
        variants: dict of label to `Variant`. The others are compared with the first.
        title: str, the table's heading. The files are named after it.
        out, dataset, epochs, images, num_importance_samples, num_seeds, seed, verbose:
            as of `vaezoo.experiments.reproduce`.
        arguments, recipe: dicts of what differs in the entry's model and recipe, of all
            variants, or `None`.
        columns: dict of heading to a function from a model to a cell, or `None`.
        samples: True for a picture of samples of all models; `None` for the test
            images, decompressed.

    Returns:
        The path of the table.
    """
    entry = base_entry(entry_name, arguments, recipe)
    data = test_images(dataset, images)
    shown = data[:_SHOWN]
    seeds = range(seed, seed + num_seeds)
    measured, cells, pictures, labels = {}, {}, [shown], ["test images"]
    for label, variant in variants.items():
        models = train_variants(
            entry,
            variant,
            out=out,
            dataset=dataset,
            epochs=epochs,
            seeds=seeds,
            verbose=verbose,
        )
        measured[label] = measure(models, data, num_importance_samples, seed)
        first = models[0]
        cells[label] = [label, num_parameters(first)]
        cells[label] += [function(first) for function in (columns or {}).values()]
        if first.latent_shapes and not samples:
            drawn = first.reconstruct(shown, seed=seed, jit=False)
        else:
            drawn = first.sample(len(shown), seed=seed, jit=False)
        pictures.append(drawn.numpy())
        labels.append(label)
    unit, in_unit = _unit(first)
    bound = f"-L_{num_importance_samples}"
    reference = next(iter(variants))
    header = ["model", "parameters", *(columns or {}), f"-ELBO, {unit}"]
    header += ["KL, nats", "KL, bits", f"{bound}, {unit}"]
    header += [f"{bound} minus that of {reference}", "in the paper"]
    for label, rows in measured.items():
        cells[label] += [
            cell(in_unit(rows["elbo"])),
            cell(rows["kl"]),
            cell(rows["kl"] / math.log(2)),
            cell(in_unit(rows["bound"])),
            "-"
            if label == reference
            else cell(in_unit(rows["bound"] - measured[reference]["bound"]), sign="+"),
            variants[label].paper.get(dataset, "-"),
        ]
    picture = plots.image_grid(
        np.concatenate(pictures),
        columns=len(shown),
        levels=first.levels,
        labels=labels,
    )
    drawn = "decompressions of the test images above, or samples of a model without"
    drawn = "samples" if samples else f"{drawn} latents,"
    text = (
        f"{budget(entry_name, arguments, recipe, dataset, epochs, data, seeds)} "
        f"In the picture: {drawn} of seed {seed}."
    )
    return write(out, title, text, header, list(cells.values()), picture)


def base_entry(name, arguments=None, recipe=None):
    """What runs of an experiment are variants of: an untrained entry, of one phase.

    Args:
        name: of the zoo's entry.
        arguments, recipe: dicts of what differs in its model and recipe, or `None`.
    """
    return _changed(registry.describe(name), "default", arguments or {}, recipe or {})


def train_variant(entry, variant, *, out, dataset, epochs, seed, verbose):
    """Train a variant of a `base_entry`, or take up the run that is there; the model.

    Runs are in folders by entry and what differs from it, so that experiments share
    those in common.
    """
    differing = _differing(variant.arguments, entry.model.arguments)
    differing |= _differing(variant.recipe, entry.training.model_dump())
    name = _slug(" ".join(f"{k} {v}" for k, v in differing.items())) or "default"
    entry = _changed(entry, name, variant.arguments, variant.recipe)
    return train(
        entry,
        out=Path(out) / "runs" / dataset / entry.name / f"seed_{seed}",
        dataset=dataset,
        epochs=epochs,
        seed=seed,
        resume=True,
        verbose=verbose,
    )


def train_variants(entry, variant, *, seeds, **options):
    """A list of models of `train_variant`, one a seed."""
    return [train_variant(entry, variant, seed=seed, **options) for seed in seeds]


def short_recipe(dataset, epochs, *, batch_size, kl_warmup, ema_momentum):
    """What differs in a recipe for runs of few epochs, in which latents stay in use.

    Args:
        dataset: name of the dataset.
        epochs: int.
        batch_size: int.
        kl_warmup: float, the part of the steps in which the KL weight rises to 1.
        ema_momentum: float, of the moving average of the weights.

    Returns:
        A dict of keys of a recipe.
    """
    steps = epochs * steps_per_epoch(dataset, batch_size)
    return {
        "optimizer": "adam",
        "learning_rate": 0.003,
        "learning_rate_warmup_steps": min(100, steps // 4),
        "learning_rate_decay": {"schedule": "linear"},
        "beta_1": 0.9,
        "beta_2": 0.99,
        "epsilon": 1e-7,
        "gradient_clip": {"by": "global_norm", "limit": 0.5, "unit": "per_dim"},
        "kl_warmup_steps": int(kl_warmup * steps),
        "kl_warmup_start": 0.02,
        "ema_momentum": ema_momentum,
        "split": "train",
        "batch_size": batch_size,
        "precision": "float32",
    }


def steps_per_epoch(dataset, batch_size):
    """Steps of an epoch of a dataset's training images."""
    return -(-datasets.info(dataset).splits["train"] // batch_size)


def changes(*dicts):
    """Words for what differs: ", key value" for each item of dicts or `None`."""
    return "".join(
        f", {key} {value}" for items in dicts for key, value in (items or {}).items()
    )


def of_the_zoo(entry):
    """The zoo's model of an entry that has weights, and a sentence that says which."""
    digest = entry.weights.sha256[:8]
    note = f"The zoo's weights of `{entry.name}` (SHA-256 {digest}...)."
    return registry.load(entry.name), note


def estimate(values):
    """Mean and standard error of `values`, `[seeds, images]`.

    The error counts the images and, where there are several, the training seeds:
    `var(means of images) / images + var(means of seeds) / seeds`, a little too much, as
    what is neither's alone is in both.
    """
    num_seeds, num_images = values.shape
    variance = math.nan
    if num_images > 1:
        variance = values.mean(axis=0).var(ddof=1) / num_images
    if num_seeds > 1:
        variance += values.mean(axis=1).var(ddof=1) / num_seeds
    return float(values.mean()), math.sqrt(variance)


def test_images(dataset, num):
    """The first `num` test images of a dataset, uint8."""
    data = datasets.load_dataset(dataset, "test", batch_size=100)
    parts = [batch.numpy() for batch in data.take(-(-num // 100))]
    return np.concatenate(parts)[:num]


def num_parameters(model):
    """A cell: the number of a model's trainable parameters."""
    count = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    return f"{count:,}"


def receptive_field(model):
    """A cell: the number of pixels that the decoder sees when it draws one."""
    return f"{evaluation.receptive_field(model).sum()} pixels"


def measure(models, data, num_importance_samples, seed):
    """What models make of the same images, of one noise.

    Args:
        models: list of models.
        data: uint8 images.
        num_importance_samples: int, K of the bound.
        seed: int.

    Returns:
        dict of "elbo", "kl" and "bound" (log-likelihoods) to nats, float64
        `[models, images]`.
    """
    rows = {"elbo": [], "kl": [], "bound": []}
    for model in models:
        terms = model.elbo_terms(data, seed=seed)
        rows["elbo"].append(terms["elbo"])
        rows["kl"].append(terms["kl"])
        rows["bound"].append(
            model.log_likelihood(
                data, num_importance_samples=num_importance_samples, seed=seed
            )
        )
    return {name: np.asarray(values, np.float64) for name, values in rows.items()}


def cell(values, *, sign="", digits=2):
    """A cell: mean and standard error of `values`, `[seeds, images]` or `[images]`."""
    mean, error = estimate(np.atleast_2d(values))
    return f"{mean:{sign}.{digits}f} ± {error:.{digits}f}"


def budget(entry_name, arguments, recipe, dataset, epochs, data, seeds):
    """Words for what was trained, on what, and what the bounds are of.

    Args:
        entry_name, arguments, recipe, dataset, epochs: as of `compare`.
        data: the test images.
        seeds: range of the training seeds.
    """
    return (
        f"Epochs of `{dataset}` each: {epochs}, by the recipe of `{entry_name}`"
        f"{changes(arguments, recipe)}; {runs(seeds)}. Bounds on the first "
        f"{len(data):,} test images, which all models score with the same noise; "
        f"differences are paired, image by image. {errors(seeds)}"
    )


def runs(seeds):
    """Words for how many runs a model has."""
    if len(seeds) == 1:
        return f"trained once, with seed {seeds[0]}"
    return f"trained {len(seeds)} times, with seeds {seeds[0]} to {seeds[-1]}"


def errors(seeds):
    """Words for what standard errors are over."""
    if len(seeds) == 1:
        return (
            "Standard errors are over images alone: what another training seed would "
            "change is not in them."
        )
    return f"Standard errors are over images and over the {len(seeds)} training seeds."


def write(out, title, text, header, rows, picture):
    """Write `<title>.md`, a text and a table, and `<title>.png`; the table's path.

    Below the text stands where the figures come from.
    """
    name = _slug(title)
    plots.save_picture(Path(out) / f"{name}.png", picture)
    path = Path(out) / f"{name}.md"
    commit = provenance.commit()
    source = (
        f"Printed by `{provenance.command()}`"
        + (f" at commit {commit}" if commit else "")
        + f", {datetime.date.today()}, {provenance.hardware()}."
    )
    content = (
        f"# {title}\n\n{text}\n\n{source}\n\n{plots.markdown_table(header, rows)}\n"
        f"![{title}]({name}.png)\n"
    )
    with atomic_path(path) as temporary:
        Path(temporary).write_text(content, encoding="utf-8")
    return path


def _slug(text):
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _differing(values, base):
    return {k: v for k, v in values.items() if k not in base or base[k] != v}


def _changed(entry, suffix, arguments, recipe):
    """An untrained entry of no paper: `entry` with other arguments and recipe keys."""
    content = entry.model_dump() | {
        "name": f"{entry.name.removesuffix('_default')}_{suffix}",
        "weights": None,
        "measured": [],
        "status": "untrained",
        "paper": None,
    }
    content["model"]["arguments"] |= arguments
    # What is compared is trained in one phase, the last, of `epochs`.
    last = entry.phases[-1].model_dump() | {"max_steps": None}
    content["training"] = last | recipe
    return type(entry).model_validate(content)


def _unit(model):
    """The unit of bounds, as papers have it, and its function from log-likelihoods."""
    if model.levels == 2:
        return "nats", lambda nats: -nats
    return "bits/dim", lambda nats: units.bits_per_dim(nats, model.num_dims)
