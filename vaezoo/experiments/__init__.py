"""Experiments of the papers, run again at a stated budget: `vaezoo reproduce`.

One module a paper. An experiment is a function of the arguments of `reproduce` that
writes a table and a picture.
"""

import difflib
import importlib
from pathlib import Path

# name -> module and function in it
_EXPERIMENTS = {
    "fame/kl": ("fame", "kl"),
    "fame/masking": ("fame", "masking"),
    "fame/generation": ("fame", "generation"),
    "vlae/priors": ("vlae", "priors"),
    "vlae/window": ("vlae", "window"),
    "vlae/unconditional": ("vlae", "unconditional"),
}


def list_experiments():
    """Names that `reproduce` takes, `PAPER/FIGURE`."""
    return sorted(_EXPERIMENTS)


def reproduce(
    name,
    *,
    out,
    dataset=None,
    epochs=None,
    images=None,
    num_importance_samples=None,
    seed=0,
    verbose="auto",
):
    """Run an experiment of a paper: train what it needs, measure, write it down.

    Writes `<paper>_<figure>.md`, a table with the budget above it, and
    `<paper>_<figure>.png`; the runs are in `runs/`, and a run that is there already,
    whole or in part, is continued, not repeated.

    Cost: a training run for each model that is compared, which is what `epochs`
    decides; none for one that the zoo has weights of, where that is enough.

    Args:
        name: one of `list_experiments`.
        out: folder, made if it is not there.
        dataset: name of a dataset; `None` for the experiment's own.
        epochs: int, of each run; `None` for the experiment's own.
        images: int, test images measured; `None` for the experiment's own number.
        num_importance_samples: int, K of the bound; `None` for the experiment's own.
        seed: int, of weights, data order and noise.
        verbose: as in Keras: "auto", 0, 1 or 2.

    Returns:
        The path of the table.

    Raises:
        ValueError: if there is no such experiment, or an argument breaks its rule.
        OSError: if `out` cannot be written, or the dataset is not there.
    """
    if name not in _EXPERIMENTS:
        near = difflib.get_close_matches(str(name), _EXPERIMENTS, n=2)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(
            f"There is no experiment of this name. Received: name={name!r}. {hint}"
            f"There are: {', '.join(list_experiments())}."
        )
    module, function = _EXPERIMENTS[name]
    experiment = getattr(
        importlib.import_module(f"vaezoo.experiments.{module}"), function
    )
    options = {
        "dataset": dataset,
        "epochs": epochs,
        "images": images,
        "num_importance_samples": num_importance_samples,
    }
    given = {key: value for key, value in options.items() if value is not None}
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    return experiment(out, seed=seed, verbose=verbose, **given)
