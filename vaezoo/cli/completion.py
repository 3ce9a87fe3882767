"""Completion of commands, options and names in a shell: `completion`."""

import click
from click import shell_completion

_VARIABLE = "_VAEZOO_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx, shell):
    """Print a script that completes `vaezoo` in SHELL, names of models too.

    For bash, put this into ~/.bashrc: eval "$(vaezoo completion bash)"; for zsh the
    same with zsh into ~/.zshrc. For fish: vaezoo completion fish >
    ~/.config/fish/completions/vaezoo.fish
    """
    complete = shell_completion.get_completion_class(shell)
    assert complete is not None  # one of the choices
    script = complete(ctx.find_root().command, {}, "vaezoo", _VARIABLE)
    click.echo(script.source())
