"""Markdown made from the zoo: the README's table, and a card for each entry.

`python -m vaezoo.zoo.cards` rewrites both in a checkout. A number of a paper is shown
beside ours, never instead of it.
"""

import math
import re
import sys
from pathlib import Path

from vaezoo import datasets, units
from vaezoo.zoo import registry, runs
from vaezoo.zoo.entries import STATUSES

ROOT = Path(__file__).parents[2]
BEGIN = "<!-- zoo:begin -->"
END = "<!-- zoo:end -->"

_NEGATED = ("elbo", "log_likelihood")  # printed as losses, as papers do
_BOUNDS = (*_NEGATED, "bits_per_dim")
_OF_THE_WEIGHTS = ("log_z", "log_z_reverse")  # and of no images


def markdown_table(entries):
    """The README's table of the zoo.

    Args:
        entries: a list of `vaezoo.zoo.entries.ZooEntry`.

    Returns:
        A str of Markdown, a row an entry.
    """
    lines = [
        "| name | dataset | measured here | in the paper | status |",
        "|---|---|---|---|---|",
    ]
    for entry in entries:
        cells = [
            f"[`{entry.name}`](docs/cards/{entry.name}.md)",
            f"`{entry.dataset}`",
            bounds(entry),
            _papers_results(entry),
            entry.status,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def bounds(entry):
    """An entry's own bounds on its evaluation split, as Markdown; "-" for none."""
    return _own_results(
        entry,
        [record for record in entry.measured if record.split == entry.evaluation.split],
    )


def card(entry):
    """The card of one entry; that of a run says where it is and how far.

    Args:
        entry: a `vaezoo.zoo.entries.ZooEntry`.

    Returns:
        A str of Markdown.
    """
    run = runs.of_entry(entry)
    if run is not None:
        return _run_card(run)
    weights = "zoo" if entry.weights else None
    parts = [
        f"# {entry.name}",
        f"{_model(entry)}. Status: {entry.status}, {STATUSES[entry.status]}.",
        "```python\nimport vaezoo\n\n"
        f'model = vaezoo.load("{entry.name}"{"" if weights else ", weights=None"})\n'
        "```",
        f"## Results\n\n{_comparison(entry)}",
    ]
    if entry.measured:
        commands = dict.fromkeys(record.command for record in entry.measured)
        parts.append(
            "Measured by\n\n```\n" + "\n".join(commands) + "\n```\n\n"
            "| metric | K | value | images | seed | commit | date | hardware |\n"
            "|---|---|---|---|---|---|---|---|\n"
            + "\n".join(
                _measurement_row(entry, record)
                for record in entry.measured
                if record.metric not in _OF_THE_WEIGHTS
            )
            + _log_z(entry)
        )
    parts.append(f"## Training\n\n{_recipes(entry)}")
    if entry.weights:
        parts.append(f"## Weights\n\n{_weights(entry.weights)}\n\n{_history(entry)}")
    parts.append(f"## Origin and licence\n\n{_origin(entry)}")
    if entry.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in entry.notes))
    return "\n\n".join(parts) + "\n"


def _run_card(run):
    """Where a run is, how far it is, its last bounds and its recipe."""
    entry = run.entry
    parts = [
        f"# {run.folder}",
        f"A run of `{entry.name}`: {_model(entry)}.",
        run.unfinished or f"The run has ended ({run.how_far}).",
    ]
    if run.last_epoch:
        epoch = run.last_epoch["epoch"]
        logged = [(k, v) for k, v in run.last_epoch.items() if k != "epoch"]
        parts.append(
            f"## Last bounds\n\nOf epoch {epoch} in `{runs.LOG_FILE}`, counted from 0; "
            "nats, `val_` on the validation split.\n\n| | |\n|---|---|\n"
            + "\n".join(f"| {key} | {_number(value)} |" for key, value in logged)
        )
    if entry.measured:
        parts.append(f"## Results\n\n{_comparison(entry)}")
    parts.append(f"## Training\n\n{_recipes(entry)}")
    if entry.history:
        parts.append(f"## History\n\n{_history(entry)}")
    if entry.weights:
        parts.append(f"## Weights\n\n{_weights(entry.weights)}")
    return "\n\n".join(parts) + "\n"


def _number(text):
    try:
        return f"{float(text):.6g}"
    except ValueError:
        return text


def _model(entry):
    arguments = ", ".join(f"{k}={v!r}" for k, v in entry.model.arguments.items())
    return f"`{entry.model.class_name}({arguments})`, on `{entry.dataset}`"


def _weights(info):
    place = f"`{info.file}`" if info.file else ", ".join(info.urls)
    return f"{place}, {info.bytes / 1e6:.2f} MB, SHA-256 `{info.sha256}`"


def readme_with_table(text, entries):
    """A README with the table between its two markers made anew.

    Raises:
        ValueError: if the markers are not there, once each.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(
            f"The README must have one {BEGIN} and one {END}. Received: "
            f"{text.count(BEGIN)} and {text.count(END)}."
        )
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{markdown_table(entries)}{END}{after}"


def main():
    """Rewrite the README's table and docs/cards/."""
    readme = ROOT / "README.md"
    if not readme.is_file():
        sys.exit(f"The cards are written in a checkout of vaezoo; {readme} is missing.")
    entries = [registry.describe(name) for name in registry.list_models()]
    text = readme.read_text(encoding="utf-8")
    readme.write_text(readme_with_table(text, entries), encoding="utf-8")
    folder = ROOT / "docs" / "cards"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    for entry in entries:
        (folder / f"{entry.name}.md").write_text(card(entry), encoding="utf-8")


def _own_results(entry, records):
    """Our bounds among the records, in the unit of the paper's; "-" for none.

    Those of most images come first. A bound L_K stands with the ELBO of its images,
    as a subset may be easier than the whole.
    """
    elbos = {_images(r): r for r in records if r.metric == "elbo"}
    tighter = [r for r in records if r.metric in _BOUNDS and r.metric != "elbo"]
    of_fewer = {_images(r) for r in tighter} - {
        max(map(_images, records), default=None)
    }
    shown = [r for key, r in elbos.items() if key not in of_fewer] + tighter
    num_dims = _dims_of_bits(entry)
    return (
        "<br>".join(
            _result(
                record,
                num_dims,
                elbo=elbos.get(key) if key in of_fewer else None,
            )
            for record in sorted(shown, key=lambda r: -r.images)
            for key in [_images(record)]
        )
        or "-"
    )


def _images(record):
    """What was measured: records of equal keys are of the very same images."""
    return record.images, record.split, record.seed


def _dims_of_bits(entry):
    """The dimensions, where bounds are in bits a dimension; else `None`.

    So they are where the paper's are, and of images in colour that no paper reports.
    """
    results = entry.paper.results if entry.paper else []
    shape = entry.model.arguments["image_shape"]
    in_bits = any(result.metric == "bits_per_dim" for result in results)
    return math.prod(shape) if in_bits or (not results and shape[2] == 3) else None


def _papers_results(entry):
    results = entry.paper.results if entry.paper else []
    return "<br>".join(map(_result, results)) or "-"


def _result(result, num_dims=None, *, elbo=None):
    """One bound in nats, or in bits/dim where it is or the dimensions are given."""
    text, unit = _loss(result, num_dims)
    how = []
    if result.metric == "elbo":
        how.append("ELBO")
    elif result.num_importance_samples:
        how.append(f"L_{result.num_importance_samples}")
    if hasattr(result, "images"):
        how.append(f"{result.images:,} images")
    shown = ", ".join(how)
    if elbo is not None:
        shown += f"; ELBO there {_loss(elbo, num_dims)[0].split(' ±')[0]}"
    bound = "≤ " if result.metric == "elbo" or result.num_importance_samples else ""
    return f"{bound}{text} {unit} ({shown})" if shown else f"{bound}{text} {unit}"


def _loss(result, num_dims):
    """A figure as papers print it, lower is better, and its unit."""
    value, error = result.value, getattr(result, "standard_error", None)
    in_bits = result.metric == "bits_per_dim"
    if not in_bits and num_dims is not None:
        value = units.bits_per_dim(value, num_dims)
        error = None if error is None else -units.bits_per_dim(error, num_dims)
        in_bits = True
        if result.metric not in _NEGATED:
            value = -value
    elif result.metric in _NEGATED:
        value = -value
    text = f"{value:.3f}" if in_bits else f"{value:.2f}"
    if error is not None:
        text += f" ± {error:.2g}"
    return text, "bits/dim" if in_bits else "nats"


def _comparison(entry):
    paper = entry.paper
    if paper is None:
        return "A configuration of ours: no paper reports it. Ours: " + _own_results(
            entry, entry.measured
        )
    where = f"[{paper.title}](https://arxiv.org/abs/{paper.arxiv})"
    if paper.arxiv is None:
        where = paper.title
    place = f"table {paper.table}" if paper.table[0].isdigit() else paper.table
    ours = _own_results(entry, entry.measured)
    return (
        "Negative log-likelihoods of the "
        f"{entry.evaluation.split} split; lower is better.\n\n"
        f"| measured here | in the paper |\n|---|---|\n"
        f"| {ours} | {_papers_results(entry)} |\n\n"
        f"Paper: {where}, {place}, {paper.system}."
    )


def _measurement_row(entry, record):
    text, unit = _loss(record, _dims_of_bits(entry))
    sign = "-" if record.metric in _NEGATED else ""
    cells = [
        f"{sign}{record.metric}",
        record.num_importance_samples or "",
        f"{text} {unit}",
        f"{record.images:,} ({record.split})",
        record.seed,
        record.commit or "",
        record.date,
        record.hardware,
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _log_z(entry):
    """What the prior's log Z was last found to be, a paragraph; else nothing."""
    found = {record.metric: record for record in entry.measured}
    if not found.keys() >= set(_OF_THE_WEIGHTS):
        return ""
    low, high = (found[metric] for metric in _OF_THE_WEIGHTS)
    error = "" if low.standard_error is None else f" ± {low.standard_error:.2g}"
    return (
        f"\n\nlog Z of the prior between {low.value:.2f}{error} (forward annealing, of "
        f"which the figures are) and {high.value:.2f} (reverse) nats, a bracket of "
        f"{high.value - low.value:.2f}. Its error is one of every image's figure, and "
        "no part of the standard errors above."
    )


def _history(entry):
    """How the weights were made, as the runs recorded it."""
    if not entry.history:
        return (
            "Recipe not recorded: these weights are older than the record that a run "
            "keeps of itself, and no command here makes them again."
        )
    commands = [record.command for record in entry.history]
    out = re.search(r"--out[ =](\S+)", commands[-1])
    if out:
        commands.append(f"vaezoo install {out[1]}")
    lines = [
        "| run | phase | mode | steps | epochs | images | crop | wall time | "
        "validation -ELBO |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for number, record in enumerate(entry.history, start=1):
        for phase in record.phases:
            cells = [
                number,
                phase.name,
                phase.mode,
                f"{phase.steps:,}",
                f"{phase.epochs:g}",
                f"{phase.images:,}",
                phase.crop_size or "-",
                f"{phase.seconds / 60:.1f} min",
                _curve(phase.validation),
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    made = "; ".join(
        f"run {number}: commit {record.commit or 'unknown'}, {record.date}, "
        f"{record.hardware}, {_began(record)}"
        for number, record in enumerate(entry.history, start=1)
    )
    return (
        "Made by\n\n```\n" + "\n".join(commands) + "\n```\n\n"
        f"{made}.{_made_before(entry)}\n\n" + "\n".join(lines)
    )


def _began(record):
    """The weights that a run started from, in words."""

    def named(start):
        return f"{start.name} (SHA-256 `{start.sha256[:8]}...`)"

    if record.init is None:
        return "from scratch"
    if record.init_decoder is None:
        return f"from {named(record.init)}"
    return f"from {named(record.init)} with the decoder of {named(record.init_decoder)}"


def _made_before(entry):
    """Where the weights that an entry's first run started from come from."""
    start = entry.history[0].init
    if start is None:
        return ""
    if start.name == entry.name or start.name not in registry.list_models():
        return (
            " How the weights that the first run started from were made is not "
            "recorded, so the commands do not make the file from nothing."
        )
    other = registry.find_entry(start.name)
    known = [other.weights, *(record.init for record in other.history[1:])]
    card = f"[{start.name}]({start.name}.md)"
    if start.sha256 in {file.sha256 for file in known if file is not None}:
        return f" {card} says how what the first run started from was made."
    return f" The first run started from other weights of {card} than those that ship."


def _origin(entry):
    """Whose the weights and the images are, and under which licence."""
    weights = ""
    if entry.weights:
        weights = (
            "The weights were trained for vaezoo from these images alone, and have the "
            "licence of its code, Apache-2.0. "
        )
    if entry.dataset.startswith("image_folder:"):
        return f"{weights}Images: files of the user's."
    return f"{weights}Images: {datasets.info(entry.dataset).origin}"


def _curve(points):
    """First, best and last of a validation curve, in nats."""
    if not points:
        return "-"
    losses = [-point.elbo for point in points]
    if len(losses) < 3:
        return " → ".join(f"{loss:.2f}" for loss in losses)
    return f"{losses[0]:.2f} → {losses[-1]:.2f} (best {min(losses):.2f})"


def _recipes(entry):
    """The recipes side by side; keys that all of them leave at its default are out."""
    phases = entry.phases
    names = ["training"] if len(phases) == 1 else [recipe.name for recipe in phases]
    recipes = [recipe.model_dump() for recipe in (*phases, entry.fine_tune)]
    defaults = {
        key: field.default for key, field in type(phases[0]).model_fields.items()
    }
    defaults["learning_rate_decay"] = defaults["learning_rate_decay"].model_dump()
    rows = [
        f"| {key} | {' | '.join(_cell(recipe[key]) for recipe in recipes)} |"
        for key in defaults
        if key != "name" and any(recipe[key] != defaults[key] for recipe in recipes)
    ]
    header = ["", *names, "fine-tuning"]
    return f"| {' | '.join(header)} |\n|{'---|' * len(header)}\n" + "\n".join(rows)


def _cell(value):
    if isinstance(value, dict):
        given = {key: item for key, item in value.items() if item is not None}
        return ", ".join(f"{key} {_cell(item)}" for key, item in given.items()) or "-"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    main()
