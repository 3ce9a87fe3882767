"""Experiments of "Feature-Map Variational Auto-Encoders", section 3.

They look at one trained model: the zoo's weights where there are any, or else a run at
the budget that the table states.
"""

import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from vaezoo import datasets, evaluation, plots
from vaezoo.experiments.comparison import write
from vaezoo.models import computations
from vaezoo.training.run import train
from vaezoo.zoo import registry

_ENTRY = "fame_mnist_dynamic"
_ONE_PASS = "fame_noconcat_mnist_dynamic"
_BUDGET = {"epochs": 2, "images": 500, "num_importance_samples": 16}


def kl(out, **options):
    """KL of each latent (section 3.1): does the top of the ladder stay alive?

    The paper has 10.85 nats in all on dynamic MNIST, 5.04 of them in z5.
    """
    options = _BUDGET | options
    model, budget = _trained(_ENTRY, out, options)
    data = datasets.load_dataset(model.zoo_entry.dataset, "test", batch_size=100)
    results = evaluation.evaluate(
        model,
        data,
        images=options["images"],
        num_importance_samples=options["num_importance_samples"],
        seed=options["seed"],
        verbose=0,
    )
    names = [name for name in results if name.startswith("kl/")]
    total = results["kl"][0]
    rows = [
        [name[3:], f"{results[name][0]:.3f}", f"{results[name][0] / total:.0%}"]
        for name in names
    ]
    rows.append(["all", f"{total:.3f}", "100%"])
    bars = plots.bars([results[name][0] for name in names])
    note = f"On {options['images']:,} test images. Bars, from the left: " + ", ".join(
        name[3:] for name in names
    )
    header = ["latent", "KL nats", "share"]
    return write(out, "FAME KL", f"{budget} {note}.", header, rows, bars)


def masking(out, **options):
    """What comes from z and what from the image (figure 5).

    Probabilities of one teacher-forced pass of the PixelCNN with both inputs, with the
    maps of z set to 0, and with the image set to 0; the model is not trained anew.
    """
    options = _BUDGET | options
    model, budget = _trained(_ENTRY, out, options)
    data = datasets.load_dataset(model.zoo_entry.dataset, "test", batch_size=10)
    images = next(iter(data))
    latents, maps = computations.posterior(model, images, tf.range(10, dtype=tf.int64))
    seen = model.head.normalize(tf.cast(images, tf.float32))
    inputs = {
        "both": (seen, maps),
        "z masked": (seen, tf.zeros_like(maps)),
        "x masked": (tf.zeros_like(seen), maps),
    }
    rows, pictures = [], [images.numpy() * 255]
    for name, (x, conditioning) in inputs.items():
        logits = tf.cast(model.pixelcnn(x, maps=conditioning), tf.float32)
        nats = model.head.log_prob(logits, tf.cast(images, tf.float32))
        rows.append([name, f"{-float(tf.reduce_sum(nats)) / len(images):.2f}"])
        pictures.append(np.uint8(np.round(255 * tf.sigmoid(logits).numpy())))
    picture = plots.image_grid(np.concatenate(pictures), columns=len(images))
    text = f"{budget} Rows: test images, then the probabilities of each line below."
    header = ["inputs of the PixelCNN", "-log p of the pixels, nats"]
    return write(out, "FAME masking", text, header, rows, picture)


def generation(out, **options):
    """One pass (No Concatenation) against the pixel scan: pictures and time."""
    options = _BUDGET | options
    rows, pictures, budgets = [], [], []
    for name in (_ENTRY, _ONE_PASS):
        model, budget = _trained(name, out, options)
        budgets.append(budget)
        for num in (1, 16, 64):
            images = model.sample(num, seed=options["seed"])  # compiles
            start = time.perf_counter()
            images = model.sample(num, seed=options["seed"] + 1).numpy()
            seconds = time.perf_counter() - start
            rows.append([name, num, f"{seconds:.4f}", f"{seconds / num:.5f}"])
        pictures.append(images[:32])
    picture = plots.image_grid(np.concatenate(pictures), columns=16, levels=2)
    text = (
        f"{' '.join(budgets)} The upper half is of {_ENTRY}, the lower of {_ONE_PASS}."
    )
    header = ["model", "images", "seconds", "seconds an image"]
    return write(out, "FAME generation", text, header, rows, picture)


def _trained(name, out, options):
    """The zoo's model if it has weights, else one trained here; and how, in words."""
    entry = registry.describe(name)
    if entry.weights is not None and "dataset" not in options:
        return registry.load(name), f"The zoo's weights of `{name}`."
    dataset = options.get("dataset", entry.dataset)
    model = train(
        entry.model_copy(update={"weights": None, "measured": []}),
        out=Path(out) / "runs" / dataset / name,
        dataset=dataset,
        epochs=options["epochs"],
        seed=options["seed"],
        resume=True,
        verbose=options["verbose"],
    )
    budget = f"`{name}` trained for {options['epochs']} epochs of `{dataset}`."
    return model, budget
