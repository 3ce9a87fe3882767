"""Experiments of "PixelVAE: A Latent Variable Model for Natural Images", section 4.

The paper shows curves and pictures and gives no sizes. These are runs of a small size,
whose budget the tables state; `resampling` looks at the zoo's weights where there are
any. LSUN and ImageNet are too large for two cores: sections 4.2 and 4.3 are of CIFAR-10
here.
"""

import numpy as np

from vaezoo import plots, sampling
from vaezoo.experiments.comparison import (
    Variant,
    base_entry,
    budget,
    cell,
    changes,
    compare,
    measure,
    num_parameters,
    of_the_zoo,
    receptive_field,
    short_recipe,
    test_images,
    train_variant,
    train_variants,
    write,
)
from vaezoo.zoo import registry

_ENTRY = "gated_pixelvae_mnist_static"
# Section 4.1: one layer sees pixels at most 2 away, so that the first is 5x5 too.
_SIZE = {"filters": 16, "first_kernel_size": 5}
_BUDGET = {
    "dataset": "mnist_static",
    "epochs": 4,
    "images": 500,
    "num_importance_samples": 16,
    "num_seeds": 1,
}
_LAYERS = (0, 1, 2, 4, 8)
_HIERARCHICAL = "pixelvae2_cifar10_small"
# Of its runs, on two cores.
_HIERARCHICAL_SIZE = {
    "widths": [32, 32, 48, 64],
    "z1_channels": 8,
    "z2_size": 32,
    "pixel_filters": 32,
    "num_blocks": 2,
    "prior_filters": 32,
}
_RESAMPLED = 8  # images of a row of the picture


def layers(out, *, seed, verbose, **options):
    """NLL, KL and reconstruction against the number of PixelCNN layers (figures 4, 5).

    With latents and without: the paper finds that the KL falls sharply with the first
    layer, that the bound gains most by it, and that with few layers PixelVAE is much
    better than a PixelCNN of as many.
    """
    options = _BUDGET | options
    dataset, epochs = options["dataset"], options["epochs"]
    num_samples = options["num_importance_samples"]
    recipe = _recipe(dataset, epochs)
    entry = base_entry(_ENTRY, _SIZE, recipe)
    data = test_images(dataset, options["images"])
    seeds = range(seed, seed + options["num_seeds"])

    def trained(variant):
        models = train_variants(
            entry,
            variant,
            out=out,
            dataset=dataset,
            epochs=epochs,
            seeds=seeds,
            verbose=verbose,
        )
        return models[0], measure(models, data, num_samples, seed)

    rows, bars, labels = [], [], []
    for num_layers in _LAYERS:
        model, of_vae = trained(Variant({"num_layers": num_layers}))
        reconstruction = -of_vae["elbo"] - of_vae["kl"]
        rows.append(
            [
                num_layers,
                receptive_field(model),
                num_parameters(model),
                cell(-of_vae["elbo"]),
                cell(of_vae["kl"]),
                cell(reconstruction),
                cell(-of_vae["bound"]),
            ]
        )
        bars.append([of_vae["kl"].mean(), reconstruction.mean()])
        labels.append(f"PixelVAE, {num_layers}")
        if num_layers == 0:  # without latents every image would be as likely
            rows[-1] += ["-"] * 3
            continue
        model, alone = trained(Variant({"latent_size": 0, "num_layers": num_layers}))
        rows[-1] += [
            num_parameters(model),
            cell(-alone["bound"]),
            cell(alone["bound"] - of_vae["bound"], sign="+"),
        ]
        bars.append([0, -alone["bound"].mean()])
        labels.append(f"PixelCNN, {num_layers}")
    header = ["PixelCNN layers", "receptive field", "parameters of PixelVAE"]
    header += ["-ELBO, nats", "KL, nats", "reconstruction, nats"]
    header += [f"-L_{num_samples}, nats", "parameters of PixelCNN"]
    header += ["-log p of PixelCNN, nats", f"-L_{num_samples} minus -log p"]
    text = (
        f"{budget(_ENTRY, _SIZE, recipe, dataset, epochs, data, seeds)} PixelCNN is "
        "the decoder alone, without latents. In the picture: KL (dark) and "
        "reconstruction of PixelVAE, and -log p of PixelCNN, by the number of layers. "
        "The paper has curves and no figures: a sharp fall of the KL with the first "
        "layer, and PixelVAE far ahead of PixelCNN where layers are few."
    )
    picture = plots.bars(bars, labels=labels, axis="nats an image: KL, reconstruction")
    return write(out, "PixelVAE layers", text, header, rows, picture)


def decoders(out, **options):
    """Samples of a PixelCNN, a convolutional VAE and PixelVAE (figure 2).

    Of comparable size. The paper finds sharp textures without global meaning in the
    first, blur in the second, and in PixelVAE neither.
    """
    variants = {
        "PixelCNN": Variant(
            {"latent_size": 0, "num_layers": 8, "filters": 32},
            paper={"mnist_static": "GatedPixelCNN 80.1"},
        ),
        "VAE": Variant({"num_layers": 0}, paper={"mnist_static": "-ELBO 87.4"}),
        "PixelVAE": Variant(
            {"num_layers": 4}, paper={"mnist_static": "GatedPixelVAE, -ELBO 80.08"}
        ),
    }
    options = _BUDGET | options
    return compare(
        _ENTRY,
        variants,
        title="PixelVAE decoders",
        out=out,
        arguments=_SIZE,
        recipe=_recipe(options["dataset"], options["epochs"]),
        columns={"receptive field": receptive_field},
        samples=True,
        **options,
    )


def ablations(out, **options):
    """Two levels against one, and without either PixelCNN (section 4.2).

    The paper finds that on LSUN the PixelCNN over z1 matters to the likelihood and not
    to the eye, that the one over the pixels makes details sharp, and that one level has
    good details without global sense.
    """
    paper = {
        "one level": "less global sense",
        "no PixelCNN over z1": "worse likelihood",
        "no PixelCNN over the pixels": "blurred",
    }
    arguments = {
        "two levels": {},
        "one level": {"z1_channels": 0},
        "no PixelCNN over z1": {"higher_level_pixelcnn": False},
        "no PixelCNN over the pixels": {"pixel_level_pixelcnn": False},
    }
    variants = {
        label: Variant(differing, paper={"cifar10": paper.get(label, "-")})
        for label, differing in arguments.items()
    }
    options = _BUDGET | {"dataset": "cifar10", "epochs": 2} | options
    return compare(
        _HIERARCHICAL,
        variants,
        title="PixelVAE ablations",
        out=out,
        arguments=_HIERARCHICAL_SIZE,
        recipe=_recipe(options["dataset"], options["epochs"]),
        samples=True,
        **options,
    )


def resampling(out, *, seed, verbose, epochs=None, images=8):
    """What each level decides: its noise drawn anew, all other noise held (figure 6).

    The paper finds that z2 decides on the whole scene, z1 on the colours and parts
    within it, and the pixels on the details. `images` is the number of held draws.
    """
    model, note = _hierarchical(out, epochs=epochs, seed=seed, verbose=verbose)
    levels = [*model.latent_shapes, "pixels"]
    held = sampling.row_seeds(seed, images)
    rows, pictures, labels = [], [], []
    for level in levels:
        seeds = {name: np.repeat(held, _RESAMPLED) for name in levels}
        seeds[level] = sampling.row_seeds(seed + 1, images * _RESAMPLED)
        drawn = model.sample(images * _RESAMPLED, seed=seeds).numpy()
        drawn = drawn.reshape(images, _RESAMPLED, *model.image_shape)
        # Of neighbours in a row, which differ in the noise of this level alone.
        difference = drawn[:, 1:].astype(float) - drawn[:, :-1]
        distances = np.sqrt((difference**2).mean(axis=(2, 3, 4))).mean(axis=1)
        rows.append([level, cell(distances)])
        shown = min(3, images)
        pictures.append(drawn[:shown].reshape(-1, *model.image_shape))
        labels += [f"{level} anew"] + [""] * (shown - 1)
    picture = plots.image_grid(
        np.concatenate(pictures), columns=_RESAMPLED, labels=labels
    )
    text = (
        f"{note} Images of a row share all noise but that of one level. Root mean "
        "squares of the differences between two of them over pixels, in levels of 256, "
        f"means of {images} rows with standard errors. The paper has a picture."
    )
    header = ["drawn anew", "difference of two images"]
    return write(out, "PixelVAE resampling", text, header, rows, picture)


def _hierarchical(out, *, epochs, seed, verbose):
    """The zoo's model if it has weights, else a small run; and a sentence on it."""
    entry = registry.describe(_HIERARCHICAL)
    if entry.weights is not None and epochs is None:
        return of_the_zoo(entry)
    epochs = epochs or 2
    recipe = _recipe(entry.dataset, epochs)
    model = train_variant(
        base_entry(_HIERARCHICAL, _HIERARCHICAL_SIZE, recipe),
        Variant(),
        out=out,
        dataset=entry.dataset,
        epochs=epochs,
        seed=seed,
        verbose=verbose,
    )
    note = (
        f"`{_HIERARCHICAL}`{changes(_HIERARCHICAL_SIZE, recipe)}, trained for {epochs} "
        f"epochs with seed {seed}."
    )
    return model, note


def _recipe(dataset, epochs):
    """What differs in a recipe for runs of so many epochs.

    The weight of the KL rises for nearly all of the run, from 0: where it rises faster,
    8 layers of PixelCNN have learned to do without the latents before they are in use.
    """
    recipe = short_recipe(
        dataset, epochs, batch_size=32, kl_warmup=0.9, ema_momentum=0.998
    )
    return recipe | {"kl_warmup_start": 0.0}
