"""Measuring a model: `evaluate`."""

import math

import click

from vaezoo.cli import common


@click.command()
@common.name_argument
@click.option("--dataset", help="Another dataset than the entry's.")
@click.option("--split", help="Another split than the entry's.")
@common.image_shape_option
@click.option(
    "--images", help="Only so many images, the first ones.", type=common.COUNT
)
@click.option(
    "--num-importance-samples",
    "-k",
    help="K of the importance-weighted bound; without it, the ELBO only.",
    type=common.COUNT,
)
@click.option("--seed", type=int, default=0, help="Of the latents' draws.")
@click.option("--batch-size", help="Images at once.", type=common.COUNT, default=32)
@click.option(
    "--write",
    type=click.Path(dir_okay=False, exists=True),
    help="Add the figures to this entry's YAML file.",
)
@common.json_option
def evaluate(
    name,
    dataset,
    split,
    image_shape,
    images,
    num_importance_samples,
    seed,
    batch_size,
    write,
    as_json,
):
    """Measure NAME: ELBO, its terms, active units, and the bound L_K."""
    from vaezoo.zoo import entries, registry

    entry = registry.describe(name)
    registry.find_weights(name)
    if write:
        _check_same_weights(entry, entries.entry_from_file(write), write)
    usual, dataset = entry.dataset, dataset or entry.dataset
    split = split or entry.evaluation.split
    common.check_dataset(dataset, split)
    common.import_tensorflow()
    from vaezoo import datasets, evaluation
    from vaezoo.zoo import provenance

    model = registry.load(name, image_shape=image_shape)
    options = common.dataset_options(
        dataset, image_shape=model.image_shape, levels=model.levels
    )
    data = datasets.load_dataset(dataset, split, batch_size=batch_size, **options)
    info = datasets.info(dataset, **options)
    count = sum(info.splits[part] for part in split.split("+"))
    count = min(count, images or count)
    common.note(f"{name} on {count:,} images of {dataset}, split {split}")
    if dataset != usual:
        common.note(f"{dataset}: {info.protocol}")
    results = evaluation.evaluate(
        model,
        data,
        num_importance_samples=num_importance_samples,
        images=images,
        seed=seed,
        batch_size=batch_size,
        verbose=1,
    )
    if as_json:
        common.echo_json(
            {
                "name": entry.name,
                "dataset": dataset,
                "split": split,
                "images": count,
                "seed": seed,
                "num_importance_samples": num_importance_samples,
                "results": {
                    metric: {
                        "value": value,
                        "standard_error": None if math.isnan(error) else error,
                    }
                    for metric, (value, error) in results.items()
                },
            }
        )
    else:
        click.echo(evaluation.table(model, results, num_importance_samples))
    if write:
        records = provenance.measurements(
            model,
            results,
            num_importance_samples=num_importance_samples,
            split=split,
            images=count,
            seed=seed,
        )
        for record in records:
            entries.append_measured(write, record)
        common.note(f"Wrote the figures into {write}")


def _check_same_weights(entry, other, path):
    """Refuse to write figures of one file of weights beside another."""
    if (entry.name, entry.weights) != (other.name, other.weights):
        raise ValueError(
            f"Figures must be written to the entry that was measured. Received: "
            f"{path!r}, of {other.name!r} with other weights or another name than "
            f"{entry.name!r}. Give the file that `vaezoo describe` reads."
        )
