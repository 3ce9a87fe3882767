"""Commands that draw: `sample`, `reconstruct`, `complete` and `interpolate`."""

import math
import shutil
import tempfile
from pathlib import Path

import click
import numpy as np

from vaezoo import checks, plots, sampling, terminal
from vaezoo.cli import common

_KL_DRAWS = 16  # draws that an image's code length is averaged over
_GREY = 128  # a pixel that nobody knows yet

_seed = click.option("--seed", type=int, default=0, help="Of all that is random.")
_batch_size = click.option(
    "--batch-size",
    type=common.COUNT,
    default=64,
    help="Images at once: memory grows with it.",
)
_image = click.option(
    "--image",
    "files",
    multiple=True,
    type=click.Path(dir_okay=False, exists=True),
    help="A PNG or JPEG file in place of the test images, cropped and resized to the "
    "model's size; for a model of binary images 1 where it is light. Repeatable.",
)


def _output(default):
    return click.option(
        "--output",
        default=default,
        type=click.Path(),
        help="A .png or .jpg file.",
    )


@click.command()
@common.name_argument
@click.option("--num", type=common.COUNT, default=16, help="Number of images.")
@_seed
@click.option(
    "--temperature",
    type=float,
    default=1.0,
    help="Below 1 the likelier images, above 1 the stranger ones; 1 is the model.",
)
@common.sampling_options
@_batch_size
@_output("samples.png")
@click.option(
    "--server", metavar="HOST:PORT", help="Ask a TensorFlow Serving server's gRPC port."
)
def sample(name, num, seed, temperature, options, batch_size, output, server):
    """Draw images from NAME into a grid."""
    common.check_writable(output)
    if server and options:
        raise click.UsageError("--option is fixed by the export that --server serves.")
    if server:
        images, levels = _sample_at(server, name, num, seed, temperature)
    else:
        programs = common.open_programs(name)
        common.note(f"Drawing {num} images from {name} ...")
        temperatures = checks.temperatures(temperature, num)
        inputs = {"seed": sampling.row_seeds(seed, num), "temperature": temperatures}
        images = _draw(programs, "sample", batch_size, inputs, options=options)
        levels = programs.levels
    plots.save_picture(output, plots.image_grid(images, levels=levels))
    click.echo(f"Wrote {output}")


def _sample_at(server, name, num, seed, temperature):
    from vaezoo.serving.client import Client
    from vaezoo.zoo import registry

    with Client(server, registry.describe(name).name) as client:
        common.import_tensorflow()
        common.note(f"Drawing {num} images from {name} at {server} ...")
        images = client.sample(num, seed=seed, temperature=temperature)
    return images, 2 if images.max() < 2 else 256  # a server does not say


@click.command()
@common.name_argument
@click.option(
    "--num", type=common.COUNT, default=8, help="Number of images, the split's first."
)
@click.option(
    "--draws", type=common.COUNT, default=3, help="Reconstructions of each image."
)
@_image
@_seed
@_batch_size
@_output("reconstructions.png")
def reconstruct(name, num, draws, files, seed, batch_size, output):
    """Encode images of NAME's evaluation split and draw them again.

    This is lossy compression and decompression: the first row holds the images, the
    rows below draws of x' ~ p(x | z), z ~ q(z | x), each from noise of its own. The
    length of a code is its KL divergence from the prior, what bits-back coding
    spends on it.
    """
    common.check_writable(output)
    programs = common.open_programs(name)
    _check_latents(programs, name, "reconstruct images")
    images = _images(programs, files, num)
    num = len(images)
    common.note(f"Drawing {draws} reconstructions of {num} images from {name} ...")
    inputs = {
        "images": np.concatenate([images] * draws),
        "seed": _seeds_of_draws(seed, num, draws),
    }
    drawn = _draw(programs, "reconstruct", batch_size, inputs)
    grid = plots.image_grid(
        np.concatenate([images, drawn]),
        columns=num,
        levels=programs.levels,
        labels=["images", *_numbered("draw", draws)],
    )
    plots.save_picture(output, grid)
    click.echo(f"Wrote {output}: the images above, {draws} draws of each below")
    # A flow's KL term is estimated at a draw, so one image's is an average.
    inputs = {
        "images": np.concatenate([images] * _KL_DRAWS),
        "seed": _seeds_of_draws(seed, num, _KL_DRAWS),
    }
    terms = programs.run("elbo_terms", batch_size=batch_size, **inputs)
    nats = terms["kl"].reshape(_KL_DRAWS, num).mean(axis=0)
    each = ", ".join(f"{value:.1f}" for value in nats)
    click.echo(
        f"Code length of these images: {nats.mean():.2f} nats, "
        f"{nats.mean() / math.log(2):.2f} bits on average ({each} nats)"
    )


@click.command()
@common.name_argument
@click.option(
    "--num", type=common.COUNT, default=8, help="Number of images, the split's first."
)
@click.option(
    "--draws", type=common.COUNT, default=3, help="Completions of each image."
)
@click.option(
    "--missing",
    type=click.Choice(["bottom", "top", "left", "right", "middle"]),
    default="bottom",
    help="The half of the pixels, or the square in the middle, that is filled in.",
)
@_image
@click.option(
    "--mask",
    type=click.Path(dir_okay=False, exists=True),
    help="A PNG or JPEG file, light where pixels are to be filled in; in place of "
    "--missing, cropped and resized as an image.",
)
@_seed
@_batch_size
@_output("completions.png")
def complete(name, num, draws, missing, files, mask, seed, batch_size, output):
    """Fill in the missing part of images of NAME's evaluation split.

    The rows hold the images, the part of them that the model sees (the missing pixels
    grey), and its completions, each from noise of its own. Completing is approximate
    for a model with latents.
    """
    common.check_writable(output)
    programs = common.open_programs(name)
    height, width, _ = programs.image_shape
    if mask:
        (mask,) = _read([mask], (height, width, 1), levels=2)
        if not mask.any():
            raise ValueError(
                "A mask must be light, 128 or more, where pixels are to be filled in. "
                "Received: --mask, dark everywhere. Paint the missing part white."
            )
    else:
        mask = _mask(missing, height, width)
    images = _images(programs, files, num)
    num = len(images)
    common.note(f"Completing {num} images, {draws} times each, by {name} ...")
    inputs = {
        "images": np.concatenate([images] * draws),
        "mask": np.stack([mask] * num * draws),
        "seed": _seeds_of_draws(seed, num, draws),
    }
    drawn = _draw(programs, "complete", batch_size, inputs)
    shown = plots.to_bytes(np.concatenate([images, images, drawn]), programs.levels)
    shown[num : 2 * num] = np.where(mask, _GREY, shown[num : 2 * num])
    labels = ["images", "seen", *_numbered("filled", draws)]
    grid = plots.image_grid(shown, columns=num, labels=labels)
    plots.save_picture(output, grid)
    click.echo(f"Wrote {output}: the images, what is seen of them, {draws} completions")


@click.command()
@common.name_argument
@click.option("--num", type=common.COUNT, default=4, help="Number of pairs.")
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    default=8,
    help="Images from one end to the other.",
)
@_image
@_seed
@_batch_size
@_output("interpolations.png")
def interpolate(name, num, steps, files, seed, batch_size, output):
    """Draw images between pairs of images of NAME's evaluation split.

    A row shows an image, draws of p(x | z) for codes z on the way from its code to that
    of another, and that other image. The draws of a row share their noise, so that what
    changes is the code. The way is an arc, along which a code stays as likely under a
    normal prior as its ends are; of a binary code, one bit that differs after another.
    """
    common.check_writable(output)
    if len(files) % 2:
        raise click.UsageError("--image is given for both ends of each pair.")
    programs = common.open_programs(name)
    _check_latents(programs, name, "interpolate")
    images = _images(programs, files, 2 * num)
    num = len(images) // 2
    if not num:
        raise ValueError("A pair takes two images. Received: a split of one.")
    common.note(f"Drawing {steps} images between each of {num} pairs by {name} ...")
    first, last = images[: 2 * num : 2], images[1 : 2 * num : 2]
    codes = [
        programs.run(
            "encode",
            batch_size=batch_size,
            images=ends,
            seed=sampling.row_seeds(seed, num),
        )
        for ends in (first, last)
    ]
    fractions = np.linspace(0, 1, steps)
    inputs = {
        key: np.concatenate(
            (flips if key in programs.binary_latents else arcs)(
                codes[0][key], codes[1][key], fractions
            )
        )
        for key in programs.latent_shapes
    }
    inputs["seed"] = np.repeat(sampling.row_seeds(seed, num), steps)
    drawn = _draw(programs, "decode", batch_size, inputs)
    drawn = drawn.reshape(num, steps, *programs.image_shape)
    rows = np.concatenate([first[:, None], drawn, last[:, None]], axis=1)
    grid = plots.image_grid(
        rows.reshape(-1, *programs.image_shape),
        columns=steps + 2,
        levels=programs.levels,
        labels=_numbered("pair", num),
    )
    plots.save_picture(output, grid)
    click.echo(f"Wrote {output}: a row a pair, an image at each end")


def arcs(first, last, fractions):
    """Codes on the way, one array `[steps, ...]` for each row of `first` and `last`."""
    arcs = []
    for a, b in zip(first, last, strict=True):
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        cosine = np.clip(np.sum(a * b) / max(norms, 1e-12), -1, 1)
        angle = np.arccos(cosine)
        t = fractions.reshape(-1, *[1] * a.ndim)
        if np.sin(angle) < 1e-3:  # in line: the arc is the straight way
            arc = (1 - t) * a + t * b
        else:
            arc = np.sin((1 - t) * angle) * a + np.sin(t * angle) * b
            arc = arc / np.sin(angle)
        arcs.append(arc.astype(np.float32))
    return arcs


def flips(first, last, fractions):
    """As `arcs`, of codes of 0 and 1: a share of the bits that differ is the last's."""
    ways = []
    for a, b in zip(first, last, strict=True):
        differ = np.random.default_rng(0).permutation(np.flatnonzero(a != b))
        way = np.stack([a] * len(fractions)).reshape(len(fractions), -1)
        for code, fraction in zip(way, fractions, strict=True):
            flipped = differ[: round(fraction * len(differ))]
            code[flipped] = b.ravel()[flipped]
        ways.append(way.reshape(-1, *a.shape))
    return ways


def _draw(programs, function, batch_size, inputs, *, options=None):
    """The images of a function, with progress where there are several batches."""
    total = len(inputs["seed"])
    show = terminal.Progress(total).update if total > batch_size else lambda done: None
    outputs = programs.run(
        function, batch_size=batch_size, progress=show, options=options, **inputs
    )
    return outputs["images"]


def _check_latents(programs, name, purpose):
    if not programs.latent_shapes:
        raise ValueError(
            f"A model must have latents to {purpose}. Received: {name!r}, "
            "which has none. Draw from it: `vaezoo sample`."
        )


def _seeds_of_draws(seed, num, draws):
    """Seeds of `draws` times `num` rows; draw i is what the seed + i gives alone."""
    return np.concatenate([sampling.row_seeds(seed + i, num) for i in range(draws)])


def _numbered(what, num):
    return [f"{what} {i}" for i in range(1, num + 1)]


def _mask(missing, height, width):
    """A mask uint8 `[height, width, 1]` of 1 where pixels are to be filled in."""
    rows, columns = {
        "bottom": (slice(height // 2, None), slice(None)),
        "top": (slice(height // 2), slice(None)),
        "left": (slice(None), slice(width // 2)),
        "right": (slice(None), slice(width // 2, None)),
        "middle": (
            slice(height // 4, height - height // 4),
            slice(width // 4, width - width // 4),
        ),
    }[missing]
    mask = np.zeros([height, width, 1], np.uint8)
    mask[rows, columns] = 1
    return mask


def _images(programs, files, num):
    """The user's images, or the first of the entry's evaluation split."""
    from vaezoo import datasets

    shape, levels = programs.image_shape, programs.levels
    if files:
        return _read(files, shape, levels=levels)
    entry = programs.entry
    options = common.dataset_options(entry.dataset, image_shape=shape, levels=levels)
    split = entry.evaluation.split
    data = datasets.load_dataset(entry.dataset, split, batch_size=num, **options)
    return next(iter(data)).numpy()


def _read(files, image_shape, *, levels):
    """Files as images of the model's size, by the protocol of image folders."""
    from vaezoo import datasets

    with tempfile.TemporaryDirectory() as folder:
        for index, file in enumerate(map(Path, files)):
            shutil.copyfile(file, Path(folder) / f"{index:06d}-{file.name}")
        name = f"image_folder:{folder}"
        options = common.dataset_options(name, image_shape=image_shape, levels=levels)
        data = datasets.load_dataset(name, "train", batch_size=len(files), **options)
        return next(iter(data)).numpy()
