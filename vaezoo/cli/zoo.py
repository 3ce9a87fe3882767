"""Looking at the zoo: `list` and `describe`."""

import click

from vaezoo.cli import common


@click.command("list")
@click.argument("pattern", default="*")
@click.option("--dataset", help="Only models of this dataset.")
@click.option("--trained", is_flag=True, help="Only models whose weights are here.")
def list_command(pattern, dataset, trained):
    """List the models whose names match PATTERN, with their measured bounds."""
    from vaezoo.zoo import cards, registry

    names = registry.list_models(pattern, dataset=dataset, trained=trained or None)
    for name in names:
        entry = registry.describe(name)
        bounds = cards.bounds(entry).replace("<br>", ", ")
        click.echo(f"{name:<32} {entry.status:<12} {bounds}")
    if not names:
        click.echo(f"No model matches {pattern!r}. `vaezoo list` shows them all.")


@click.command()
@common.name_argument
def describe(name):
    """Show the card of NAME: architecture, numbers, recipe, weights and notes."""
    from vaezoo.zoo import cards, registry

    click.echo(cards.card(registry.describe(name)))
