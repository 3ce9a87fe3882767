"""Commands that draw: `sample` and `reconstruct`."""

import math

import click

from vaezoo.cli import common

_KL_DRAWS = 16  # draws that an image's code length is averaged over


@click.command()
@click.argument("name")
@click.option("--num", help="Number of images.", type=common.COUNT, default=16)
@click.option("--seed", type=int, default=0)
@click.option("--temperature", type=float, default=1.0)
@click.option("--output", default="samples.png", help="A PNG file.")
@click.option(
    "--server", metavar="HOST:PORT", help="Ask a TensorFlow Serving server's gRPC port."
)
def sample(name, num, seed, temperature, output, server):
    """Draw images from NAME into a grid."""
    common.check_writable(output)
    from vaezoo.zoo import registry

    entry = registry.describe(name)
    common.import_tensorflow()
    from vaezoo import plots

    where = f" at {server}" if server else ""
    click.echo(f"Drawing {num} images from {name}{where} ...", err=True)
    if server:
        from vaezoo.serving.client import Client

        with Client(server, entry.name) as client:
            images = client.sample(num, seed=seed, temperature=temperature)
        levels = 2 if images.max() < 2 else 256  # a server does not say
    else:
        model = registry.load(name)
        levels = model.levels
        images = model.sample(num, seed=seed, temperature=temperature)
    plots.save_png(output, plots.image_grid(images, levels=levels))
    click.echo(f"Wrote {output}")


@click.command()
@click.argument("name")
@click.option(
    "--num", help="Number of images, the split's first.", type=common.COUNT, default=8
)
@click.option(
    "--draws", help="Reconstructions of each image.", type=common.COUNT, default=3
)
@click.option("--seed", type=int, default=0)
@click.option("--output", default="reconstructions.png", help="A PNG file.")
def reconstruct(name, num, draws, seed, output):
    """Encode images of NAME's evaluation split and draw them again.

    This is lossy compression and decompression: the first row holds the images, the
    rows below draws of x' ~ p(x | z), z ~ q(z | x), each from noise of its own. The
    length of a code is its KL divergence from the prior, what bits-back coding
    spends on it.
    """
    common.check_writable(output)
    from vaezoo.zoo import registry

    entry = registry.describe(name)
    common.import_tensorflow()
    import numpy as np

    from vaezoo import datasets, plots

    model = registry.load(name)
    if not model.latent_shapes:
        raise ValueError(
            f"A model must have latents to reconstruct images. Received: {name!r}, "
            "which has none. Draw from it: `vaezoo sample`."
        )
    options = common.dataset_options(entry.dataset, model)
    dataset = datasets.load_dataset(
        entry.dataset, entry.evaluation.split, batch_size=num, **options
    )
    images = next(iter(dataset)).numpy()
    rows = [images]
    rows += [model.reconstruct(images, seed=seed + draw) for draw in range(draws)]
    grid = plots.image_grid(
        np.concatenate(rows), columns=len(images), levels=model.levels
    )
    plots.save_png(output, grid)
    click.echo(f"Wrote {output}: the images above, {draws} draws of each below")
    # A flow's KL term is estimated at a draw, so one image's is an average.
    terms = [model.elbo_terms(images, seed=seed + i) for i in range(_KL_DRAWS)]
    nats = np.mean([part["kl"] for part in terms], axis=0)
    each = ", ".join(f"{value:.1f}" for value in nats)
    click.echo(
        f"Code length of these images: {nats.mean():.2f} nats, "
        f"{nats.mean() / math.log(2):.2f} bits on average ({each} nats)"
    )
