"""The command line: one command for each thing that is done with a model."""

import contextlib
import errno
import math
import os
import sys
import warnings
from pathlib import Path

import click

import vaezoo
from vaezoo import strategies
from vaezoo.files import local_path


@contextlib.contextmanager
def _clear_errors():
    """Show errors of the library as one message, without a traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if getattr(error, "errno", None) == errno.EPIPE:
            raise  # the reader of a pipe has left, which click handles
        notes = getattr(error, "__notes__", [])
        raise click.ClickException("\n".join([str(error), *notes])) from error


def _show_warning(message, *_, **__):
    click.echo(f"Warning: {message}", err=True)


class _Group(click.Group):
    def invoke(self, ctx):
        with warnings.catch_warnings(), _clear_errors():
            warnings.showwarning = _show_warning
            return super().invoke(ctx)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(vaezoo.__version__)
def main():
    """vaezoo: variational autoencoders with autoregressive decoders.

    NAME is a model of `vaezoo list`, or a folder written by `vaezoo train`.
    """


def _import_tensorflow():
    """Import TensorFlow without its messages, unless the user has set their level."""
    if "tensorflow" in sys.modules or "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    # Some are written before TensorFlow reads the level.
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        import tensorflow  # noqa: F401
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


_KL_DRAWS = 16  # draws that an image's code length is averaged over


def _positive(default=None):
    return {"type": click.IntRange(min=1), "default": default, "show_default": True}


@main.command("list")
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


@main.command()
@click.argument("name")
def describe(name):
    """Show the card of NAME: architecture, numbers, recipe, weights and notes."""
    from vaezoo.zoo import cards, registry

    click.echo(cards.card(registry.describe(name)))


def _writable_target(output):
    """Refuse an output that cannot be written before anything slow happens."""
    path = local_path(output, name="output")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The output's folder must be there. Received: {output!r}. Create it first."
        )
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise PermissionError(
            f"The output must be a file that can be written. Received: {output!r}. "
            "Give another file, or a folder that you may write to."
        )


def _dataset_options(dataset, model):
    """What an image folder has to be read as, for the model."""
    if not dataset.startswith("image_folder:"):
        return {}
    *size, channels = model.image_shape
    return {"size": size, "channels": channels, "levels": model.levels}


@main.command()
@click.argument("name")
@click.option("--num", help="Number of images.", **_positive(16))
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--temperature", type=float, default=1.0, show_default=True)
@click.option("--output", default="samples.png", show_default=True, help="A PNG file.")
@click.option(
    "--server", metavar="HOST:PORT", help="Ask a TensorFlow Serving server's gRPC port."
)
def sample(name, num, seed, temperature, output, server):
    """Draw images from NAME into a grid."""
    _writable_target(output)
    from vaezoo.zoo import registry

    entry = registry.describe(name)
    _import_tensorflow()
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


@main.command()
@click.argument("name")
@click.option("--num", help="Number of images, the split's first.", **_positive(8))
@click.option("--draws", help="Reconstructions of each image.", **_positive(3))
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--output", default="reconstructions.png", show_default=True, help="A PNG file."
)
def reconstruct(name, num, draws, seed, output):
    """Encode images of NAME's evaluation split and draw them again.

    This is lossy compression and decompression: the first row holds the images, the
    rows below draws of x' ~ p(x | z), z ~ q(z | x), each from noise of its own. The
    length of a code is its KL divergence from the prior, what bits-back coding
    spends on it.
    """
    _writable_target(output)
    from vaezoo.zoo import registry

    entry = registry.describe(name)
    _import_tensorflow()
    import numpy as np

    from vaezoo import datasets, plots

    model = registry.load(name)
    if not model.latent_shapes:
        raise ValueError(
            f"A model must have latents to reconstruct images. Received: {name!r}, "
            "which has none. Draw from it: `vaezoo sample`."
        )
    options = _dataset_options(entry.dataset, model)
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


@main.command()
@click.argument("name")
@click.option("--dataset", help="Another dataset than the entry's.")
@click.option("--split", help="Another split than the entry's.")
@click.option("--images", help="Only so many images, the first ones.", **_positive())
@click.option(
    "--num-importance-samples",
    "-k",
    help="K of the importance-weighted bound; without it, the ELBO only.",
    **_positive(),
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--batch-size", help="Images at once.", **_positive(32))
@click.option(
    "--write",
    type=click.Path(dir_okay=False, exists=True),
    help="Add the figures to this entry's YAML file.",
)
def evaluate(
    name,
    dataset,
    split,
    images,
    num_importance_samples,
    seed,
    batch_size,
    write,
):
    """Measure NAME: ELBO, its terms, active units, and the bound L_K."""
    from vaezoo.zoo import entries, registry

    entry = registry.describe(name)
    _import_tensorflow()
    from vaezoo import datasets, evaluation
    from vaezoo.zoo import provenance

    model = registry.load(name)
    if write:
        _check_same_weights(entry, entries.entry_from_file(write), write)
    dataset, split = dataset or entry.dataset, split or entry.evaluation.split
    options = _dataset_options(dataset, model)
    data = datasets.load_dataset(dataset, split, batch_size=batch_size, **options)
    count = datasets.info(dataset, **options).splits[split]
    count = min(count, images or count)
    click.echo(f"{name} on {count:,} images of {dataset}, split {split}", err=True)
    results = evaluation.evaluate(
        model,
        data,
        num_importance_samples=num_importance_samples,
        images=images,
        seed=seed,
        batch_size=batch_size,
        verbose=1 if sys.stderr.isatty() else 2,
    )
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
        click.echo(f"Wrote the figures into {write}")


def _check_same_weights(entry, other, path):
    """Refuse to write figures of one file of weights beside another."""
    if (entry.name, entry.weights) != (other.name, other.weights):
        raise ValueError(
            f"Figures must be written to the entry that was measured. Received: "
            f"{path!r}, of {other.name!r} with other weights or another name than "
            f"{entry.name!r}. Give the file that `vaezoo describe` reads."
        )


@main.command()
@click.argument("name")
@click.option("--out", required=True, help="Folder of the run.")
@click.option("--dataset", help="Another dataset than the entry's.")
@click.option("--epochs", help="Another number than the recipe's.", **_positive())
@click.option("--max-steps", help="End after so many, schedules too.", **_positive())
@click.option(
    "--init",
    metavar="none|zoo|PATH",
    default="none",
    show_default=True,
    help="From scratch; from the entry's trained weights; or from those of another "
    "run's folder, a file or another model.",
)
@click.option(
    "--set",
    "changes",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change the recipe: training.learning_rate=0.003, or of one of several "
    "phases training.PHASE.learning_rate=0.003. Repeatable.",
)
@click.option("--seed", type=int, help="Another seed than the recipe's.")
@click.option(
    "--strategy",
    type=click.Choice(strategies.NAMES),
    default="none",
    show_default=True,
    help="Several devices, or the machines of TF_CONFIG.",
)
@click.option("--devices", help="Of mirrored: GPUs, or logical CPUs.", **_positive())
@click.option(
    "--local-workers",
    help="Of multi_worker: start so many on this machine, without TF_CONFIG.",
    **_positive(),
)
@click.option("--precision", type=click.Choice(["float32", "mixed_bfloat16"]))
@click.option(
    "--gradient-accumulation-steps",
    help="Parts of a batch that are computed one after the other.",
    **_positive(1),
)
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
@click.option(
    "--more-epochs",
    help="With --resume: go on with a run that has ended.",
    **_positive(),
)
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Save every so many minutes, besides at the ends of epochs.",
)
@click.option("--profile", is_flag=True, help="Say where ten steps' time went.")
def train(name, local_workers, resume, profile, strategy, changes, **options):
    """Train NAME into a folder that `vaezoo.load` takes."""
    from vaezoo.training.run import train as run_training
    from vaezoo.zoo import registry

    registry.describe(name)
    if strategy == "multi_worker" and not local_workers:
        strategies.check_cluster(os.environ.get("TF_CONFIG"))
    if local_workers:
        if strategy != "multi_worker":
            raise click.UsageError("--local-workers goes with --strategy multi_worker.")
        command = [sys.executable, "-m", "vaezoo", "train", name]
        for key, value in (options | {"strategy": strategy}).items():
            if value is not None:
                command.append(f"--{key.replace('_', '-')}={value}")
        command += [f"--set={change}" for change in changes]
        command += ["--resume"] * resume + ["--profile"] * profile
        strategies.launch(command, local_workers)
        return
    _import_tensorflow()
    from vaezoo.zoo import registry

    model = run_training(
        name,
        strategy=strategy,
        resume=resume,
        profile=profile,
        changes=_changes(changes),
        **options,
    )
    if strategies.is_chief(model.distribute_strategy):
        out = options["out"]
        click.echo(f"Wrote {out}: vaezoo.load({out!r}) takes it")


def _changes(texts):
    """A dict of KEY to value, of texts KEY=VALUE whose values are YAML."""
    import yaml

    changes = {}
    for text in texts:
        key, is_there, value = text.partition("=")
        try:
            changes[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            is_there = ""
        if not is_there:
            raise click.UsageError(
                "--set takes KEY=VALUE, the value in YAML, such as "
                f"training.learning_rate=0.003. Received: {text!r}."
            )
    return changes


@main.command()
@click.argument("run")
@click.option("--name", help="Another entry than the one that was trained.")
@click.option(
    "--status",
    type=click.Choice(["partial", "reproduced"]),
    default="partial",
    show_default=True,
)
def install(run, name, status):
    """Make the weights of the folder RUN those of the zoo's entry (maintainers).

    They are stored as float16 in the package, with the run's history and recipe; the
    entry's measurements go, as they were of other weights. Measure with `evaluate`.
    """
    _import_tensorflow()
    from vaezoo.zoo.install import install as install_run

    path = install_run(run, name=name, status=status)
    click.echo(f"Wrote {path.name} and its history into the entry")


@main.command()
@click.argument("name")
@click.argument("directory")
@click.option("--version", help="Default: the highest in DIRECTORY + 1.", **_positive())
@click.option("--num-importance-samples", "-k", **_positive(16))
@click.option("--max-batch-size", **_positive(1024))
@click.option("--signatures", help="Comma-separated; default: all.")
@click.option("--jit", is_flag=True, help="Compile the samplers with XLA.")
def export(
    name,
    directory,
    version,
    num_importance_samples,
    max_batch_size,
    signatures,
    jit,
):
    """Write NAME as a SavedModel, DIRECTORY/VERSION, that TF Serving serves."""
    from vaezoo.zoo import registry

    registry.describe(name)
    _import_tensorflow()
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
    )
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    click.echo(f"Wrote {path} ({size / 1e6:.1f} MB)")


@main.command()
@click.argument("experiment", metavar="PAPER/FIGURE")
@click.option("--out", required=True, help="Folder of the runs, table and picture.")
@click.option("--dataset", help="Another dataset than the experiment's.")
@click.option("--epochs", help="Of each run; default: the experiment's.", **_positive())
@click.option("--images", help="Test images measured.", **_positive())
@click.option("--num-importance-samples", "-k", **_positive())
@click.option("--num-seeds", help="Training runs of each model.", **_positive())
@click.option("--seed", type=int, default=0, show_default=True)
def reproduce(experiment, out, **options):
    """Run an experiment of a paper again, at a stated budget.

    Trains what the experiment compares, measures it, and writes a table and a
    picture. Interrupted, the same command continues.
    """
    from vaezoo import experiments

    if experiment not in experiments.list_experiments():
        experiments.reproduce(experiment, out=out)  # raises the error that says more
    _import_tensorflow()
    path = experiments.reproduce(experiment, out=out, **options)
    click.echo(path.read_text())
    click.echo(f"Wrote {path}")


if __name__ == "__main__":
    main()
