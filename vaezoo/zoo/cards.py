"""Markdown made from the zoo: the README's table, and a card for each entry.

`python -m vaezoo.zoo.cards` rewrites both in a checkout. A number of a paper is shown
beside ours, never instead of it.
"""

import math
import sys
from pathlib import Path

from vaezoo import units
from vaezoo.zoo import registry

ROOT = Path(__file__).parents[2]
BEGIN = "<!-- zoo:begin -->"
END = "<!-- zoo:end -->"

_NEGATED = ("elbo", "log_likelihood")  # printed as losses, as papers do
_BOUNDS = (*_NEGATED, "bits_per_dim")


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
    """The card of one entry.

    Args:
        entry: a `vaezoo.zoo.entries.ZooEntry`.

    Returns:
        A str of Markdown.
    """
    arguments = ", ".join(f"{k}={v!r}" for k, v in entry.model.arguments.items())
    weights = "zoo" if entry.weights else None
    parts = [
        f"# {entry.name}",
        f"`{entry.model.class_name}({arguments})`, on `{entry.dataset}`. "
        f"Status: {entry.status}.",
        "```python\nimport vaezoo\n\n"
        f'model = vaezoo.load("{entry.name}"{"" if weights else ", weights=None"})\n'
        "```",
        f"## Results\n\n{_comparison(entry)}",
    ]
    if entry.measured:
        commands = dict.fromkeys(record.command for record in entry.measured)
        parts.append(
            "Measured by\n\n```\n" + "\n".join(commands) + "\n```\n\n"
            "| metric | K | value | images | seed | epochs | commit | date | hardware |"
            "\n|---|---|---|---|---|---|---|---|---|\n"
            + "\n".join(map(_measurement_row, entry.measured))
        )
    parts.append(f"## Training\n\n{_recipes(entry)}")
    if entry.weights:
        info = entry.weights
        place = f"`{info.file}`" if info.file else ", ".join(info.urls)
        parts.append(
            f"## Weights\n\n{place}, {info.bytes / 1e6:.2f} MB, SHA-256 `{info.sha256}`"
        )
    if entry.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in entry.notes))
    return "\n\n".join(parts) + "\n"


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
    """Our bounds among the records, in the unit of the paper's; "-" for none."""
    num_dims = None
    if entry.paper and any(r.metric == "bits_per_dim" for r in entry.paper.results):
        num_dims = math.prod(entry.model.arguments["image_shape"])
    bounds = [record for record in records if record.metric in _BOUNDS]
    return "<br>".join(_result(bound, num_dims) for bound in bounds) or "-"


def _papers_results(entry):
    results = entry.paper.results if entry.paper else []
    return "<br>".join(map(_result, results)) or "-"


def _result(result, num_dims=None):
    """One bound in nats, or in bits/dim where it is or the dimensions are given."""
    value, error = result.value, getattr(result, "standard_error", None)
    in_bits = result.metric == "bits_per_dim"
    if not in_bits and num_dims is not None:
        value = units.bits_per_dim(value, num_dims)
        error = None if error is None else -units.bits_per_dim(error, num_dims)
        in_bits = True
    elif result.metric in _NEGATED:
        value = -value
    text = f"{value:.3f}" if in_bits else f"{value:.2f}"
    if error is not None:
        text += f" ± {error:.2g}"
    text += " bits/dim" if in_bits else " nats"
    how = []
    if result.metric == "elbo":
        how.append("ELBO")
    elif result.num_importance_samples:
        how.append(f"L_{result.num_importance_samples}")
    if hasattr(result, "images"):
        how.append(f"{result.images:,} images")
    bound = "≤ " if result.metric == "elbo" or result.num_importance_samples else ""
    return f"{bound}{text} ({', '.join(how)})" if how else f"{bound}{text}"


def _comparison(entry):
    paper = entry.paper
    if paper is None:
        return "A configuration of ours: no paper reports it. Ours: " + _own_results(
            entry, entry.measured
        )
    where = f"[{paper.title}](https://arxiv.org/abs/{paper.arxiv})"
    if paper.arxiv is None:
        where = paper.title
    ours = _own_results(entry, entry.measured)
    return (
        "Negative log-likelihoods of the "
        f"{entry.evaluation.split} split; lower is better.\n\n"
        f"| measured here | in the paper |\n|---|---|\n"
        f"| {ours} | {_papers_results(entry)} |\n\n"
        f"Paper: {where}, table {paper.table}, {paper.system}."
    )


def _measurement_row(record):
    error = record.standard_error
    cells = [
        record.metric,
        record.num_importance_samples or "",
        f"{record.value:.4g}" + (f" ± {error:.2g}" if error is not None else ""),
        f"{record.images:,} ({record.split})",
        record.seed,
        "" if record.epochs is None else f"{record.epochs:g}",
        record.commit or "",
        record.date,
        record.hardware,
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _recipes(entry):
    training, fine_tune = entry.training.model_dump(), entry.fine_tune.model_dump()
    rows = [
        f"| {key} | {_cell(training[key])} | {_cell(fine_tune[key])} |"
        for key in training
    ]
    return "| | training | fine-tuning |\n|---|---|---|\n" + "\n".join(rows)


def _cell(value):
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    return "-" if value is None else str(value)


if __name__ == "__main__":
    main()
