"""Looking at the zoo, and what of it is kept here: `list`, `describe`, `cache`."""

import click

from vaezoo.cli import common


@click.command("list")
@click.argument("pattern", default="*")
@click.option("--dataset", help="Only models of this dataset.")
@click.option("--trained", is_flag=True, help="Only models whose weights are here.")
@common.json_option
def list_command(pattern, dataset, trained, as_json):
    """List the models whose names match PATTERN, with their measured bounds.

    PATTERN is a part of a name, or has shell wildcards: `vaezoo list pixel`,
    `vaezoo list "*_mnist_*"`.
    """
    from vaezoo.zoo import cards, registry

    has_wildcards = any(character in pattern for character in "*?[")
    names = registry.list_models(
        pattern if has_wildcards else f"*{pattern}*",
        dataset=dataset,
        trained=trained or None,
    )
    found = [registry.describe(name) for name in names]
    if as_json:
        common.echo_json(
            [
                {
                    "name": entry.name,
                    "model": entry.model.class_name,
                    "dataset": entry.dataset,
                    "status": entry.status,
                    "measured": [m.model_dump(mode="json") for m in entry.measured],
                }
                for entry in found
            ]
        )
        return
    for entry in found:
        bounds = cards.bounds(entry).replace("<br>", ", ")
        click.echo(f"{entry.name:<32} {entry.status:<12} {bounds}")
    if not found:
        click.echo(f"No model matches {pattern!r}. `vaezoo list` shows them all.")


@click.command()
@common.name_argument
@common.json_option
def describe(name, as_json):
    """Show the card of NAME: architecture, numbers, recipe, weights and notes."""
    from vaezoo.zoo import cards, registry

    entry = registry.describe(name)
    if as_json:
        common.echo_json(entry.model_dump(mode="json", by_alias=True))
    else:
        click.echo(cards.card(entry))


@click.command()
@click.option("--clear", is_flag=True, help="Remove the programs.")
def cache(clear):
    """Show the folder of compiled programs, and how large it is.

    What `sample`, `reconstruct`, `complete` and `interpolate` have compiled is kept for
    the next time, for each model and size of batch, and removed when it has not been
    used for 30 days.
    """
    from vaezoo.serving import programs

    folder = programs.programs_folder()
    if clear:
        click.echo(f"Removed {programs.clear() / 1e6:.1f} MB from {folder}")
    else:
        click.echo(f"{folder}: {programs.num_bytes(folder) / 1e6:.1f} MB")
