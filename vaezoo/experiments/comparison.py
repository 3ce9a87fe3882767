"""Training a few variants of one model on one budget, and comparing them."""

import math
import platform
import re
from pathlib import Path

import numpy as np

from vaezoo import datasets, evaluation, plots
from vaezoo.files import atomic_path
from vaezoo.training.run import train
from vaezoo.zoo import registry

_SHOWN = 10  # images in the picture


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
    seed,
    verbose,
    recipe=None,
    columns=None,
):
    """Train and measure variants of an entry, and write a table and a picture.

    Args:
        entry_name: a name of the zoo; its training recipe is everybody's.
        recipe: dict of what differs in that recipe, or `None`.
        variants: dict of label to the constructor arguments that differ.
        title: str, the table's heading. The files are named after it.
        out, dataset, epochs, images, num_importance_samples, seed, verbose: as of
            `vaezoo.experiments.reproduce`.
        columns: dict of heading to a function from a model to a cell, or `None`.

    Returns:
        The path of the table.
    """
    entry = registry.describe(entry_name)
    recipe = recipe or {}
    entry = entry.model_copy(
        update={"training": entry.training.model_copy(update=recipe)}
    )
    data = datasets.load_dataset(dataset, "test", batch_size=_SHOWN)
    shown = next(iter(data)).numpy()
    header = ["model", "parameters", *(columns or {})]
    header += ["-ELBO", "KL nats", "KL bits", f"-L_{num_importance_samples}"]
    rows, pictures, trained = [], [shown], {}
    for label, arguments in variants.items():
        # By its arguments, so that experiments share the runs they have in common.
        run = _slug(" ".join(f"{k} {v}" for k, v in arguments.items()) or "default")
        variant = _variant(entry, f"{entry.name}_{run}", arguments)
        model = train(
            variant,
            out=Path(out) / "runs" / dataset / run,
            dataset=dataset,
            epochs=epochs,
            seed=seed,
            resume=True,
            verbose=verbose,
        )
        trained[label] = model
        results = evaluation.evaluate(
            model,
            datasets.load_dataset(dataset, "test", batch_size=100),
            images=images,
            num_importance_samples=num_importance_samples,
            seed=seed,
            verbose=0 if verbose == 0 else "auto",
        )
        cells = [label, f"{_num_parameters(model):,}"]
        cells += [function(model) for function in (columns or {}).values()]
        rows.append([*cells, *_figures(results)])
        pictures.append(
            model.reconstruct(shown, seed=seed).numpy()
            if model.latent_shapes
            else model.sample(len(shown), seed=seed).numpy()
        )
    picture = plots.image_grid(np.concatenate(pictures), columns=len(shown), levels=2)
    changes = "".join(f", {key} {value}" for key, value in recipe.items())
    budget = (
        f"Epochs of `{dataset}` each: {epochs}, by the recipe of `{entry.name}`"
        f"{changes}; bounds in nats on the first {images:,} test images, with standard "
        f"errors; seed {seed}; {platform.machine()} CPU."
    )
    below = [
        f"{label} ({'decompressions' if model.latent_shapes else 'samples'})"
        for label, model in trained.items()
    ]
    text = f"{budget} Top row of the picture: test images. Below: {', '.join(below)}."
    return write(out, title, text, header, rows, picture)


def write(out, title, text, header, rows, picture):
    """Write `<title>.md`, a text and a table, and `<title>.png`; the table's path."""
    name = _slug(title)
    plots.save_png(Path(out) / f"{name}.png", picture)
    path = Path(out) / f"{name}.md"
    content = (
        f"# {title}\n\n{text}\n\n{plots.markdown_table(header, rows)}\n"
        f"![{title}]({name}.png)\n"
    )
    with atomic_path(path) as temporary:
        Path(temporary).write_text(content)
    return path


def _slug(text):
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _variant(entry, name, arguments):
    model = entry.model.model_copy(
        update={"arguments": entry.model.arguments | arguments}
    )
    update = {"name": name, "model": model, "weights": None, "measured": []}
    return entry.model_copy(update=update | {"status": "untrained", "paper": None})


def _num_parameters(model):
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def _figures(results):
    """-ELBO, KL in nats and bits, and the bound, as the table's cells."""

    def negative(name):
        value, error = results[name]
        return f"{-value:.2f} ± {error:.2f}"

    kl = results["kl"][0]
    bound = negative("log_likelihood")
    return [negative("elbo"), f"{kl:.2f}", f"{kl / math.log(2):.2f}", bound]
