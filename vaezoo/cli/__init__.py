"""The command line: one command for each thing that is done with a model."""

import click

import vaezoo
from vaezoo.cli import (
    common,
    completion,
    evaluation,
    export,
    pictures,
    training,
    zoo,
)


@click.group(
    cls=common.Group,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(vaezoo.__version__)
def main():
    """vaezoo: variational autoencoders with autoregressive decoders.

    NAME is a model of `vaezoo list`, or a folder written by `vaezoo train`.
    """


for _command in (
    zoo.list_command,
    zoo.describe,
    pictures.sample,
    pictures.reconstruct,
    pictures.complete,
    pictures.interpolate,
    evaluation.evaluate,
    training.train,
    training.install,
    training.reproduce,
    export.export,
    zoo.cache,
    completion.completion,
):
    main.add_command(_command)
