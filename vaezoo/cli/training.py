"""Making weights: `train`, `install`, and the papers' experiments, `reproduce`."""

import os
import sys

import click

from vaezoo import strategies
from vaezoo.cli import common


@click.command()
@common.name_argument
@click.option("--out", required=True, help="Folder of the run.")
@click.option("--dataset", help="Another dataset than the entry's.")
@common.image_shape_option
@click.option("--epochs", help="Another number than the recipe's.", type=common.COUNT)
@click.option(
    "--max-steps", help="End after so many, schedules too.", type=common.COUNT
)
@click.option(
    "--init",
    metavar="none|zoo|PATH",
    default="none",
    help="From scratch; from the entry's trained weights; or from those of another "
    "run's folder, a file or another model, of whose weights those are kept that fit.",
)
@click.option(
    "--init-part",
    type=click.Choice(["all", "decoder"]),
    default="all",
    help="Of those weights the decoder's alone: the latents start anew.",
)
@click.option(
    "--init-decoder",
    metavar="zoo|PATH",
    help="Where the decoder's weights come from, if not from --init.",
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
    help="Several devices, or the machines of TF_CONFIG.",
)
@click.option(
    "--devices", help="Of mirrored: GPUs, or logical CPUs.", type=common.COUNT
)
@click.option(
    "--local-workers",
    help="Of multi_worker: start so many on this machine, without TF_CONFIG.",
    type=common.COUNT,
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "mixed_bfloat16"]),
    help="Of the computations; default: the recipe's.",
)
@click.option(
    "--gradient-accumulation-steps",
    help="Parts of a batch that are computed one after the other.",
    type=common.COUNT,
    default=1,
)
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
@click.option(
    "--more-epochs",
    help="With --resume: go on with a run that has ended.",
    type=common.COUNT,
)
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    help="Save every so many minutes, besides at the ends of epochs.",
)
@click.option("--profile", is_flag=True, help="Say where ten steps' time went.")
def train(name, local_workers, resume, profile, strategy, changes, **options):
    """Train NAME into a folder that `vaezoo.load` takes."""
    from vaezoo.zoo import registry

    entry = registry.describe(name)
    common.check_dataset(options["dataset"] or entry.dataset)
    for init in (options["init"], options["init_decoder"] or "none"):
        if init != "none":
            registry.find_weights(name if init == "zoo" else init)
    if strategy == "multi_worker" and not local_workers:
        strategies.check_cluster(os.environ.get("TF_CONFIG"))
    if local_workers:
        if strategy != "multi_worker":
            raise click.UsageError("--local-workers goes with --strategy multi_worker.")
        command = [sys.executable, "-m", "vaezoo", "train", name]
        for key, value in (options | {"strategy": strategy}).items():
            if key == "image_shape" and value is not None:
                value = "x".join(map(str, value))
            if value is not None:
                command.append(f"--{key.replace('_', '-')}={value}")
        command += [f"--set={change}" for change in changes]
        command += ["--resume"] * resume + ["--profile"] * profile
        strategies.launch(command, local_workers)
        return
    common.import_tensorflow()
    from vaezoo.training.run import train as run_training

    model = run_training(
        name,
        strategy=strategy,
        resume=resume,
        profile=profile,
        changes=_changes(changes),
        # Elsewhere than on a terminal a line an epoch, without control characters.
        verbose=1 if sys.stdout.isatty() else 2,
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


@click.command()
@click.argument("run")
@click.option("--name", help="Another entry than the one that was trained.")
@click.option(
    "--status",
    type=click.Choice(["begun", "partial", "reproduced"]),
    help="What the weights are, beside the paper's; default: begun if they were, else "
    "partial.",
)
def install(run, name, status):
    """Make the weights of the folder RUN those of the zoo's entry (maintainers).

    They are stored as float16 in the package, with the run's history and recipe; the
    entry's measurements go, as they were of other weights. Measure with `evaluate`.
    """
    common.import_tensorflow()
    from vaezoo.zoo.install import install as install_run

    path = install_run(run, name=name, status=status)
    click.echo(f"Wrote {path.name} and its history into the entry")


@click.command()
@click.argument("experiment", metavar="PAPER/FIGURE")
@click.option("--out", required=True, help="Folder of the runs, table and picture.")
@click.option("--dataset", help="Another dataset than the experiment's.")
@click.option(
    "--epochs", help="Of each run; default: the experiment's.", type=common.COUNT
)
@click.option("--images", help="Test images measured.", type=common.COUNT)
@click.option(
    "--num-importance-samples",
    "-k",
    type=common.COUNT,
    help="K of the bounds; default: the experiment's.",
)
@click.option("--num-seeds", help="Training runs of each model.", type=common.COUNT)
@click.option("--seed", type=int, default=0, help="Of weights, data and noise.")
def reproduce(experiment, out, **options):
    """Run an experiment of a paper again, at a stated budget.

    Trains what the experiment compares, measures it, and writes a table and a
    picture. Interrupted, the same command continues.
    """
    from vaezoo import experiments

    if experiment not in experiments.list_experiments():
        experiments.reproduce(experiment, out=out)  # raises the error that says more
    common.import_tensorflow()
    verbose = 1 if sys.stdout.isatty() else 2
    path = experiments.reproduce(experiment, out=out, verbose=verbose, **options)
    click.echo(path.read_text())
    click.echo(f"Wrote {path}")
