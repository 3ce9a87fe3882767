"""Bounds with standard errors, KL by latent, active units."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from vaezoo import checks, sampling, terminal, units
from vaezoo.models import batches
from vaezoo.typing import Array

if TYPE_CHECKING:
    from vaezoo.models.vae import VAE

_ACTIVE_VARIANCE = 0.01  # of the posterior's mean over the data (Burda et al., 2016)
_ROWS_TIMED = 128  # decoder rows (images x importance samples) to guess the time from


def evaluate(
    model: VAE,
    dataset: tf.data.Dataset[tf.Tensor] | Array,
    *,
    num_importance_samples: int | None = None,
    images: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    verbose: int | Literal["auto"] = "auto",
) -> dict[str, tuple[float, float]]:
    """Measure a model on a dataset.

    Cost: one pass of encoder and decoder an image for the ELBO, and K of the decoder
    for the importance-weighted bound. The time that it will take is measured on a few
    images and printed beforehand.

    Args:
        model: a `vaezoo.models.vae.VAE`.
        dataset: uint8 images `[n, height, width, channels]`, or (images, ...), or
            {"image": images}; or batches of such: a `tf.data.Dataset`, a loader or a
            generator.
        num_importance_samples: int, K of the bound `L_K`; `None` for the ELBO only.
        images: int. Number of images, from the first; `None` for all.
        seed: int. Image `i` is scored with `row_seeds(seed, n)[i]`.
        batch_size: int. Images scored at once.
        verbose: 0 for silence; 1 for the expected time and lines of progress, with
            the running bound and its standard error; 2 for the expected time only;
            `"auto"` for 1 on a terminal and 0 elsewhere. All on the error stream.

    Returns:
        dict of name to `(value, standard error)` over images, nats: `elbo`,
        `reconstruction`, `kl`, `kl/<latent>`, `log_likelihood` where K is given or the
        model has no latents, `bits_per_dim` of the best of these, and
        `active_units/<latent>`, whose standard error is nan; of a model with an
        auxiliary image y `auxiliary`, `-log p(y | z)` in nats, and
        `auxiliary_bits_per_dim`, of y's bound with the same KL; and the model's
        `estimates`, which are one for all images: an error of log Z is one of every
        image's bound, which the bound's own standard error does not hold.

    Raises:
        ValueError: if a count is not positive or there is no image.
    """
    images = checks.integer("images", images, optional=True)
    batch_size = checks.integer("batch_size", batch_size)
    num_importance_samples = checks.integer(
        "num_importance_samples", num_importance_samples, optional=True
    )
    data = _collect(dataset, images)
    model.before_evaluation()
    seeds = sampling.row_seeds(seed, len(data))
    if not model.latent_shapes:
        num_importance_samples = num_importance_samples or 1
    if verbose == "auto":
        verbose = 1 if sys.stderr.isatty() else 0
    if verbose:
        _announce(model, data, seeds, num_importance_samples, batch_size)
    progress = terminal.Progress(len(data)) if verbose == 1 else None
    rows = {}
    for first in range(0, len(data), batch_size):
        batch = slice(first, first + batch_size)
        part = _score(model, data[batch], seeds[batch], num_importance_samples)
        for name, values in part.items():
            rows.setdefault(name, []).append(values)
        if progress:
            progress.update(min(first + batch_size, len(data)), _running(rows))
    rows = {name: np.concatenate(parts) for name, parts in rows.items()}
    return _summary(model, rows) | model.estimates()


def table(model, results, num_importance_samples):
    """What `evaluate` found, as lines of text.

    Args:
        model: the model measured.
        results: dict as `evaluate` returns.
        num_importance_samples: int, K of the bound; `None` without.

    Returns:
        A str, a line a figure: nats, their standard error, bits/dim of the bounds.
    """
    lines = [f"{'':<24}{'nats':>12}{'std. error':>12}{'bits/dim':>12}"]
    for name, (value, error) in results.items():
        if name == "bits_per_dim":
            continue
        if name == "auxiliary_bits_per_dim":
            lines.append(f"{name:<24}{'':>12}{'':>12}{value:>12.4f}")
            continue
        if name.startswith("active_units/"):
            size = math.prod(model.latent_shapes[name.partition("/")[2]])
            lines.append(f"{name:<24}{value:>12.0f} of {size}")
            continue
        bits = ""
        if name in ("elbo", "log_likelihood"):
            bits = f"{units.bits_per_dim(value, model.num_dims):>12.4f}"
        if name == "log_likelihood" and model.latent_shapes:
            name = f"log_likelihood (L_{num_importance_samples})"
        shown = "" if math.isnan(error) else f"{error:.3f}"
        lines.append(f"{name:<24}{value:>12.3f}{shown:>12}{bits}".rstrip())
    return "\n".join(lines)


def receptive_field(model: VAE, *, seed: int = 0) -> npt.NDArray[np.bool_]:
    """The pixels that the decoder sees directly when it scores one pixel.

    Probed by gradient on 8 random images: what the parameters of the middle pixel of
    the bottom row depend on, given the latents. Where the context is wider than the
    image, it is cut off. Cost: one pass of the decoder and its gradient.

    Args:
        model: a `vaezoo.models.vae.VAE`.
        seed: int, of the images and the latents.

    Returns:
        bool `[height, width]`, in the coordinates of the image; its sum is the number
        of pixels. All false for a decoder whose pixels are independent.
    """
    num = 8
    generator = np.random.default_rng(seed)
    shape = (num, *model.image_shape)
    images = tf.constant(generator.integers(0, model.levels, shape), tf.float32)
    seeds = tf.constant(sampling.row_seeds(seed, num))
    values, _ = model.generate(seeds, temperature=tf.ones([num]))
    likelihood = model.likelihood(values, seeds=seeds)
    with tf.GradientTape() as tape:
        tape.watch(images)
        params = likelihood.params(images)[:, -1, model.image_shape[1] // 2]
        probe = tf.reduce_sum(params * generator.normal(size=params.numpy().shape))
    zero = tf.UnconnectedGradients.ZERO
    gradient = tape.gradient(probe, images, unconnected_gradients=zero)
    return tf.reduce_any(gradient != 0, axis=(0, 3)).numpy()


def _collect(data, limit):
    """The first images of data, an array `[n, height, width, channels]`."""
    if isinstance(data, dict | tuple):
        data = batches.images_in(data)
    if isinstance(data, list) or hasattr(data, "shape"):
        images = np.asarray(data)
    else:
        images = batches.first_images(data, limit)
    if images.ndim == 0 or len(images) == 0:
        raise ValueError(
            "A model is evaluated on at least one image. Received: none, of a "
            f"{type(data).__name__}. Pass images, or batches of them."
        )
    return images[:limit]


def _score(model, batch, seeds, num_importance_samples):
    part = dict(model.elbo_terms(batch, seed=seeds))
    if num_importance_samples is not None:
        part["log_likelihood"] = model.log_likelihood(
            batch, num_importance_samples=num_importance_samples, seed=seeds
        )
    if model.latent_shapes:
        means = model.encode(batch, seed=seeds, mode="mean")
        part |= {f"mean/{name}": value for name, value in means.items()}
    return {name: np.asarray(value, np.float64) for name, value in part.items()}


def _announce(model, data, seeds, num_importance_samples, batch_size):
    """Print how long it will take, from the second run over a few images."""
    few = slice(
        0, max(1, min(batch_size, _ROWS_TIMED // (num_importance_samples or 1)))
    )
    _score(model, data[few], seeds[few], num_importance_samples)  # compiles
    start = time.perf_counter()
    _score(model, data[few], seeds[few], num_importance_samples)
    seconds = (time.perf_counter() - start) * len(data) / len(data[few])
    print(
        f"About {terminal.duration(seconds)} for {len(data):,} images, "
        f"measured on {len(data[few])}",
        file=sys.stderr,
    )


def _running(rows):
    """The bound of the images so far."""
    name = "log_likelihood" if "log_likelihood" in rows else "elbo"
    value, error = _mean(np.concatenate(rows[name]))
    return f"{name} {value:.3f} +- {error:.3f}"


def _mean(values):
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def _summary(model, rows):
    means = {k: rows.pop(k) for k in list(rows) if k.startswith("mean/")}
    results = {name: _mean(values) for name, values in rows.items()}
    value, error = results.get("log_likelihood", results["elbo"])
    results["bits_per_dim"] = (
        units.bits_per_dim(value, model.num_dims),
        -units.bits_per_dim(error, model.num_dims),
    )
    if "auxiliary" in rows:
        bits = units.bits_per_dim(
            -(rows["auxiliary"] + rows["kl"]), model.num_auxiliary_dims
        )
        results["auxiliary_bits_per_dim"] = _mean(bits)
    for name, values in means.items():
        variances = values.reshape(len(values), -1).var(axis=0)
        active = int(np.sum(variances > _ACTIVE_VARIANCE))
        results[name.replace("mean/", "active_units/")] = (float(active), math.nan)
    return results
