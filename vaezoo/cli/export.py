"""Writing a SavedModel: `export`."""

from pathlib import Path

import click

from vaezoo.cli import common


@click.command()
@common.name_argument
@click.argument("directory")
@click.option(
    "--version", help="Default: the highest in DIRECTORY + 1.", type=common.COUNT
)
@click.option(
    "--num-importance-samples",
    "-k",
    type=common.COUNT,
    default=16,
    help="K of the bound that `log_likelihood` gives.",
)
@click.option(
    "--max-batch-size",
    type=common.COUNT,
    default=1024,
    help="Rows that a request may have.",
)
@click.option("--signatures", help="Comma-separated; default: all.")
@common.sampling_options
@click.option("--jit", is_flag=True, help="Compile the samplers with XLA.")
def export(
    name,
    directory,
    version,
    num_importance_samples,
    max_batch_size,
    signatures,
    options,
    jit,
):
    """Write NAME as a SavedModel, DIRECTORY/VERSION, that TF Serving serves."""
    from vaezoo.zoo import registry

    registry.find_weights(name)
    common.import_tensorflow()
    from vaezoo.serving import saved_model

    model = registry.load(name)
    if version is None:
        version = saved_model.next_version(directory)
    path = saved_model.export(
        model,
        Path(directory) / str(version),
        num_importance_samples=num_importance_samples,
        max_batch_size=max_batch_size,
        signatures=signatures.split(",") if signatures else None,
        jit=jit,
        sampling_options=options,
    )
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    click.echo(f"Wrote {path} ({size / 1e6:.1f} MB)")
