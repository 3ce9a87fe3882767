"""What the commands share: errors in one message, options, TensorFlow made quiet."""

import codecs
import contextlib
import errno
import io
import json
import os
import sys
import warnings

import click
from click.shell_completion import CompletionItem

from vaezoo import checks, plots, quiet
from vaezoo.files import local_path

COUNT = click.IntRange(min=1)


@contextlib.contextmanager
def clear_errors():
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


_ASCII = {"\N{LESS-THAN OR EQUAL TO}": "<=", "\N{RIGHTWARDS ARROW}": "->"}
_ASCII |= {"\N{PLUS-MINUS SIGN}": "+-"}


def _nearest(error):
    """What is written for characters that a terminal's encoding does not have."""
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(character, "?") for character in text), error.end


codecs.register_error("vaezoo.nearest", _nearest)


class Group(click.Group):
    """Commands whose errors and warnings are messages, without a traceback."""

    def invoke(self, ctx):
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="vaezoo.nearest")
        with warnings.catch_warnings(), clear_errors():
            warnings.showwarning = _show_warning
            return super().invoke(ctx)


def import_tensorflow():
    """Import TensorFlow without its messages, unless the user wants all of them."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if "tensorflow" in sys.modules or "keras" in sys.modules:
        quiet.import_tensorflow()
        return
    # TensorFlow loads Keras if it is there, half of its own time; a kept program does
    # without, and everything else loads it when it needs it.
    sys.modules["keras"] = None  # type: ignore[assignment]
    try:
        quiet.import_tensorflow()
    finally:
        del sys.modules["keras"]


def open_programs(name):
    """The `Programs` of a model with weights, and TensorFlow imported for them."""
    from vaezoo.serving.programs import Programs

    programs = Programs(name, announce=note)
    programs.keep_compiled()
    import_tensorflow()
    return programs


def note(text):
    """Tell the user, on the error stream."""
    click.echo(text, err=True)


def check_writable(output):
    """Refuse a picture that cannot be written before anything slow happens."""
    plots.picture_format(output)
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


def check_dataset(dataset, split=None):
    """Refuse a dataset or a split that there is not, without reading an image."""
    from vaezoo import datasets

    if not dataset.startswith("image_folder:"):  # a folder is opened later
        info = datasets.info(dataset)
        if split is not None:
            datasets.check_split(info, split)


def dataset_options(dataset, *, image_shape, levels):
    """What an image folder has to be read as, for a model."""
    if not dataset.startswith("image_folder:"):
        return {}
    *size, channels = image_shape
    return {"size": size, "channels": channels, "levels": levels}


def _names_and_folders(ctx, param, incomplete):
    """What NAME may be, for the shell."""
    from vaezoo.zoo import registry

    names = [name for name in registry.list_models() if name.startswith(incomplete)]
    if names:
        return [CompletionItem(name) for name in names]
    return [CompletionItem(incomplete, type="dir")]


def echo_json(content):
    """Print what a program reads: JSON, with null for what is no number."""
    click.echo(json.dumps(content, indent=2, allow_nan=False))


class _ImageShape(click.ParamType):
    """HEIGHTxWIDTHxCHANNELS, as 28x28x1."""

    name = "HxWxC"

    def convert(self, value, param, ctx):
        try:
            return checks.image_shape([int(size) for size in value.split("x")])
        except ValueError:
            self.fail(f"{value!r} is not HEIGHTxWIDTHxCHANNELS, as 28x28x1.", param)


image_shape_option = click.option(
    "--image-shape",
    type=_ImageShape(),
    help="Build the model for images of another size than the entry's, as 64x64x1.",
)


def _parsed(ctx, param, texts):
    """NAME=NUMBER, each, as a dict; the model knows which it has, and their rule."""
    options = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            options[name] = int(number)
        except ValueError:
            raise click.BadParameter(
                f"{text!r} is not NAME=NUMBER, as num_gibbs_updates=50000."
            ) from None
    return options


sampling_options = click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=NUMBER",
    callback=_parsed,
    help="An option of the model's sampling, as num_gibbs_updates=50000. Repeatable.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, for programs."
)
name_argument = click.argument("name", shell_complete=_names_and_folders)
