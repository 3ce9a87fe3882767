"""Experiments of the papers, run again at a stated budget: `vaezoo reproduce`.

One module a paper. An experiment is a function of the arguments of `reproduce` that
writes a table and a picture.
"""

import difflib
import importlib
import inspect

from vaezoo import checks, files

# name -> module and function in it
_EXPERIMENTS = {
    "agave/auxiliary": ("agave", "auxiliary"),
    "agave/collapse": ("agave", "collapse"),
    "agave/colours": ("agave", "colours"),
    "agave/conditional": ("agave", "conditional"),
    "agave/interpolation": ("agave", "interpolation"),
    "agave/lambda": ("agave", "lambdas"),
    "agave/samples": ("agave", "samples"),
    "fame/kl": ("fame", "kl"),
    "fame/masking": ("fame", "masking"),
    "fame/generation": ("fame", "generation"),
    "pixelvae/ablations": ("pixelvae", "ablations"),
    "pixelvae/decoders": ("pixelvae", "decoders"),
    "pixelvae/layers": ("pixelvae", "layers"),
    "pixelvae/resampling": ("pixelvae", "resampling"),
    "pixelvaepp/conditional": ("pixelvaepp", "conditional"),
    "pixelvaepp/prior": ("pixelvaepp", "prior"),
    "pixelvaepp/mixing": ("pixelvaepp", "mixing"),
    "pixelvaepp/priors": ("pixelvaepp", "priors"),
    "pixelvaepp/groups": ("pixelvaepp", "groups"),
    "pixelvaepp/temperatures": ("pixelvaepp", "temperatures"),
    "vlae/cifar10-windows": ("vlae", "cifar10_windows"),
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
    num_seeds=None,
    seed=0,
    verbose: int | str = "auto",
):
    """Run an experiment of a paper: train what it needs, measure, write it down.

    Writes `<paper>_<figure>.md`, a table with its budget, the command and the commit
    above it and the paper's figures in it, and `<paper>_<figure>.png`; the runs are in
    `runs/`, and a run that is there already, whole or in part, is continued, not
    repeated.

    Cost: a training run for each model that is compared and each seed, which is what
    `epochs` and `num_seeds` decide; none where the experiment looks at models that the
    zoo has weights of, unless `epochs` or `dataset` is given.

    Args:
        name: one of `list_experiments`.
        out: folder, made if it is not there.
        dataset: name of a dataset; `None` for the experiment's own.
        epochs: int, of each run; `None` for the experiment's own.
        images: int, test images measured; `None` for the experiment's own number.
        num_importance_samples: int, K of the bound; `None` for the experiment's own.
        num_seeds: int, training runs of each model, with seeds from `seed` on; `None`
            for the experiment's own number.
        seed: int, of weights, data order and noise.
        verbose: as in Keras: "auto", 0, 1 or 2.

    Returns:
        The path of the table.

    Raises:
        ValueError: if there is no such experiment, or an argument breaks its rule or is
            of no use to the experiment.
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
        "num_seeds": num_seeds,
    }
    given = {key: value for key, value in options.items() if value is not None}
    _check(name, experiment, given)
    out = files.local_path(out, name="out")
    out.mkdir(parents=True, exist_ok=True)
    return experiment(out, seed=seed, verbose=verbose, **given)


def _check(name, experiment, options):
    parameters = inspect.signature(experiment).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option, value in options.items():
        if not takes_all and option not in parameters:
            raise ValueError(
                f"The experiment {name!r} has no `{option}`. Received: "
                f"{option}={value!r}. Leave it out."
            )
        if option != "dataset":
            checks.integer(option, value)
