"""Experiments of "Feature Map Variational Auto-Encoders", section 3.

They look at trained models: the zoo's weights where there are any, or else a run at
the budget that the table states.
"""

import statistics
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from vaezoo import evaluation, plots, sampling
from vaezoo.experiments.comparison import cell, of_the_zoo, test_images, write
from vaezoo.training.run import train
from vaezoo.zoo import registry

_ENTRY = "fame_mnist_dynamic"
_ONE_PASS = "fame_noconcat_mnist_dynamic"
_EPOCHS = 2  # of a run, where the zoo has no weights
_REPEATS = 9  # of a sampling, whose median time is shown
# Section 3.1, nats.
_PAPERS_KL = {
    (_ENTRY, "z5"): "5.04",
    (_ENTRY, "all"): "10.85",
    (_ONE_PASS, "all"): "12.29",
}


def kl(out, *, seed, verbose, dataset=None, epochs=None, images=500):
    """KL of each latent (section 3.1): is the ladder alive?

    The paper has 10.85 nats in all on dynamic MNIST, 5.04 of them in z5, and 12.29
    without concatenation.
    """
    rows, notes, heights, labels = [], [], [], []
    for entry in (_ENTRY, _ONE_PASS):
        model, note, dataset_name = _trained(
            entry, out, dataset=dataset, epochs=epochs, seed=seed, verbose=verbose
        )
        notes.append(note)
        data = test_images(dataset_name, images)
        results = evaluation.evaluate(model, data, seed=seed, verbose=0)
        total = results["kl"][0]
        for latent in model.latent_shapes:
            value, error = results[f"kl/{latent}"]
            rows.append(
                [
                    entry,
                    latent,
                    f"{value:.3f} ± {error:.3f}",
                    f"{value / total:.0%}",
                    _PAPERS_KL.get((entry, latent), "-"),
                ]
            )
            heights.append(value)
            labels.append(f"{entry} {latent}")
        value, error = results["kl"]
        paper = _PAPERS_KL.get((entry, "all"), "-")
        rows.append([entry, "all", f"{value:.3f} ± {error:.3f}", "100%", paper])
    text = (
        f"{' '.join(notes)} Means over the first {len(data):,} test images, with "
        "standard errors over images. The paper's figures are of dynamic MNIST."
    )
    header = ["model", "latent", "KL, nats", "share", "in the paper"]
    picture = plots.bars(heights, labels=labels, axis="KL, nats an image")
    return write(out, "FAME KL", text, header, rows, picture)


def masking(out, *, seed, verbose, dataset=None, epochs=None, images=500):
    """What comes from z and what from the image (figure 5).

    Probabilities of one teacher-forced pass of the PixelCNN with both inputs, with the
    maps of z set to 0, and with the image set to 0; the model is not trained anew.
    """
    model, note, dataset_name = _trained(
        _ENTRY, out, dataset=dataset, epochs=epochs, seed=seed, verbose=verbose
    )
    data = test_images(dataset_name, images)
    seeds = sampling.fold_in(sampling.row_seeds(seed, len(data)), 0)  # as the ELBO's
    nats, pictures = {}, {}
    for first in range(0, len(data), 50):
        batch = tf.constant(data[first : first + 50])
        features = model.features(batch)
        _, maps = model.infer(features, seeds=seeds[first : first + 50])
        seen = model.head.normalize(tf.cast(batch, tf.float32))
        inputs = {
            "image and z": (seen, maps),
            "image alone": (seen, tf.zeros_like(maps)),
            "z alone": (tf.zeros_like(seen), maps),
        }
        for name, (x, conditioning) in inputs.items():
            logits = tf.cast(model.pixelcnn(x, maps=conditioning), tf.float32)
            log_probs = model.head.log_prob(logits, tf.cast(batch, tf.float32))
            part = tf.reduce_sum(tf.reshape(log_probs, [len(batch), -1]), axis=1)
            nats.setdefault(name, []).append(part.numpy())
            pictures.setdefault(
                name, np.uint8(np.round(255 * tf.sigmoid(logits[:10]).numpy()))
            )
    losses = {name: -np.float64(np.concatenate(parts)) for name, parts in nats.items()}
    rows = []
    for name, values in losses.items():
        cells = [name, cell(values)]
        paired = values - losses["image and z"]
        rows.append([*cells, "-" if not paired.any() else cell(paired)])
    picture = plots.image_grid(
        np.concatenate([data[:10] * np.uint8(255), *pictures.values()]),
        columns=len(data[:10]),
        labels=["test images", *pictures],
    )
    text = (
        f"{note} Over the first {len(data):,} test images, with standard errors; "
        "differences are of the same image and the same draw of z. The picture shows "
        "probabilities of the pixels, not samples. The paper shows pictures (figure 5) "
        "and no figures."
    )
    header = [
        "inputs of the PixelCNN",
        "-log p of the pixels, nats",
        "more than with both",
    ]
    return write(out, "FAME masking", text, header, rows, picture)


def generation(out, *, seed, verbose, dataset=None, epochs=None):
    """One pass (No Concatenation) against the pixel scan: pictures and time."""
    rows, pictures, notes = [], [], []
    for name in (_ENTRY, _ONE_PASS):
        model, note, _ = _trained(
            name, out, dataset=dataset, epochs=epochs, seed=seed, verbose=verbose
        )
        notes.append(note)
        for num in (1, 16, 64):
            images = model.sample(num, seed=seed)  # compiles
            seconds = []
            for repeat in range(_REPEATS):
                start = time.perf_counter()
                images = model.sample(num, seed=seed + repeat).numpy()
                seconds.append(time.perf_counter() - start)
            median = statistics.median(seconds)
            rows.append(
                [
                    name,
                    num,
                    f"{median:.4f}",
                    f"{min(seconds):.4f} to {max(seconds):.4f}",
                    f"{median / num:.5f}",
                ]
            )
        pictures.append(images[:32])
    picture = plots.image_grid(
        np.concatenate(pictures),
        columns=16,
        levels=2,
        labels=[_ENTRY, "", _ONE_PASS, ""],
    )
    text = (
        f"{' '.join(notes)} Seconds of `model.sample`, the median of {_REPEATS} calls "
        "and their range. The paper says that one pass is enough without "
        "concatenation, and gives no times."
    )
    header = ["model", "images", "seconds", "range", "seconds an image"]
    return write(out, "FAME generation", text, header, rows, picture)


def _trained(name, out, *, dataset, epochs, seed, verbose):
    """The zoo's model if it has weights, else one trained here; how; its dataset."""
    entry = registry.describe(name)
    if entry.weights is not None and dataset is None and epochs is None:
        return *of_the_zoo(entry), entry.dataset
    dataset, epochs = dataset or entry.dataset, epochs or _EPOCHS
    model = train(
        entry.model_copy(update={"weights": None, "measured": []}),
        out=Path(out) / "runs" / dataset / name / f"seed_{seed}",
        dataset=dataset,
        epochs=epochs,
        seed=seed,
        resume=True,
        verbose=verbose,
    )
    note = f"`{name}`, trained for {epochs} epochs of `{dataset}` with seed {seed}."
    return model, note, dataset
